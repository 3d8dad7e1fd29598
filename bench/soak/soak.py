"""One run: start everything, conduct, look, and settle the account."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import numpy as np

from bench.soak.board import SECOND, START_NS, Board
from bench.soak.clients import Clients, OtlpReceiver
from bench.soak.engine import IDENTITY, Engine
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import observation_of
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Assembly
from sidecar.fold.signatures import Signed
from sidecar.store.baseline_file import write_baseline
from sidecar.wire.frame import Signatures

WINDOW_SECONDS: Final = 10  # the windows held, 288, are all there early in the run
_READY: Final = re.compile(r"sidecar ready: metrics (\S+)/metrics api (\S+)/v1/status")
_LONG_SECONDS: Final = 300.0  # after which something hangs, on whatever machine
_MAX_BEHIND: Final = 41  # frames: those of one such second
_MOMENT_SECONDS: Final = 2.0
_REST_SECONDS: Final = 20  # of the run's clock, after which no part of a request is waited for
_BASELINE_WINDOWS: Final = 60
_PER_WINDOW: Final = 40
LOST_PARTS: Final = "trace_parts_lost_total"


class Size(NamedTuple):
    """How much. num_frames: all ranks together. num_samples: looks at the process, evenly."""

    num_frames: int = 1_000_000
    num_ranks: int = 8
    num_samples: int = 600


class Sample(NamedTuple):
    """The sidecar's process after so many frames."""

    num_frames: int
    rss_bytes: int
    num_fds: int
    num_threads: int


class Account(NamedTuple):
    """Frames of one source: what the sender's own log says, and what the sidecar made of them."""

    source: str
    sent: int
    dropped: int
    received: int
    lost: Mapping[str, int]

    @property
    def unaccounted(self) -> int:
        """Frames that the sidecar has no name for."""
        return self.sent - self.received - sum(self.lost.values())


class Found(NamedTuple):
    """What a run found. hours: of the run's own clock. told: families of /metrics, summed up."""

    hours: float
    seconds: float
    accounts: Sequence[Account]
    refused: int
    samples: Sequence[Sample]
    seen: Mapping[str, int]
    told: Mapping[str, float]
    spans: int
    pushes: int


def soak(size: Size, folder: Path, say: Callable[[str], None] = lambda _: None) -> Found:
    """Run it in `folder`, which is empty. RuntimeError when a process dies or hangs."""
    board = Board(folder / "board", size.num_ranks)
    _write_baseline(folder / "usual.baseline")
    with contextlib.ExitStack() as stack:
        otlp = stack.enter_context(OtlpReceiver())
        server, metrics_url, api_url = stack.enter_context(_serving(folder, otlp.url))
        ranks = stack.enter_context(_ranks(folder, size.num_ranks))
        began = time.monotonic()
        with Clients(metrics_url, api_url) as clients, _asking(api_url) as api:
            samples = list(_conduct(board, size, api, [server, *ranks], say))
            board.end()
            logs = [log for rank in ranks for log in _log(rank)]
        seconds = time.monotonic() - began
        accounts, refused = _settled(api_url, logs)
        hours = (board.now_ns() - START_NS) / (3600 * SECOND)
        for _ in range(_REST_SECONDS):
            board.advance()
        told = _rested(metrics_url)
    counts = (otlp.num_spans, otlp.num_pushes)
    return Found(hours, seconds, accounts, refused, samples, clients.seen, told, *counts)


def _write_baseline(path: Path) -> None:
    """What the same engines looked like before, so that every window is judged."""
    end_ns = START_NS - START_NS % (WINDOW_SECONDS * SECOND)
    every_ns = WINDOW_SECONDS * SECOND // _PER_WINDOW
    engine, items = Engine(seed=10_000), []
    for k in range(_BASELINE_WINDOWS * _PER_WINDOW):
        t_ns = end_ns - (k + 1) * every_ns
        body = list(engine.bodies(k, t_ns))[-1]
        assert isinstance(body, Signatures)
        items.append(observation_of(Signed("engine-dp0-pp0-tp0", body.layout, body.signatures[0])))
    assembly = Assembly(length_ns=WINDOW_SECONDS * SECOND)
    header = Header(IDENTITY, body.layout, assembly)
    survey = Survey(Schema.of(body.layout))
    for item in items:
        survey.update(item)
    fit = Fit(header, survey.get())
    for item in items:
        fit.update(item)
    write_baseline(path, fit.get())


