"""The latest running totals of one source's groups of signals, and what its last window brought.

Guarantees: totals on the wire are cumulative, so the latest table replaces the earlier ones and a
lost frame loses nothing; at most `MAX_TABLES` tables of `MAX_TABLE_BYTES` bytes in all are held,
whatever labels a sender makes up: those unheard the longest go first. No two tables of one group
that are held share a cell: the later one replaces the other.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.windows import Extremes, Growth, Stamped
from sidecar.wire.frame import Cells, Table, Totals

MAX_TABLES: Final = 256
MAX_TABLE_BYTES: Final = 4 << 20
_LABEL_BYTES: Final = 64  # of a str object beside its characters

Axes = tuple[tuple[str, ...], ...]


class Recent(NamedTuple):
    """What the last closed window added; all 0 when nothing came.

    rows: uint64 [C of each axis]. sums: float64 [C of each axis, S], of v.
    """

    rows: NDArray[np.uint64]
    sums: NDArray[np.float64]


class TableTotals(NamedTuple):
    """One table since the boot of its source.

    cells: cumulative counts and sums (`cells.extremes` covers one frame only).
    window: float32 [C of each axis, S, 2], extremes of the last closed window; None when there
    is none.
    recent: what that window added; None before one has closed.
    """

    group: str
    axes: Axes
    cells: Cells
    window: NDArray[np.float32] | None
    recent: Recent | None


class TableSeries:
    """The tables of one source, by group and axes."""

    def __init__(
        self, max_tables: int = MAX_TABLES, max_table_bytes: int = MAX_TABLE_BYTES
    ) -> None:
        self._max_tables = max_tables
        self._max_table_bytes = max_table_bytes
        self._held: dict[tuple[str, Axes], _Held] = {}  # the latest heard stands last

    @property
    def num_bytes(self) -> int:
        """Bytes of the latest reading of all tables; up to three more are kept for windows."""
        return sum(held.num_bytes for held in self._held.values())

    def update(self, t_ns: int, body: Totals) -> None:
        """Replace tables by those of a later frame."""
        for table in body.tables:
            key = (table.group, tuple(map(tuple, table.axes)))
            held = self._held.pop(key, None)
            if held is None:
                self._replace(*key)
                held = _Held(t_ns, table)
            else:
                held.update(t_ns, table)
            self._held[key] = held
        self._make_room()

    def advance(self, t_ns: int) -> None:
        """Take the time of a frame of any kind."""
        for held in self._held.values():
            held.advance(t_ns)

    def get(self) -> tuple[TableTotals, ...]:
        """All tables, ordered by group and axes."""
        return tuple(held.get(*key) for key, held in sorted(self._held.items(), key=_key))

    def _replace(self, group: str, axes: Axes) -> None:
        new = [frozenset(labels) for labels in axes]
        for key in list(self._held):
            if key[0] == group and _overlap(new, key[1]):
                del self._held[key]

    def _make_room(self) -> None:
        num_bytes = self.num_bytes
        for key in list(self._held):
            if len(self._held) <= self._max_tables and num_bytes <= self._max_table_bytes:
                break
            num_bytes -= self._held.pop(key).num_bytes


class _Held:
    """The latest reading of one table, and its windows."""

    def __init__(self, t_ns: int, table: Table) -> None:
        self._extremes = Extremes()
        self._growth: Growth[Cells] = Growth()
        self.update(t_ns, table)

    def update(self, t_ns: int, table: Table) -> None:
        self._cells = Cells.unpack(table)
        self.num_bytes = table_bytes(table)
        self._extremes.update(Stamped(t_ns, self._cells.extremes))
        self._growth.update(t_ns, self._cells)

    def advance(self, t_ns: int) -> None:
        self._extremes.advance(t_ns)
        self._growth.advance(t_ns)

    def get(self, group: str, axes: Axes) -> TableTotals:
        grown = self._growth.get()
        recent = None if grown is None else _difference(*grown)
        return TableTotals(group, axes, self._cells, self._extremes.get(), recent)


def table_bytes(table: Table) -> int:
    """Memory that a table takes, its labels included."""
    labels = sum(len(label) + _LABEL_BYTES for axis in table.axes for label in axis)
    parts = (table.count, table.sums, table.extremes, table.last)
    return labels + sum(len(part) for part in parts)


def _difference(before: Cells, after: Cells) -> Recent:
    # A sender that breaks its word, that counts only grow, gets 0 and not 2^64 - 1.
    count = np.where(after.count >= before.count, after.count - before.count, np.uint64(0))
    with np.errstate(over="ignore"):
        return Recent(count, after.sums[..., 0] - before.sums[..., 0])


def _overlap(one: Sequence[frozenset[str]], other: Axes) -> bool:
    """Whether two tables share a cell: their cells are the products of their axes."""
    return not any(mine.isdisjoint(theirs) for mine, theirs in zip(one, other, strict=True))


def _key(item: tuple[tuple[str, Axes], _Held]) -> tuple[str, Axes]:
    return item[0]
