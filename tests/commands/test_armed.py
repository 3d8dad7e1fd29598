"""The three commands of the README, on real processes: nothing, recordings, a baseline, armed.

Only the engine is pretended: its requests finished over more than seven days, by their own clock.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import cli
from sidecar.fold.drift.observation import Observation
from sidecar.store.recording import find_recordings
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Signature, Signatures, Source, Status
from tests.jobs.traffic import DAY, IDENTITY, LAYOUT, PER_WINDOW, record
from tests.publish.test_server import Served

AT_ONCE = 2048  # requests; the exporter judges what fits into its queue and counts the rest


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "did not happen in two minutes"
        time.sleep(0.05)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`sidecar serve` with these options; it ends with the test, however it ends."""
    with ExitStack() as running:

        def start(*options: str) -> Served:
            served = Served(tmp_path / "i.sock", "--state-dir", str(tmp_path / "state"), *options)
            running.callback(served.close)
            return served

        yield start


def drift(served: Served) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(served.get(f"{served.api_url}/v1/drift")[1])
    return read


def states(served: Served) -> dict[str, str]:
    return {each["channel"]: each["state"] for each in drift(served)["channels"]}


def signed(number: int, item: Observation, route: str) -> Signature:
    return Signature(
        f"cmpl-{number}-0-0badcafe",
        item.t_ns,
        is_final=True,
        num_prompt_tokens=item.num_prompt_tokens,
        num_generated_tokens=item.num_generated_tokens,
        adapter="",
        preemptions=0,
        values=item.values.tobytes(),
        route=route,
    )


def send(sender: Sender, items: list[Signature]) -> None:
    eventually(lambda: sender.send(Status("live", identity=IDENTITY)))
    for start in range(0, len(items), 512):
        body = Signatures(LAYOUT, items[start : start + 512])
        eventually(lambda body=body: sender.send(body))


def test_three_commands_from_nothing_to_armed(serve, tmp_path: Path, capsys) -> None:
    """Production preset; what is recorded is what was sent, and the canary among it is not."""
    days = 7 + 1 / 24
    made = [row for each in record(tmp_path / "made", days) for row in each.observations()]
    now_ns = time.time_ns()
    aged = [row._replace(t_ns=row.t_ns - made[-1].t_ns + now_ns - DAY) for row in made]
    items = [signed(i, row, row.route) for i, row in enumerate(aged)]
    canary = Signature("c", now_ns, True, 8, 1, "", 0, items[0].values, "chat", "p@7")  # noqa: FBT003

    recording = serve("--record", "true")
    sender = Sender(tmp_path / "i.sock", Source("engine"))
    send(sender, [canary])
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        send(sender, part)
        done = start + len(part)
        eventually(lambda done=done: drift(recording)["recording"]["num_recorded"] == done)
    assert states(recording)["traffic"] == "collecting"
    assert recording.stop(signal.SIGTERM) == 0
    sender.close()
    folder = tmp_path / "state" / "recordings"
    rows = [row for each in find_recordings([folder]) for row in each.observations()]
    assert len(rows) == len(aged)
    for read, written in zip(rows, aged, strict=True):
        assert read[:1] + read[2:7] == written[:1] + written[2:7]
        assert np.array_equal(read.values, written.values)

    baseline = tmp_path / "chat.baseline"
    assert cli.main(["baseline", "fit", str(folder), "-o", str(baseline)]) == 0
    assert f"{len(aged)} requests" in capsys.readouterr().out
    assert len(aged) >= 2016 * PER_WINDOW

    armed = serve("--baseline-file", str(baseline))
    eventually(lambda: states(armed)["traffic"] == "armed")
    assert states(armed) | {"mix": "armed", "tail": "armed"} == states(armed)
    sender = Sender(tmp_path / "i.sock", Source("engine"))
    send(sender, items[:1])
    eventually(lambda: json.loads(armed.get(f"{armed.api_url}/v1/status")[1])["sources"] != [])
    command = ["baseline", "verify", str(baseline), "--url", armed.api_url]
    assert cli.main(command) == 0
    sender.close()
    assert armed.stop(signal.SIGTERM) == 0
