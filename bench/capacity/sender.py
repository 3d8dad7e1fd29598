"""What a send costs the engine's process: a sidecar that is up, one that is slow, and none at all.

Wall time of `Sender.send` on its own thread, packing included; the 99th percentile of a round, of
some rounds the median, since a busy machine takes the core away from any of them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bench.capacity.frames import body_of
from bench.capacity.server import serving
from bench.report import Section, Target, progress
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source

LIMIT_US: Final = 100.0
_KILOBYTES: Final = 20
_RATE: Final = 500.0
_SIP_SECONDS: Final = 0.2
_CONNECT_SECONDS: Final = 30.0


class Size(NamedTuple):
    """Rounds, and sends of each."""

    rounds: int = 5
    sends: int = 4000


class Cost(NamedTuple):
    """Microseconds of a send, and the share of frames that was dropped and counted."""

    receiver: str
    p50_us: float
    p99_us: float
    p99_cpu_us: float
    dropped: float


def settings(*, is_quick: bool) -> Size:
    """The full size, or one of seconds."""
    return Size(3, 1000) if is_quick else Size()


def run(size: Size) -> Section:
    """One row for each kind of receiver."""
    found = []
    for name, receiver in (("up", _up), ("slow", _slow), ("absent", _absent)):
        progress(f"sender: the sidecar is {name}")
        with receiver() as socket:
            found.append(_cost(name, socket, size))
    targets = [
        Target.at_most(f"p99 of a send, sidecar {each.receiver}", LIMIT_US, each.p99_us, "us")
        for each in found
    ]
    return Section(
        f"A send of {_KILOBYTES} KB in the engine's process",
        ("sidecar", "p50, us", "p99, us", "p99 of CPU, us", "dropped and counted"),
        [
            [
                each.receiver,
                f"{each.p50_us:.0f}",
                f"{each.p99_us:.0f}",
                f"{each.p99_cpu_us:.0f}",
                f"{each.dropped:.0%}",
            ]
            for each in found
        ],
        {
            "size": size._asdict(),
            "costs": [each._asdict() for each in found],
            "targets": [each._asdict() for each in targets],
        },
        [str(each) for each in targets],
    )


@contextmanager
def _up() -> Iterator[Path]:
    with serving() as server:
        yield server.socket


@contextmanager
def _slow() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
        socket = Path(folder) / "ingest.sock"
        command = [sys.executable, "-m", "bench.capacity.load", "sip", str(socket)]
        command.append(json.dumps(_SIP_SECONDS))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            try:
                if reader.stdout is None or reader.stdout.readline() != "ready\n":
                    raise RuntimeError("the slow reader did not start")
                yield socket
            finally:
                reader.kill()


@contextmanager
def _absent() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
        yield Path(folder) / "ingest.sock"


def _cost(name: str, socket: Path, size: Size) -> Cost:
    sender = Sender(socket, Source("engine"))
    body = body_of(_KILOBYTES)
    until = time.monotonic() + (0.0 if name == "absent" else _CONNECT_SECONDS)
    while not sender.send(body) and time.monotonic() < until:
        time.sleep(0.05)
    first, before = sender.num_sent, sender.num_dropped
    rounds = []
    for _ in range(size.rounds):
        wall, cpu = np.empty(size.sends), np.empty(size.sends)
        for number in range(size.sends):
            time.sleep(1 / _RATE)  # as from a pump, whose caches are cold when it wakes
            began, used = time.perf_counter(), time.thread_time()
            sender.send(body)
            wall[number] = time.perf_counter() - began
            cpu[number] = time.thread_time() - used
        told = (np.quantile(wall, 0.5), np.quantile(wall, 0.99), np.quantile(cpu, 0.99))
        rounds.append([1e6 * float(each) for each in told])
    dropped = (sender.num_dropped - before) / (sender.num_sent - first)
    sender.close()
    return Cost(name, *(statistics.median(column) for column in zip(*rounds, strict=True)), dropped)
