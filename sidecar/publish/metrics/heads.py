"""Attention heads added up: one cell for all heads of a layer, over every rank that has some.

Guarantee: counts and sums are those of all heads heard of, so a mean over any range is the mean
over heads; each layer and phase of an engine stands in one table, that of its first rank.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.source import SourceView
from sidecar.fold.tables import Recent, TableTotals
from sidecar.wire.frame import Cells

ALL: Final = "all"
_GROUP: Final = "attention"
_HEAD_AXIS: Final = 2

_Key = tuple[str, int, tuple[tuple[str, ...], ...]]


def add_up(sources: Sequence[SourceView]) -> list[SourceView]:
    """`sources`, where the first rank that has heads of some layers has them all, added up."""
    summed: dict[_Key, TableTotals] = {}
    heard: dict[_Key, set[str]] = {}
    for view in sources:
        for table in view.tables:
            if table.group == _GROUP:
                key = _key(view, table)
                # A head that two ranks have measured counts once, as the first of them told it.
                mine = _over_heads(table, heard.setdefault(key, set()))
                summed[key] = _merged(summed[key], mine) if key in summed else mine
                heard[key].update(table.axes[_HEAD_AXIS])
    return [view._replace(tables=tuple(_placed(view, summed))) for view in sources]


def _placed(view: SourceView, summed: dict[_Key, TableTotals]) -> list[TableTotals]:
    tables = []
    for table in view.tables:
        if table.group != _GROUP:
            tables.append(table)
        elif (key := _key(view, table)) in summed:
            tables.append(summed.pop(key))
    return tables


def _key(view: SourceView, table: TableTotals) -> _Key:
    model_name = "" if view.status is None else view.status.model_name
    return model_name, view.source.dp, table.axes[:_HEAD_AXIS]


def _over_heads(table: TableTotals, heard: set[str]) -> TableTotals:
    """One cell for the heads that were not heard before."""
    fresh = np.array([head not in heard for head in table.axes[_HEAD_AXIS]], np.bool_)
    cells, recent = table.cells, table.recent
    return table._replace(
        axes=(*table.axes[:_HEAD_AXIS], (ALL,)),
        cells=Cells(
            _sum(cells.count, fresh),
            _sum(cells.sums, fresh),
            cells.extremes[:, :, :1],  # of one frame; nothing publishes it
            cells.last,
        ),
        window=None,
        recent=recent and Recent(_sum(recent.rows, fresh), _sum(recent.sums, fresh)),
    )


def _sum(cells: NDArray[Any], fresh: NDArray[np.bool_]) -> NDArray[Any]:
    total: NDArray[Any] = cells[:, :, fresh].sum(_HEAD_AXIS, keepdims=True)
    return total


def _merged(one: TableTotals, other: TableTotals) -> TableTotals:
    recents = [each.recent for each in (one, other) if each.recent is not None]
    cells = Cells(
        one.cells.count + other.cells.count,
        one.cells.sums + other.cells.sums,
        one.cells.extremes,
        one.cells.last,
    )
    recent = None
    if recents:
        recent = Recent(
            sum((each.rows for each in recents), np.zeros_like(recents[0].rows)),
            sum((each.sums for each in recents), np.zeros_like(recents[0].sums)),
        )
    return one._replace(cells=cells, recent=recent)
