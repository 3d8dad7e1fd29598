"""One run of the demo, from the first server's start to the last one's end.

Guarantee: whatever ends the run (the time limit, Ctrl-C, SIGTERM, a hang-up, a server that dies),
both servers and all their processes are gone and the private folder is removed when `run`
returns; nothing is silent for more than 10 s.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import httpx
from rich.console import Console

from sidecar.demo import preflight, readings, services, traffic
from sidecar.demo.intruder import Intruder
from sidecar.demo.options import Options
from sidecar.demo.processes import Process, Service
from sidecar.demo.progress import FIRST_VLLM_STAGE, Progress, vllm_stage
from sidecar.demo.screen import Screen

STOPPED_BEFORE_READY: Final = 130
SERVER_DIED: Final = 1
POLL_SECONDS: Final = 0.5
SECONDS_BETWEEN_READINGS: Final = 1.0
# A unix socket's path has at most 107 bytes; vLLM adds a 36-byte name to the folder's.
LONGEST_RUN_DIR: Final = 64

ServicesOf = Callable[[Options, Path], Sequence[Service]]


class ServerDied(Exception):
    """A server ended, or did not become ready; the text says which, and how its log ends."""


def run(options: Options, services_of: ServicesOf | None = None) -> int:
    """Run the demo; exit status 0, 1 (a server died) or 130 (stopped before it was ready).

    services_of: the servers to start, in order and all at once, given the private folder; they
    end in the opposite order, so that the engine's last frames still meet a receiver.
    """
    return asyncio.run(_Session(options, services_of or _real_services).run())


def _real_services(options: Options, run_dir: Path) -> Sequence[Service]:
    compiler = preflight.find_compiler(preflight.this_machine())
    services.write_keys(run_dir)
    return (
        services.exporter(options, run_dir, os.environ),
        services.vllm(options, run_dir, os.environ, compiler),
    )


class _Session:
    def __init__(self, options: Options, services_of: ServicesOf) -> None:
        self._options = options
        self._services_of = services_of
        self._asked_to_stop = asyncio.Event()
        self._intruder: Intruder | None = None
        self._processes: list[Process] = []

    async def run(self) -> int:
        """Start, show, end; every way out passes through the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop.set)
        with _private_folder() as run_dir, contextlib.ExitStack() as ends:
            try:
                chosen = self._services_of(self._options, run_dir)
                self._intruder = _intruder(run_dir / services.TAMPER_KEY, self._options)
                return await self._run(chosen, ends)
            except ServerDied as error:
                _say(str(error), sys.stderr)
                return SERVER_DIED

    async def _run(self, chosen: Sequence[Service], ends: contextlib.ExitStack) -> int:
        progress = Progress(_say, time.monotonic)
        for service in chosen:
            progress.note(f"starting {service.name}")
            process = Process.start(service)
            self._processes.append(process)
            ends.callback(_stop, process)
        # A thread, and only after the last fork: parsing the corpus takes seconds.
        drawing = asyncio.create_task(asyncio.to_thread(traffic.pools, self._options.seed))
        for process in self._processes:
            if not await self._become_ready(process, progress):
                return STOPPED_BEFORE_READY
        _say(f"ready after {progress.seconds:.0f} s\n{self._addresses()}")
        await self._show(await drawing)
        return 0

    async def _become_ready(self, process: Process, progress: Progress) -> bool:
        """Wait until a server can be used; False when asked to stop meanwhile."""
        service = process.service
        stage = FIRST_VLLM_STAGE if service.name == "vLLM" else "starting"
        async with _client() as client:
            while not self._asked_to_stop.is_set():
                self._check_alive()
                if await _answers(client, service.ready):
                    return True
                if progress.seconds > self._options.start_seconds:
                    raise ServerDied(_epitaph(process, f"not ready in {progress.seconds:.0f} s"))
                stage = vllm_stage(process.new_lines(), stage)
                progress.note(f"{service.name}: {stage}")
                await self._pause(POLL_SECONDS)
        return False

    async def _show(self, pools: dict[str, traffic.Pool]) -> None:
        """Send traffic and show readings until asked to stop, or until the time is over."""
        tally = traffic.Tally()
        began = time.monotonic()
        async with (
            self._sending(pools, tally),
            _client(self._options.api_url) as client,
            _client(self._options.vllm_url) as engine,
        ):
            with Screen(Console()) as screen, self._listening():
                note = ""
                while not self._is_over(began):
                    self._check_alive()
                    reading = await _reading(client)
                    note = await self._tampered(reading, engine)
                    screen.show(reading, tally, time.monotonic() - began, note=note)
                    await self._pause(SECONDS_BETWEEN_READINGS)
                reading = await _reading(client)
                screen.show(reading, tally, time.monotonic() - began, note=note, last=True)

    async def _tampered(self, reading: readings.Reading, engine: httpx.AsyncClient) -> str:
        """Have the intruder look at the canary; what it says."""
        if self._intruder is None:
            return ""
        await self._intruder.watch(reading.canary, engine)
        return self._intruder.word

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Lines typed at a terminal: a `t` is a word to the intruder."""
        if self._intruder is None or not sys.stdin or not sys.stdin.isatty():
            yield
            return
        loop, intruder = asyncio.get_running_loop(), self._intruder

        def hear() -> None:
            line = sys.stdin.readline()
            if not line:
                loop.remove_reader(sys.stdin)
            elif line.strip().lower() == "t":
                intruder.ask()

        loop.add_reader(sys.stdin, hear)
        try:
            yield
        finally:
            loop.remove_reader(sys.stdin)

    @contextlib.asynccontextmanager
    async def _sending(
        self, pools: dict[str, traffic.Pool], tally: traffic.Tally
    ) -> AsyncIterator[None]:
        """Traffic in the background; a bug of the generator's is told, never raised."""
        options = self._options
        async with _client(options.vllm_url) as client:
            stream = traffic.requests(pools, options.seed)
            task = asyncio.create_task(
                traffic.send(client, stream, services.SERVED_NAME, options.rate, tally)
            )
            try:
                yield
            finally:
                task.cancel()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(outcome, Exception):
                    _say(f"the traffic generator failed: {outcome!r}", sys.stderr)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked_to_stop.wait(), seconds)

    def _is_over(self, began: float) -> bool:
        limit = self._options.seconds
        return self._asked_to_stop.is_set() or (
            limit is not None and time.monotonic() - began >= limit
        )

    def _check_alive(self) -> None:
        for process in self._processes:
            code = process.exit_code()
            if code is not None:
                raise ServerDied(_epitaph(process, f"ended with status {code}"))

    def _addresses(self) -> str:
        options = self._options
        return (
            f"  page     {options.api_url}/ui/  <- is it as usual? open this in a browser\n"
            f"  vLLM     {options.vllm_url}/v1/models\n"
            f"  metrics  {options.metrics_url}/metrics\n"
            f"  health   {options.metrics_url}/readyz\n"
            f"  API      {options.api_url}/v1/status  {options.api_url}/v1/layers\n"
            f"  drift    {options.api_url}/v1/drift\n"
            "Ctrl-C ends the demo and every process it started."
        )


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="llm-internals-",
        dir=parent if len(parent) < LONGEST_RUN_DIR - 24 else "/tmp",  # noqa: S108 - made private
        ignore_cleanup_errors=True,
    ) as folder:
        yield Path(folder)


