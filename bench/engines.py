"""Arms as processes: each a resident engine, and beside a tapped one a sidecar of its own.

An arm that does not have its turn is stopped (SIGSTOP), with its sidecar: a tap that went on
flushing in the turns of the others would slow those down too, and so look cheaper than it is.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from bench import arms
from bench.arm import MAX_TOKENS_A_STEP
from bench.arms import SOURCE, Turn
from bench.ratios import Taken
from bench.report import progress
from sidecar.config import CONTROL_NAME
from sidecar.wire import control
from sidecar.wire.control import Control

ARM: Final = "bench.arm"  # the module that an engine's process runs
# Freed memory stays in the process, as with the tcmalloc that vLLM's documentation tells CPU users
# to preload. Or glibc gives some blocks back and takes them anew in every step, and which ones
# differs from arm to arm: two arms without a tap then differ by several percent.
KEEPING: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
_BLOCK_TOKENS: Final = 16
_ROOM_TOKENS: Final = 304  # of each request: the longest workload and some more
_MAX_AGE_SECONDS: Final = "3600"  # frames wait while their arm is stopped
_SETTLE_SECONDS: Final = 60.0  # after the last turn its frames are under way


class Workload(NamedTuple):
    """Requests that are sent at once, tokens of each prompt, and tokens generated for each."""

    name: str
    batch: int
    prompt: int
    tokens: int


class Started(NamedTuple):
    """What it took to be there: seconds to load and compile, bytes on the device and the host."""

    load_seconds: float
    device_bytes: float = 0.0
    host_bytes: float = 0.0


class Engine(Protocol):
    """One arm: `ArmProcess`, or a fake."""

    name: str

    def started(self) -> Started:
        """What it took to start, and what it holds now."""

    def turn(self, workload: Workload) -> Taken:
        """Serve the workload once, while all others stand still."""

    def flaws(self, turns: Sequence[Turn]) -> list[str]:
        """Why the arm did not measure everything; empty when it did, or has no tap."""

    def stop(self) -> None:
        """End it."""


class Placing(NamedTuple):
    """Where engines run. num_arms: share the device. most: requests at once."""

    is_gpu: bool
    num_arms: int
    most: int

    def environ(self) -> dict[str, str]:
        """Of each engine's process."""
        if not self.is_gpu:
            return {"VLLM_CPU_KVCACHE_SPACE": "1"}
        blocks = (self.most * _ROOM_TOKENS + MAX_TOKENS_A_STEP) // _BLOCK_TOKENS
        share = round(0.92 / self.num_arms, 3)
        # The same for every arm, or what a tap takes would be missing from its cache instead.
        more = {"gpu_memory_utilization": share, "num_gpu_blocks_override": blocks}
        return {"BENCH_ENGINE": json.dumps(more)}


