"""Spans: one finished request, or one change of a drift verdict, as OpenTelemetry's own type.

Guarantees: the parent is the caller's span when it named one; start and end are those of the
request, by the clock of the engine's host; a span is a function of what was told, without a clock.
"""

import math
from typing import Final, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

import sidecar
from sidecar.fold.drift.verdict import Verdict as DriftVerdict
from sidecar.fold.gathering import Gathered
from sidecar.fold.unusual import Judged, Verdict
from sidecar.publish.traces import attributes
from sidecar.publish.traces.attributes import PREFIX, Attributes
from sidecar.publish.traces.context import Parent, own_ids
from sidecar.publish.traces.sampling import Decision

EVALUATION: Final = "gen_ai.evaluation.result"
FIRST_PIECE: Final = f"{PREFIX}first_token"
SERVICE: Final = "llm-internals-sidecar"
_UNKNOWN: Final = "unknown_service"
SCOPE: Final = InstrumentationScope("llm_internals_sidecar", sidecar.__version__)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Place(NamedTuple):
    """Where a span of ours stands; parent: the caller's, or None for a trace of its own."""

    trace_id: int
    span_id: int
    parent: Parent | None


def place_of(request: Gathered) -> Place:
    """The place of a request's span."""
    front = request.serving or request.aborted
    parent = Parent.of(front.traceparent) if front else None
    trace_id, span_id = own_ids(request.id, *_times(request))
    return Place(parent.trace_id if parent else trace_id, span_id, parent)


def resource() -> Resource:
    """Who speaks; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to it, as everywhere."""
    own = {"service.name": SERVICE, "service.version": sidecar.__version__}
    named = Resource.create()  # reads the environment, and makes up what is not there
    if str(named.attributes.get("service.name", _UNKNOWN)).startswith(_UNKNOWN):
        return named.merge(Resource(own))
    return Resource(own).merge(named)


def request_span(
    request: Gathered, place: Place, judged: Judged, decision: Decision, who: Resource
) -> ReadableSpan:
    """The span of one request."""
    start_ns, end_ns = _times(request)
    told = {
        **attributes.of_request(request),
        **attributes.of_internals(request),
        **attributes.of_judgement(judged),
        f"{PREFIX}sampled_by": str(decision),
    }
    model = f" {request.model_name}" if request.model_name else ""
    is_error = request.serving is not None and request.serving.reason == "error"
    if is_error:
        told["error.type"] = "engine_error"
    return ReadableSpan(
        name=f"{attributes.operation(request)}{model}",
        context=SpanContext(place.trace_id, place.span_id, is_remote=False, trace_flags=_SAMPLED),
        parent=_context(place.parent),
        resource=who,
        attributes=attributes.finite(told),
        events=[
            *_first_token(request, start_ns),
            *(_evaluation(v, end_ns) for v in judged.verdicts),
        ],
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if is_error else StatusCode.UNSET),
        start_time=start_ns,
        end_time=end_ns,
        instrumentation_scope=SCOPE,
    )


def drift_span(before: str, verdict: DriftVerdict, now_ns: int, who: Resource) -> ReadableSpan:
    """A change of a channel's state, from when the change began to when it was found."""
    start_ns = min(verdict.since_ns or now_ns, now_ns)
    trace_id, span_id = own_ids("drift", verdict.channel, verdict.state, now_ns)
    layers = [each.layer for each in verdict.causes if each.layer is not None]
    told: Attributes = {
        f"{PREFIX}drift.channel": verdict.channel,
        f"{PREFIX}drift.state": str(verdict.state),
        f"{PREFIX}drift.previous_state": before,
        f"{PREFIX}drift.layers": list(dict.fromkeys(layers)),
        f"{PREFIX}drift.streams": [each.stream for each in verdict.causes],
    }
    event: Attributes = {
        "gen_ai.evaluation.name": f"{PREFIX}drift.{verdict.channel}",
        "gen_ai.evaluation.score.value": verdict.level,
        "gen_ai.evaluation.score.label": str(verdict.state),
        "gen_ai.evaluation.explanation": verdict.reason,
    }
    return ReadableSpan(
        name=f"drift {verdict.channel} {verdict.state}",
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED),
        resource=who,
        attributes=told,
        events=[Event(EVALUATION, attributes.finite(event), now_ns)],
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.UNSET),
        start_time=start_ns,
        end_time=now_ns,
        instrumentation_scope=SCOPE,
    )


def _times(request: Gathered) -> tuple[int, int]:
    """Unix ns of arrival and end: the front end's, else those of the engine."""
    starts = [each.request.start_ns for each in request.measured]
    ends = [each.request.end_ns for each in request.measured]
    ends += [each.signature.t_ns for each in request.signed]
    front = request.serving or request.aborted
    if front is not None:
        starts, ends = [front.start_ns] if front.start_ns else starts, [front.end_ns]
    if request.serving is not None and not starts:
        starts = [ends[0] - round(request.serving.e2e * 1e9)]
    end_ns = max(ends)
    return min(*starts, end_ns) if starts else end_ns, end_ns


def _first_token(request: Gathered, start_ns: int) -> list[Event]:
    seconds = request.serving.time_to_first_token if request.serving else math.nan
    return [Event(FIRST_PIECE, {}, start_ns + round(seconds * 1e9))] if seconds > 0 else []


def _evaluation(verdict: Verdict, end_ns: int) -> Event:
    told: Attributes = {
        "gen_ai.evaluation.name": f"{PREFIX}{verdict.name}",
        "gen_ai.evaluation.score.value": verdict.score,
        "gen_ai.evaluation.score.label": "anomalous" if verdict.is_anomalous else "usual",
        "gen_ai.evaluation.explanation": verdict.explanation,
    }
    return Event(EVALUATION, attributes.finite(told), end_ns)


def _context(parent: Parent | None) -> SpanContext | None:
    if parent is None:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
