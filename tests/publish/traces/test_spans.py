"""What a span says, and where it stands: real times, current names, and nothing else."""

import json
import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from sidecar.fold.drift.verdict import Cause, ChannelState
from sidecar.fold.drift.verdict import Verdict as DriftVerdict
from sidecar.fold.gathering import Gathered
from sidecar.fold.unusual import Deviation, Judged, Verdict
from sidecar.publish.traces.sampling import Decision
from sidecar.publish.traces.spans import drift_span, place_of, request_span, resource
from sidecar.wire.frame import Coverage
from tests import fakes
from tests.fakes import ENGINE, NOW, SECOND
from tests.publish.traces.spans import CALLER, request

DOC = Path(__file__).parents[3] / "docs" / "traces.md"
NO_ATTRIBUTES = {"nonfinite", "tail", "confidence", "aborted"}  # rows of another table there
PLAIN = Judged((), "", (Verdict("nonfinite", False, 0.0, "every element is finite"),), ())  # noqa: FBT003
JUDGED = Judged(
    (Deviation(1, "decode/l1", 9.123456), Deviation(0, "prefill/l0", 2.0)),
    "baseline 0123456789ab",
    (
        Verdict("nonfinite", False, 0.0, "every element is finite"),  # noqa: FBT003
        Verdict("tail", True, 0.0005, "decode/l1 is 9.1 sd from the baseline"),  # noqa: FBT003
    ),
    (),
)


def made(told: Gathered | None = None, judged: Judged = JUDGED) -> ReadableSpan:
    told = told or request()
    return request_span(told, place_of(told), judged, Decision.CALLER, resource())


def attributes(told: Gathered | None = None, judged: Judged = JUDGED) -> dict[str, object]:
    return dict(made(told, judged).attributes or {})


def test_the_parent_is_the_callers_span() -> None:
    """In the caller's trace, with an id of its own."""
    span = made()

    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in CALLER
    assert span.parent.is_remote
    assert span.context.trace_id == span.parent.trace_id
    assert span.context.span_id not in (0, span.parent.span_id)
    assert span.context.trace_flags.sampled


def test_without_a_caller_a_request_is_a_trace_of_its_own() -> None:
    """Two requests of one id, as of clients that use ids again, are two traces."""
    span = made(request(traceparent=""))
    later = request(traceparent="")
    later = later._replace(serving=fakes.finished(end_ns=NOW + SECOND))

    assert span.parent is None
    assert place_of(later).trace_id != span.context.trace_id


def test_start_and_end_are_those_of_the_request() -> None:
    """From its arrival at the front end; the first token is an event between them."""
    span = made()
    first = next(each for each in span.events if each.name == "llm_internals.first_token")

    assert (span.start_time, span.end_time) == (NOW - 2 * SECOND, NOW)
    seconds = fakes.finished().time_to_first_token
    assert first.timestamp == NOW - 2 * SECOND + round(seconds * SECOND)


def test_times_come_from_whoever_knows_them() -> None:
    """The front end first, then the engine, then the signature."""
    told = request()
    served, hung_up = fakes.finished(), fakes.aborted("x", NOW + 5)
    served.start_ns = 0
    cases = [
        ((NOW - SECOND, NOW), told._replace(serving=served)),
        ((NOW - 2 * SECOND, NOW), told._replace(serving=served, measured=())),  # less e2e
        ((NOW + 5 - SECOND, NOW + 5), told._replace(serving=None, aborted=hung_up)),
        ((NOW - SECOND, NOW), told._replace(serving=None)),
        ((NOW, NOW), told._replace(serving=None, measured=())),
    ]
    for times, each in cases:
        span = made(each)
        assert (span.start_time, span.end_time) == times


def test_names_are_those_of_the_current_conventions() -> None:
    """Tokens, model, finish reason and what was asked for; the name is operation and model."""
    span = made()
    told = {k: v for k, v in (span.attributes or {}).items() if k.startswith("gen_ai.")}

    assert span.name == "chat tiny"
    assert span.kind is SpanKind.SERVER
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.875,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": fakes.finished().time_to_first_token,
        "gen_ai.usage.input_tokens": 64,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 16,
    }


