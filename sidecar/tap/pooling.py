"""Pooling: one number per request out of one number per token row, whatever the steps were.

Pure numpy; owned by the pump thread. Rows come step by step, already reduced to a few numbers per
group (`Part`); what comes out is what the definition gives over all of the request's measured rows
in their order, however they were cut into steps:

    last    the last row
    mean    sum of the rows / their number
    max     the largest row
    ema     v = row at the first row, then v = (1 - alpha) v + alpha * row
"""

from collections.abc import Iterator
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.rows import Ints, Plan
from sidecar.wire.signals import POPULATIONS, Phase

Doubles = NDArray[np.float64]


class Pooling(StrEnum):
    """How the rows of a request become one number."""

    LAST = "last"
    MEAN = "mean"
    MAX = "max"
    EMA = "ema"


class Rows(StrEnum):
    """Which rows of a request are pooled."""

    PROMPT = "prompt"
    GENERATED = "generated"
    ALL = "all"


class Part(IntEnum):
    """What a group of rows x_0 .. x_(n-1) is reduced to, in the order of the second axis.

    SUM: sum of share * (1 - alpha)^(n - 1 - i) * x_i, which is the plain sum where alpha is 0 and
    share is 1, and what ema adds where share is alpha.
    """

    SUM = 0
    MAX = 1
    FIRST = 2
    LAST = 3


class Columns(NamedTuple):
    """Columns of a product that are pooled alike.

    places: [C] where they stand in the product. alphas: [C], for ema alone; 0 elsewhere.
    """

    pooling: Pooling
    rows: Rows
    places: Ints
    alphas: Doubles


class Pool:
    """Pooled values of `columns`, per request slot; grows."""

    def __init__(self, columns: Columns, num_slots: int) -> None:
        self._columns = columns
        self._keeps = 1.0 - columns.alphas
        self._start = -np.inf if columns.pooling is Pooling.MAX else 0.0
        self._count = np.zeros(num_slots, np.int64)
        self._values = np.full((num_slots, len(columns.places)), self._start)

    def add(self, plan: Plan, parts: NDArray[np.float32], kept: NDArray[np.bool_] | None) -> None:
        """Add the groups of one step, [G, len(Part), columns of the product].

        kept: [G] which groups count, where the plan has draft rows.
        """
        wanted = self._wanted(plan)
        groups = np.flatnonzero(wanted if kept is None else wanted & kept)
        for some in _in_order(plan.slots, groups):
            slots = plan.slots[some]
            self._reserve(int(slots.max()) + 1)
            mine = parts[some][:, :, self._columns.places].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # a stream that is not finite
                self._values[slots] = self._joined(slots, plan.sizes[some], mine)
            self._count[slots] += plan.sizes[some]

    def values(self, slot: int) -> Doubles:
        """[C] pooled values of a request so far; NaN where none of its rows was pooled."""
        if slot >= len(self._count) or not self._count[slot]:
            return np.full(len(self._columns.places), np.nan)
        num_rows = self._count[slot] if self._columns.pooling is Pooling.MEAN else 1
        pooled: Doubles = self._values[slot] / num_rows
        return pooled

    def clear(self, slot: int) -> None:
        """Empty the account of a slot for its next owner."""
        if slot < len(self._count):
            self._count[slot] = 0
            self._values[slot] = self._start

    def _wanted(self, plan: Plan) -> NDArray[np.bool_]:
        """[G] groups whose rows are pooled here."""
        decode: NDArray[np.bool_] = _IS_DECODE[plan.populations]
        if self._columns.rows is Rows.ALL:
            return np.ones(len(decode), bool)
        if self._columns.rows is Rows.GENERATED:
            return decode
        if self._columns.pooling is not Pooling.LAST or decode.all():
            return ~decode
        # The last row of a prompt is not known before its last chunk.
        is_whole: NDArray[np.bool_] = np.isin(
            plan.slots, plan.batch_slots[plan.ends >= plan.prompts]
        )
        return ~decode & is_whole

    def _joined(self, slots: Ints, sizes: Ints, parts: Doubles) -> Doubles:
        """[g, C] values of `slots`, each named once, with one group more."""
        joined: Doubles = self._values[slots]
        match self._columns.pooling:
            case Pooling.LAST:
                joined = parts[:, Part.LAST]
            case Pooling.MAX:
                joined = np.maximum(joined, parts[:, Part.MAX])
            case Pooling.MEAN:
                joined = joined + parts[:, Part.SUM]
            case Pooling.EMA:
                # As if the value before the first row had been the first row.
                is_new = self._count[slots, None] == 0
                before = np.where(is_new, parts[:, Part.FIRST], joined)
                joined = before * self._keeps ** sizes[:, None] + parts[:, Part.SUM]
        return joined

    def _reserve(self, num_slots: int) -> None:
        known = len(self._count)
        if num_slots > known:
            more = max(num_slots, 2 * known) - known
            self._count = np.concatenate([self._count, np.zeros(more, np.int64)])
            empty = np.full((more, self._values.shape[1]), self._start)
            self._values = np.concatenate([self._values, empty])


def _in_order(slots: Ints, groups: Ints) -> Iterator[Ints]:
    """`groups` of a plan in turns that name each slot once, first groups of the slots first.

    The groups of one request stand together, in the order of its rows.
    """
    mine = slots[groups]
    is_head = np.diff(mine, prepend=-1) != 0
    places = np.arange(len(groups))
    turn = places - np.maximum.accumulate(np.where(is_head, places, 0))
    for number in range(int(turn.max(initial=-1)) + 1):
        yield groups[turn == number]


_IS_DECODE: Final = np.array([phase is Phase.DECODE for phase, _ in POPULATIONS])
