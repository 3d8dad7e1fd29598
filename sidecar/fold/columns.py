"""Columns of one second: arrays over the last ten minutes, in a ring that never grows.

Guarantees: memory is fixed when a ring is made; a second is empty when it is opened; when a clock
is set back the ring begins again, or it would stand still until that clock has caught up.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

COLUMN_NS: Final = 10**9
NUM_COLUMNS: Final = 600
MAX_SPREAD: Final = 10  # columns: the longest time between two flushes of a tap
_SET_BACK: Final = 20  # columns: frames so late are not used, so a clock was set back
Floats = NDArray[np.float32]


class Ring:
    """float32 [NUM_COLUMNS, *shape], one row per second of Unix time."""

    def __init__(self, shape: tuple[int, ...], fill: float = 0.0) -> None:
        self.last = -1  # the latest second opened
        self.first = 0  # the earliest one that was opened and is still held
        self._fill = fill
        self._rows = np.full((NUM_COLUMNS, *shape), fill, np.float32)

    def open(self, second: int) -> Floats | None:
        """The row of `second`, for writing; None when it has left the ring already."""
        if self.last < 0 or second < self.last - _SET_BACK:
            self._restart(second)
        if second < self.first:
            return None
        for passed in range(max(self.last + 1, second - NUM_COLUMNS + 1), second + 1):
            self._rows[passed % NUM_COLUMNS] = self._fill
        self.last = max(self.last, second)
        self.first = max(self.first, self.last - NUM_COLUMNS + 1)
        row: Floats = self._rows[second % NUM_COLUMNS]
        return row

    def read(self, seconds: range, at: tuple[int | slice, ...] = ()) -> Floats:
        """A copy [len(seconds), ...] of what stands `at` in each row, filled where not held."""
        rows = self._rows[(slice(None), *at)]
        made = np.full((len(seconds), *rows.shape[1:]), self._fill, np.float32)
        held = range(max(seconds.start, self.first), min(seconds.stop, self.last + 1))
        if self.last >= 0 and held:
            places = np.arange(held.start, held.stop) % NUM_COLUMNS
            made[held.start - seconds.start : held.stop - seconds.start] = rows[places]
        return made

    def _restart(self, second: int) -> None:
        self._rows[:] = self._fill
        self.first = second
        self.last = second - 1


def spread(before_ns: int, now_ns: int) -> range:
    """The seconds that growth between two readings belongs to.

    Readings come about once a second, so that now and then a second has none: its neighbour's
    growth is shared with it, or an engine at work would seem to have stopped. What came after a
    longer silence belongs to the last second alone.

    >>> spread(5_100_000_000, 5_900_000_000), spread(4_990_000_000, 6_010_000_000)
    (range(5, 6), range(5, 7))
    """
    before, now = before_ns // COLUMN_NS, now_ns // COLUMN_NS
    if not 0 < now - before <= MAX_SPREAD:
        return range(now, now + 1)
    return range(before + 1, now + 1)
