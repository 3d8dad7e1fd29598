"""Real servers for the end-to-end tests: vLLM with the tap, and the sidecar beside it."""

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "sidecar" / "demo" / "model"
SABOTEUR = Path(__file__).parent / "saboteur"
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
EVERY_SERIES = Path(__file__).parents[2] / "examples" / "metrics_everything.toml"
START_SECONDS = 900  # 60 on a quiet machine; graphs are compiled
FOREIGN = ("SIDECAR_", "VLLM_", "TRITON_")  # settings of whoever runs the tests
CANARY_SECRET = b"a secret of the operator's, 32 b"
PORTS = (15_000, 32_000)
BATCH_TOKENS = 256  # small, so that prompts of the tests are prefilled in chunks


def free_port() -> int:
    """A port nobody listens on at this moment.

    Not one of those that Linux gives to clients (from 32768 on): a server binds its own a minute
    after it was chosen, and every request of a neighbour takes one of the others meanwhile.
    """
    while True:
        port = random.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def core_of_worker() -> dict[str, str]:
    """Settings of vLLM by which servers of two pytest workers do not share one core.

    By itself each takes the first. Nothing is set where there is one worker.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    return {"VLLM_CPU_OMP_THREADS_BIND": str(cores[int(worker.removeprefix("gw")) % len(cores)])}


def get_json(url: str, timeout: float = 30.0) -> Any:
    """Body of `url`, whatever its status says."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return json.load(error)


def get_text(url: str, timeout: float = 30.0) -> str:
    """Text of `url`."""
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return reply.read().decode()


def get_status(url: str) -> int:
    """HTTP status of `url`."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = 120.0, every: float = 0.1
) -> Any:
    """First true value of `condition`; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except OSError:
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(every)


