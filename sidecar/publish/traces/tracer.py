"""The thread that makes spans: fed by the ingest thread through a bounded queue.

Guarantees: ingest never waits for a span; what finds no room is counted; no exception ends the
thread, each is counted; `stop` returns within `STOP_SECONDS`, after spans were made of everything
that was heard. The judgement of requests is `fold.unusual`, that of windows the drift channels'.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from sidecar.config import ExporterConfig
from sidecar.fold.gathering import Gathered, Gathering
from sidecar.fold.requests import request_bytes
from sidecar.fold.unusual import Unusual
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.drift.mailbox import Mailbox
from sidecar.publish.traces.account import TraceView
from sidecar.publish.traces.otlp import SpanCarrier
from sidecar.publish.traces.outbox import Outbox
from sidecar.publish.traces.sampling import Decision, Sampler
from sidecar.publish.traces.spans import drift_span, place_of, request_span, resource
from sidecar.wire.frame import Body, Frame, Requests, Serving, Signatures, Source, Status

MAX_BYTES: Final = 32 << 20
STOP_SECONDS: Final = 0.25
MAX_SOURCES: Final = 256
_TURN_SECONDS: Final = 0.25
_ITEM_BYTES: Final = 1024
_log = logging.getLogger(__name__)

_Part = Requests | Signatures | Serving | Status


class _Heard(NamedTuple):
    source: Source
    body: _Part
    now_ns: int


class Tracer:
    """Owns the outbox, and the thread before it.

    drift: the last view of the thread that judges drift.
    steady_ns: measures how long parts of a request are waited for; a clock that nobody sets.
    """

    def __init__(
        self,
        outbox: Outbox,
        sampler: Sampler,
        drift: Callable[[], DriftView],
        steady_ns: Callable[[], int] = time.monotonic_ns,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._outbox = outbox
        self._sampler = sampler
        self._drift = drift
        self._steady_ns = steady_ns
        self._mailbox: Mailbox[_Heard] = Mailbox(max_bytes)
        self._gathering = Gathering()
        self._unusual = Unusual()
        self._who = resource()
        self._models: dict[str, str] = {}  # by source
        self._states: dict[str, str] = {}  # by channel
        self._requests: Counter[Decision] = Counter()
        self._num_left_out = self._num_errors = 0
        self._is_logged = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-traces", daemon=True)

    def start(self) -> None:
        """Begin to make spans, and to send them."""
        self._outbox.start()
        self._thread.start()

    def stop(self) -> None:
        """Make spans of what was heard, send what can be sent at once, and end."""
        self._stopping.set()
        self._mailbox.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._outbox.stop()

    def hear(self, frame: Frame, now_ns: int) -> None:  # noqa: ARG002 - the seam's
        """Take an accepted frame; never waits."""
        body = _of_interest(frame.body)
        if body is not None:
            num_parts, num_bytes = _size(body)
            if not self._mailbox.put(
                _Heard(frame.header.source, body, self._steady_ns()), num_bytes
            ):
                self._num_left_out += num_parts

    def get(self) -> TraceView:
        """What became of everything so far."""
        return TraceView(
            {decision: self._requests[decision] for decision in Decision},
            self._num_left_out,
            self._gathering.num_late,
            self._num_errors,
            self._outbox.get(),
        )

    def turn(self, timeout_seconds: float = 0.0) -> None:
        """Take what waits, and make spans of what is whole; never raises."""
        # Read before the mailbox is: whatever was heard by then is in it, however late this thread.
        now_ns = self._steady_ns()
        heard = self._mailbox.take(timeout_seconds)
        self._guarded(self._look_at_drift)
        for item in heard:
            self._guarded(lambda item=item: self._take(item))  # type: ignore[misc]
        self._make(self._gathering.take(now_ns))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.turn(_TURN_SECONDS)
        self.turn()
        self._make(self._gathering.take_all(self._steady_ns()))

    def _take(self, heard: _Heard) -> None:
        source, body, now_ns = heard
        if isinstance(body, Status):
            if source.name in self._models or len(self._models) < MAX_SOURCES:
                self._models[source.name] = body.model_name
        else:
            self._gathering.update(source, body, now_ns)

    def _make(self, requests: list[Gathered]) -> None:
        for request in requests:
            self._guarded(lambda request=request: self._tell(request))  # type: ignore[misc]

    def _tell(self, request: Gathered) -> None:
        judged = self._unusual.judge(request)
        place = place_of(request)
        is_canary = any(each.signature.canary for each in request.signed)
        decision = self._sampler.decide(
            place.trace_id, place.parent, judged.anomalies, is_canary=is_canary
        )
        self._requests[decision] += 1
        if decision.is_sent:
            named = request._replace(model_name=request.model_name or self._model_of(request))
            self._outbox.put(request_span(named, place, judged, decision, self._who))

    def _model_of(self, request: Gathered) -> str:
        """For whom no front end spoke."""
        sources = [each.source for each in request.measured] + [
            each.source for each in request.signed
        ]
        return next((name for each in sources if (name := self._models.get(each))), "")

    def _look_at_drift(self) -> None:
        view = self._drift()
        self._unusual.use(view.baseline)
        for channel in view.channels:
            verdict, state = channel.verdict, str(channel.verdict.state)
            before = self._states.get(verdict.channel)
            self._states[verdict.channel] = state
            # The first look is at what was there before: no change of it was seen.
            if channel.is_configured and before not in (None, state):
                self._outbox.put(drift_span(str(before), verdict, view.now_ns, self._who))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a bug of ours must not end the thread
            self._num_errors += 1
            if not self._is_logged:
                self._is_logged = True
                _log.error("traces: a request could not be told; counted", exc_info=error)


def create_tracer(
    config: ExporterConfig,
    drift: Callable[[], DriftView],
    steady_ns: Callable[[], int] = time.monotonic_ns,
) -> Tracer:
    """A tracer that sends to the configured receiver. Raises ConfigError."""
    return Tracer(Outbox(SpanCarrier(config)), Sampler(config.trace_ratio), drift, steady_ns)


def _of_interest(body: Body) -> _Part | None:
    match body:
        case Requests() | Status():
            return body
        case Signatures():
            return body if any(each.is_final for each in body.signatures) else None
        case Serving():
            return body if body.finished or body.aborted else None
    return None


def _size(body: _Part) -> tuple[int, int]:
    """How many parts of requests, and about how many bytes in memory."""
    match body:
        case Requests():
            num = len(body.requests)
            return num, num * _ITEM_BYTES + sum(map(request_bytes, body.requests))
        case Signatures():
            num = sum(each.is_final for each in body.signatures)
            num_bytes = sum(_ITEM_BYTES + len(each.values) for each in body.signatures)
            return num, num_bytes
        case Serving():
            num = len(body.finished) + len(body.aborted)
            return num, num * _ITEM_BYTES
    return 0, 4 * _ITEM_BYTES
