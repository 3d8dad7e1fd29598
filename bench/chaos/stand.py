"""A sidecar process and its ranks: started, killed, asked and called to account.

Guarantees: whatever fails, every process that was started is ended; every wait ends, with an error
that says for what. What the sidecar says of frames is looked at before a process that tells of them
is killed, so each frame is found in one of two books: the journals of the senders, or `/v1/status`.
"""

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np

from bench.chaos.account import CAUSES, Found, Known, compare
from bench.chaos.clock import Clock
from bench.chaos.journal import Entries
from bench.chaos.rank import Place, Spoken
from sidecar.wire.frame import Source

ROOT: Final = Path(__file__).parents[2]
PATIENCE_SECONDS: Final = 120.0
_READY: Final = re.compile(r"sidecar ready: metrics (\S+)/metrics api (\S+)/v1/status socket")
_POLL_SECONDS: Final = 0.02


class Account(NamedTuple):
    """What became of the frames of a row, and microseconds of a send: p50, p99 and the longest."""

    frames: Found
    microseconds: tuple[float, float, float]


class Stand:
    """One sidecar, and ranks by number.

    options: of `sidecar serve`, beside where it listens. rate: frames a second of each rank.
    clock: whether all of them believe `self.clock` instead of the true time.
    """

    def __init__(
        self,
        folder: Path,
        num_ranks: int,
        options: Sequence[str] = (),
        rate: float = 20.0,
        *,
        clock: bool = False,
    ) -> None:
        self.folder = folder
        self.socket = folder / "run" / "i.sock"
        self.journals = folder / "journals"
        self.journals.mkdir(parents=True)
        self.key = secrets.token_hex(16).encode()
        self._key_file = folder / "key"
        self._key_file.write_bytes(self.key)
        self.clock = Clock(folder / "clock")
        self.num_ranks = num_ranks
        self._options = list(options)
        self._rate = rate
        self._has_clock = clock
        self._server: subprocess.Popen[str] | None = None
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._log = (folder / "log").open("ab")
        self._known: dict[str, Known] = {}  # by source and boot, of the sidecar that serves
        self._earlier: dict[str, Known] = {}  # likewise, of those that were killed
        self._killed: set[str] = set()  # lives of sources that were killed
        self.metrics_url = self.api_url = ""

    def __enter__(self) -> Self:
        try:
            self.start_sidecar()
            for number in range(self.num_ranks):
                self.start_rank(number)
            self.wait("all ranks are heard", self.hears_all)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_sidecar(self) -> None:
        """Start it, and wait until it says that it is up."""
        under = (
            ["bench.chaos.clock", str(self.folder / "clock")] if self._has_clock else ["sidecar"]
        )
        command = [sys.executable, "-m", *under, "serve", "--socket", str(self.socket)]
        command += ["--key-file", str(self._key_file)]
        command += ["--metrics-host", "127.0.0.1", "--metrics-port", "0", "--api-port", "0"]
        self._server = subprocess.Popen(
            [*command, *self._options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environ(),
            cwd=ROOT,
        )
        assert self._server.stdout is not None
        ready = _READY.match(self._server.stdout.readline())
        if ready is None:
            raise AssertionError(f"the sidecar did not start:\n{self.log()}")
        self.metrics_url, self.api_url = ready.groups()

    def kill_sidecar(self) -> None:
        """`kill -9`, after a last look at what it has read."""
        assert self._server is not None
        self.look()
        self._server.kill()
        self._server.communicate()
        for life, known in self._known.items():
            before = self._earlier.get(life, Known())
            lost = {cause: before.lost[cause] + known.lost[cause] for cause in CAUSES}
            self._earlier[life] = Known(known.sent, before.received + known.received, lost)
        self._known = {}

    def end_sidecar(self, num_signals: int = 1, pause_seconds: float = 0.0) -> tuple[float, int]:
        """SIGTERM, so often; seconds from the first to the end, and the exit status.

        Beside each but the first goes a SIGHUP, which must not cut short what is being kept.
        """
        assert self._server is not None
        began = time.monotonic()
        for number in range(num_signals):
            time.sleep(pause_seconds * (number > 0))
            for each in (signal.SIGHUP, signal.SIGTERM)[number == 0 :]:
                self._server.send_signal(each)
        self._server.communicate(timeout=PATIENCE_SECONDS)
        return time.monotonic() - began, self._server.returncode

    def start_rank(self, number: int) -> None:
        """Start a rank that has no process."""
        command = [sys.executable, "-m", "bench.chaos.rank", str(self.socket)]
        command += [str(self._key_file), str(self.journals), str(number), "--rate", str(self._rate)]
        command += ["--clock", str(self.folder / "clock")] if self._has_clock else []
        self._ranks[number] = subprocess.Popen(command, stderr=self._log, env=_environ(), cwd=ROOT)

    def speaker(self, source: Source) -> Spoken:
        """A sender of this process, in the same books; `close` it before the account."""
        place = Place(self.socket, self.key, self.journals, self.clock)
        return Spoken(source, place)

    def kill_rank(self, number: int) -> None:
        """`kill -9`; then look until what was on its way has been read."""
        process = self._ranks.pop(number)
        process.kill()
        process.wait()
        names = names_of(number)
        lives = (path.name for path in self.journals.iterdir())
        self._killed |= {life for life in lives if life.rpartition(".")[0] in names}
        before: object = None
        while before != (before := [self._known.get(life) for life in self._killed]):
            time.sleep(0.3)  # longer than the sidecar needs for what is in a socket
            self.look()

    def replace_rank(self, number: int) -> float:
        """Kill a rank, start another; seconds from its first frame to the sidecar's use of it."""
        before = self.boots()
        self.kill_rank(number)
        known = set(self.journals.iterdir())
        self.start_rank(number)
        self.wait("the new rank speaks", lambda: set(self.journals.iterdir()) - known)
        names = names_of(number)

        def is_heard() -> bool:
            now = self.boots()
            return all(name in now and now[name] != before.get(name) for name in names)

        return self.wait("the new rank is heard", is_heard)

    def names(self) -> list[str]:
        """The sources that should be heard now."""
        return [name for number in self._ranks for name in names_of(number)]

    @property
    def pid(self) -> int:
        """Of the sidecar that serves."""
        assert self._server is not None
        return self._server.pid

    def has_failed(self) -> list[str]:
        """What ended although nobody ended it."""
        ended = [f"rank {n}" for n, each in self._ranks.items() if each.poll() is not None]
        assert self._server is not None
        return ended + ["the sidecar"] * (self._server.poll() is not None)

    def ask(self, path: str, body: object = None) -> Any:
        """The JSON that the API answers; ConnectionError where it does not."""
        status, text = request(f"{self.api_url}{path}", body)
        if status >= 300:
            raise ConnectionError(f"{path}: {status} {text[:500]!r}")
        return json.loads(text)

    def scrape(self) -> dict[str, float]:
        """What /metrics says, by name and labels as they are written."""
        status, text = request(f"{self.metrics_url}/metrics")
        assert status == 200, text[:500]
        lines = (line.rpartition(" ") for line in text.decode().splitlines() if line[:1] != "#")
        return {name: float(value) for name, _, value in lines}

    def look(self) -> dict[str, Any]:
        """The status, whose account of frames is remembered."""
        told: dict[str, Any] = self.ask("/v1/status")
        for each in told["sources"]:
            self._known[f"{each['source']}.{each['boot']}"] = Known(
                each["frames_sent"], each["frames_received"], each["frames_lost"]
            )
        return told

    def heard(self) -> dict[str, int]:
        """Frames received by the sidecar that serves, by source; nothing where it does not."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return {s["source"]: s["frames_received"] for s in self.look()["sources"]}
        return {}

    def boots(self) -> dict[str, str]:
        """The life of each source that is heard."""
        return {s["source"]: s["boot"] for s in self.look()["sources"] if s["frames_received"]}

    def hears_all(self) -> bool:
        """Whether every rank, its engine and its front end, is heard."""
        heard = self.heard()
        return all(heard.get(name) for name in self.names())

    def states(self) -> dict[str, str]:
        """State by drift channel."""
        return {each["channel"]: each["state"] for each in self.ask("/v1/drift")["channels"]}

    def wait(self, what: str, condition: Callable[[], object]) -> float:
        """Wait until it holds; how many seconds that took. AssertionError when it never does."""
        began = time.monotonic()
        while not condition():
            if failed := self.has_failed():
                raise AssertionError(f"{', '.join(failed)} ended:\n{self.log()}")
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise AssertionError(f"never: {what}\n{self.log()}")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    def log(self) -> str:
        """The last that the processes had to say."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def account(self) -> Account:
        """End the ranks, each after its last frame was handed over, and compare the books."""
        for process in self._ranks.values():
            process.send_signal(signal.SIGTERM)
        for number, process in self._ranks.items():
            status = process.wait(PATIENCE_SECONDS)
            assert status == 0, f"rank {number} ended with {status}:\n{self.log()}"
        self._ranks = {}
        journals = {path.name: Entries.read(path) for path in self.journals.iterdir()}
        self._await_last(journals)
        return self._compared(journals)

    def close(self) -> None:
        """End everything, at once."""
        for process in (*self._ranks.values(), *([self._server] if self._server else [])):
            process.kill()
            process.communicate()
        self._ranks, self._server = {}, None
        self._log.close()

    def _await_last(self, journals: Mapping[str, Entries]) -> None:
        """What was handed over last may be on its way; what never comes is found by comparing."""
        until = time.monotonic() + 30.0
        alive = {name: each.sent for name, each in journals.items() if name not in self._killed}
        while time.monotonic() < until:
            self.look()
            if all(self._known.get(name, Known()).sent == sent for name, sent in alive.items()):
                return
            time.sleep(0.1)

    def _compared(self, journals: Mapping[str, Entries]) -> Account:
        frames = Found()
        for name, written in journals.items():
            known, earlier = self._known.get(name, Known()), self._earlier.get(name)
            is_killed = name in self._killed
            frames = frames.add(compare(written, known, earlier, is_killed=is_killed))
        times = np.array([us for each in journals.values() for us in each.microseconds] or [0.0])
        p50, p99, longest = np.percentile(times, (50, 99, 100)).tolist()
        return Account(frames, (p50, p99, longest))


def names_of(number: int) -> tuple[str, str]:
    """The sources that rank `number` speaks for."""
    return f"engine-dp{number}-pp0-tp0", f"frontend-{number}"


def request(url: str, body: object = None, seconds: float = 30.0) -> tuple[int, bytes]:
    """GET, or POST of a JSON body: status and answer. OSError or HTTPException when none came."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        if body is None:
            connection.request("GET", path)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body).encode(), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH")))),
    }
