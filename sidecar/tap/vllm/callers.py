"""Who asked for a request, and how: caught where it enters the front end, told when it ends.

vLLM drops a caller's `traceparent` unless its own tracing is on (0.26 in its routes, 0.32 in
`AsyncLLM.add_request`), and its stats name requests by ids that clients may use again. So the
header is read where HTTP enters, kept by the request's internal id, and put beside the stats that
vLLM makes of that very request.

Guarantees: no request is changed, delayed or refused; at most `MAX_CALLS` are held, of more the
oldest make way and are counted; of a request's headers nothing but one valid `traceparent` is kept;
what raises is swallowed and counted, and disarmed after `MAX_ERRORS`.
"""

import functools
import logging
import math
import sys
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from sidecar.tap.guard import Guard
from sidecar.wire import traceparent

MAX_CALLS: Final = 16384
MAX_ERRORS: Final = 10
_HEADER: Final = b"traceparent"
_MAX_HEADER: Final = 512  # characters; a valid one of today has 55
_MAX_COUNT: Final = 1 << 62
_PATCHED: Final = "_sidecar_patched"
_CALL: Final = "_sidecar_call"
# Of the HTTP request that this task serves. Every task that it starts inherits it.
_PARENT: Final[ContextVar[str]] = ContextVar("sidecar_traceparent", default="")


class Call(NamedTuple):
    """How one request was asked for; 0, NaN and "" where it is not known.

    start_ns: Unix time of its arrival.
    traceparent: the caller's place in a trace, in the spelling of the wire.
    time_to_first_token: seconds; known at its end only.
    """

    start_ns: int = 0
    traceparent: str = ""
    max_tokens: int = 0
    temperature: float = math.nan
    top_p: float = math.nan
    time_to_first_token: float = math.nan


class Callers:
    """The calls of all requests under way in this front end, by internal id.

    num_cut: calls that had to make way.
    """

    def __init__(self) -> None:
        self.guard = Guard(MAX_ERRORS)
        self.num_cut = 0
        self._calls: dict[str, Call] = {}

    def begin(self, request: Any) -> None:
        """A request (vLLM's EngineCoreRequest) is added by the task that serves its caller."""
        if request.request_id in self._calls:  # more input of one that is under way
            return
        asked = getattr(request, "sampling_params", None)
        self._calls[request.request_id] = Call(
            _nanoseconds(request.arrival_time),
            _PARENT.get() or _passed_on(request),
            _count(getattr(asked, "max_tokens", None)),
            _finite(getattr(asked, "temperature", None)),
            _finite(getattr(asked, "top_p", None)),
        )
        if len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]
            self.num_cut += 1

    def end(self, internal_id: str) -> Call:
        """The call of a request that is over; one of nothing known when there is none."""
        return self._calls.pop(internal_id, _NOT_KNOWN)

    def finish(self, state: Any, stats: Any) -> None:
        """Put the call beside vLLM's `stats` of the request whose RequestState is `state`."""
        call = self.end(state.request_id)
        first = _finite(state.stats.first_token_latency)
        setattr(stats, _CALL, call._replace(time_to_first_token=first if first > 0 else math.nan))

    def errors(self) -> dict[str, int]:
        """What went wrong so far, by site."""
        cut = {"callers_cut": self.num_cut} if self.num_cut else {}
        return dict(self.guard.errors) | cut


def call_of(stats: Any) -> Call:
    """What `Callers.finish` put beside `stats` (vLLM's FinishedRequestStats)."""
    call: Call = getattr(stats, _CALL, _NOT_KNOWN)
    return call


def hear_requests(callers: Callers) -> None:
    """Tell `callers` of every request that the front end adds and that finishes.

    A release that lays it out otherwise has callers that are not known; the log says so.
    """
    try:
        from vllm.v1.engine.output_processor import OutputProcessor  # noqa: PLC0415 - may be gone

        add, finish = OutputProcessor.add_request, OutputProcessor._update_stats_from_finished
    except (ImportError, AttributeError) as error:
        _LOG.warning("sidecar: callers of requests are not known", exc_info=error)
        return

    @functools.wraps(add)
    def add_request(processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        added = add(processor, request, *args, **kwargs)
        callers.guard.run("callers", callers.begin, request)
        return added

    @functools.wraps(finish)
    def update_stats(processor: Any, state: Any, reason: Any, iteration: Any) -> Any:
        told = finish(processor, state, reason, iteration)
        if iteration is not None:
            callers.guard.run("callers", _finish_last, callers, state, iteration)
        return told

    OutputProcessor.add_request = add_request
    OutputProcessor._update_stats_from_finished = update_stats


def hear_http(callers: Callers) -> None:
    """Catch the header of every HTTP request that enters this process; twice changes nothing.

    Where nothing serves HTTP, no web framework is loaded, and none is loaded here.
    """
    applications = sys.modules.get("starlette.applications")
    if applications is None:
        return
    original = applications.Starlette.__call__
    if hasattr(original, _PATCHED):
        return

    @functools.wraps(original)
    async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
        callers.guard.run("traceparent", catch, scope)
        await original(app, scope, receive, send)

    setattr(call, _PATCHED, True)
    applications.Starlette.__call__ = call


def catch(scope: dict[str, Any]) -> None:
    """Keep the context of an ASGI scope for the task that serves it and those it starts.

    A scope without one, with several or with an invalid one has none, whatever was there before.
    """
    if scope.get("type") != "http":
        return
    sent = [value for name, value in scope.get("headers", ()) if name.lower() == _HEADER]
    _PARENT.set(_spelled(sent[0].decode("latin-1").strip()) if len(sent) == 1 else "")


def _passed_on(request: Any) -> str:
    """What a program without HTTP gave vLLM itself, which keeps it when its own tracing is on."""
    headers = getattr(request, "trace_headers", None) or {}
    return _spelled(str(headers.get(_HEADER.decode(), "")))


def _spelled(header: str) -> str:
    context = traceparent.parse(header) if len(header) <= _MAX_HEADER else None
    return context.header if context else ""


def _finish_last(callers: Callers, state: Any, iteration: Any) -> None:
    callers.finish(state, iteration.finished_requests[-1])


def _nanoseconds(seconds: Any) -> int:
    known = _finite(seconds)
    return _count(min(known * 1e9, _MAX_COUNT)) if known > 0 else 0


def _count(number: Any) -> int:
    return min(max(0, int(number)), _MAX_COUNT) if number else 0


def _finite(number: Any) -> float:
    known = math.nan if number is None else float(number)
    return known if math.isfinite(known) else math.nan


_NOT_KNOWN: Final = Call()
_LOG = logging.getLogger("sidecar.tap")
