"""The servers that the demo starts, and ends.

Guarantee: each server leads a session of its own, so Ctrl-C in the terminal reaches the demo
alone, and after `stop` no process of those sessions is left: SIGTERM first, SIGKILL to the whole
session after `GRACE_SECONDS`. If the demo itself is killed, the kernel sends its servers SIGTERM.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

GRACE_SECONDS: Final = 8.0
TAIL_LINES: Final = 20
_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.05


class Service(NamedTuple):
    """One server to start.

    name: for people. command, environment: what to run. log: file that takes all its output.
    ready: URL that answers 200 once the server can be used.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: str


class Process:
    """A started server and its log."""

    def __init__(self, service: Service, popen: "subprocess.Popen[bytes]") -> None:
        self.service = service
        self._popen = popen
        self._read = 0

    @classmethod
    def start(cls, service: Service) -> Self:
        """Start the server in a session of its own; its log is begun anew."""
        service.log.parent.mkdir(parents=True, exist_ok=True)
        with service.log.open("wb") as log:
            popen = subprocess.Popen(
                service.command,
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Only between fork and exec can a child ask for a signal when its parent dies;
                # the function calls one foreign function that is loaded beforehand.
                preexec_fn=_die_with_parent(),  # noqa: PLW1509
            )
        return cls(service, popen)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its session."""
        return self._popen.pid

    def exit_code(self) -> int | None:
        """Exit status, negative for a signal; None while the server runs."""
        return self._popen.poll()

    def new_lines(self) -> list[str]:
        """Complete lines that the log gained since the last call."""
        with self.service.log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()

    def tail(self) -> list[str]:
        """Last lines of the log."""
        text = self.service.log.read_text(errors="replace")
        return text.rstrip().splitlines()[-TAIL_LINES:]

    def stop(self) -> None:
        """End the server and everything in its session, within `GRACE_SECONDS` and a little."""
        if self.exit_code() is None:
            self._popen.send_signal(signal.SIGTERM)
        _wait(lambda: self._popen.poll() is not None and not _members(self.pid), GRACE_SECONDS)
        for pid in _members(self.pid):
            _kill(pid)
        self._popen.wait()
        _wait(lambda: not _members(self.pid), 1.0)


def _die_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return die_with_parent


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _members(session: int) -> list[int]:
    """Living processes of a session, whatever their group or parent."""
    return [pid for pid, state, member_of in _processes() if member_of == session and state != "Z"]


def _processes() -> Iterator[tuple[int, str, int]]:
    """Process id, state and session of every process that this user may see."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        # The second field is the command in parentheses, and may itself hold any of them.
        state, _parent, _group, session = status.rpartition(")")[2].split()[:4]
        yield int(folder.name), state, int(session)


def _kill(pid: int) -> None:
    # It may have ended between the listing and the signal.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
