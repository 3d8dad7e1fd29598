"""Exemplars: which request stands for a bucket."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.exemplars import Exemplar, Exemplars, merged
from sidecar.fold.histogram import Distribution, Histogram

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
BOUNDS = (0.1, 1.0)


def exemplar(value: float, t_ns: int = 1) -> Exemplar:
    return Exemplar(value, t_ns, TRACE, SPAN)


def test_an_exemplar_names_the_callers_span() -> None:
    """With the value and the time, so that a trace backend finds it."""
    assert Exemplar.of(0.5, 7, PARENT) == (0.5, 7, TRACE, SPAN)


@pytest.mark.parametrize("parent", ["", "nonsense", PARENT[:-2] + "00"])
def test_a_trace_that_nobody_records_is_not_pointed_to(parent: str) -> None:
    """A link to it would lead nowhere."""
    assert Exemplar.of(0.5, 7, parent) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_no_bucket_holds_has_no_exemplar(value: float) -> None:
    """As of a first token that never came."""
    assert Exemplar.of(value, 7, PARENT) is None


@given(st.floats(-1, 3), st.sampled_from([0.1, 1.0]))
def test_an_exemplar_stands_where_its_value_is_counted(value: float, bound: float) -> None:
    """The bounds themselves included."""
    for each in (value, bound):
        counted = Histogram(BOUNDS)
        counted.update([each])
        counted.point(exemplar(each))
        held = counted.get()
        assert [found is not None for found in held.exemplars] == [n > 0 for n in held.counts]


def test_the_latest_stands_for_its_bucket() -> None:
    """Not the last to arrive: Prometheus refuses times that go back."""
    kept = Exemplars(BOUNDS)
    for item in (exemplar(0.5, 5), exemplar(0.6, 9), exemplar(0.7, 8), exemplar(9.0, 1), None):
        kept.update(item)
    assert kept.get() == (None, exemplar(0.6, 9), exemplar(9.0, 1))


def test_front_ends_of_one_engine_share_their_buckets() -> None:
    """Whatever the order; a distribution that has none takes those of the other."""
    mine = (exemplar(0.05, 4), None, exemplar(3.0, 9))
    theirs = (exemplar(0.06, 5), exemplar(0.5, 1), exemplar(2.0, 8))
    latest = (theirs[0], theirs[1], mine[2])
    assert merged(mine, theirs) == merged(theirs, mine) == latest
    with_them, without = Distribution((), (1,), 0.5, mine[:1]), Distribution((), (2,), 1.0)
    assert with_them.merge(without).exemplars == without.merge(with_them).exemplars == mine[:1]
