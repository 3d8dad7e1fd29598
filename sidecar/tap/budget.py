"""The budget: how much the tap may take of the engine's time, and what goes first.

Pure: times are passed in. Guarantees: the level of shedding changes its direction no sooner than
a minute after its last change; it rises every ten busy seconds at most, and falls only after a
whole busy minute at less than half of the limit.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

MINUTE: Final = 60.0
_SLICES: Final = 6  # of a minute; the level is judged at the end of each
_MOST_PATIENCE: Final = 16  # calm minutes before a level that was too dear is tried again
_MEMORY_MINUTES: Final = 30  # until a level that was too dear is like any other
_IDLE_FACTOR: Final = 4.0  # a gap longer than so many usual ones was not work
_NUM_USUAL: Final = 255  # gaps whose median is the usual one


class Level(NamedTuple):
    """What is left out; each number divides what the operator asked for, 0 leaves nothing.

    attention: attention is sampled so many times as rarely.
    layers: one layer in so many is added up, evenly spaced, the first and the last included.
    steps: one step in so many is measured at all, and the generated tokens with it.
    """

    attention: int
    layers: int
    steps: int


# The dearest goes first, and what every dashboard rests on goes last.
LEVELS: Final = (
    Level(1, 1, 1),
    Level(2, 1, 1),
    Level(4, 1, 1),
    Level(0, 1, 1),
    Level(0, 2, 1),
    Level(0, 4, 1),
    Level(0, 4, 2),
    Level(0, 4, 4),
    Level(0, 4, 16),
)


class Budget:
    """Decides the level of shedding from what the tap has taken.

    limit: the tap's time over the engine's; 0 for no limit. minute: length of a minute, seconds.
    share: that of the last closed minute of busy time, or of as much as there has been.
    """

    def __init__(self, limit: float, minute: float = MINUTE) -> None:
        self.level = 0
        self._limit = limit
        self._minute = minute
        self._slices: deque[_Slice] = deque(maxlen=_SLICES)
        self._open = _Slice(0.0, 0.0)
        self._num_since = 0  # slices closed since the level changed
        self._num_calm = 0  # and how many of the last of them were calm
        self._patience = 1
        self._last: _Change | None = None

    @property
    def share(self) -> float:
        """Cost over busy time."""
        return _share(self._slices)

    def update(self, now: float, busy: float, cost: float) -> None:
        """Add what the engine and the tap took since the last call.

        now: seconds on a clock that only rises. busy, cost: seconds of the engine's and ours.
        """
        self._open = _Slice(self._open.busy + busy, self._open.cost + cost)
        if self._open.busy * _SLICES < self._minute:
            return
        closed, self._open = self._open, _Slice(0.0, 0.0)
        self._slices.append(closed)
        self._num_since += 1
        self._num_calm = self._num_calm + 1 if 2 * _share([closed]) < self._limit else 0
        if self._limit:
            self._judge(now)

    def _judge(self, now: float) -> None:
        # Slices of another level say nothing of this one.
        recent = list(self._slices)[-self._num_since :]
        is_calm = self._num_calm >= _SLICES * self._patience
        if _share(recent) > self._limit:
            if self.level + 1 < len(LEVELS) and self._may_turn(1, now):
                self._remember(now)
                self._change(1, now)
        elif is_calm and self.level and self._may_turn(-1, now):
            if self._last is not None and self._last.direction < 0:
                self._patience = 1  # the last fall was right
            self._change(-1, now)

    def _may_turn(self, direction: int, now: float) -> bool:
        last = self._last
        return last is None or last.direction == direction or now - last.at >= self._minute

    def _remember(self, now: float) -> None:
        """Double the patience when a level proves too dear that had been fallen back to."""
        last = self._last
        if last is None or last.direction > 0:
            return
        is_fresh = now - last.at < _MEMORY_MINUTES * self._minute
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if is_fresh else 1

    def _change(self, direction: int, now: float) -> None:
        self.level += direction
        self._last = _Change(direction, now)
        self._num_since = self._num_calm = 0


class BusyTime:
    """How long the engine was busy, from the times of its forward passes.

    A gap between two of them is work, but for what exceeds four usual gaps: that was idle. So an
    engine that makes one forward pass per request and then waits looks busier than it is.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._recent = np.zeros(0)

    def add(self, times_ns: Sequence[int]) -> float:
        """Busy seconds up to the last of `times_ns`, the forward passes since the last call."""
        if not times_ns:
            return 0.0
        first_ns = times_ns[0] if self._last_ns is None else self._last_ns
        self._last_ns = times_ns[-1]
        gaps = np.diff(np.array([first_ns, *times_ns], np.int64)).clip(0) / 1e9
        past = np.concatenate([self._recent, gaps[gaps > 0]])
        self._recent = past[-_NUM_USUAL:]
        if not len(past):
            return 0.0
        return float(np.minimum(gaps, _IDLE_FACTOR * np.median(past)).sum())


class _Slice(NamedTuple):
    """Busy seconds, and what the tap took of them."""

    busy: float
    cost: float


class _Change(NamedTuple):
    """Of the level: +1 or -1, and when."""

    direction: int
    at: float


def _share(slices: Sequence[_Slice] | deque[_Slice]) -> float:
    busy = sum(each.busy for each in slices)
    return sum(each.cost for each in slices) / busy if busy else 0.0
