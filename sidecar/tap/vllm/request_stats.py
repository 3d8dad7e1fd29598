"""Ordinary latency and token stats, from the front end's own stat-logger interface.

Requests whose client hung up, of which vLLM makes no stats, are told of by their internal ids.
Installed only beside the stat loggers that vLLM makes itself, so `--disable-log-stats` stays in
force. `record` runs on the front end's event loop, where an exception would fail every request:
it is guarded, appends to bounded queues, and does nothing else.
"""

import contextlib
import functools
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from vllm.v1.metrics import loggers

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.tap.guard import Guard
from sidecar.tap.pump import Pump, idle_work
from sidecar.tap.vllm import releases
from sidecar.tap.vllm.callers import Call, Callers, call_of, hear_http, hear_requests
from sidecar.tap.vllm.options import model_name, options_of
from sidecar.wire.channel import Sender
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import Aborted, Body, Finished, Serving, Source, Status

# Observations between two flushes; of more the oldest make way, and only the totals count them.
# Twice as many with the longest ids would not fit a frame.
MAX_QUEUED: Final = 2048
MAX_ABORTED: Final = 4096  # likewise; of more the newest are only counted
_PATCHED: Final = "_sidecar_patched"


def install() -> None:
    """Add our logger to each manager that vLLM makes; a second call changes nothing."""
    original = loggers.StatLoggerManager.__init__
    if hasattr(original, _PATCHED):
        return
    callers = Callers()
    aborts = Aborts(callers)

    @functools.wraps(original)
    def init(manager: Any, *args: Any, **kwargs: Any) -> None:
        original(manager, *args, **kwargs)
        try:
            vllm_config = kwargs.get("vllm_config", args[0] if args else None)
            logger = SidecarStatLogger(vllm_config, manager.engine_indexes, aborts)
            manager.stat_loggers.append(logger)
            hear_http(callers)  # only now: the process has by now loaded what it serves HTTP with
        except Exception as error:  # the front end must start, whatever happens to us
            _LOG.warning("sidecar: no request stats; serving goes on", exc_info=error)

    setattr(init, _PATCHED, True)
    loggers.StatLoggerManager.__init__ = init
    _hear_aborts(aborts)
    hear_requests(callers)


def _hear_aborts(aborts: "Aborts") -> None:
    """Tell `aborts` the internal ids of requests that the front end gives up, once each.

    Those that had finished by then are not among the ids that `abort_requests` returns; the
    children of one that asked for several samples are, told of by a call within the call.
    """
    try:
        from vllm.v1.engine.output_processor import OutputProcessor  # noqa: PLC0415 - may be gone

        original = OutputProcessor.abort_requests
    except (ImportError, AttributeError) as error:
        _LOG.warning("sidecar: aborted requests are not told of", exc_info=error)
        return

    @functools.wraps(original)
    def abort_requests(*args: Any, **kwargs: Any) -> Any:
        with aborts.call() as is_outermost:
            aborted = original(*args, **kwargs)
        if is_outermost:
            aborts.add(aborted)
        return aborted

    OutputProcessor.abort_requests = abort_requests


class Aborts:
    """Requests that were given up since the last flush; never raises.

    Written by the event loop, drained by the pump.
    """

    def __init__(self, callers: Callers | None = None) -> None:
        self.num_cut = 0
        self._callers = callers or Callers()
        self._gone: deque[Aborted] = deque()
        self._depth = 0

    @contextlib.contextmanager
    def call(self) -> Iterator[bool]:
        """Around a call of `abort_requests`: whether no other is under way."""
        self._depth += 1
        try:
            yield self._depth == 1
        finally:
            self._depth -= 1

    def add(self, req_ids: Any) -> None:
        """Take in what `abort_requests` returned; beyond the bound the ids are only counted."""
        for req_id in req_ids if isinstance(req_ids, list) else []:
            call = self._callers.end(str(req_id))
            if len(self._gone) < MAX_ABORTED:
                self._gone.append(_aborted(str(req_id), call))
            else:
                self.num_cut += 1

    def errors(self) -> dict[str, int]:
        """What went wrong so far, by site."""
        cut = {"aborts_cut": self.num_cut} if self.num_cut else {}
        return self._callers.errors() | cut

    def drain(self) -> Iterator[list[Aborted]]:
        """Those since the last call, in lists that fit a frame."""
        gone = _drained(self._gone)
        for start in range(0, len(gone), MAX_QUEUED):
            yield gone[start : start + MAX_QUEUED]


