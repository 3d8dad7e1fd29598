"""The window score: how far a window's means lie from the baseline's, in their own spread.

For stratum g, stream j and window k (shared formula of baseline and live windows):

    r = xbar_k - mu        v = sigma2 / n_k + tau2        over strata with n_k >= 5
    D = sum_g r / v / sqrt(sum_g 1 / v)

tau2 is the variance between windows beyond sampling; without it every large window is significant.
Pure functions of arrays whose last axis is the streams.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.moments import Moments

Floats = NDArray[np.float64]

MIN_REQUESTS: Final = 5  # of a stratum in a window; fewer say too little of its mean
FLOAT32_STEP: Final = 2.0**-23
_STEPS: Final = {"float32": FLOAT32_STEP, "float": FLOAT32_STEP, "float16": 2.0**-10}
_BFLOAT16_STEP: Final = 2.0**-8


class Reference(NamedTuple):
    """What a stratum is compared with; each [p], NaN where there were fewer than two values.

    degenerate: there was no spread beyond the rounding of float32, so `sigma2` is the square of a
    rounding step of the model's dtype instead.
    """

    mu: Floats
    sigma2: Floats
    tau2: Floats
    degenerate: NDArray[np.bool_]

    @classmethod
    def of(cls, moments: Moments, dtype: str, tau2: Floats | None = None) -> Self:
        """The reference of one stratum of a model that computes in `dtype`, such as bfloat16."""
        mu, variance = moments.mean, moments.variance
        # Where mu is 0 a step of it is 0 too; a step of float32 at 1 is the smallest we believe.
        degenerate = variance <= np.square(FLOAT32_STEP * np.maximum(np.abs(mu), 2.0**-20))
        step = _STEPS.get(dtype.removeprefix("torch."), _BFLOAT16_STEP)
        floor = np.square(np.maximum(step * np.abs(mu), FLOAT32_STEP))
        sigma2 = np.where(degenerate, floor, variance)
        return cls(mu, sigma2, np.zeros_like(mu) if tau2 is None else tau2, degenerate)

    @classmethod
    def stacked(cls, references: Sequence[Self]) -> Self:
        """Arrays [g, p] of `references` [g]."""
        return cls(
            np.stack([each.mu for each in references]),
            np.stack([each.sigma2 for each in references]),
            np.stack([each.tau2 for each in references]),
            np.stack([each.degenerate for each in references]),
        )

    def at(self, places: Sequence[int]) -> Self:
        """Of stacked references, those at `places`."""
        chosen = list(places)
        return type(self)(
            self.mu[chosen], self.sigma2[chosen], self.tau2[chosen], self.degenerate[chosen]
        )


def between_variance(mean: Floats, n: Floats, sigma2: Floats) -> Floats:
    """tau2 [p] of window means [K, p] over `n` values each; 0 where fewer than two windows count.

    max(0, Var_k(xbar) - mean_k(sigma2 / n_k)), over windows with at least 5 values.
    """
    used = n >= MIN_REQUESTS
    num = used.sum(0)
    centre = mean.sum(0, where=used) / np.maximum(num, 1)
    spread = np.square(mean - centre).sum(0, where=used) / np.maximum(num - 1, 1)
    sampling = (sigma2 / np.maximum(n, 1)).sum(0, where=used) / np.maximum(num, 1)
    tau2: Floats = np.where(num > 1, np.fmax(0.0, spread - sampling), 0.0)
    return tau2


class Score:
    """Adds up strata: `update` with each, then `get` D."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._weighted = np.zeros(shape)
        self._weights = np.zeros(shape)

    def update(self, mean: Floats, n: Floats, reference: Reference) -> None:
        """Add one stratum: means [..., p] over `n` values each."""
        weight, weighted = _weighted(mean, n, reference)
        self._weights += weight
        self._weighted += weighted

    def update_all(self, mean: Floats, n: Floats, references: Reference) -> None:
        """Add strata at once: means [g, p] over `n` values each, and references [g, p]."""
        weight, weighted = _weighted(mean, n, references)
        self._weights += weight.sum(0)
        self._weighted += weighted.sum(0)

    def get(self) -> Floats:
        """D; NaN where no stratum said anything."""
        nothing = np.full_like(self._weights, np.nan)
        root = np.sqrt(self._weights)
        scores: Floats = np.divide(self._weighted, root, out=nothing, where=self._weights > 0)
        return scores


def _weighted(mean: Floats, n: Floats, reference: Reference) -> tuple[Floats, Floats]:
    """(1 / v, r / v), both 0 where a stratum says nothing."""
    v = reference.sigma2 / np.maximum(n, 1) + reference.tau2
    used = (n >= MIN_REQUESTS) & (v > 0)  # v is NaN where there is no reference
    weight = np.divide(1.0, v, out=np.zeros_like(v), where=used)
    return weight, np.where(used, mean - reference.mu, 0.0) * weight
