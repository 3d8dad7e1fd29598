"""Long-run deflation."""

import math

import numpy as np
import pytest

from sidecar.fold.drift.deflation import long_run_eta

Rng = np.random.Generator


def autoregressive(rng: Rng, shape: tuple[int, int], phi: float) -> np.ndarray:
    """Unit variance, each window phi times the one before plus fresh noise."""
    noise = rng.normal(size=shape)
    for k in range(1, len(noise)):
        noise[k] = phi * noise[k - 1] + math.sqrt(1 - phi**2) * noise[k]
    return noise


def test_batch_means_are_the_formula_written_out() -> None:
    """120 windows have one batch length, 12, of which there are just 10."""
    scores = np.random.default_rng(3).normal(size=(120, 2)).cumsum(axis=0)
    inflation = [
        12 * np.var(column.reshape(10, 12).mean(axis=1), ddof=1) / np.var(column, ddof=1)
        for column in scores.T
    ]

    expected = math.sqrt(max(1.0, np.quantile(inflation, 0.9)))
    assert long_run_eta(scores) == pytest.approx(expected)
    assert long_run_eta(scores[:-1]) == 1.0


def test_independent_windows_are_hardly_deflated() -> None:
    """The largest of five noisy estimates is a little above 1 (1.25 for 14 days)."""
    scores = np.random.default_rng(4).normal(size=(4032, 96))

    assert 1.0 <= long_run_eta(scores) < 1.5


def test_slow_traffic_is_deflated_by_its_memory() -> None:
    """AR(0.9) has a long-run sd of sqrt((1 + 0.9) / (1 - 0.9)) = 4.36 of its own."""
    scores = autoregressive(np.random.default_rng(5), (4032, 64), 0.9)

    assert 3.5 < long_run_eta(scores) < 7


def test_what_is_missing_or_constant_does_not_count() -> None:
    """A constant stream and holes in another change nothing but their own share."""
    rng = np.random.default_rng(6)
    moving = autoregressive(rng, (600, 1), 0.8)
    constant = np.zeros((600, 1))
    holes = np.where(rng.random((600, 1)) < 0.01, np.nan, moving)

    assert long_run_eta(np.hstack([moving, constant])) == long_run_eta(moving)
    assert long_run_eta(holes) == pytest.approx(long_run_eta(moving), rel=0.1)
    assert long_run_eta(np.full((600, 2), np.nan)) == 1.0
    assert long_run_eta(constant) == 1.0
