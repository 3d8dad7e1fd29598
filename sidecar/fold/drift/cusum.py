"""The CUSUM pair: every stream, upwards and downwards, with a short and a long memory.

    C <- max(0, C +- u - k)  for k in {1/4, 1/2};  it alarms when C >= h(k), where h solves
    (exp(2 k b) - 2 k b - 1) / (2 k^2) = number of charts x A,   b = h + 1.166

Page, "Continuous inspection schemes", Biometrika 41 (1954); the limit is Siegmund's approximation
of the run length (Sequential Analysis, 1985), at k as the drift under no change. A is the wanted
mean number of windows between two false alarms of all charts together: rates of dependent charts
add up to at most their sum. Guarantees: a NaN leaves its charts as they were; nothing but `zero`
ever lowers a chart below what `update` makes of it.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift import exported
from sidecar.fold.drift.exported import Plain

Floats = NDArray[np.float64]

DEAD_BANDS: Final = (0.25, 0.5)  # k, in units of u
OVERSHOOT: Final = 1.166  # Siegmund's correction, 2 x 0.583, for normal steps
_KIND: Final = "cusum"
_VERSION: Final = 1


class Charts(NamedTuple):
    """Which charts stand over every stream, `[c]` each: sides and dead-bands.

    signs: +1 for high, -1 for low. dead_bands: k. limits: h(k).
    """

    signs: Floats
    dead_bands: Floats
    limits: Floats

    @classmethod
    def pair(cls, num_streams: int, run_length: float, num_windows: int) -> Self:
        """Both sides of both k, whose limits give one false alarm in `run_length` windows."""
        return cls.of(num_streams, run_length, num_windows, (1.0, -1.0))

    @classmethod
    def of(
        cls, num_streams: int, run_length: float, num_windows: int, sides: Sequence[float]
    ) -> Self:
        """These sides of both k, over streams that have `num_windows` baseline windows, K.

        k is at least 4 / sqrt(K), since the baseline's own mean is off by 1 / sqrt(K).
        """
        least = 4 / math.sqrt(max(num_windows, 1))
        bands = sorted({max(k, least) for k in DEAD_BANDS})
        num_charts = len(sides) * len(bands) * num_streams
        limits = [limit(k, num_charts, run_length) for k in bands]
        signs = np.repeat(np.array(sides, np.float64), len(bands))
        return cls(signs, np.tile(bands, len(sides)), np.tile(limits, len(sides)))

    def scaled(self, factor: float) -> Self:
        """The same charts with limits `factor` times as high."""
        return self._replace(limits=self.limits * factor)

    def step(self, levels: Floats, scores: Floats) -> Floats:
        """One window further: levels [..., c, p] with u [..., p]; where u is NaN, as they were."""
        moved = self.signs[:, None] * scores[..., None, :] - self.dead_bands[:, None]
        moved += levels
        np.maximum(moved, 0.0, out=moved)
        return np.where(np.isnan(moved), levels, moved)


class Cusum:
    """The charts of p streams, and since when each has been above 0.

    levels: float64 [c, p]. since_ns: int64 [c, p], the last time that a chart was 0.
    """

    def __init__(self, charts: Charts, num_streams: int) -> None:
        self.charts = charts
        shape = (len(charts.signs), num_streams)
        self.levels: Floats = np.zeros(shape)
        self.since_ns: NDArray[np.int64] = np.zeros(shape, np.int64)

    def update(self, scores: Floats, start_ns: int) -> None:
        """Take u [p] of the window that began at `start_ns`."""
        self.since_ns[self.levels == 0] = start_ns
        self.levels = self.charts.step(self.levels, scores)

    def shares(self) -> Floats:
        """C / h, [c, p]; 1 and more alarms."""
        shares: Floats = self.levels / self.charts.limits[:, None]
        return shares

    def zero(self) -> None:
        """Start again, as after an acknowledged page."""
        self.levels[:] = 0.0

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields = {
            "charts": [each.tolist() for each in self.charts],
            "levels": exported.packed(self.levels),
            "since_ns": exported.packed(self.since_ns),
        }
        return exported.tagged(_KIND, _VERSION, fields)

    def restore(self, plain: object) -> None:
        """Go on from `export()`; StateError when it is of other charts or streams."""
        held = exported.checked(plain, _KIND, _VERSION)
        exported.same(held, "charts", [each.tolist() for each in self.charts])
        levels = exported.floats(held, "levels", self.levels.shape)
        since_ns = exported.integers(held, "since_ns", self.since_ns.shape)
        self.levels, self.since_ns = levels, since_ns


def limit(dead_band: float, num_charts: int, run_length: float) -> float:
    """h(k): 26.9 for k = 1/4 and 14.25 for 1/2 with 384 charts (96 streams) and A = 25 920."""
    wanted = 2 * dead_band**2 * num_charts * run_length
    return max(_solved(wanted) / (2 * dead_band) - OVERSHOOT, dead_band)


def _solved(wanted: float) -> float:
    """Return x >= 0 with exp(x) - x - 1 = `wanted`, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while math.expm1(high) - high < wanted:
        low, high = high, 2 * high
    middle = (low + high) / 2
    while low < middle < high:
        if math.expm1(middle) - middle < wanted:
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return middle
