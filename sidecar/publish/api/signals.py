"""The answer about groups of signals: what each is, and its running totals cell by cell.

Guarantees: every number is the one that was folded, at full float64 precision; what does not
exist is null; an answer is bounded, and says how many cells it leaves out.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from sidecar.fold.reducer import Snapshot
from sidecar.fold.source import SourceView
from sidecar.fold.tables import TableTotals
from sidecar.publish.api.answers import known
from sidecar.publish.api.portion import MAX_NUMBERS
from sidecar.wire.signals import FAMILY_OF, GROUPS, ROWS_OF, Group, Signal

_NUMBERS_PER_SIGNAL: Final = 6


class GroupSignalAnswer(BaseModel):
    """What a signal is. `transform` is phi; `metric` is its name in Prometheus, null if none."""

    id: str
    formula: str
    transform: str
    metric: str | None


class GroupAnswer(BaseModel):
    """Signals that are measured together. `rows_metric` counts their rows in Prometheus."""

    id: str
    axes: list[str]
    rows: str
    rows_metric: str | None
    signals: list[GroupSignalAnswer]


class CellStat(BaseModel):
    """One signal over the rows of a cell since the boot of the source.

    phi_*: of the signal's transform. window_*: over the last closed 10 s.
    """

    mean: float
    phi_mean: float
    phi_std: float
    window_mean: float | None
    window_min: float | None
    window_max: float | None


class CellRow(BaseModel):
    """One cell. `rows` since the boot of the source, `window_rows` in the last closed 10 s."""

    source: str
    model_name: str
    engine: str
    group: str
    labels: dict[str, str]
    rows: int
    window_rows: int | None
    signals: dict[str, CellStat]


class SignalsAnswer(BaseModel):
    """All groups and their cells; `num_left_out` more cells did not fit into one answer."""

    groups: list[GroupAnswer]
    cells: list[CellRow]
    num_left_out: int


def signals_answer(snapshot: Snapshot, group: str | None = None) -> SignalsAnswer:
    """The cells of `group`, or of all groups: those that have rows, or count nothing else."""
    wanted = [each for each in GROUPS.values() if group in (None, each.id)]
    found = [
        (view, table)
        for each in wanted
        for view in snapshot.sources
        for table in view.tables
        if table.group == each.id
    ]
    rows = (_row(view, table, place) for view, table in found for place in _places(table))
    kept = list(islice(rows, _num_fitting(wanted)))
    num_cells = sum(int(np.count_nonzero(_told(table))) for _, table in found)
    return SignalsAnswer(
        groups=[_group(each) for each in wanted], cells=kept, num_left_out=num_cells - len(kept)
    )


def _num_fitting(wanted: list[Group]) -> int:
    return MAX_NUMBERS // (2 + _NUMBERS_PER_SIGNAL * max(len(group.signals) for group in wanted))


def _group(group: Group) -> GroupAnswer:
    counter = ROWS_OF.get(group.id)
    return GroupAnswer(
        id=group.id,
        axes=list(group.axes),
        rows=group.rows,
        rows_metric=counter.name if counter else None,
        signals=[_signal(group, signal) for signal in group.signals],
    )


def _signal(group: Group, signal: Signal) -> GroupSignalAnswer:
    metric = FAMILY_OF.get((group.id, signal.id))
    return GroupSignalAnswer(
        id=signal.id,
        formula=signal.formula,
        transform=signal.transform,
        metric=metric.name if metric else None,
    )


def _told(table: TableTotals) -> NDArray[np.bool_]:
    """Cells that are told: where only rows are counted, none is news too."""
    told = table.cells.count > 0
    return told if GROUPS[table.group].signals else np.ones_like(told)


def _places(table: TableTotals) -> Iterator[tuple[int, ...]]:
    return (tuple(place) for place in np.argwhere(_told(table)).tolist())


def _row(view: SourceView, table: TableTotals, place: tuple[int, ...]) -> CellRow:
    group = GROUPS[table.group]
    return CellRow(
        source=view.name,
        model_name=view.status.model_name if view.status else "",
        engine=str(view.source.dp),
        group=table.group,
        labels={
            axis: labels[at] for axis, labels, at in zip(group.axes, table.axes, place, strict=True)
        },
        rows=int(table.cells.count[place]),
        window_rows=None if table.recent is None else int(table.recent.rows[place]),
        signals={
            signal.id: _stat(table, place, index) for index, signal in enumerate(group.signals)
        },
    )


def _stat(table: TableTotals, place: tuple[int, ...], signal: int) -> CellStat:
    at = (*place, signal)
    rows = int(table.cells.count[place])
    mean, phi_mean, phi_square_mean = (total / rows for total in table.cells.sums[at].tolist())
    smallest, largest = (math.nan, math.nan) if table.window is None else table.window[at].tolist()
    return CellStat(
        mean=mean,
        phi_mean=phi_mean,
        phi_std=math.sqrt(max(0.0, phi_square_mean - phi_mean * phi_mean)),
        window_mean=_window_mean(table, place, signal),
        window_min=known(smallest),
        window_max=known(largest),
    )


def _window_mean(table: TableTotals, place: tuple[int, ...], signal: int) -> float | None:
    recent = table.recent
    if recent is None or not recent.rows[place]:
        return None
    return known(float(recent.sums[(*place, signal)]) / int(recent.rows[place]))