class Process:
    """A process of ours in a session of its own, with its output in a file."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("a") as output:
            self.popen = subprocess.Popen(
                command,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - started from the main thread
            )

    def check_alive(self) -> None:
        """Fail the test with the end of the log when the process has ended."""
        if self.popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-6000:]
            raise AssertionError(f"process ended with {self.popen.returncode}:\n{tail}")

    def kill(self) -> None:
        """kill -9 the process alone."""
        self.popen.kill()
        self.popen.wait()

    def kill_all(self) -> None:
        """kill -9 the process and every child in its session."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        """End the whole session, politely first."""
        for sign, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.popen.pid, sign)
                self.popen.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@dataclass
class Stack:
    """One vLLM server and one sidecar on one socket.

    args: further arguments of vLLM. sabotage: see saboteur.py.
    cache: where vLLM keeps what it compiled. By itself the servers of a session share it, as those
    of a node do: what one has compiled, another with the same settings need not, and which classes
    a model has is found out once. A test about compiling has one of its own.
    metrics_file: which series the sidecar shows; None is what it shows by itself.
    """

    folder: Path
    tap: bool = True
    dtype: str = "bfloat16"
    args: tuple[str, ...] = ()
    sabotage: str = ""
    cache: Path | None = None
    model: Path = MODEL
    metrics_file: Path | None = EVERY_SERIES
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.metrics_port, self.api_port = free_port(), free_port(), free_port()
        self.socket = self.folder / "run" / "ingest.sock"
        self.exporter: Process | None = None
        self.engine: Process | None = None

    @property
    def url(self) -> str:
        """Root of vLLM's API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Root of the sidecar's metrics port."""
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def api_url(self) -> str:
        """Root of the sidecar's API port."""
        return f"http://127.0.0.1:{self.api_port}"

    def start(self) -> "Stack":
        """Start both; returns when vLLM serves."""
        self.start_exporter()
        self.start_engine()
        return self

    def start_exporter(self) -> None:
        """Start the sidecar, and wait until it answers."""
        options = ["--metrics-port", str(self.metrics_port), "--api-port", str(self.api_port)]
        if self.metrics_file is not None:
            options += ["--metrics-file", str(self.metrics_file)]
        self.exporter = Process(
            [sys.executable, "-m", "sidecar", "serve", *options],
            self._environ(),
            self.folder / "exporter.log",
        )
        exporter = self.exporter

        def answers() -> bool:
            exporter.check_alive()
            return get_status(f"{self.metrics_url}/healthz") == 200

        wait_for(answers, "the sidecar answers", START_SECONDS, 0.02)

    def start_engine(self) -> None:
        """Start vLLM, and wait until it serves."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--served-model-name", "tiny"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", self.dtype]
        command += ["--max-model-len", "1024", "--enable-prompt-tokens-details", *self.args]
        if "--max-num-seqs" not in self.args:
            command += ["--max-num-seqs", "64"]
        if "--max-num-batched-tokens" not in self.args:
            command += ["--max-num-batched-tokens", str(BATCH_TOKENS)]
        self.engine = Process(command, self._environ(), self.folder / "vllm.log")
        engine = self.engine

        def serves() -> bool:
            engine.check_alive()
            return get_status(f"{self.url}/health") == 200

        wait_for(serves, "vLLM serves", START_SECONDS, 0.5)

    def stop(self) -> None:
        """End both."""
        for process in (self.engine, self.exporter):
            if process is not None:
                process.stop()

    def complete(
        self,
        prompt: list[int] | str,
        max_tokens: int,
        request_id: str = "",
        **options: Any,
    ) -> dict[str, Any]:
        """One greedy completion: {prompt_tokens, tokens, cached, id}.

        choices: tokens of each, where `n` asks for several; `tokens` are those of the first.
        """
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        body |= {"ignore_eos": True, "return_token_ids": True, **options}
        reply = self._post("/v1/completions", body, request_id)
        usage = reply["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return {
            "id": reply["id"],
            "tokens": reply["choices"][0]["token_ids"],
            "choices": [choice["token_ids"] for choice in reply["choices"]],
            "prompt_tokens": usage["prompt_tokens"],
            "cached": details.get("cached_tokens") or 0,
        }

    def complete_all(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Many completions at once, each with the keywords of `complete`."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda call: self.complete(**call), calls))

    def abort(self, prompt: list[int], max_tokens: int, after_chunks: int, request_id: str) -> None:
        """Stream a completion and hang up after a few chunks."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "stream": True}
        body |= {"temperature": 0.0, "ignore_eos": True}
        with urllib.request.urlopen(self._request("/v1/completions", body, request_id)) as reply:
            for _ in range(2 * after_chunks):  # a data line and an empty one for each
                reply.readline()

    def status(self) -> dict[str, Any]:
        """The sidecar's own account of everything."""
        return get_json(f"{self.api_url}/v1/status")

    def source(self, role: str = "engine") -> dict[str, Any]:
        """The one source of `role` in the status; empty when there is none."""
        return next((s for s in self.status()["sources"] if s["role"] == role), {})

    def requests(self) -> list[dict[str, Any]]:
        """Records of recent finished requests."""
        return get_json(f"{self.api_url}/v1/requests?limit=2000")["requests"]

    def record(self, completion_id: str, child: int | None = None) -> dict[str, Any]:
        """The record of a request by the id that its client saw; of one answer of several."""
        prefix = f"{completion_id}-0-" if child is None else f"{child}_{completion_id}-0-"

        def find() -> Any:
            return next((r for r in self.requests() if r["id"].startswith(prefix)), None)

        return wait_for(find, f"a record of {prefix}")

    def signature(self, completion_id: str) -> dict[str, Any]:
        """The final signature of a request by the id that its client saw."""
        url = f"{self.api_url}/v1/signatures?limit=20"

        def find() -> Any:
            told = get_json(url)["signatures"]
            mine = (s for s in told if s["is_final"] and s["id"].startswith(f"{completion_id}-0-"))
            return next(mine, None)

        return wait_for(find, f"a signature of {completion_id}")

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics, by its name and labels as printed."""
        found = {}
        for line in get_text(f"{self.metrics_url}/metrics").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def _post(self, path: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(
                self._request(path, body, request_id), timeout=300
            ) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read()[:2000]!r}") from error

    def _request(self, path: str, body: dict[str, Any], request_id: str) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if request_id:
            headers["X-Request-Id"] = request_id
        return urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)

    def _environ(self) -> dict[str, str]:
        cache = self.cache or self.folder.parent / "vllm_cache"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        paths = [str(ROOT), *([str(SABOTEUR)] if self.sabotage else [])]
        return {
            **kept,
            "SIDECAR_TAP": "1" if self.tap else "0",
            "SIDECAR_SOCKET": str(self.socket),
            "SIDECAR_FLUSH_SECONDS": "0.2",
            "SIDECAR_BUDGET_SHARE": "0",  # a step of a tiny model is shorter than our own
            "SABOTAGE": self.sabotage,
            "PYTHONPATH": os.pathsep.join(paths),
            "VLLM_CACHE_ROOT": str(cache),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **core_of_worker(),
            "HF_HUB_OFFLINE": "1",
            **self.environ,
        }


def _die_with_parent() -> None:
    """Ask Linux to end this process when the test run is killed, so that none is left behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def serving(stack: Stack) -> Iterator[Stack]:
    """Start `stack` for a fixture, and end it afterwards, whatever happens."""
    try:
        yield stack.start()
    finally:
        stack.stop()
