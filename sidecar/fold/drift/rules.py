"""Catastrophic rules: what needs no statistics to be worth a page. Pure functions.

(DRIFT.md, "Catastrophic rules".) Guarantee: each says which streams, so that a page names them.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.window import Window

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EXTREME_SD: Final = 8.0  # of the baseline's own D, raw and not ranked
MIN_EXTREME_STREAMS: Final = 3
MIN_EXTREME_WINDOWS: Final = 2  # one after the other
_MIN_WINDOWS: Final = 30  # of a baseline, for a spread to be known


def nonfinite(window: Window, num_streams: int) -> NDArray[np.int64]:
    """[p] requests of the window with an infinite value, by stream. NaN is "not measured"."""
    counts = np.zeros(num_streams, np.int64)
    for moments in window.strata.values():
        counts += moments.nonfinite
    return counts


def deviations(scores: Floats, reservoir: Floats) -> Floats:
    """(D - mean) / sd, [p], of D [p] against the baseline's [K, p]; NaN where it is not known."""
    known = np.isfinite(reservoir)
    count = known.sum(axis=0)
    safe = np.maximum(count, 1)
    mean = reservoir.sum(axis=0, where=known) / safe
    squares = np.square(np.where(known, reservoir - mean, 0.0)).sum(axis=0)
    sd = np.sqrt(squares / np.maximum(count - 1, 1))
    usable = (count >= _MIN_WINDOWS) & (sd > 0)
    deviation: Floats = np.divide(scores - mean, sd, out=np.full_like(scores, np.nan), where=usable)
    return deviation


class Extremes:
    """Counts, per stream, windows one after the other that are beyond 8 sd.

    runs: int64 [p]; a window that says nothing of a stream leaves its run as it was.
    """

    def __init__(self, num_streams: int) -> None:
        self.runs: NDArray[np.int64] = np.zeros(num_streams, np.int64)

    def update(self, deviation: Floats) -> Mask:
        """Take a window's `deviations` [p]; the streams to page for, none unless there are 3."""
        beyond = np.abs(deviation) > EXTREME_SD  # False for NaN
        counted = np.where(beyond, self.runs + 1, 0)
        self.runs = np.where(np.isnan(deviation), self.runs, counted)
        lasting: Mask = beyond & (self.runs >= MIN_EXTREME_WINDOWS)
        return lasting if lasting.sum() >= MIN_EXTREME_STREAMS else np.zeros_like(lasting)
