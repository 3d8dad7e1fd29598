"""How a section of detection tells of delays: one line of text, or JSON."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Delay(NamedTuple):
    """How long it took over several runs: median and p90, and in how many it never came.

    A quantile that falls among the runs that never ended is infinite.
    """

    median: float
    p90: float
    missed: int
    runs: int

    @classmethod
    def of(cls, found: "Iterable[float] | NDArray[np.float64]") -> "Delay":
        """From delays of single runs, infinite where nothing was found."""
        delays = np.sort(np.array(list(found), np.float64))
        missed = int(np.isinf(delays).sum())
        # Of the two runs about a quantile the later one: no mean of something and never.
        median, p90 = (float(np.quantile(delays, q, method="higher")) for q in (0.5, 0.9))
        return cls(median, p90, missed, len(delays))

    def __str__(self) -> str:
        told = " / ".join("never" if math.isinf(q) else f"{q:.0f}" for q in self[:2])
        return f"{told}, missed {self.missed} of {self.runs}" if self.missed else told

    def plain(self) -> dict[str, float | int | None]:
        """JSON has no infinity: null is never."""
        return {
            "median": None if math.isinf(self.median) else self.median,
            "p90": None if math.isinf(self.p90) else self.p90,
            "missed": self.missed,
            "runs": self.runs,
        }
