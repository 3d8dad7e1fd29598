"""What is usual for a layer: a mean and a spread, and how many spreads a value lies from it.

    z = (phi - mean) / max(sd, FLOOR)

phi is the signal's transform (of a layer signal its logarithm). Two references:

- the baseline: mean and standard deviation over its requests, all strata together. A column of one
  second holds the rows of many requests, so its z is smaller than that of a single request as odd.
- a source's own start: mean and standard deviation over the columns of its first ten minutes. It
  knows nothing of right or wrong; what was odd from the start is usual to it.

Guarantees: constant memory; no z where fewer than `MIN_COLUMNS` columns or two requests speak.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.columns import NUM_COLUMNS
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.moments import Moments

Floats = NDArray[np.float64]

MIN_COLUMNS: Final = 30
# About half a step of bfloat16 in a logarithm: less than that is rounding, however steady it is.
FLOOR: Final = 2.0**-9

# Entries of a signature that are means of the same phi as a signal: see `wire.signature`.
_ENTRIES: Final = {
    ("residual", "residual_rms"): "log_rms",
    ("residual", "residual_peak"): "log_peak",
    ("residual", "block_influence"): "log_influence",
    ("attention", "entropy"): "entropy",
    ("router", "gate_entropy"): "gate_entropy",
    ("router", "topk_margin"): "log_topk_margin",
}


class Usual(NamedTuple):
    """Mean and standard deviation of phi, [..., L] each; NaN where nothing is known."""

    mean: Floats
    sd: Floats

    def z(self, phi: Floats) -> Floats:
        """How many spreads `phi` [..., L] lies from the mean; NaN where either is unknown."""
        with np.errstate(over="ignore", invalid="ignore"):
            found: Floats = (phi - self.mean) / np.maximum(self.sd, FLOOR)
        return found

    @property
    def is_known(self) -> bool:
        """Whether any layer has a reference."""
        return bool(np.isfinite(self.mean).any())


class OwnStart:
    """A fold of the first `NUM_COLUMNS` seconds of one life: phi [...] of each closed column."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._until: int | None = None
        self._n = np.zeros(shape)
        self._mean = np.zeros(shape)
        self._m2 = np.zeros(shape)

    def takes(self, second: int) -> bool:
        """Whether that column still belongs to the start."""
        return self._until is None or second < self._until

    def update(self, second: int, phi: Floats) -> None:
        """Take the column of `second`; NaN where it has no rows. Later ones change nothing."""
        if not self.takes(second):
            return
        if self._until is None:
            self._until = second + NUM_COLUMNS
        used = np.isfinite(phi)
        self._n += used
        delta = np.where(used, phi - self._mean, 0.0)  # Welford (1962)
        self._mean += delta / np.maximum(self._n, 1)
        self._m2 += delta * np.where(used, phi - self._mean, 0.0)

    def get(self) -> Usual:
        """What was usual so far."""
        known = self._n >= MIN_COLUMNS
        sd = np.sqrt(self._m2 / np.maximum(self._n - 1, 1))
        return Usual(np.where(known, self._mean, np.nan), np.where(known, sd, np.nan))


def of_baseline(
    baseline: Baseline, group: str, signal: str, phase: str, layers: tuple[int, ...]
) -> Usual:
    """What the baseline has of a signal, [L]; NaN for layers that its signatures leave out."""
    usual = Usual(np.full(len(layers), np.nan), np.full(len(layers), np.nan))
    entry = _ENTRIES.get((group, signal))
    if entry is None or not baseline.strata:
        return usual
    together = _together(baseline.strata)
    places = {stream.name: place for place, stream in enumerate(baseline.schema.streams)}
    mean, sd = together.mean, np.sqrt(together.variance)
    for at, layer in enumerate(layers):
        place = places.get(f"{group}/{phase}/l{layer}/{entry}")
        if place is not None:
            usual.mean[at], usual.sd[at] = mean[place], sd[place]
    return usual


def _together(strata: tuple[Moments, ...]) -> Moments:
    total = strata[0].get()
    for each in strata[1:]:
        total.merge(each)
    return total
