"""How fast something grows: least squares with an interval.

Samples that follow one another are alike, so neighbours are averaged first and the interval is that
of the averages: Student's t, with two degrees of freedom fewer than averages.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

NUM_BATCHES: Final = 30
LEVEL: Final = 0.95


class Slope(NamedTuple):
    """Growth of y per unit of x, and its 95 % interval."""

    value: float
    low: float
    high: float

    def per(self, units: float) -> "Slope":
        """The same for so many units of x."""
        return Slope(*(units * each for each in self))


def slope(x: Sequence[float], y: Sequence[float], num_batches: int = NUM_BATCHES) -> Slope:
    """Least squares over averages of neighbours.

    ValueError with fewer than three samples.
    """
    num = min(num_batches, len(x))
    if num < 3:
        raise ValueError(f"{len(x)} samples tell of no slope; run for longer")
    xs, ys = (
        np.array([part.mean() for part in np.array_split(np.asarray(v), num)]) for v in (x, y)
    )
    line = stats.linregress(xs, ys)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, num - 2)) * float(line.stderr)
    return Slope(float(line.slope), float(line.slope) - reach, float(line.slope) + reach)
