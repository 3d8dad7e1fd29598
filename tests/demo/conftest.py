"""A demo of fakes: start it, read what it prints, find what it left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo.footprint import Footprint

FAKE_DEMO = Path(__file__).with_name("fake_demo.py")


class Demo:
    """A demo process over fake servers, in a folder for its temporary files."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], stdin: int) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._footprint = Footprint()
        ports = (str(free_port()), str(free_port()))
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE_DEMO), *ports, str(self.cache), *arguments],
            env={**os.environ, **self._footprint.environ, "TMPDIR": str(self.temporary)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[tuple[float, str]] = []

    @property
    def text(self) -> str:
        return "".join(line for _, line in self.printed)

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append((time.monotonic(), line))
            if words in line:
                return
        raise AssertionError(f"{words!r} was never printed, but:\n{self.text}")

    def end(self, number: int | None = None) -> int:
        """Exit status, after a signal if one is given; all that was printed is kept."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.printed += [(time.monotonic(), line) for line in self.process.stdout]
        return self.process.wait(timeout=30)

    def survivors(self) -> list[str]:
        return self._footprint.marked()

    def left_files(self) -> list[Path]:
        return list(self.temporary.iterdir())


@pytest.fixture
def demo() -> Iterator[Callable[..., Demo]]:
    """Starts demos, and ends those that a failed test left running."""
    # Short, for the demo falls back to /tmp where a socket's path would grow too long.
    folder = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    started: list[Demo] = []

    def start(*arguments: str, stdin: int = subprocess.DEVNULL) -> Demo:
        started.append(Demo(folder, arguments, stdin))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
        each.process.communicate(timeout=30)
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
