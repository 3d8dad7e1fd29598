"""Quantiles of the normal distribution."""

from statistics import NormalDist

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.drift.gaussian import quantile


@given(st.floats(1e-300, 1 - 1e-16))
def test_quantiles_are_those_of_the_standard_library(share: float) -> None:
    """In the middle, in the tails and far out."""
    exact = NormalDist().inv_cdf(share)

    assert abs(float(quantile(np.array(share))) - exact) <= 1e-13 * max(abs(exact), 1e-3)


def test_what_is_no_share_has_no_quantile() -> None:
    """NaN stays NaN in its place; 0 and 1 are at the infinities."""
    shares = np.array([[np.nan, 0.0, 1.0], [-0.1, 1.1, 0.5]])

    expected = np.array([[np.nan, -np.inf, np.inf], [np.nan, np.nan, 0.0]])
    np.testing.assert_array_equal(quantile(shares), expected)
