"""Catastrophic rules."""

import numpy as np
import pytest

from sidecar.fold.drift.rules import Extremes, deviations, nonfinite
from tests.fold.drift.references import P, moments, window


def test_infinite_values_are_counted_by_stream_over_all_strata() -> None:
    """NaN is not measured and does not count."""
    rng = np.random.default_rng(30)
    rows = rng.normal(size=(10, P))
    rows[:3, 4] = np.inf
    rows[:2, 5] = -np.inf
    rows[:, 6] = np.nan
    plain = window(rng)
    broken = plain._replace(strata={**plain.strata, "other": moments(rows)})

    assert nonfinite(plain, P).sum() == 0
    assert nonfinite(broken, P)[[4, 5, 6]].tolist() == [3, 2, 0]


def test_deviations_are_in_the_spread_of_the_baseline() -> None:
    """(D - mean) / sd over the windows that say something, NaN where 30 do not or nothing moves."""
    rng = np.random.default_rng(31)
    reservoir = rng.normal(size=(200, 4)) * [1, 2, 0, 1] + [0, 5, 1, 0]
    reservoir[:150, 1] = np.nan
    reservoir[:171, 3] = np.nan
    found = deviations(np.array([3.0, 9.0, 2.0, 8.0]), reservoir)

    known = reservoir[150:, 1]
    assert found[0] == pytest.approx((3 - reservoir[:, 0].mean()) / reservoir[:, 0].std(ddof=1))
    assert found[1] == pytest.approx((9 - known.mean()) / known.std(ddof=1))
    assert np.isnan(found[2:]).all()


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([[9, 9, -9, 0], [9, 9, -9, 0]], [0, 1, 2]),
        ([[9, 9, -9, 0]], []),
        ([[9, 9, 0, 0], [9, 9, 0, 0]], []),
        ([[7.9, 9, 9, 9], [9, 9, 9, 9]], [1, 2, 3]),
        ([[9, 9, 9, 0], [0, 0, 0, 0], [9, 9, 9, 0]], []),
        ([[9, 9, 9, 0], [np.nan] * 4, [9, 9, 9, 0]], [0, 1, 2]),
        ([[9, 9, 9, 0], [9, 9, 0, 9]], []),
    ],
)
def test_three_streams_in_two_windows_running(
    windows: list[list[float]], expected: list[int]
) -> None:
    """Fewer streams, one window, a calm one between, or other streams: no page."""
    extremes = Extremes(4)
    found = np.zeros(4, bool)
    for each in windows:
        found = extremes.update(np.array(each, np.float64))

    assert np.flatnonzero(found).tolist() == expected
