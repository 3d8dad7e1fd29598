"""Spread: a histogram of each stream in its own units, for effect sizes and quantiles.

Values are counted as z = (x - middle) / reach of the plan's clip interval, in exponential buckets
of base 2^(1/8) on either side of 0 (9 % wide; Prometheus' and OpenTelemetry's native histograms
have the same). In raw units a stream such as a log RMS of 3.20 +- 0.02 would lie in one bucket.
"""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PER_OCTAVE: Final = 8
OCTAVES: Final = 10  # below the clip; nearer to the middle is one bucket
SIDE: Final = PER_OCTAVE * OCTAVES
NUM_BUCKETS: Final = 2 * SIDE + 1
_CLIP_SD: Final = 8.0


def bounds_sd() -> Floats:
    """[NUM_BUCKETS + 1] edges of the buckets in standard deviations of the first look."""
    side = _CLIP_SD * 2.0 ** (-np.arange(SIDE + 1) / PER_OCTAVE)
    return np.concatenate([-side, side[::-1]])


class Spread:
    """A fold of rows [m, p] of one stratum, clipped to [low, high]; counts [p, NUM_BUCKETS]."""

    __slots__ = ("counts",)

    def __init__(self, num_streams: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((num_streams, NUM_BUCKETS), np.int64)

    def update(self, item: Floats, low: Floats, high: Floats) -> None:
        """Take rows; what is not finite, or has no finite clip, is not counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (item - (low + high) / 2) / ((high - low) / 2)
            known = np.isfinite(share)
            octaves = -np.log2(np.abs(np.where(known, share, 0.0)))
        # From 0 at the clip to SIDE in the middle.
        depth = np.clip(np.floor(octaves * PER_OCTAVE), 0, SIDE).astype(np.int64)
        bucket = np.where(share < 0, depth, NUM_BUCKETS - 1 - depth)
        stream = np.broadcast_to(np.arange(item.shape[1]), item.shape)
        np.add.at(self.counts, (stream[known], bucket[known]), 1)

    def get(self) -> NDArray[np.int64]:
        """[p, NUM_BUCKETS], which later updates leave alone."""
        return self.counts.copy()

    def merge(self, other: Self) -> None:
        """Take everything that `other` took."""
        self.counts = self.counts + other.counts
