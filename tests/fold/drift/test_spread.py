"""Spread: how a stream's values are distributed, in its own units."""

import numpy as np
import pytest

from sidecar.fold.drift.spread import NUM_BUCKETS, Spread, bounds_sd

LOW, HIGH = np.array([3.0 - 0.8]), np.array([3.0 + 0.8])  # 3 +- 8 sd of 0.1


def counted(values: np.ndarray) -> np.ndarray:
    spread = Spread(1)
    spread.update(np.asarray(values, float)[:, None], LOW, HIGH)
    return spread.get()[0]


def test_bounds_rise_from_clip_to_clip() -> None:
    """One more than buckets, symmetric, 9 % wide each."""
    bounds = bounds_sd()

    assert len(bounds) == NUM_BUCKETS + 1
    assert (np.diff(bounds) > 0).all()
    np.testing.assert_allclose(bounds, -bounds[::-1])
    np.testing.assert_allclose(bounds[-1] / bounds[-2], 2 ** (1 / 8))


def test_a_value_falls_between_its_bounds() -> None:
    """Of every value, the bucket's bounds in sd are on either side of it."""
    values = np.random.default_rng(0).uniform(2.2, 3.8, 500)
    for value in values:
        (bucket,) = np.flatnonzero(counted(np.array([value])))
        low, high = bounds_sd()[bucket : bucket + 2]
        assert low - 1e-9 <= (value - 3.0) / 0.1 <= high + 1e-9


def test_quantiles_of_a_normal_are_found() -> None:
    """The median and the 84th percentile are within one bucket of what they are."""
    counts = counted(3.0 + 0.1 * np.random.default_rng(0).standard_normal(100_000))
    shares = np.cumsum(counts) / counts.sum()

    assert bounds_sd()[1 + np.searchsorted(shares, 0.8413)] == pytest.approx(1.0, rel=0.1)
    assert abs(bounds_sd()[1 + np.searchsorted(shares, 0.5)]) < 0.05


def test_the_ends_and_the_middle_have_buckets() -> None:
    """A clipped value lies in the outermost bucket, the middle itself in the middle one."""
    assert np.flatnonzero(counted(LOW)).tolist() == [0]
    assert np.flatnonzero(counted(HIGH)).tolist() == [NUM_BUCKETS - 1]
    assert np.flatnonzero(counted((LOW + HIGH) / 2)).tolist() == [NUM_BUCKETS // 2]


def test_what_cannot_be_counted_is_not() -> None:
    """NaN, and values of a stream whose spread was never known."""
    assert counted(np.array([np.nan])).sum() == 0
    spread = Spread(1)
    spread.update(np.ones((3, 1)), np.array([-np.inf]), np.array([np.inf]))
    assert spread.get().sum() == 0


def test_counts_add_up() -> None:
    """Two parts are the whole."""
    values = np.random.default_rng(0).normal(3, 0.1, 100)
    one, two, whole = Spread(1), Spread(1), Spread(1)
    one.update(values[:40, None], LOW, HIGH)
    two.update(values[40:, None], LOW, HIGH)
    whole.update(values[:, None], LOW, HIGH)
    one.merge(two)

    assert (one.get() == whole.get()).all()
    assert one.get().sum() == 100
