"""Histograms with fixed buckets, in the sense of Prometheus: a bucket holds values <= its bound.

Guarantees: one integer and at most one exemplar per bucket and one float for the sum, whatever
comes; NaN and Inf are counted apart and change neither buckets nor sum.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from sidecar.fold.exemplars import Exemplar, Exemplars, Places, merged

# vLLM's own buckets, so that both can be drawn in one panel.
FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
REQUEST_SECONDS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
# vLLM's start at 10 ms, above a whole decode step of a small model on one GPU.
OUTPUT_TOKEN_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0),
)
# vLLM's start at 300 ms, where an idle engine's queue time never shows.
QUEUE_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0),
    *(10.0, 20.0, 30.0, 60.0, 120.0, 480.0, 1920.0),
)
# Most requests lie near 1, and the news near 0.
CONFIDENCE_RATIOS: Final = (
    *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0),
)
FRAME_AGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
RENDER_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Distribution(NamedTuple):
    """What a histogram held at one moment.

    bounds: upper bounds of the buckets, without the last one, +Inf.
    counts: values per bucket (not cumulative), one more than `bounds`.
    sum: of all values.
    exemplars: for each bucket the latest request that a trace tells more of, or None.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: Places = ()

    @property
    def num_values(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean value, or None when there was none."""
        return self.sum / self.num_values if self.num_values else None

    def merge(self, other: Self) -> "Distribution":
        """The distribution of both; the bounds must be the same."""
        counts = tuple(
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        )
        exemplars = merged(self.exemplars, other.exemplars)
        return Distribution(self.bounds, counts, self.sum + other.sum, exemplars)


class Histogram:
    """A fold of batches of values into buckets.

    >>> waits = Histogram((0.1, 1.0))
    >>> waits.update([0.1, 0.5, 3.0])
    >>> waits.get().counts
    (1, 1, 1)
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.num_nonfinite = 0
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars = Exemplars(bounds)

    def update(self, item: Sequence[float]) -> None:
        """Count a batch of values."""
        # One by one: nearly every batch is one value, and arrays cost a tenth of a frame.
        for value in item:
            if math.isfinite(value):
                self._counts[bisect_left(self.bounds, value)] += 1
                self._sum += value
            else:
                self.num_nonfinite += 1

    def point(self, exemplar: Exemplar | None) -> None:
        """Take the exemplar, if there is one, of a value that is or will be counted."""
        self._exemplars.update(exemplar)

    def get(self) -> Distribution:
        """The counts so far."""
        return Distribution(self.bounds, tuple(self._counts), self._sum, self._exemplars.get())

    def merge(self, other: Self) -> None:
        """Add what `other` counted; its bounds must be the same."""
        if other.bounds != self.bounds:
            raise ValueError("histograms with different buckets cannot be merged")
        self.num_nonfinite += other.num_nonfinite
        pairs = zip(self._counts, other._counts, strict=True)
        self._counts = [mine + theirs for mine, theirs in pairs]
        self._sum += other._sum
        self._exemplars.merge(other._exemplars)
