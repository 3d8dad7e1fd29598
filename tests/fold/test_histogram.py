"""Histograms in the sense of Prometheus."""

import bisect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.fold import histogram
from sidecar.fold.histogram import Histogram


def test_a_bucket_holds_values_up_to_its_bound() -> None:
    """A value equal to a bound belongs to that bound's bucket, as `le` says."""
    waits = Histogram((0.1, 1.0))
    waits.update([0.1, 0.5, 1.0, 3.0])

    assert waits.get().counts == (1, 2, 1)
    assert pytest.approx(waits.get().sum) == 4.6
    assert waits.get().num_values == 4


def test_the_mean_of_nothing_is_none() -> None:
    """No data is not a mean of 0."""
    assert Histogram((1.0,)).get().mean is None


def test_nan_and_inf_are_counted_apart() -> None:
    """Values that are no numbers change neither buckets nor sum."""
    waits = Histogram((1.0,))
    waits.update([math.nan, math.inf, -math.inf, 0.5])

    assert waits.num_nonfinite == 3
    assert waits.get().counts == (1, 0)
    assert waits.get().sum == 0.5


def test_different_buckets_are_not_merged() -> None:
    """Adding counts of other bounds would be a lie."""
    with pytest.raises(ValueError, match="different buckets"):
        Histogram((1.0,)).merge(Histogram((2.0,)))


@settings(deadline=None)
@given(st.lists(st.floats(-1, 3000)))
def test_counts_agree_with_bisection(values: list[float]) -> None:
    """Every value lands where the standard library's bisection puts it."""
    waits = Histogram(histogram.FIRST_TOKEN_SECONDS)
    waits.update(values)
    expected = [0] * (len(waits.bounds) + 1)
    for value in values:
        expected[bisect.bisect_left(waits.bounds, value)] += 1

    assert tuple(expected) == waits.get().counts


@pytest.mark.parametrize("name", [name for name in vars(histogram) if name.endswith("_SECONDS")])
def test_buckets_rise(name: str) -> None:
    """Every table of bounds is strictly increasing and positive."""
    bounds = getattr(histogram, name)

    assert sorted(set(bounds)) == list(bounds)
    assert bounds[0] > 0
