"""`sidecar keep COMMAND ...`: run another command, and start it again whenever it ends.

For containers. A pod is ready while all its containers run, so one that ends, and waits for
Kubernetes to start it again, takes the model beside it out of service. This one never ends before
it is told to: the command that failed is started again after 1 s, then 2, up to 30. With
`--health URL` one that has answered there, and then is silent for a minute, counts as failed.

Guarantees: SIGTERM and SIGINT reach the command and end both within 10 s, with status 0; SIGHUP
reaches the command; with `--once` the command runs once, and the status is 0 whatever became of it.
"""

import argparse
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from sidecar.errors import ConfigError

HELP: Final = "run another command and start it again whenever it ends; for containers"
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: Final = {*_ENDING, signal.SIGHUP, signal.SIGCHLD}


class Patience(NamedTuple):
    """Times, in seconds.

    least_pause, most_pause: before the command is started again; doubled each time.
    calm: a command that ran for longer begins at the least pause again.
    look: from one look at its health to the next. misses: looks in vain that make it failed.
    grace: from telling it to end to killing it.
    """

    least_pause: float = 1.0
    most_pause: float = 30.0
    calm: float = 60.0
    look: float = 10.0
    misses: int = 6
    grace: float = 8.0


def add(parser: argparse.ArgumentParser) -> None:
    """Options of our own, then the command with its options."""
    parser.add_argument("--once", action="store_true", help="run it once, and never fail")
    parser.add_argument("--health", metavar="URL", help="where it answers while it is well")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...")


def run(parsed: argparse.Namespace) -> int:
    """Keep the command until told to stop."""
    if not parsed.words:
        raise ConfigError("keep: no command; give one, such as sidecar keep serve")
    command = [sys.executable, "-m", "sidecar", *parsed.words]
    if parsed.once:
        return run_once(command)
    return Keeper(command, answers(parsed.health) if parsed.health else None).run()


def run_once(command: Sequence[str]) -> int:
    """Run `command` to its end, and say what became of it."""
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - our own words
    if status:
        _say(f"`{_name(command)}` {_ending(status)}; going on without")
    return 0


def answers(url: str) -> Callable[[], bool]:
    """A look at whether something answers HTTP at `url` within five seconds."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"keep: --health {url!r}; give one such as http://127.0.0.1:9478/healthz")
    host, port, path = parts.hostname, parts.port, parts.path or "/"

    def look() -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return look


class Keeper:
    """Keeps one command running; for the main thread of a process that does nothing else.

    command: program and arguments. is_well: a look at its health; None takes it as well.
    """

    def __init__(
        self,
        command: Sequence[str],
        is_well: Callable[[], bool] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._command = command
        self._is_well = is_well
        self._patience = patience or Patience()

    def run(self) -> int:
        """Until told to stop; 0, the exit status."""
        # Blocked, so that they wait to be taken: a handler could come between any two statements.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            self._keep(before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 0

    def _keep(self, mask: set[int | signal.Signals]) -> None:
        pause = self._patience.least_pause
        while True:
            began = time.monotonic()
            child = subprocess.Popen(  # noqa: S603 - our own words
                self._command,
                # Safe, for there is one thread: the command must hear signals as anyone does.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509
            )
            if self._attend(child):
                return
            if time.monotonic() - began > self._patience.calm:
                pause = self._patience.least_pause
            became = _ending(child.returncode)
            _say(f"`{_name(self._command)}` {became}; started again in {pause:g} s")
            if self._rests(pause):
                return
            pause = min(2 * pause, self._patience.most_pause)

    def _attend(self, child: "subprocess.Popen[bytes]") -> bool:
        """Until it ended, False, or we were told to end, True."""
        has_answered, misses = False, 0
        while child.poll() is None:
            number = _next_signal(self._patience.look)
            if number in _ENDING:
                self._end(child)
                return True
            if number == signal.SIGHUP:
                child.send_signal(signal.SIGHUP)
            if number is not None or self._is_well is None:
                continue
            is_well = self._is_well()
            has_answered |= is_well
            misses = 0 if is_well or not has_answered else misses + 1
            if misses >= self._patience.misses:
                _say(f"`{_name(self._command)}` does not answer any more; killed")
                child.kill()
                child.wait()
        return False

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        child.terminate()
        try:
            child.wait(self._patience.grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _rests(self, seconds: float) -> bool:
        """Wait; True as soon as we are told to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if _next_signal(left) in _ENDING:
                return True
        return False


def _next_signal(seconds: float) -> int | None:
    """The next of those that we hear; None when none came in time."""
    told = signal.sigtimedwait(_HEARD, seconds)
    return None if told is None else told.si_signo


def _name(command: Sequence[str]) -> str:
    words = command[2:] if list(command[1:2]) == ["-m"] else command
    return " ".join(words[:2])


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _say(what: str) -> None:
    os.write(2, f"sidecar keep: {what}\n".encode())