def _client(base_url: str = "") -> httpx.AsyncClient:
    # A proxy of the user's must not see, or swallow, traffic to this machine.
    return httpx.AsyncClient(base_url=base_url, timeout=2.0, trust_env=False)


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def _reading(client: httpx.AsyncClient) -> readings.Reading:
    status, layers = await _json(client, "/v1/status"), await _json(client, "/v1/layers")
    return readings.read(status, layers, await _json(client, "/v1/drift"))


def _intruder(key_file: Path, options: Options) -> Intruder | None:
    """Who tampers, where the servers were given a key for it."""
    if not key_file.exists():
        return None
    return Intruder(key_file.read_text(), by_itself=options.tamper)


async def _json(client: httpx.AsyncClient, path: str) -> Any:
    """The answer as JSON; None when there is none, which the screen shows as such."""
    try:
        answer = await client.get(path)
        return answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None


def _stop(process: Process) -> None:
    _say(f"stopping {process.service.name}")
    process.stop()


def _epitaph(process: Process, what: str) -> str:
    tail = "\n".join(f"  | {line}" for line in process.tail())
    return f"{process.service.name} {what}; the end of {process.service.log}:\n{tail}"


def _say(text: str, stream: TextIO | None = None) -> None:
    # The terminal or the pipe may be gone; the servers must be ended all the same.
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
