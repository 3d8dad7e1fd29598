"""Windows: requests of one stretch of time, reduced to additive moments per stratum.

A window is made of cells: stretches of `length_ns` that begin at multiples of it in Unix time, so
that cells of several replicas add up. A window holds the cells from the first one with a request
until there are `min_requests` requests, and at most `longest_ns` of time; what has fewer by then is
counted as insufficient and says nothing. An idle stretch belongs to no window.

Guarantees: a request is in exactly one window or counted as late, early or insufficient; windows
follow from the requests alone, not from the order within the time allowed for late ones; memory is
that of the open cells, at most 256 strata each.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Plan
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.strata import OTHER, stratum_of

LENGTH_NS: Final = 300 * 10**9
LONGEST_NS: Final = 3600 * 10**9
LATE_NS: Final = 60 * 10**9  # longer than a frame may be under way: 10 s by default
MIN_REQUESTS: Final = 30
MAX_STRATA: Final = 256  # of one cell without a plan; what comes beyond counts as OTHER

# Whether a request is in the tail of its baseline; None when it cannot be said.
TailRule = Callable[[Observation], bool | None]


class Tail(NamedTuple):
    """Requests judged one by one: how many, and how many were beyond the limit."""

    num_judged: int = 0
    num_beyond: int = 0


class Window(NamedTuple):
    """A closed window.

    start_ns, end_ns: Unix time, multiples of the length of a cell.
    strata: moments by stratum; folded and clipped where a plan was given.
    num_new: requests of strata that the plan never saw; they are in `OTHER`.
    """

    start_ns: int
    end_ns: int
    num_requests: int
    strata: dict[str, Moments]
    tail: Tail = Tail()
    num_new: int = 0

    def add(self, other: Self) -> Self:
        """The window of the requests of both, from the earlier start to the later end."""
        strata = {name: moments.get() for name, moments in self.strata.items()}
        for name, moments in other.strata.items():
            if name in strata:
                strata[name].merge(moments)
            else:
                strata[name] = moments.get()
        return type(self)(
            min(self.start_ns, other.start_ns),
            max(self.end_ns, other.end_ns),
            self.num_requests + other.num_requests,
            strata,
            Tail(*(a + b for a, b in zip(self.tail, other.tail, strict=True))),
            self.num_new + other.num_new,
        )

    def to_plain(self) -> dict[str, Any]:
        """JSON-able; exact, since JSON writes a float so that it reads back the same."""
        strata = {name: moments.to_plain() for name, moments in self.strata.items()}
        return {**self._asdict(), "strata": strata, "tail": list(self.tail)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], num_streams: int) -> Self:
        """The window in `plain`; StateError when it is none of `num_streams` streams."""
        try:
            judged, beyond = plain["tail"]
            strata = plain["strata"].items()
            return cls(
                int(plain["start_ns"]),
                int(plain["end_ns"]),
                int(plain["num_requests"]),
                {str(name): Moments.from_plain(each, num_streams) for name, each in strata},
                Tail(int(judged), int(beyond)),
                int(plain["num_new"]),
            )
        except UNREADABLE as error:
            raise StateError(f"no window: {error!r}") from error


class Assembly(NamedTuple):
    """How cells become windows; times in nanoseconds."""

    length_ns: int = LENGTH_NS
    min_requests: int = MIN_REQUESTS
    longest_ns: int = LONGEST_NS

    def is_complete(self, num_requests: int) -> bool:
        """Whether a window with so many requests can be judged."""
        return num_requests >= self.min_requests

    def is_over(self, start_ns: int, end_ns: int) -> bool:
        """Whether a window from `start_ns` has no room for a cell that ends at `end_ns`."""
        return end_ns - start_ns > max(self.longest_ns, self.length_ns)


class Windows:
    """Observations in, closed windows out.

    Time is what `advance` was last told, or, where it never was, the latest observation's. A cell
    closes `late_ns` after its end. What comes from more than a cell ahead of the clock is counted,
    not used: one skewed clock must not close everybody's windows.

    num_closed, num_insufficient: windows; num_late, num_early: observations not used.
    """

    def __init__(
        self,
        schema: Schema,
        assembly: Assembly = Assembly(),  # noqa: B008 - immutable
        plan: Plan | None = None,
        tail_rule: TailRule | None = None,
        late_ns: int = LATE_NS,
    ) -> None:
        self.num_closed = self.num_insufficient = self.num_late = self.num_early = 0
        self._schema = schema
        self._assembly = assembly
        self._plan = plan
        self._tail_rule = tail_rule
        self._late_ns = min(late_ns, 2 * assembly.length_ns)
        self._cells: dict[int, Window] = {}  # open, by start
        self._partial: Window | None = None  # closed cells that are too few yet
        self._closed_ns = 0  # cells that end by then are closed
        self._now_ns: int | None = None

    def update(self, item: Observation) -> list[Window]:
        """Take one request; the windows it closed, where nobody tells the time."""
        start_ns = item.t_ns - item.t_ns % self._assembly.length_ns
        if item.canary:
            return []
        if self._now_ns is not None and item.t_ns > self._now_ns + self._assembly.length_ns:
            self.num_early += 1
            return []
        if start_ns < self._closed_ns:
            self.num_late += 1
            return []
        self._take(start_ns, item)
        return [] if self._now_ns is not None else list(self._close(item.t_ns - self._late_ns))

    def advance(self, now_ns: int) -> list[Window]:
        """The windows that are closed by `now_ns`; a clock that is a little behind changes nothing.

        When it was set back by more than a late request may be, what was open is given up and
        windows begin anew: waiting for it to catch up would leave every request out as late.
        """
        latest_ns = max(self._now_ns or 0, self._closed_ns)
        if now_ns < latest_ns - self._late_ns - self._assembly.length_ns:
            self._begin_anew(now_ns)
        self._now_ns = max(now_ns, self._now_ns or 0)
        return list(self._close(self._now_ns - self._late_ns))

    def flush(self) -> list[Window]:
        """Close everything, whatever the time: at the end of a recording."""
        latest = max(self._cells, default=self._closed_ns)
        return list(self._close(latest + self._assembly.length_ns))

    def export(self) -> dict[str, Any]:
        """What is open, JSON-able; closed windows are the caller's."""
        return {
            "cells": [cell.to_plain() for _, cell in sorted(self._cells.items())],
            "partial": self._partial and self._partial.to_plain(),
            "closed_ns": self._closed_ns,
        }

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Go on with what was open; StateError, and nothing changed, when it is foreign."""
        num_streams = self._schema.num_streams
        try:
            cells = [Window.from_plain(cell, num_streams) for cell in exported["cells"]]
            partial = exported["partial"]
            closed_ns = int(exported["closed_ns"])
        except UNREADABLE as error:
            raise StateError(f"no open windows: {error!r}") from error
        self._partial = partial and Window.from_plain(partial, num_streams)
        self._cells = {cell.start_ns: cell for cell in cells}
        self._closed_ns = closed_ns

    def _begin_anew(self, now_ns: int) -> None:
        self.num_insufficient += bool(self._cells or self._partial)
        self._cells, self._partial, self._now_ns = {}, None, now_ns
        until_ns = now_ns - self._late_ns
        self._closed_ns = until_ns - until_ns % self._assembly.length_ns

    def _take(self, start_ns: int, item: Observation) -> None:
        cell = self._cells.get(start_ns) or self._empty(start_ns)
        stratum = stratum_of(item)
        is_new = self._plan is not None and self._plan.is_new(stratum)
        self._fold(cell.strata, stratum, self._schema.scalars(item.values))
        beyond = self._tail_rule(item) if self._tail_rule else None
        judged, num_beyond = cell.tail
        self._cells[start_ns] = cell._replace(
            num_requests=cell.num_requests + 1,
            tail=Tail(judged + (beyond is not None), num_beyond + bool(beyond)),
            num_new=cell.num_new + is_new,
        )

    def _fold(self, strata: dict[str, Moments], stratum: str, row: NDArray[np.float64]) -> None:
        low = high = None
        if self._plan is not None:
            place = self._plan.place(stratum)
            stratum = self._plan.strata[place]
            low, high = self._plan.low[place], self._plan.high[place]
        elif stratum not in strata and len(strata) >= MAX_STRATA:
            stratum = OTHER
        moments = strata.setdefault(stratum, Moments(self._schema.num_streams))
        moments.update(row, low, high)

    def _empty(self, start_ns: int) -> Window:
        return Window(start_ns, start_ns + self._assembly.length_ns, 0, {})

    def _close(self, until_ns: int) -> Iterator[Window]:
        """Close the cells that end by `until_ns`, and yield the windows they complete."""
        for start_ns in sorted(self._cells):
            if start_ns + self._assembly.length_ns > until_ns:
                break
            self._give_up(start_ns + self._assembly.length_ns)
            cell = self._cells.pop(start_ns)
            window = cell if self._partial is None else self._partial.add(cell)
            is_complete = self._assembly.is_complete(window.num_requests)
            self._partial = None if is_complete else window
            if is_complete:
                self.num_closed += 1
                yield window
        closed_ns = until_ns - until_ns % self._assembly.length_ns
        self._closed_ns = max(self._closed_ns, closed_ns)
        # A cell that begins at the limit or later has no room any more.
        self._give_up(self._closed_ns + self._assembly.length_ns)

    def _give_up(self, end_ns: int) -> None:
        """Drop what is partial when a cell ending at `end_ns` does not fit any more."""
        if self._partial is not None and self._assembly.is_over(self._partial.start_ns, end_ns):
            self.num_insufficient += 1
            self._partial = None