@pytest.mark.parametrize(
    ("client_id", "name"),
    [
        ("chatcmpl-7", "chat"),
        ("2_chatcmpl-7", "chat"),
        ("cmpl-7-0", "text_completion"),
        ("of_my_own", "text_completion"),
    ],
)
def test_the_operation_is_told_by_the_id(client_id: str, name: str) -> None:
    """vLLM puts it there; a client's own id is some completion."""
    told = request()._replace(serving=fakes.finished(client_id))

    assert attributes(told)["gen_ai.operation.name"] == name


def test_internals_are_those_that_were_measured() -> None:
    """Means over rows after the first positions and over layers, and where the largest is."""
    told = attributes()
    record = request().measured[0].request
    moments = fakes.moments(3, 0.5)
    rest = [1, 3]  # populations of the position class `rest`
    rows = moments.count[rest].sum(0)
    means = moments.sums[rest, :, 0, 0].sum(0) / rows

    assert told["llm_internals.residual_rms.mean"] == pytest.approx(means.mean())
    assert told["llm_internals.residual_rms.max"] == float(
        np.nanmax(moments.extremes[rest, :, 0, 1])
    )
    assert told["llm_internals.residual_rms.max_layer"] == 2
    assert told["llm_internals.nonfinite_values"] == 3
    assert told["llm_internals.coverage.observed_tokens"] == 72
    assert told["llm_internals.coverage.observed_ratio"] == 72 / 88
    assert told["llm_internals.coverage.prefix_cached_tokens"] == 16
    assert told["llm_internals.sources"] == [ENGINE.name]
    assert told["llm_internals.adapter"] == record.adapter == "support"
    assert told["llm_internals.route"] == "chat"
    assert "llm_internals.attention.entropy" in told
    assert "llm_internals.confidence.surprisal" in told
    assert "llm_internals.probe.refusal.score" in told


def test_means_of_a_group_are_over_its_rows() -> None:
    """Checked against the table it came in."""
    told = attributes()
    table = next(t for t in request().measured[0].request.tables if t.group == "confidence")
    sums = np.frombuffer(table.sums, "<f8").reshape(1, 5, 3)

    assert told["llm_internals.confidence.entropy"] == sums[0, 0, 0] / 9


def test_the_layers_that_deviate_most_are_named_with_what_they_deviate_from() -> None:
    """As lists of one order, the farthest first."""
    told = attributes()

    assert told["llm_internals.deviation.layers"] == [1, 0]
    assert told["llm_internals.deviation.groups"] == ["decode/l1", "prefill/l0"]
    assert told["llm_internals.deviation.values"] == [9.123, 2.0]
    assert told["llm_internals.deviation.reference"] == "baseline 0123456789ab"
    assert told["llm_internals.anomalies"] == ["tail"]
    assert told["llm_internals.sampled_by"] == "caller"


def test_verdicts_are_evaluation_events() -> None:
    """The standard event: name, score, label and explanation, at the end of the request."""
    events = [each for each in made().events if each.name == "gen_ai.evaluation.result"]

    assert [dict(each.attributes or {}) for each in events] == [
        {
            "gen_ai.evaluation.name": "llm_internals.nonfinite",
            "gen_ai.evaluation.score.value": 0.0,
            "gen_ai.evaluation.score.label": "usual",
            "gen_ai.evaluation.explanation": "every element is finite",
        },
        {
            "gen_ai.evaluation.name": "llm_internals.tail",
            "gen_ai.evaluation.score.value": 0.0005,
            "gen_ai.evaluation.score.label": "anomalous",
            "gen_ai.evaluation.explanation": "decode/l1 is 9.1 sd from the baseline",
        },
    ]
    assert {each.timestamp for each in events} == {NOW}


