"""Spans of real vLLM, whose own tracing is off, at a real OTLP receiver on the network."""

import hashlib
import json
import time
import urllib.request
from typing import Any

import pytest

from tests.e2e.harness import Stack, wait_for
from tests.e2e.observatory import Observatory

pytestmark = pytest.mark.e2e

CALLERS_SPAN = "5a" * 8
SECONDS = 300.0


def ask(stack: Stack, name: str, *, is_sampled: bool = True, **options: Any) -> tuple[int, int]:
    """One chat by a client that names its trace; Unix ns before and after."""
    trace_id = hashlib.sha256(name.encode()).hexdigest()[:32]
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": name,
        "traceparent": f"00-{trace_id}-{CALLERS_SPAN}-0{int(is_sampled)}",
    }
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "The quick brown fox"}],
        "max_tokens": 7,
        "ignore_eos": True,
        "temperature": 0.5,
        **options,
    }
    url = f"{stack.url}/v1/chat/completions"
    before = time.time_ns()
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        reply.read()
    return before, time.time_ns()


def attributes(span: Any) -> dict[str, Any]:
    """Values by key."""
    return {each.key: value_of(each.value) for each in span.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    told = getattr(value, kind)
    return [value_of(each) for each in told.values] if kind == "array_value" else told


def spans(observatory: Observatory, name: str, num: int) -> list[Any]:
    """The spans of a client's request, once there are so many."""

    def find() -> list[Any]:
        mine = [s for s in observatory.otlp.spans() if name in request_id(s)]
        return mine if len(mine) >= num else []

    found: list[Any] = wait_for(find, f"{num} spans of {name}", SECONDS)
    return found


def layers(told: dict[str, Any]) -> list[int]:
    """The layers that deviate most, if they are told."""
    return list(told.get("llm_internals.deviation.layers", []))


def request_id(span: Any) -> str:
    return str(attributes(span).get("llm_internals.request.id", ""))


def total(observatory: Observatory, family: str) -> float:
    """Sum of a family's samples in one scrape of the sidecar."""
    samples = observatory.stack.samples()
    return sum(value for name, value in samples.items() if name.partition("{")[0] == family)


def test_a_request_is_a_span_under_its_callers(observatory: Observatory) -> None:
    """Right parent, the request's own times, its tokens, and what was measured inside."""
    before, after = ask(observatory.stack, "b-one")
    (span,) = spans(observatory, "b-one", 1)
    told = attributes(span)
    (record,) = [r for r in observatory.stack.requests() if "b-one" in r["id"]]

    assert span.trace_id.hex() == hashlib.sha256(b"b-one").hexdigest()[:32]
    assert span.parent_span_id.hex() == CALLERS_SPAN
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= after
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "tiny"
    assert (told["gen_ai.usage.output_tokens"], told["gen_ai.request.max_tokens"]) == (7, 7)
    assert told["gen_ai.usage.input_tokens"] == record["num_prompt_tokens"]
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 < told["gen_ai.response.time_to_first_chunk"] <= (after - before) / 1e9
    assert told["llm_internals.request.id"] == record["id"]
    observed = record["coverage"]["observed"]
    num_observed = sum(n for by_position in observed.values() for n in by_position.values())
    assert told["llm_internals.coverage.observed_tokens"] == num_observed
    assert told["llm_internals.nonfinite_values"] == 0
    assert told["llm_internals.residual_rms.max_layer"] in record["layers"]
    assert told["llm_internals.sampled_by"] == "caller"
    assert "gen_ai.evaluation.result" in {event.name for event in span.events}


def test_completions_of_one_request_are_siblings(observatory: Observatory) -> None:
    """n = 3: three spans under the caller's, each with the end of its own."""
    ask(observatory.stack, "b-three", n=3)
    found = spans(observatory, "b-three", 3)

    assert len(found) == len({span.span_id for span in found}) == 3
    assert {span.parent_span_id.hex() for span in found} == {CALLERS_SPAN}
    assert {attributes(span)["gen_ai.usage.output_tokens"] for span in found} == {7}


def test_a_caller_that_keeps_no_trace_gets_no_span(observatory: Observatory) -> None:
    """It is counted as unsampled; a later request of another caller is sent all the same."""
    unsampled = 'llm_internals_traced_requests_total{decision="unsampled"}'

    def count() -> float:
        return observatory.stack.samples()[unsampled]

    before = count()
    ask(observatory.stack, "b-none", is_sampled=False)
    ask(observatory.stack, "b-some")
    spans(observatory, "b-some", 1)
    wait_for(lambda: count() > before, "an unsampled request", SECONDS)

    assert [span for span in observatory.otlp.spans() if "b-none" in request_id(span)] == []


def test_every_span_is_accounted_for(observatory: Observatory) -> None:
    """finished = sent + dropped + waiting, and the receiver has what was sent."""
    wait_for(lambda: len(observatory.otlp.spans()) >= 5, "five spans", SECONDS)
    sent = total(observatory, "llm_internals_spans_sent_total")
    received = len(observatory.otlp.spans())
    finished = total(observatory, "llm_internals_spans_finished_total")

    assert sent <= received <= finished
    assert total(observatory, "llm_internals_spans_dropped_total") == 0
    assert total(observatory, "llm_internals_trace_errors_total") == 0
    assert total(observatory, "llm_internals_trace_parts_lost_total") == 0


def test_layers_are_ranked_once_there_is_a_usual(observatory: Observatory) -> None:
    """After a hundred requests, or by a baseline, each span names layers of the model."""

    def find() -> list[Any]:
        return [each for each in observatory.otlp.spans() if layers(attributes(each))]

    for k in range(110):
        ask(observatory.stack, f"b-many-{k}", is_sampled=False, max_tokens=3)
    ask(observatory.stack, "b-last")
    span = wait_for(find, "a span that ranks layers", SECONDS)[-1]
    told = attributes(span)
    num_layers = observatory.stack.source()["num_layers"]

    assert set(layers(told)) <= set(range(num_layers))
    assert len(told["llm_internals.deviation.values"]) == len(layers(told))
    assert told["llm_internals.deviation.reference"].startswith(("own first", "baseline"))