class EngineStats:
    """Totals and new observations of one engine.

    Written by the event loop, drained by the pump; deque operations are atomic, so neither waits.
    """

    def __init__(self, model_name: str, engine: int) -> None:
        self._model_name = model_name
        self._engine = engine
        self._totals = {"prompt": 0, "generated": 0, "cached": 0, "preempted": 0}
        self._running = self._waiting = 0
        self._kv_cache_usage = 0.0
        self._ttft: deque[float] = deque(maxlen=MAX_QUEUED)
        self._finished: deque[Finished] = deque(maxlen=MAX_QUEUED)

    def record(self, scheduler: Any | None, iteration: Any | None) -> None:
        """Take in one batch of vLLM's stats."""
        if scheduler is not None:
            self._running = scheduler.num_running_reqs
            self._waiting = scheduler.num_waiting_reqs
            self._kv_cache_usage = scheduler.kv_cache_usage
        if iteration is None:
            return
        self._totals["prompt"] += iteration.num_prompt_tokens
        self._totals["generated"] += iteration.num_generation_tokens
        self._totals["preempted"] += iteration.num_preempted_reqs
        self._ttft.extend(iteration.time_to_first_tokens_iter)
        for stats in iteration.finished_requests:
            self._totals["cached"] += stats.num_cached_tokens
            self._finished.append(_finished(stats))

    def body(self, aborted: list[Aborted] | None = None) -> Serving:
        """Totals so far, the observations since the last call, and those `aborted`."""
        return Serving(
            self._model_name,
            self._engine,
            self._totals["prompt"],
            self._totals["generated"],
            self._totals["cached"],
            self._totals["preempted"],
            self._running,
            self._waiting,
            self._kv_cache_usage,
            _drained(self._ttft),
            _drained(self._finished),
            aborted or [],
        )


class SidecarStatLogger(loggers.AggregateStatLoggerBase):  # type: ignore[misc]  # vllm is untyped
    """vLLM's stat-logger interface over `EngineStats`, one for each engine of this front end.

    aborts: the ids that the front end has given up.
    """

    def __init__(
        self, vllm_config: Any, engine_indexes: list[int], aborts: Aborts | None = None
    ) -> None:
        config = TapConfig.read(os.environ, options_of(vllm_config))
        self._guard = Guard(config.max_errors)
        self._aborts = aborts or Aborts()
        self._model_name = model_name(vllm_config)
        self._engines = {i: EngineStats(self._model_name, i) for i in engine_indexes}
        rank = max(0, getattr(vllm_config.parallel_config, "_api_process_rank", 0))
        sender = Sender(config.socket, Source("frontend", rank), config.key())
        self._pump = Pump(sender, idle_work(self._bodies), self._guard, config.flush_seconds)
        self._pump.start()

    def record(
        self,
        scheduler_stats: Any | None,
        iteration_stats: Any | None,
        mm_cache_stats: Any | None = None,  # noqa: ARG002 - vLLM's interface
        engine_idx: int = 0,
    ) -> None:
        """Take in one batch of stats, on the event loop."""
        self._guard.run("stats", self._record, scheduler_stats, iteration_stats, engine_idx)

    def log_engine_initialized(self) -> None:
        """Nothing to say: the engine's own tap reports it."""

    def _record(self, scheduler: Any | None, iteration: Any | None, engine: int) -> None:
        stats = self._engines.get(engine)
        if stats is None:
            stats = self._engines[engine] = EngineStats(self._model_name, engine)
        stats.record(scheduler, iteration)

    def _bodies(self) -> Iterable[Body]:
        yield Status(
            "disarmed" if self._guard.disarmed else "live",
            errors=dict(self._guard.errors) | self._aborts.errors(),
            model_name=self._model_name,
            vllm_version=releases.installed_version(),
            tap_version=__version__,
        )
        engines = list(self._engines.values())
        for stats in engines:
            yield stats.body()
        # In frames of their own: that of the observations may be full.
        for gone in self._aborts.drain():
            yield engines[0].body(gone)


def _finished(stats: Any) -> Finished:
    end_ns, e2e, call = time.time_ns(), _seconds(stats.e2e_latency), call_of(stats)
    return Finished(
        id=str(stats.request_id)[:MAX_TEXT],
        reason=str(stats.finish_reason),
        end_ns=end_ns,
        e2e=e2e,
        queue=_seconds(stats.queued_time),
        prefill=_seconds(stats.prefill_time),
        decode=_seconds(stats.decode_time),
        time_per_output_token=_seconds(stats.mean_time_per_output_token),
        prompt_tokens=stats.num_prompt_tokens,
        generated_tokens=stats.num_generation_tokens,
        cached_tokens=stats.num_cached_tokens,
        start_ns=call.start_ns or end_ns - int(e2e * 1e9),
        time_to_first_token=call.time_to_first_token,
        traceparent=call.traceparent,
        max_tokens=call.max_tokens or stats.max_tokens_param or 0,
        temperature=call.temperature,
        top_p=call.top_p,
    )


def _aborted(req_id: str, call: Call) -> Aborted:
    return Aborted(
        id=req_id[:MAX_TEXT],
        end_ns=time.time_ns(),
        start_ns=call.start_ns,
        traceparent=call.traceparent,
        max_tokens=call.max_tokens,
        temperature=call.temperature,
        top_p=call.top_p,
    )


def _seconds(interval: float) -> float:
    # vLLM subtracts time stamps, of which one is still 0 when a request ends before its turn.
    return max(0.0, float(interval))


def _drained(queue: deque[Any]) -> list[Any]:
    return [queue.popleft() for _ in range(len(queue))]


_LOG = logging.getLogger("sidecar.tap")
