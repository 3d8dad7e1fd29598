"""`sidecar demo` itself: the one command of the README, on the real server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.footprint import Running, family, left_of
from tests.e2e.harness import MODEL, ROOT, free_port, get_json, get_text, wait_for

pytestmark = pytest.mark.e2e

START_SECONDS = 900
PAGED_SECONDS = 600.0  # some 20 on a quiet machine


class Demo:
    """The command, with its output in a file and its temporary files in a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.output = folder / "output"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.port, self.metrics_port, self.api_port = free_port(), free_port(), free_port()
        ports = (self.port, self.metrics_port, self.api_port)
        names = ("--port", "--metrics-port", "--api-port")
        options = [word for pair in zip(names, map(str, ports), strict=True) for word in pair]
        environ = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "demo", *options, *arguments],
                cwd=ROOT,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for_requests(self) -> set[Running]:
        """The processes that run once requests do."""
        wait_for(
            lambda: self.process.poll() is not None or "served" in self.text,
            "traffic",
            START_SECONDS,
        )
        assert self.process.poll() is None, self.text
        return family(self.process.pid)

    def check_gone(self, earlier: set[Running]) -> None:
        """None of these processes runs any more, and no temporary file is left."""
        assert left_of(earlier) == []
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def start() -> Iterator[Callable[..., Demo]]:
    """Starts demos, and ends those that a failed test left running."""
    # Short, for the demo falls back to /tmp where a socket's path would grow too long.
    folder = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(folder, *arguments))
        return started[-1]

    yield start
    for demo in started:
        demo.process.send_signal(signal.SIGTERM)
        demo.process.wait(60)
    shutil.rmtree(folder)


def test_the_demo_shows_a_live_tap_at_every_layer(start: Callable[..., Demo]) -> None:
    """From one command: every layer in the table, the tap live, requests served, exit 0."""
    demo = start("--seconds", "15")
    processes = demo.wait_for_requests()
    assert demo.process.wait(300) == 0, demo.text
    last_table = demo.text[demo.text.rindex("tap: ") :]
    assert last_table.startswith("tap: live (engine-dp0-pp0-tp0)")
    rows = [line.split() for line in last_table.splitlines() if line[:5].strip().isdigit()]
    num_layers = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]
    assert [row[0] for row in rows] == [str(layer) for layer in range(num_layers)]
    assert all(float(figure) > 0 for row in rows for figure in (*row[1:3], *row[4:]))
    served, failed = (int(last_table.partition("requests: ")[2].split()[place]) for place in (0, 2))
    assert served > 5
    assert failed == 0
    demo.check_gone(processes)


def test_a_tampered_model_turns_the_canary_to_page(start: Callable[..., Demo]) -> None:
    """Armed and quiet before; soon after the tampering it pages, and names the layer.

    Meanwhile the URLs that it printed answer. Ctrl-C then ends vLLM and all its workers.
    """
    demo = start("--tamper")
    processes = demo.wait_for_requests()
    assert len(processes) >= 5  # the demo, the sidecar, and vLLM's front end, engine and worker
    assert "llm_internals_build_info{" in get_text(f"http://127.0.0.1:{demo.metrics_port}/metrics")
    wait_for(lambda: get_json(f"http://127.0.0.1:{demo.api_port}/v1/status")["ready"], "ready")

    def canary() -> dict[str, Any]:
        channels = get_json(f"http://127.0.0.1:{demo.api_port}/v1/drift")["channels"]
        return next(each for each in channels if each["channel"] == "canary")

    def tampered_with() -> int | None:
        assert demo.process.poll() is None, demo.text
        if "could not be tampered with" in demo.text:
            raise AssertionError(demo.text)
        found = re.search(r"tampered with layer (\d+)", demo.text)
        if found is None:
            assert canary()["state"] in {"collecting", "armed"}, demo.text
        return None if found is None else int(found[1]) + 1  # never a false value

    layer = wait_for(tampered_with, "the intruder strikes", 2 * START_SECONDS) - 1
    struck = time.time()
    verdict = wait_for(
        lambda: (said := canary())["state"] == "page" and said, "the canary pages", PAGED_SECONDS
    )
    assert f"from layer {layer} on" in verdict["reason"]
    moved = {each["layer"] for each in verdict["causes"] if each["share"] >= 1}
    assert min(moved - {None}) == layer
    assert abs(verdict["since_ns"] / 1e9 - struck) < PAGED_SECONDS
    wait_for(lambda: "canary: page" in demo.text, "the screen says so")
    # The files are as they were: it takes a canary to see this.
    (engine,) = [
        source
        for source in get_json(f"http://127.0.0.1:{demo.api_port}/v1/status")["sources"]
        if source["role"] == "engine"
    ]
    assert (engine["manifest"]["state"], engine["manifest"]["reason"]) == ("complete", "")
    os.killpg(demo.process.pid, signal.SIGINT)  # what a terminal does
    assert demo.process.wait(300) == 0, demo.text
    demo.check_gone(processes)
