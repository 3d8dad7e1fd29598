"""Text of the families of groups of signals: attention heads, tokens, routers, experts, probes.

Guarantees: label sets are rendered once per table and life, then only numbers are; a cell that
two ranks have measured is published once, of the first rank; a table whose every cell would not
fit beside what stands before it is left out whole, with all that follow, so that neither traffic
nor a scrape decides what is there. Small groups stand first, experts last.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.source import SourceView
from sidecar.fold.tables import TableTotals
from sidecar.publish.metrics.lines import Asked, Lines, summary_names, write
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.metrics.text import SUFFIXES, label_set
from sidecar.wire.signals import BY_ID, FAMILY_OF, GROUPS, ROWS_OF, Kind, Metric

_EXPERTS: Final = "expert_load"
_GROUPS: Final = ("confidence", "probe", "probe_exceedance", "router", "attention", _EXPERTS)
_IMBALANCE: Final = BY_ID["router_imbalance_ratio"]


class TableWriter:
    """Writes the families of all tables of all engines; remembers their rendered names.

    num_series: series in the last text.
    num_dropped: series left out of all texts so far because of the cap.
    """

    def __init__(self, selection: Selection) -> None:
        self.num_series = 0
        self.num_dropped = 0
        self._selection = selection
        self._rendered: dict[_Key, _Rendered] = {}

    def write(
        self, sources: Sequence[SourceView], num_left: int, asked: Asked, *, openmetrics: bool
    ) -> str:
        """Text of the tables of `sources` in at most `num_left` series.

        Sources whose model is not known yet are left out.
        """
        parts = self._plan(sources, num_left)
        self.num_series, text = write(self._families(parts), asked, openmetrics=openmetrics)
        return text

    def _plan(self, sources: Sequence[SourceView], num_left: int) -> list["_Part"]:
        known, self._rendered = self._rendered, {}
        parts: list[_Part] = []
        claimed: set[str] = set()
        for key, table in _tables(sources):
            reserved = self._num_series(key)
            if reserved > num_left:
                self.num_dropped += self._num_dropped(key, table)
                num_left = 0
                continue
            num_left -= reserved
            rendered = known.get(key) or _Rendered(key, list(self._metrics(key.group)))
            self._rendered[key] = rendered
            parts.append(_Part(table, rendered, rendered.claim(claimed)))
        return parts

    def _families(self, parts: Sequence["_Part"]) -> Iterator[tuple[Metric, list[Lines]]]:
        for group in _GROUPS:
            mine = [part for part in parts if part.table.group == group]
            for index, signal in enumerate(GROUPS[group].signals):
                metric = FAMILY_OF[group, signal.id]
                read = _summary if metric.kind is Kind.SUMMARY else _window_mean
                if self._selection.wants(metric):
                    yield metric, [read(part, metric, index) for part in mine]
            if group in ROWS_OF and self._selection.wants(ROWS_OF[group]):
                yield ROWS_OF[group], [_rows(part, ROWS_OF[group]) for part in mine]
        if self._selection.wants(_IMBALANCE):
            experts = (part for part in parts if part.table.group == _EXPERTS)
            yield _IMBALANCE, [_imbalance(part) for part in experts]

    def _metrics(self, group: str) -> Iterator[Metric]:
        """Families with a series per cell."""
        found = [FAMILY_OF[group, signal.id] for signal in GROUPS[group].signals]
        if group in ROWS_OF:
            found.append(ROWS_OF[group])
        return filter(self._selection.wants, found)

    def _num_series(self, key: "_Key") -> int:
        """Series of a table when every cell has rows."""
        metrics = self._metrics(key.group)
        per_cell = sum(2 if metric.kind is Kind.SUMMARY else 1 for metric in metrics)
        has_layers = key.group == _EXPERTS and self._selection.wants(_IMBALANCE)
        num_layers = len(key.axes[0]) if has_layers else 0
        return per_cell * prod(len(labels) for labels in key.axes) + num_layers

    def _num_dropped(self, key: "_Key", table: TableTotals) -> int:
        """Series that a table left out would have, gauges aside: those come and go."""
        counts = table.cells.count
        kinds = [metric.kind for metric in self._metrics(key.group)]
        num_filled = int(np.count_nonzero(counts))
        return 2 * kinds.count(Kind.SUMMARY) * num_filled + kinds.count(Kind.COUNTER) * counts.size


class _Key(NamedTuple):
    """What rendered names depend on."""

    model_name: str
    engine: str
    group: str
    axes: tuple[tuple[str, ...], ...]


class _Rendered:
    """The label sets of one table, and the names of all its series by metric."""

    def __init__(self, key: _Key, metrics: Sequence[Metric]) -> None:
        shared = (key.model_name, key.engine)
        labels = ("model_name", "engine", *GROUPS[key.group].axes)
        self._cells = [label_set(labels, (*shared, *cell)) for cell in product(*key.axes)]
        self.names = {metric.id: _names(metric, self._cells) for metric in metrics}
        self._layers: list[str] = []
        if key.group == _EXPERTS:
            self._layers = [label_set(labels[:3], (*shared, layer)) for layer in key.axes[0]]
            self.names[_IMBALANCE.id] = _names(_IMBALANCE, self._layers)

    def claim(self, claimed: set[str]) -> "_Claims":
        """What is ours to publish: what stands in no earlier table; now it does."""
        return _Claims(_fresh(self._cells, claimed), _fresh(self._layers, claimed))


class _Claims(NamedTuple):
    """Cells that a table publishes, [C], and layers whose imbalance it does."""

    cells: NDArray[np.bool_]
    layers: NDArray[np.bool_]


class _Part(NamedTuple):
    """What one table publishes."""

    table: TableTotals
    rendered: _Rendered
    claims: _Claims

    @property
    def counts(self) -> NDArray[np.uint64]:
        """Rows so far, [C]."""
        return self.table.cells.count.ravel()

    def lines(self, metric: Metric, chosen: NDArray[np.bool_], *values: NDArray[Any]) -> Lines:
        """Lines of the chosen cells or layers."""
        names = self.rendered.names[metric.id]
        return Lines(names, np.flatnonzero(chosen), [each[chosen] for each in values])


def _tables(sources: Sequence[SourceView]) -> Iterator[tuple[_Key, TableTotals]]:
    """All tables that have families, in the order in which they are kept."""
    for group in _GROUPS:
        for view in sources:
            if view.status is None:
                continue
            for table in view.tables:
                if table.group == group:
                    engine = str(view.source.dp)
                    yield _Key(view.status.model_name, engine, group, table.axes), table


def _names(metric: Metric, label_sets: Sequence[str]) -> Sequence[list[str]]:
    if metric.kind is Kind.SUMMARY:
        return summary_names(metric, label_sets)
    suffix = SUFFIXES.get(metric.kind, "")
    return [[f"{metric.name}{suffix}{each} " for each in label_sets]]


def _fresh(label_sets: Sequence[str], claimed: set[str]) -> NDArray[np.bool_]:
    fresh = []
    for each in label_sets:
        fresh.append(each not in claimed)
        claimed.add(each)
    return np.array(fresh, np.bool_)


def _summary(part: _Part, metric: Metric, signal: int) -> Lines:
    chosen = part.claims.cells & (part.counts > 0)
    sums = part.table.cells.sums[..., signal, 0].ravel()
    return part.lines(metric, chosen, part.counts, sums)


def _window_mean(part: _Part, metric: Metric, signal: int) -> Lines:
    recent = part.table.recent
    if recent is None:
        return part.lines(metric, np.zeros_like(part.claims.cells), part.counts)
    rows = recent.rows.ravel()
    means = recent.sums[..., signal].ravel() / np.maximum(rows, 1)
    return part.lines(metric, part.claims.cells & (rows > 0) & np.isfinite(means), means)


def _rows(part: _Part, metric: Metric) -> Lines:
    # With those at 0: a dead expert is news, and a first exceedance is an increase from 0.
    return part.lines(metric, part.claims.cells, part.counts)


def _imbalance(part: _Part) -> Lines:
    recent = part.table.recent
    rows = np.zeros_like(part.table.cells.count) if recent is None else recent.rows
    busiest = rows.max(axis=1, initial=0).astype(np.float64)
    total = rows.sum(axis=1, dtype=np.float64)
    ratios = busiest * rows.shape[1] / np.maximum(total, 1.0)
    return part.lines(_IMBALANCE, part.claims.layers & (total > 0), ratios)
