"""Uvicorn servers in one process and one event loop, from sockets bound beforehand.

Guarantees: a port or socket that cannot be had is one sentence before anything starts; one line
on stdout says that all is up and where; SIGTERM and SIGINT end everything within five seconds and
leave no socket file behind, with what was learnt on the disk; a second one ends what is being
answered at once, and never what is being kept; SIGHUP reads the baseline file again.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ssl import SSLContext
from typing import Final, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from sidecar.config import PREFIX, ExporterConfig, FleetConfig
from sidecar.errors import ConfigError, SidecarError
from sidecar.publish.allocator import give_large_blocks_back
from sidecar.publish.app import create_api_app, create_metrics_app, create_state
from sidecar.publish.guard.audited import create_log
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.state import State

_log = logging.getLogger(__name__)
GRACE_SECONDS: Final = 1  # for answers under way; with the limits of State.stop, below five
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(
    config: ExporterConfig,
    clock_ns: Callable[[], int] = time.time_ns,
    steady_ns: Callable[[], int] = time.monotonic_ns,
) -> int:
    """Serve until told to stop by a signal; 0, the exit status.

    clock_ns: Unix time in nanoseconds by which frames age and windows close; senders stamp by
        the same. Another one lets hours pass in minutes, or a clock jump (`bench/`).
    steady_ns: of a clock that nobody sets, by which the parts of a span are waited for.
    Raises ConfigError when a port cannot be had, ChannelError when the socket cannot. Only the
    main thread can call this: signals go there, and those that end it are ignored afterwards, so
    that a second one does not kill a process that is about to end well.
    """
    _log_to_stderr()
    give_large_blocks_back()  # before there are threads
    with contextlib.ExitStack() as stack:
        stack.callback(_ignore_signals)
        metrics = stack.enter_context(listen("METRICS", config.metrics_host, config.metrics_port))
        api = stack.enter_context(listen("API", config.api_host, config.api_port))
        guard = create_guard(config)
        state = create_state(config, guard, clock_ns, steady_ns)
        stack.callback(state.stop)
        state.start()
        seats = [
            _Seat(guard.metrics(create_metrics_app(state)), metrics, guard.context),
            _Seat(guard.api(create_api_app(state)), api, guard.context),
        ]
        ready = (
            f"sidecar ready: metrics {_url(seats[0])}/metrics api {_url(seats[1])}/v1/status "
            f"socket {config.socket}\n"
        )
        asyncio.run(_run(seats, ready, lambda: _reload(state), state.hang_up))
    return 0


def serve_fleet(config: FleetConfig) -> int:
    """Run the fleet job until told to stop by a signal; 0, the exit status.

    Raises ConfigError when its port cannot be had.
    """
    # Only here: every engine waits for what a restarted exporter imports.
    from sidecar.publish.fleet.app import create_fleet, create_fleet_app  # noqa: PLC0415

    _log_to_stderr()
    give_large_blocks_back()  # before there are threads
    with contextlib.ExitStack() as stack:
        stack.callback(_ignore_signals)
        listener = stack.enter_context(listen("FLEET", config.fleet_host, config.fleet_port))
        fleet = create_fleet(config)
        stack.callback(fleet.stop)
        fleet.start()
        seat = _Seat(create_fleet_app(fleet, create_log(config.state_dir)), listener)
        ready = f"sidecar fleet ready: metrics {_url(seat)}/metrics api {_url(seat)}/v1/drift\n"
        asyncio.run(_run([seat], ready))
    return 0


def listen(name: str, host: str, port: int) -> socket.socket:
    """A listening socket whose connections send at once what they are given.

    name: METRICS, API or FLEET. Raises ConfigError when the address cannot be had.
    """
    key = f"{PREFIX}{name}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; set another "
            f"{key}_PORT or {key}_HOST"
        ) from error
    # Every connection inherits it. asyncio sets it for sockets of its own making only, and without
    # it a body waits 40 ms for the client's delayed acknowledgement of its headers (Nagle's rule).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Seat(NamedTuple):
    app: ASGIApp
    listener: socket.socket
    tls: SSLContext | None = None


class _Server(uvicorn.Server):
    """A server that leaves the signals alone: of two, only the later one would see them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    seats: Sequence[_Seat],
    ready: str,
    reload: Callable[[], None] | None = None,
    hang_up: Callable[[], None] = lambda: None,
) -> None:
    servers = [_Server(_settings(seat)) for seat in seats]
    loop = asyncio.get_running_loop()
    _hear(loop, lambda: _stop(servers, hang_up))
    if reload is not None:
        signal.signal(signal.SIGHUP, lambda *_: _in_background(reload))
    pairs = zip(servers, seats, strict=True)
    running = asyncio.gather(*(server.serve([seat.listener]) for server, seat in pairs))
    while not running.done() and not all(server.started for server in servers):
        await asyncio.sleep(0.01)
    if not running.done():
        sys.stdout.write(ready)
        sys.stdout.flush()
    await running


def _hear(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Have `stop` called in `loop` at each signal to end, and nothing once the loop has closed.

    A loop's own handlers go with it, and the next signal would kill a process that still keeps
    what it learnt.
    """

    def tell(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed: the end is under way
            loop.call_soon_threadsafe(stop)

    for number in _SIGNALS:
        signal.signal(number, tell)


def _ignore_signals() -> None:
    for number in (*_SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _reload(state: State) -> None:
    try:
        state.reload("SIGHUP")
    except SidecarError as error:
        _log.error("the baseline was not read again: %s", error)


def _in_background(action: Callable[[], None]) -> None:
    # A baseline of a fleet takes seconds to read: health goes on answering, and no end waits for
    # it, as it would for a thread of the loop's executor.
    threading.Thread(target=action, name="sidecar-reload", daemon=True).start()


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def _settings(seat: _Seat) -> uvicorn.Config:
    context = seat.tls
    return uvicorn.Config(
        seat.app,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
        access_log=False,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws="none",
    )


def _stop(servers: Sequence[uvicorn.Server], hang_up: Callable[[], None]) -> None:
    hang_up()  # or a server would wait for those who listen to events
    for server in servers:
        server.force_exit = server.should_exit  # told for the second time: wait for no answer
        server.should_exit = True


def _url(seat: _Seat) -> str:
    host, port = seat.listener.getsockname()[:2]
    scheme = "http" if seat.tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
