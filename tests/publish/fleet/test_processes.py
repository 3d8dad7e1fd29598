"""The real thing: Prometheus scrapes three exporters, and the fleet job finds the odd one out."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sidecar.wire.channel import Sender
from sidecar.wire.frame import Signatures, Source
from sidecar.wire.synthetic import SyntheticEngine

WINDOW = 2  # seconds; a window takes requests until two further ones have passed
READY = re.compile(r"ready: metrics (\S+)/metrics api (\S+)/v1/\w+")
LISTENING = re.compile(r'msg="Listening on" component=web address=(\S+)')
PATIENCE = 150  # seconds, of which some 20 are needed


class Process:
    """A process that says on its log where it listens."""

    def __init__(self, command: list[str], log: Path, ready: re.Pattern[str]) -> None:
        self._log = log
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environ)
        deadline = time.monotonic() + 60
        while (found := ready.search(log.read_text())) is None:
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.addresses = found.groups()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.loads(reply.read())


class Tap:
    """A sender of synthetic requests whose internals lie `shift` deviations off."""

    def __init__(self, path: Path, seed: int, shift: float) -> None:
        self.engine = SyntheticEngine(seed=seed)
        self.sender = Sender(path, Source("engine"))
        self.shift = shift

    def serve(self, num_requests: int, t_ns: int) -> None:
        """So many requests that ended at `t_ns`."""
        self.engine.requests(num_requests, t_ns)
        body = self.engine.signatures(num_requests, t_ns)
        self.sender.send(self.engine.status())
        moved = [
            msgspec.structs.replace(
                each,
                values=(np.frombuffer(each.values, "<f4") + np.float32(self.shift)).tobytes(),
            )
            for each in body.signatures
        ]
        self.sender.send(Signatures(body.layout, moved))


@pytest.fixture
def processes() -> Iterator[contextlib.ExitStack]:
    """Whatever is started ends with the test."""
    with contextlib.ExitStack() as running:
        yield running


@pytest.fixture
def taps(processes: contextlib.ExitStack, tmp_path: Path) -> list[tuple[Tap, Process]]:
    """Three exporters, each fed by a tap of its own; the second one differs."""
    made = []
    for seed, shift in enumerate((0.0, 2.0, 0.0)):
        folder = Path(f"/tmp/fleet-{os.getpid()}-{seed}")  # a socket's path has 107 bytes at most
        processes.callback(shutil.rmtree, folder, ignore_errors=True)
        command = [sys.executable, "-m", "sidecar", "serve", "--socket", str(folder / "i.sock")]
        command += ["--metrics-host", "127.0.0.1", "--metrics-port", "0", "--api-port", "0"]
        command += ["--window-seconds", str(WINDOW), "--max-age-seconds", "60"]
        exporter = Process(command, tmp_path / f"exporter-{seed}.log", READY)
        processes.callback(exporter.close)
        tap = Tap(folder / "i.sock", seed, shift)
        processes.callback(tap.sender.close)
        made.append((tap, exporter))
    return made


def start_prometheus(
    processes: contextlib.ExitStack, folder: Path, taps: list[tuple[Tap, Process]], fleet_port: int
) -> str:
    """Scrapes the exporters, whose targets say where their API is, and the fleet job."""
    program = shutil.which("prometheus")
    assert program, (
        "prometheus is not on PATH; `make tools` fetches it (Debian: apt install prometheus)"
    )
    targets = [
        {
            "targets": [exporter.addresses[0].removeprefix("http://")],
            "labels": {"llm_internals_api": exporter.addresses[1], "pod": f"vllm-{i}"},
        }
        for i, (_, exporter) in enumerate(taps)
    ]
    jobs = [
        {"job_name": "vllm", "static_configs": targets},
        {"job_name": "fleet", "static_configs": [{"targets": [f"127.0.0.1:{fleet_port}"]}]},
    ]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    path = folder / "prometheus.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    command = [program, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:0"]
    made = Process(command, folder / "prometheus.log", LISTENING)
    processes.callback(made.close)
    return f"http://{made.addresses[0]}"


def start_fleet(
    processes: contextlib.ExitStack, folder: Path, prometheus: str, port: int
) -> Process:
    command = [sys.executable, "-m", "sidecar", "fleet", "--prometheus", prometheus]
    command += ["--query", 'llm_internals_build_info{job="vllm"}', "--replica-label", "pod"]
    command += ["--window-seconds", str(WINDOW), "--poll-seconds", "0.5"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--state-dir", str(folder / "state")]
    made = Process(command, folder / "fleet.log", READY)
    processes.callback(made.close)
    return made


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def told(fleet: Process) -> dict[str, Any]:
    answer: dict[str, Any] = read(f"{fleet.addresses[1]}/v1/drift")
    return answer


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {each["replica"]: each["state"] for each in answer["replicas"]}


def feed_until_page(taps: list[tuple[Tap, Process]], fleet: Process) -> dict[str, Any]:
    """Requests in every window, of all exporters alike, until the job pages."""
    deadline = time.monotonic() + PATIENCE
    next_ns = 0
    while (answer := told(fleet))["state"] != "page":
        assert time.monotonic() < deadline, answer
        now_ns = time.time_ns()
        if now_ns >= next_ns:
            window_ns = WINDOW * 10**9
            start_ns = now_ns - now_ns % window_ns
            for tap, _ in taps:  # in the window before this one, which is open for two more
                tap.serve(60, start_ns - window_ns // 2)
            next_ns = start_ns + window_ns
        time.sleep(0.1)
    return answer


def test_the_odd_one_of_three_exporters_pages_by_name(
    processes: contextlib.ExitStack, taps: list[tuple[Tap, Process]], tmp_path: Path
) -> None:
    """Found through Prometheus, read over HTTP, named in the API and in Prometheus itself."""
    port = free_port()
    prometheus = start_prometheus(processes, tmp_path, taps, port)
    fleet = start_fleet(processes, tmp_path, prometheus, port)
    answer = feed_until_page(taps, fleet)

    assert states(answer) == {"vllm-0": "armed", "vllm-1": "page", "vllm-2": "armed"}
    assert "replica vllm-1 differs" in answer["reason"]
    assert {each["side"] for each in answer["causes"]} == {"high"}
    assert answer["refused"].keys() <= {"schema"}  # Prometheus had scraped nobody at first
    assert answer["num_errors"] == 0
    query = 'llm_internals_replica_state{state="page"} == 1'
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    deadline = time.monotonic() + 60
    while not (found := read(url)["data"]["result"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [each["metric"]["replica"] for each in found] == ["vllm-1"]

    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(30) == 0
    again = start_fleet(processes, tmp_path, prometheus, port)
    deadline = time.monotonic() + 60
    while (after := told(again))["state"] != "page":  # kept over the restart, once it is fed again
        assert time.monotonic() < deadline, after
        time.sleep(0.2)
    assert states(after)["vllm-1"] == "page"


def test_without_prometheus_it_is_one_line_or_a_state(
    processes: contextlib.ExitStack, tmp_path: Path
) -> None:
    """No address is a mistake of the operator's; an address where nobody answers is a reason."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "fleet"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--prometheus http://prometheus:9090" in done.stderr
    assert done.stderr.count("\n") == 1

    fleet = start_fleet(processes, tmp_path, f"http://127.0.0.1:{free_port()}", free_port())
    deadline = time.monotonic() + 60
    while not (answer := told(fleet))["refused"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer["state"] == "collecting"
    assert "ConnectError" in answer["reason"]
