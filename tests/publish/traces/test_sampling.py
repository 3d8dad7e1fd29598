"""Which requests become spans: the caller decides, else the ratio; anomalous ones always do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from sidecar.publish.traces.context import Parent, own_ids
from sidecar.publish.traces.sampling import Decision, Sampler

SAMPLED, UNSAMPLED = Parent(1 << 70, 2, True), Parent(1 << 70, 2, False)  # noqa: FBT003
NEVER, ALWAYS = Sampler(0.0), Sampler(1.0)


def decide(
    sampler: Sampler, parent: Parent | None = None, *anomalies: str, is_canary: bool = False
) -> Decision:
    return sampler.decide(1 << 70, parent, anomalies, is_canary=is_canary)


@pytest.mark.parametrize("sampler", [NEVER, ALWAYS])
def test_a_callers_decision_is_kept(sampler: Sampler) -> None:
    """Whatever the ratio: a span without the rest of its trace helps nobody."""
    assert decide(sampler, SAMPLED) is Decision.CALLER
    assert decide(sampler, UNSAMPLED) is Decision.UNSAMPLED


@pytest.mark.parametrize("parent", [None, SAMPLED, UNSAMPLED])
def test_anomalous_requests_are_always_sent(parent: Parent | None) -> None:
    """Even where the caller does not keep its part, and canaries too."""
    assert decide(NEVER, parent, "tail").is_sent
    assert decide(NEVER, parent, "tail", is_canary=True).is_sent


def test_canaries_are_nobodys_trace() -> None:
    """Without an anomaly they are not sent, though no caller decided."""
    assert decide(ALWAYS) is Decision.RATIO
    assert decide(ALWAYS, is_canary=True) is Decision.UNSAMPLED


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_the_ratio_decides_as_opentelemetry_does(trace_id: int, ratio: float) -> None:
    """Whoever samples the same trace by the same ratio decides alike."""
    theirs = TraceIdRatioBased(ratio).should_sample(None, trace_id, "s").decision.is_sampled()

    assert Sampler(ratio).decide(trace_id, None, (), is_canary=False).is_sent is theirs


def test_the_share_of_requests_is_the_ratio() -> None:
    """Of own trace ids, 30 % of 10 000, within five standard errors."""
    sampler = Sampler(0.3)
    ids = (own_ids("request", k)[0] for k in range(10_000))
    num = sum(sampler.decide(each, None, (), is_canary=False).is_sent for each in ids)

    assert abs(num - 3000) < 5 * (10_000 * 0.3 * 0.7) ** 0.5