@contextlib.contextmanager
def _serving(folder: Path, otlp_url: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    (folder / "metrics.toml").write_text(
        (Path(__file__).parents[2] / "examples/metrics_everything.toml").read_text()
    )
    options = {
        "socket": folder / "ingest.sock",
        "metrics-host": "127.0.0.1",
        "metrics-port": 0,
        "api-port": 0,
        "metrics-file": folder / "metrics.toml",
        "max-age-seconds": 600,  # of the run's clock, which passes fast
        "state-dir": folder / "state",
        "record": "true",
        "window-seconds": WINDOW_SECONDS,
        "baseline-file": folder / "usual.baseline",
        "otlp-endpoint": otlp_url,
        "otlp-protocol": "http/protobuf",
        "otlp-metrics-seconds": 5,
    }
    command = [sys.executable, "-m", "bench.soak.served", str(folder / "board")]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with _running(command) as server:
        assert server.stdout is not None
        ready = _READY.match(server.stdout.readline())
        if ready is None:
            raise RuntimeError("the sidecar did not start; its message is above")
        yield server, *ready.groups()


@contextlib.contextmanager
def _ranks(folder: Path, num_ranks: int) -> Iterator[list["subprocess.Popen[str]"]]:
    with contextlib.ExitStack() as stack:
        module = [sys.executable, "-m", "bench.soak.rank"]
        places = [str(folder / "board"), str(folder / "ingest.sock")]
        yield [
            stack.enter_context(_running([*module, *places, str(rank)]))
            for rank in range(num_ranks)
        ]


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _conduct(
    board: Board,
    size: Size,
    api: httpx.Client,
    processes: "Sequence[subprocess.Popen[str]]",
    say: Callable[[str], None],
) -> Iterator[Sample]:
    """Let seconds pass, as fast as frames are read."""
    due = 0.0
    while board.num_sent < size.num_frames:
        began = time.monotonic()
        board.advance()
        while not board.is_done(board.second):
            _check(processes, began)
            time.sleep(0.001)
        _keep_up(board, api, began)
        if board.num_sent >= due:
            due += size.num_frames / size.num_samples
            found = _sample(processes[0].pid, board.num_sent)
            say(f"{found.num_frames:,} frames, {found.rss_bytes / 1e6:.1f} MB")
            yield found


def _keep_up(board: Board, api: httpx.Client, began: float) -> None:
    """Wait until what was sent is read, or else ranks would be read seconds apart from each other.

    A frame that found no room is heard of with the next one only, hence no longer than a moment.
    """
    while time.monotonic() - began < _MOMENT_SECONDS:
        status = api.get("/v1/status").raise_for_status().json()
        if board.num_sent - sum(each["frames_sent"] for each in status["sources"]) <= _MAX_BEHIND:
            return
        time.sleep(0.005)


def _check(processes: "Sequence[subprocess.Popen[str]]", began: float) -> None:
    if any(each.poll() is not None for each in processes):
        raise RuntimeError("a process of the run ended; its message is above")
    if time.monotonic() - began > _LONG_SECONDS:
        raise RuntimeError("a rank hangs")


def _sample(pid: int, num_frames: int) -> Sample:
    proc = Path(f"/proc/{pid}")
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(
        num_frames,
        resident,
        len(list((proc / "fd").iterdir())),
        len(list((proc / "task").iterdir())),
    )


def _log(rank: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    out, _ = rank.communicate(timeout=_LONG_SECONDS)
    if rank.returncode:
        raise RuntimeError("a rank failed; its message is above")
    logs: list[dict[str, Any]] = json.loads(out)
    return logs


def _settled(api_url: str, logs: Sequence[Mapping[str, Any]]) -> tuple[list[Account], int]:
    """The account once the last frame of everybody was read; and what was refused."""
    wanted = {log["source"]: log["sent"] for log in logs}

    def is_read() -> bool:
        told = {each["source"]: each["frames_sent"] for each in _status(api_url)["sources"]}
        return told == wanted

    with contextlib.suppress(TimeoutError):  # then the account says what is missing
        _await(is_read, "frames are on their way")
    status = _status(api_url)
    found = {each["source"]: each for each in status["sources"]}
    accounts = [
        Account(
            log["source"],
            log["sent"],
            log["dropped"],
            found.get(log["source"], {}).get("frames_received", 0),
            found.get(log["source"], {}).get("frames_lost", {}),
        )
        for log in logs
    ]
    return accounts, sum(status["frames_refused"].values())


def _asking(api_url: str) -> httpx.Client:
    return httpx.Client(base_url=api_url, trust_env=False, timeout=120)


def _status(api_url: str) -> Any:
    return httpx.get(f"{api_url}/v1/status", trust_env=False, timeout=120).raise_for_status().json()


def _await(condition: Callable[[], bool], otherwise: str, seconds: float = _LONG_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def _rested(metrics_url: str) -> Counter[str]:
    """What it tells of itself once every request is a span, and every span is sent."""

    def is_at_rest() -> bool:
        told = _told(metrics_url)
        is_whole = told["traced_requests_total"] >= told["finished_requests_total"]
        return is_whole and told["span_queue_size"] == 0

    with contextlib.suppress(TimeoutError):  # then the figures say so
        _await(is_at_rest, "requests or spans wait", 120)
    return _told(metrics_url)


def lost_parts(cause: str) -> str:
    """The series of parts of requests that reached no span, as `Found.told` has it."""
    return f'{LOST_PARTS}{{cause="{cause}"}}'


def _told(metrics_url: str) -> Counter[str]:
    """Families of our own health, added up over their labels; of lost parts each cause too."""
    text = httpx.get(f"{metrics_url}/metrics", trust_env=False, timeout=120).text
    found: Counter[str] = Counter()
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and np.isfinite(float(value)):
            series = name.removeprefix("llm_internals_")
            family = series.partition("{")[0]
            found[family] += float(value)
            if family == LOST_PARTS:
                found[series] += float(value)
    return found
