"""Rank-normal scores."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.drift.ranks import Ranks, grid, largest

VALUES = st.one_of(st.integers(-3, 3).map(float), st.just(np.nan))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30), st.tuples(VALUES, VALUES))
def test_a_score_is_the_formula_written_out(
    rows: list[tuple[float, float]], window: tuple[float, float]
) -> None:
    """Mid-rank among what the baseline has of the stream, then the normal quantile."""
    scores = Ranks(np.array(rows)).score(np.array(window))

    for j, value in enumerate(window):
        known = [row[j] for row in rows if not np.isnan(row[j])]
        rank = (sum(v < value for v in known) + sum(v <= value for v in known)) / 2
        if np.isnan(value) or not known:
            assert np.isnan(scores[j])
        else:
            exact = NormalDist().inv_cdf((rank + 0.5) / (len(known) + 1))
            assert scores[j] == pytest.approx(exact, abs=1e-12)


def test_scores_are_bounded_whatever_comes() -> None:
    """The largest against 4032 windows is 3.66, in both directions."""
    ranks = Ranks(np.random.default_rng(1).standard_cauchy((4032, 1)))
    extreme = ranks.score(np.array([[1e300], [-1e300]]))

    np.testing.assert_allclose(extreme[:, 0], [largest(4032), -largest(4032)])
    assert largest(4032) == pytest.approx(3.664, abs=0.001)


def test_a_stream_that_is_constant_and_stays_so_scores_nothing() -> None:
    """All ranks are equal, so the score is in the middle."""
    assert Ranks(np.full((100, 1), 7.0)).score(np.array([7.0])) == pytest.approx(0, abs=1e-12)


def test_scores_do_not_depend_on_the_scale() -> None:
    """Any rising transformation of baseline and window leaves the score alone."""
    rng = np.random.default_rng(2)
    baseline, windows = rng.normal(size=(50, 3)), rng.normal(size=(8, 3))

    plain = Ranks(baseline).score(windows)
    np.testing.assert_array_equal(Ranks(np.exp(baseline)).score(np.exp(windows)), plain)


def test_the_grid_is_all_the_scores_there_are() -> None:
    """A window that ties with none of 5 scores one of 6 values."""
    scores = Ranks(np.arange(5.0)[:, None]).score(np.arange(-0.5, 5)[:, None])

    np.testing.assert_array_equal(scores[:, 0], grid(5))
