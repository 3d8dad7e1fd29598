"""`sidecar top` itself: on a real terminal, asking a real sidecar."""

import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sidecar import cli
from sidecar.top.readings import Choice
from sidecar.top.session import Watcher, once
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source
from sidecar.wire.synthetic import SyntheticEngine
from tests.publish.test_server import Served
from tests.top.documents import URL, Sidecar, answers

SECONDS = 90.0  # for whatever must happen at all


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        environ = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ
        )
        self._text = ""

    def press(self, keys: str) -> None:
        """Type, and forget what was on the screen."""
        self._text = ""
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str) -> None:
        """Until this is drawn."""
        deadline = time.monotonic() + SECONDS
        while text not in self._text:
            assert time.monotonic() < deadline, f"no {text!r} in {self._text[-4000:]!r}"
            self._read()

    def wait_for_end(self) -> int:
        """Exit status, once it has ended."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read()
        return self.process.wait()

    def settings(self) -> list[object]:
        """How the terminal behaves now."""
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        """End the command, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.1)[0]:
            self._text += os.read(self._ours, 65536).decode(errors="replace")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A sidecar that hears an engine all the time."""
    path = tmp_path / "run" / "i.sock"
    running = Served(path)
    engine, over = SyntheticEngine(6), threading.Event()

    def tell() -> None:
        sender = Sender(path, Source("engine"))
        while not over.wait(0.2):
            for body in (engine.status(), engine.step((4, 60, 2, 8)), engine.tables()):
                sender.send(body)
        sender.close()

    telling = threading.Thread(target=tell)
    telling.start()
    try:
        yield running
    finally:
        over.set()
        telling.join()
        running.close()


@pytest.fixture
def terminal(served: Served) -> Iterator[Terminal]:
    """The command on a terminal."""
    command = [sys.executable, "-m", "sidecar", "top", "--url", served.api_url]
    with contextlib.closing(Terminal(*command)) as running:
        yield running


def test_it_lives_on_a_terminal(terminal: Terminal, served: Served) -> None:
    """It shows a live tap, obeys keys, says when the sidecar is gone, and leaves all as it was."""
    terminal.wait_for("engine-dp0-pp0-tp0")
    terminal.wait_for("residual_rms, decode")
    terminal.press("s")
    terminal.wait_for("residual_peak (ratio), decode")
    terminal.press("f")
    terminal.wait_for("residual_peak (ratio), prefill")
    terminal.press("p")
    terminal.wait_for("PAUSED")
    terminal.press("p")
    served.stop()
    terminal.wait_for("NO ANSWER from")
    terminal.press("q")

    assert terminal.wait_for_end() == 0
    assert terminal.settings() == terminal.before


def test_once_is_for_scripts(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """One reading as text; the status is that of the level: nothing to do here."""
    deadline = time.monotonic() + SECONDS
    while "COLLECTING" not in (text := run_once(served, capsys)[1]):
        assert time.monotonic() < deadline, text
    status, text = run_once(served, capsys)

    assert status == 0
    assert "engine-dp0-pp0-tp0" in text
    assert "\x1b" not in text


def run_once(served: Served, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status, and what it printed."""
    status = cli.main(["top", "--once", "--url", served.api_url])
    return status, capsys.readouterr().out


def test_once_without_an_answer_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line with the remedy."""
    status = cli.main(["top", "--once", "--url", "http://127.0.0.1:1"])
    told = capsys.readouterr().err

    assert status == 2
    assert told.count("\n") == 1
    assert "--url" in told


@pytest.mark.parametrize(("level", "status"), [("ok", 0), ("page", 1), ("ticket", 1), ("blind", 1)])
def test_the_status_says_whether_somebody_must_act(level: str, status: int) -> None:
    """0 where nobody needs to do anything, else 1."""
    assert once(Sidecar(answers(level=level)), URL, Console(file=io.StringIO())) == status


def test_a_failure_is_told_from_its_first_second() -> None:
    """`since` stays while it lasts, and goes with the next answer; the last reading is kept."""
    sidecar, now = Sidecar(), [100.0]
    watcher = Watcher(sidecar, URL, Choice, clock=lambda: now[0])
    watcher.turn()
    kept = watcher.reading
    sidecar.failing = "refused"
    watcher.turn()
    now[0] = 130.0
    watcher.turn()

    assert (watcher.contact.failed, watcher.contact.since) == ("refused", 100.0)
    assert watcher.reading is kept
    sidecar.failing = ""
    watcher.turn()
    assert watcher.contact.failed == ""
    assert watcher.reading is not kept
