"""The confidence of requests, and the callers of those that stand for it."""

import math

import numpy as np
import pytest

from sidecar.fold import confidence as room
from sidecar.fold.confidence import CallersOfConfidence, confidence
from sidecar.wire.frame import Request
from tests import fakes
from tests.fakes import NOW, SECOND

SAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-01"
OTHER = f"00-{'ef' * 16}-{'cd' * 8}-01"
UNSAMPLED = SAMPLED[:-2] + "00"


def request(internal_id: str, *means: float, end_ns: int = NOW) -> Request:
    """One of three tokens under each of these adapters, whose top-1 probability has such a mean."""
    made = fakes.request(internal_id, end_ns=end_ns)
    made.tables = [fakes.table("probe", ["refusal"], count=1)]
    if not means:
        return made
    table = fakes.table("confidence", [f"adapter{k}" for k in range(len(means))], count=3)
    sums = np.frombuffer(table.sums, "<f8").reshape(len(means), -1, 3).copy()
    sums[:, 1, 0] = [3 * mean for mean in means]
    table.sums = sums.tobytes()
    made.tables.append(table)
    return made


def pointed(callers: CallersOfConfidence, *parts: object) -> list[tuple[str, float, str]]:
    """What comes out while these halves go in: source, value and trace."""
    out = []
    for part in parts:
        found = (
            callers.measure("engine", [part])
            if isinstance(part, Request)
            else callers.finish([part])
        )
        out += [(each.source, each.exemplar.value, each.exemplar.trace_id) for each in found]
    return out


def test_the_confidence_is_the_mean_over_generated_tokens() -> None:
    """Of the probability of the likeliest one, by hand."""
    assert confidence(request("a", 0.75)) == pytest.approx(0.75)
    assert confidence(request("a", 0.25, 0.75)) == pytest.approx(0.5)
    assert math.isnan(confidence(request("a")))
    assert confidence(request("a", 1.0 + 1e-9)) == 1.0  # sums of rounded numbers


@pytest.mark.parametrize("engine_first", [True, False])
def test_the_halves_meet_in_either_order(engine_first: bool) -> None:
    """The engine's id leads to the client's; the exemplar is the engine's."""
    halves = [request("cmpl-1-0-0badcafe", 0.75), fakes.finished("cmpl-1-0", traceparent=SAMPLED)]
    found = pointed(CallersOfConfidence(), *(halves if engine_first else halves[::-1]))
    assert found == [("engine", pytest.approx(0.75), "ab" * 16)]


@pytest.mark.parametrize("parent", ["", UNSAMPLED])
def test_without_a_recorded_trace_there_is_no_exemplar(parent: str) -> None:
    """And the next request of the same client id is not taken for that one."""
    callers = CallersOfConfidence()
    first = [request("x-0badcafe", 0.25), fakes.finished("x", traceparent=parent)]
    assert pointed(callers, *first) == []
    assert pointed(callers, fakes.finished("x", traceparent=SAMPLED)) == []
    again = request("x-0badbeef", 0.5)
    assert pointed(callers, again) == [("engine", pytest.approx(0.5), "ab" * 16)]


def test_an_id_used_again_later_is_another_request() -> None:
    """A half that never met its other one does not meet a stranger's."""
    callers = CallersOfConfidence()
    later = NOW + room.MAX_APART_NS + SECOND
    stale = fakes.finished("x", traceparent=SAMPLED)
    assert pointed(callers, stale, request("x-0badcafe", 0.25, end_ns=later)) == []
    old = request("y-0badcafe", 0.25)
    assert pointed(callers, old, fakes.finished("y", end_ns=later, traceparent=OTHER)) == []


def test_each_child_of_a_request_may_stand_for_it() -> None:
    """They share the client's id, and the trace."""
    callers = CallersOfConfidence()
    done = fakes.finished("cmpl-1-0", traceparent=SAMPLED)
    found = pointed(
        callers,
        request("0_cmpl-1-0-0badcafe", 0.25),
        done,
        done,
        request("1_cmpl-1-0-0badbeef", 0.75),
    )
    assert found == [
        ("engine", pytest.approx(0.25), "ab" * 16),
        ("engine", pytest.approx(0.75), "ab" * 16),
    ]


def test_what_waits_is_bounded() -> None:
    """The oldest make way, of both kinds."""
    callers = CallersOfConfidence(max_waiting=3)
    pointed(callers, *(request(f"r{k}", 0.5) for k in range(5)))
    assert len(callers._halves) == 3
    late = [fakes.finished(f"r{k}", traceparent=SAMPLED) for k in range(5)]
    assert len(pointed(callers, *late)) == 3
    pointed(callers, *(fakes.finished(f"s{k}", traceparent=SAMPLED) for k in range(5)))
    assert len(callers._finished) == 3
    assert len(pointed(callers, *(request(f"s{k}", 0.5) for k in range(5)))) == 3


def test_the_latest_use_of_an_id_is_the_one_that_counts() -> None:
    """Its caller named no recorded trace; that of the use before is not lent to it."""
    callers = CallersOfConfidence()
    first, second = fakes.finished("x", traceparent=SAMPLED), fakes.finished("x")
    assert pointed(callers, first, second, request("x-0badcafe", 0.5)) == []


def test_sums_that_overflow_are_no_reason_to_warn() -> None:
    """A peer may send the largest numbers there are; the confidence stays within its range."""
    assert confidence(request("a-0badcafe", 1e308 / 3, 1e308 / 3, 1e308 / 3)) == 1.0
