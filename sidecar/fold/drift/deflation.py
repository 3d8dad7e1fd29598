"""Long-run deflation: how much slower evidence grows when windows resemble their neighbours.

    eta^2 = max(1, max_{B in {12,36,72,144,288}, K/B >= 10} Q_0.9 over streams of
                   B Var(means of batches of B scores) / Var(scores))

(DRIFT.md, "Long-run deflation"; batch means: Conway 1963, Law & Carson 1979.) Scores are divided by
eta before they are added up. The 0.9 quantile over streams, since what moves traffic moves many of
them; one eta for all, so that attribution compares like with like.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BATCHES: Final = (12, 36, 72, 144, 288)  # windows: an hour to a day, of 5 minutes each
MIN_BATCHES: Final = 10
_SHARE: Final = 0.9


def long_run_eta(scores: Floats) -> float:
    """The factor eta >= 1 of scores [K, p] in order of time; NaN counts in no mean.

    With fewer than 120 windows no batch is long enough, and eta is 1: too small to rely on.
    """
    variance = _variance(scores)
    moving = variance > 0
    if not moving.any():
        return 1.0
    inflations = [
        _inflation(scores[:, moving], variance[moving], length)
        for length in BATCHES
        if len(scores) // length >= MIN_BATCHES
    ]
    return math.sqrt(max([1.0, *inflations]))


def _inflation(scores: Floats, variance: Floats, length: int) -> float:
    num_batches = len(scores) // length
    batches = scores[: num_batches * length].reshape(num_batches, length, -1)
    means = _mean(batches.swapaxes(0, 1))
    return float(np.quantile(length * _variance(means) / variance, _SHARE))


def _mean(values: Floats) -> Floats:
    """Over axis 0, of what is there; NaN where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = values.sum(axis=0, where=finite)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _variance(values: Floats) -> Floats:
    """Unbiased, over axis 0; 0 where there are fewer than two values."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    deviations = np.where(finite, values - _mean(values), 0.0)
    variance: Floats = np.square(deviations).sum(axis=0) / np.maximum(count - 1, 1)
    return variance