class ArmProcess:
    """An engine of `shape` in a process of its own, loaded; then stopped until it has a turn."""

    def __init__(self, name: str, folder: Path, shape: dict[str, Any], placing: Placing) -> None:
        self.name = name
        self._is_gpu = placing.is_gpu
        self._folder = folder / name
        self._folder.mkdir()
        (self._folder / "config.json").write_text(json.dumps(shape))
        self._log = (self._folder / "log").open("w+")
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._api = self._start_sidecar() if name in arms.TAPPED else ""
            self._process = self._start(shape, placing)
            self._load_seconds = float(self._answer()["load_seconds"])
        except BaseException:
            self.stop()
            raise
        self._signal(signal.SIGSTOP)

    @property
    def group(self) -> int:
        """Process group of the engine."""
        return self._process.pid

    def started(self) -> Started:
        """What it took to start, and what it holds now."""
        self._signal(signal.SIGCONT)
        device = self._ask({"memory": True})["device_bytes"] if self._is_gpu else 0.0
        host = _proportional_bytes(self._process.pid)
        self._signal(signal.SIGSTOP)
        return Started(self._load_seconds, device, host)

    def turn(self, workload: Workload) -> Taken:
        """Serve the workload once, while all others stand still."""
        self._signal(signal.SIGCONT)
        told = self._ask(workload._asdict())
        self._signal(signal.SIGSTOP)
        return taken(workload, told)

    def flaws(self, turns: Sequence[Turn]) -> list[str]:
        """Why the arm did not measure everything; waits for its last frames."""
        if not self._api:
            return []
        self._signal(signal.SIGCONT)
        until, found = time.monotonic() + _SETTLE_SECONDS, ["nothing was asked"]
        while found and time.monotonic() < until:
            time.sleep(1.0)
            status, signals = (_got(f"{self._api}/{each}") for each in ("status", "signals"))
            found = arms.flaws(self.name, status, signals, list(turns))
        self._signal(signal.SIGSTOP)
        return found

    def steer(self, wishes: Control) -> None:
        """Have its running tap obey `wishes`; TimeoutError when it does not say that it does."""
        control.write(self._folder / CONTROL_NAME, wishes)
        self._signal(signal.SIGCONT)
        until = time.monotonic() + _SETTLE_SECONDS
        while wishes.revision not in _revisions(_got(f"{self._api}/status")):
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name} does not obey {wishes.revision!r}; see its status")
            time.sleep(0.1)
        self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End the engine and its sidecar."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.communicate()
        self._log.close()

    def _start(self, shape: dict[str, Any], placing: Placing) -> "subprocess.Popen[str]":
        # An inherited VLLM_PLUGINS would leave the tap out, and the ratio would be a perfect 1.
        inherited = os.environ.items()
        environ = {k: v for k, v in inherited if not k.startswith(("SIDECAR_", "VLLM_"))}
        layers, hidden = shape["num_hidden_layers"], shape["hidden_size"]
        environ |= arms.settings(self.name, self._folder, layers, hidden) | placing.environ()
        environ |= {
            "SIDECAR_SOCKET": str(self._folder / "ingest.sock"),
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # to hand a function to our own engine
            "VLLM_CACHE_ROOT": str(self._folder / "cache"),
            **KEEPING,
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", ARM, str(self._folder), str(placing.most)]
        return self._popen([*command, arms.how(self.name)], environ)

    def _start_sidecar(self) -> str:
        """The base of its API's addresses."""
        command = [sys.executable, "-m", "sidecar", "serve", "--metrics-port", "0"]
        command += ["--api-port", "0", "--socket", str(self._folder / "ingest.sock")]
        command += ["--max-age-seconds", _MAX_AGE_SECONDS, "--stale-seconds", _MAX_AGE_SECONDS]
        words = _line(self._popen(command, dict(os.environ)), "sidecar", self._log).split()
        return words[words.index("api") + 1].removesuffix("/status")

    def _popen(self, command: list[str], environ: dict[str, str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("the arm has no stdin")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(_line(self._process, self.name, self._log))
        return answer

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            _signal_group(process.pid, number)


def taken(workload: Workload, told: dict[str, Any]) -> Taken:
    """A turn's times as rates: of decoding where that is most of the work, else of the prompts."""
    if workload.name == "decode":
        rate = workload.batch * (workload.tokens - 1) / told["decode"]
    else:
        rate = workload.batch * workload.prompt / told["prefill"]
    return Taken(rate, sum(told["first"]) / len(told["first"]), told["steps"])


def _line(process: "subprocess.Popen[str]", name: str, log: Any) -> str:
    if process.stdout is None:
        raise RuntimeError(f"{name} has no stdout")
    while not select.select([process.stdout], [], [], 5.0)[0]:
        progress(f"waiting for {name} at {time.strftime('%H:%M:%S')}")
    line = process.stdout.readline()
    if not line:
        log.seek(0)
        raise RuntimeError(f"{name} ended:\n{log.read()[-4000:]}")
    return str(line)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # it has ended; whoever asks it next is told


def _proportional_bytes(group: int) -> float:
    """Memory of a process group, shared pages in proportion."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(each.split()[1]) for each in lines if each.startswith("Pss:"))
        except (OSError, ValueError):
            continue  # it ended while we looked
    return 1024.0 * total


def _revisions(status: Any) -> list[str]:
    return [each["control"] for each in status["sources"] if each["source"] == SOURCE]


def _got(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return json.load(reply)
