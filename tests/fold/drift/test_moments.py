"""Moments: the same numbers whatever the order."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sidecar.errors import StateError
from sidecar.fold.drift.moments import Moments

NOTHING = [math.nan, math.inf, -math.inf]
FLOATS = st.floats(-1e4, 1e4, width=32) | st.sampled_from(NOTHING)
ROWS = arrays.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=FLOATS)


def moments_of(rows: np.ndarray) -> Moments:
    moments = Moments(3)
    moments.update(rows)
    return moments


def assert_same(mine: Moments, theirs: Moments) -> None:
    """Counts, sums and extremes to the bit or nearly; spread to 1e-12 of itself."""
    for name in ("num_rows", "n", "nonfinite", "smallest", "largest"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    scale = np.maximum(np.abs(mine.smallest), np.abs(mine.largest)) * np.maximum(mine.n, 1)
    scale[mine.n == 0] = 0
    assert (np.abs(mine.total - theirs.total) <= 1e-12 * scale).all()
    assert (np.abs(mine.m2 - theirs.m2) <= 1e-12 * np.maximum(mine.m2, scale**2 * 1e-4)).all()


@given(ROWS)
def test_they_are_what_numpy_says(rows: np.ndarray) -> None:
    """Count, mean, variance and extremes of the finite values of each column."""
    moments = moments_of(rows)
    for j, column in enumerate(rows.T):
        values = column[np.isfinite(column)]
        assert moments.n[j] == len(values)
        assert moments.nonfinite[j] == np.isinf(column).sum()
        assert moments.smallest[j] == values.min(initial=np.inf)
        assert moments.largest[j] == values.max(initial=-np.inf)
        if len(values):
            assert moments.mean[j] == pytest.approx(values.mean(), rel=1e-12, abs=1e-9)
        else:
            assert math.isnan(moments.mean[j])
        if len(values) > 1:
            assert moments.variance[j] == pytest.approx(values.var(ddof=1), rel=1e-9, abs=1e-9)
        else:
            assert math.isnan(moments.variance[j])


@given(st.lists(ROWS, max_size=6), st.randoms(use_true_random=False))
def test_any_order_and_partition_is_the_whole(parts: list[np.ndarray], order: object) -> None:
    """Merged in any order, parts are the moments of everything; the empty ones are neutral."""
    whole = moments_of(np.concatenate([np.zeros((0, 3)), *parts]))
    shuffled = list(parts)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = Moments(3)
    for part in shuffled:
        merged.merge(moments_of(part))

    assert_same(merged, whole)


@given(ROWS)
def test_row_by_row_is_the_batch(rows: np.ndarray) -> None:
    """Live requests come one by one, recordings in batches: the same moments."""
    moments = Moments(3)
    for row in rows:
        moments.update(row)

    assert_same(moments, moments_of(rows))


def test_sums_are_exact_in_any_order() -> None:
    """A million float32 of one size add up to the same bits, in whatever order."""
    values = np.random.default_rng(0).normal(3, 0.2, (1_000_000, 1)).astype(np.float32)
    forward, backward = Moments(1), Moments(1)
    forward.update(values.astype(np.float64))
    for part in np.array_split(values[::-1], 97):
        backward.update(part.astype(np.float64))

    assert forward.total[0] == backward.total[0] == math.fsum(values[:, 0])


def test_clipping_keeps_the_extremes() -> None:
    """Mean and spread are of clipped values; the extremes say what was really there."""
    moments = Moments(1)
    low, high = np.array([0.0]), np.array([2.0])
    moments.update(np.array([[1.0], [500.0], [-500.0], [math.inf]]), low, high)

    assert moments.mean.tolist() == [1.0]
    assert moments.variance.tolist() == [1.0]
    assert (moments.smallest[0], moments.largest[0]) == (-500.0, 500.0)
    assert moments.n.tolist() == [3]


def test_a_copy_is_left_alone() -> None:
    """What `get` returned does not change with later updates."""
    moments = moments_of(np.ones((2, 3)))
    copy = moments.get()
    moments.update(np.zeros((1, 3)))

    assert copy.num_rows == 2
    assert copy.n.tolist() == [2, 2, 2]


@given(ROWS)
def test_plain_moments_come_back_to_the_bit(rows: np.ndarray) -> None:
    """Through JSON, with what does not exist as null."""
    moments = moments_of(rows)
    plain = json.loads(json.dumps(moments.to_plain(), allow_nan=False))
    back = Moments.from_plain(plain, 3)

    for name in Moments.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(moments, name))


@pytest.mark.parametrize("change", [{"n": [1]}, {"m2": "x"}, {"num_rows": None}, {"total": None}])
def test_foreign_plain_moments_are_refused(change: dict[str, object]) -> None:
    """Another number of streams, or no numbers, is a StateError."""
    with pytest.raises(StateError, match="no moments of 3 streams"):
        Moments.from_plain({**Moments(3).to_plain(), **change}, 3)
