"""Rank-normal scores: where a window's score stands among those of the baseline.

    R = #{baseline D <= D_k} (mid-rank at ties),   s_k = Phi^-1((R + 1/2) / (K + 1))

with K baseline windows (DRIFT.md, "Rank-normal score"; Phi^-1 of ranks is van der Waerden's score,
1952). Guarantees: |s| <= `largest(K)`, whatever comes, so heavy tails cannot page by themselves;
under exchangeability the score's distribution does not depend on that of D; a stream that is
constant in the baseline and stays so scores 0; NaN scores NaN.
"""

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.gaussian import quantile

Floats = NDArray[np.float64]


class Ranks:
    """The sorted scores of K baseline windows, stream by stream.

    baseline: float64 [K, p]; NaN where a window had nothing of a stream, and is then not counted.
    num_windows: int64 [p], those that counted.
    """

    def __init__(self, baseline: Floats) -> None:
        self._sorted = np.sort(baseline, axis=0).T.copy()  # NaN stands last, [p, K]
        self.num_windows: NDArray[np.int64] = np.isfinite(baseline).sum(axis=0)

    def score(self, windows: Floats) -> Floats:
        """Scores of D [..., p], in that shape; NaN for NaN, and where the baseline is empty."""
        rank = np.empty(windows.shape)
        for j, (column, n) in enumerate(zip(self._sorted, self.num_windows, strict=True)):
            values = windows[..., j]
            below = column[:n].searchsorted(values, "left")
            rank[..., j] = (below + column[:n].searchsorted(values, "right")) / 2
        known = np.isfinite(windows) & (self.num_windows > 0)
        share = np.where(known, (rank + 0.5) / (self.num_windows + 1), np.nan)
        return quantile(share)


def largest(num_windows: int) -> float:
    """The largest score there is against so many windows, such as 3.66 for 4032."""
    return float(quantile((num_windows + 0.5) / (num_windows + 1)))


def grid(num_windows: int) -> Floats:
    """g_i = Phi^-1((i + 1/2)/(K + 1)), i = 0..K: all the scores that a window without ties has."""
    return quantile((np.arange(num_windows + 1) + 0.5) / (num_windows + 1))
