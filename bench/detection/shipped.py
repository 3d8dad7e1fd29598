"""The shipped traffic alarm on arrays: what `TrafficChannel` does, many windows at once.

Rank-normal scores against a baseline, divided by its long-run eta, through the CUSUM pair with the
limits of three months, all by the functions that the channel calls. A page is acknowledged at once,
so the next one counts too. Limits are not calibrated: a replay only ever raises them, so there are
no more pages with it. That the channel pages in the same windows is tested.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.cusum import Charts
from sidecar.fold.drift.ranks import Ranks, largest
from sidecar.fold.drift.traffic import eta_of, judgeable, ranks_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RUN_LENGTH: Final = 25_920.0  # windows of 5 minutes: three months
DESIGN_RATE: Final = 1 / 3  # false pages a month


class Alarm(NamedTuple):
    """What a baseline of window scores makes: how to score, and the charts."""

    ranks: Ranks
    eta: float
    charts: Charts

    @classmethod
    def of(cls, baseline: Floats) -> Self:
        """Fitted on window scores [K, p]."""
        num_judged = max(int(judgeable(baseline).sum()), 1)
        charts = Charts.pair(num_judged, RUN_LENGTH, len(baseline))
        return cls(ranks_of(baseline), eta_of(baseline), charts)

    @property
    def is_blind(self) -> bool:
        """Whether the channel would not arm: no score can leave the dead-band."""
        reach = largest(int(self.ranks.num_windows.max())) / self.eta
        return reach <= float(self.charts.dead_bands.min())

    def score(self, windows: Floats) -> Floats:
        """The scores u, in the shape of `windows` [..., p]."""
        return np.asarray(self.ranks.score(windows) / self.eta)


def alarms(charts: Charts, scores: Floats) -> Bools:
    """[T] windows in which a chart over `scores` [T, p] reaches its limit; back to 0 there."""
    levels = np.zeros((len(charts.signs), scores.shape[1]))
    found = np.zeros(len(scores), bool)
    for window, score in enumerate(scores):
        levels = charts.step(levels, score)
        if (levels >= charts.limits[:, None]).any():
            found[window] = True
            levels[:] = 0.0
    return found


def delays(charts: Charts, scores: Floats, onset: int) -> Floats:
    """[R] windows from `onset` to the page in runs [R, T, p]; infinite where none came.

    1 is the window that the change came with. An alarm before it is acknowledged and forgotten.
    """
    num_runs, num_windows, num_streams = scores.shape
    levels = np.zeros((num_runs, len(charts.signs), num_streams))
    found = np.full(num_runs, np.inf)
    for window in range(num_windows):
        levels = charts.step(levels, scores[:, window])
        hit = (levels >= charts.limits[:, None]).any((1, 2))
        levels[hit] = 0.0
        if window >= onset:
            found = np.where(hit, np.minimum(found, window - onset + 1.0), found)
            if np.isfinite(found).all():
                break
    return found