def test_a_failed_request_is_an_error_and_an_abandoned_one_is_not() -> None:
    """The client's hanging up is nobody's fault."""
    told = request()
    failed = made(told._replace(serving=fakes.finished(reason="error")))
    hung_up = made(told._replace(serving=None, aborted=fakes.aborted(told.id)))

    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "engine_error"
    assert hung_up.status.status_code is made().status.status_code is StatusCode.UNSET
    assert (hung_up.attributes or {})["gen_ai.response.finish_reasons"] == ["abort"]


def test_what_nobody_measured_is_absent() -> None:
    """Of a request that only its front end told of; nothing is NaN, which receivers refuse."""
    bare = fakes.finished("cmpl-1")
    bare.time_to_first_token = bare.temperature = bare.top_p = math.nan
    bare.max_tokens = 0
    told = attributes(Gathered("cmpl-1", "", (), (), bare, None), PLAIN)
    numbers = [value for value in told.values() if isinstance(value, float)]

    assert not [name for name in told if "residual" in name or "coverage" in name]
    assert not {"gen_ai.request.max_tokens", "gen_ai.request.top_p"} & told.keys()
    assert all(map(math.isfinite, numbers))
    assert made(Gathered("cmpl-1", "", (), (), bare, None)).name == "text_completion"


def test_a_change_of_a_drift_verdict_is_a_span_from_when_it_began() -> None:
    """With the layers that moved, and the same standard event."""
    causes = (Cause("residual/decode/l3/log_rms", 3, "log_rms", "decode", "high", 1.5, NOW),)
    verdict = DriftVerdict("canary", ChannelState.PAGE, "it moved", 1.5, NOW - 60 * SECOND, causes)
    span = drift_span("armed", verdict, NOW, resource())
    (event,) = span.events

    assert span.name == "drift canary page"
    assert (span.start_time, span.end_time) == (NOW - 60 * SECOND, NOW)
    assert dict(span.attributes or {}) == {
        "llm_internals.drift.channel": "canary",
        "llm_internals.drift.state": "page",
        "llm_internals.drift.previous_state": "armed",
        "llm_internals.drift.layers": [3],
        "llm_internals.drift.streams": ["residual/decode/l3/log_rms"],
    }
    assert event.name == "gen_ai.evaluation.result"
    assert (event.attributes or {})["gen_ai.evaluation.score.label"] == "page"


def test_the_service_is_named_as_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME wins; what else the operator adds stays."""
    mine = resource().attributes
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p1")
    named = resource().attributes

    assert mine["service.name"] == "llm-internals-sidecar"
    assert (named["service.name"], named["k8s.pod.name"]) == ("chat", "p1")


def everything() -> Gathered:
    """A request with a value for each attribute: of a canary with experts that failed."""
    told = request(canary="p1@1")
    measured = told.measured[0]
    covered = Coverage([4, 60, 0, 8], 16, lost=1, recomputed=2, shed=3, opted_out=4)
    router = fakes.table("router", ["0", "1"], fakes.PHASES)
    tables = [*measured.request.tables, router]
    record = msgspec.structs.replace(measured.request, coverage=covered, tables=tables)
    served = fakes.finished("chatcmpl-1", "error")
    return told._replace(measured=(measured._replace(request=record),), serving=served)


def test_a_span_can_be_read_as_json() -> None:
    """Every value is one that OpenTelemetry knows."""
    told = json.loads(made().to_json())

    assert told["attributes"]["llm_internals.deviation.layers"] == [1, 0]


def test_the_page_lists_every_attribute() -> None:
    """docs/traces.md names what a span can say, and nothing that it cannot."""
    listed = set(re.findall(r"^\| `([\w.<>]+)`", DOC.read_text(), re.MULTILINE)) - NO_ATTRIBUTES
    told = {re.sub(r"probe\.\w+\.", "probe.<name>.", name) for name in attributes(everything())}

    assert told == listed
