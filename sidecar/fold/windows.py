"""Extremes and growth over the last closed window of 10 s: a scrape never sees half a window.

Guarantees: time is the frames' own; two windows are held, an open and a closed one; a window in
which nothing came is closed as empty, so that an idle engine shows no frozen value.
"""

from typing import Final, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

WINDOW_NS: Final = 10_000_000_000
_Reading = TypeVar("_Reading")


class Stamped(NamedTuple):
    """Extremes of the rows of one frame.

    t_ns: Unix time of the frame.
    extremes: float32 [..., 2], smallest and largest; NaN where there was no row.
    """

    t_ns: int
    extremes: NDArray[np.float32]


class Extremes:
    """A fold of stamped extremes. A frame up to one window late still finds its window."""

    def __init__(self) -> None:
        self._index = -1
        self._open: NDArray[np.float32] | None = None
        self._closed: NDArray[np.float32] | None = None

    def update(self, item: Stamped) -> None:
        """Add the extremes of one frame to the window that it belongs to."""
        index = item.t_ns // WINDOW_NS
        if index < self._index - 1:
            self._restart(index)
        self.advance(item.t_ns)
        if index == self._index:
            self._open = _widest(self._open, item.extremes)
        else:
            self._closed = _widest(self._closed, item.extremes)

    def advance(self, t_ns: int) -> None:
        """Close what has ended at `t_ns`; any frame tells the time, with extremes or without."""
        index = t_ns // WINDOW_NS
        if index <= self._index:
            return
        self._closed = self._open if index == self._index + 1 else None
        self._open = None
        self._index = index

    def get(self) -> NDArray[np.float32] | None:
        """Extremes of the last closed window, or None when it was empty or none has closed."""
        return self._closed

    def merge(self, other: Self) -> None:
        """Take the windows of `other`."""
        if other._closed is not None:
            self.update(Stamped((other._index - 1) * WINDOW_NS, other._closed))
        if other._open is not None:
            self.update(Stamped(other._index * WINDOW_NS, other._open))
        self.advance(other._index * WINDOW_NS)

    def _restart(self, index: int) -> None:
        # A clock was set back: waiting for it to catch up would freeze the published values.
        self._index = index
        self._open = self._closed = None


class Growth(Generic[_Reading]):
    """Two readings of a cumulative quantity: as the last closed window began, and as it ended.

    Readings are kept, not copied. What came before the first reading is in no window.
    """

    def __init__(self) -> None:
        self._index = -1
        self._span: tuple[_Reading, _Reading] | None = None  # of the open window
        self._closed: tuple[_Reading, _Reading] | None = None

    def update(self, t_ns: int, reading: _Reading) -> None:
        """Take a later reading."""
        if t_ns // WINDOW_NS < self._index - 1:
            # A clock was set back; see Extremes.
            self._index, self._closed = t_ns // WINDOW_NS, None
        self.advance(t_ns)
        self._span = (reading if self._span is None else self._span[0], reading)

    def advance(self, t_ns: int) -> None:
        """Close what has ended at `t_ns`."""
        index = t_ns // WINDOW_NS
        if index <= self._index:
            return
        if self._span is not None:
            latest = self._span[1]
            self._closed = self._span if index == self._index + 1 else (latest, latest)
            self._span = (latest, latest)
        self._index = index

    def get(self) -> tuple[_Reading, _Reading] | None:
        """Readings around the last closed window; None before one has closed."""
        return self._closed


def _widest(known: NDArray[np.float32] | None, more: NDArray[np.float32]) -> NDArray[np.float32]:
    # A new array each time: a reader may hold the old one.
    if known is None or known.shape != more.shape:
        return more
    with np.errstate(invalid="ignore"):  # a stranger may send signalling NaN
        smallest = np.fmin(known[..., 0], more[..., 0])
        largest = np.fmax(known[..., 1], more[..., 1])
    return np.stack([smallest, largest], axis=-1)
