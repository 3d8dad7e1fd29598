"""Cells: sums of every five minutes and stratum, from which any fleet's windows can be made.

A cell is additive over replicas and over time, a window score is not: its variance needs the
pooled counts. So a baseline that can be merged keeps cells, and windows follow from all of them.

Guarantee: at most `MAX_CELLS` stretches of time, the latest, in whatever order they came; 12 bytes
per stretch, stratum present and stream before deflating.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import StateError
from sidecar.fold.drift.arrays import MAX_FIT_BYTES, Pack, unpacked
from sidecar.fold.drift.window import Assembly

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_CELLS: Final = 4032  # 14 days of 5 minutes


class Sums(NamedTuple):
    """One stratum of one cell: rows, finite values [p] and their sum [p]."""

    num_rows: int
    n: Ints
    total: Floats

    def add(self, other: Self) -> Self:
        """Both together."""
        return type(self)(
            self.num_rows + other.num_rows, self.n + other.n, self.total + other.total
        )


class Series(NamedTuple):
    """Windows in order of time: K of them.

    start_ns, end_ns: [K]. num_rows: [K, G] requests by stratum.
    """

    start_ns: Ints
    end_ns: Ints
    num_rows: Ints


class Cells:
    """Sums by start of cell and place of stratum."""

    def __init__(self, num_streams: int) -> None:
        self._num_streams = num_streams
        self._sums: dict[int, dict[int, Sums]] = {}

    def update(self, start_ns: int, place: int, sums: Sums) -> None:
        """Add to one cell."""
        strata = self._sums.setdefault(start_ns, {})
        strata[place] = strata[place].add(sums) if place in strata else sums
        if len(self._sums) > MAX_CELLS:
            del self._sums[min(self._sums)]

    def merge(self, other: Self) -> None:
        """Take everything that `other` took."""
        for start_ns, strata in other._sums.items():
            for place, sums in strata.items():
                self.update(start_ns, place, sums)

    def series(self, assembly: Assembly, num_strata: int) -> tuple[Series, list[Ints]]:
        """The windows these cells make, and of each the starts of its cells."""
        groups = self._windows(assembly)
        num_rows = np.zeros((len(groups), num_strata), np.int64)
        for k, starts in enumerate(groups):
            for start in starts:
                for place, sums in self._sums[start].items():
                    num_rows[k, place] += sums.num_rows
        first = np.array([starts[0] for starts in groups], np.int64)
        last = np.array([starts[-1] for starts in groups], np.int64)
        cells = [np.array(starts, np.int64) for starts in groups]
        return Series(first, last + assembly.length_ns, num_rows), cells

    def of(self, place: int, windows: Sequence[Ints]) -> tuple[Ints, Floats]:
        """(n, mean), each [K, p], of one stratum in `windows`; the mean is 0 where n is."""
        n = np.zeros((len(windows), self._num_streams), np.int64)
        total = np.zeros((len(windows), self._num_streams))
        for k, starts in enumerate(windows):
            for start in starts.tolist():
                sums = self._sums[start].get(place)
                if sums is not None:
                    n[k] += sums.n
                    total[k] += sums.total
        return n, total / np.maximum(n, 1)

    def to_plain(self, pack: Pack) -> dict[str, Any]:
        """As a msgpack-able map, in order of time and stratum."""
        keys = [
            (start, place) for start in sorted(self._sums) for place in sorted(self._sums[start])
        ]
        sums = [self._sums[start][place] for start, place in keys]
        shape = (len(keys), self._num_streams)
        return {
            "start_ns": pack(np.array([start for start, _ in keys], np.int64)),
            "place": pack(np.array([place for _, place in keys], np.int64)),
            "num_rows": pack(np.array([each.num_rows for each in sums], np.int64)),
            "n": pack(np.array([each.n for each in sums], np.uint32).reshape(shape)),
            "total": pack(np.array([each.total for each in sums], np.float64).reshape(shape)),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], num_streams: int, num_strata: int) -> Self:
        """What `to_plain` wrote; StateError when it is not of these streams and strata."""
        cells = cls(num_streams)
        of_fit = partial(unpacked, max_bytes=MAX_FIT_BYTES)
        starts = of_fit(plain["start_ns"], "<i8", (None,))
        num = len(starts)
        places = of_fit(plain["place"], "<i8", (num,))
        num_rows = of_fit(plain["num_rows"], "<i8", (num,))
        n = of_fit(plain["n"], "<u4", (num, num_streams)).astype(np.int64)
        total = of_fit(plain["total"], "<f8", (num, num_streams))
        if num and not (0 <= places.min() <= places.max() < num_strata):
            raise StateError(f"cells of strata beyond the {num_strata} of the plan")
        for i, start in enumerate(starts.tolist()):
            cells.update(start, int(places[i]), Sums(int(num_rows[i]), n[i], total[i]))
        return cells

    def _windows(self, assembly: Assembly) -> list[list[int]]:
        """Starts of the cells of each window, as `window.Windows` would have made them."""
        windows: list[list[int]] = []
        starts: list[int] = []
        num_requests = 0
        for start in sorted(self._sums):
            if starts and assembly.is_over(starts[0], start + assembly.length_ns):
                starts, num_requests = [], 0
            starts.append(start)
            num_requests += sum(sums.num_rows for sums in self._sums[start].values())
            if assembly.is_complete(num_requests):
                windows.append(starts)
                starts, num_requests = [], 0
        return windows
