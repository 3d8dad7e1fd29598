"""Text of the per-layer families: the first and most important of the many series.

Guarantees: label sets are rendered once per source and life, then only numbers are; beyond
`series_cap` whole layers are left out, from the end, always the same ones.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.source import SourceView
from sidecar.publish.metrics.lines import Asked, Lines, summary_names, write
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.metrics.text import label_set
from sidecar.wire.frame import NUM_POPULATIONS
from sidecar.wire.signals import (
    BY_ID,
    LAYER_SIGNALS,
    POPULATIONS,
    SUMMARY_OF,
    WINDOW_MAX_OF,
    Metric,
)

_SUMMARIES: Final = tuple(SUMMARY_OF[signal.id] for signal in LAYER_SIGNALS)
_WINDOW_MAXIMA: Final = tuple(WINDOW_MAX_OF[signal.id] for signal in LAYER_SIGNALS)
ALL: Final = "all"  # value of the label `layer` where all layers are meant
_NONFINITE: Final = BY_ID["nonfinite_values"]


class LayerWriter:
    """Writes the per-layer families of all engines; remembers their rendered labels.

    num_series: series in the last text.
    num_dropped: series left out of all texts so far because of the cap.
    num_left: series that the cap leaves to others after the last text; 0 once a layer is left out.
    """

    def __init__(self, series_cap: int, selection: Selection) -> None:
        self.series_cap = series_cap
        self._selection = selection
        self.num_series = 0
        self.num_dropped = 0
        self.num_left = series_cap
        self._labels: dict[_Key, _Labels] = {}

    def write(self, sources: Sequence[SourceView], asked: Asked, *, openmetrics: bool) -> str:
        """Text of the engines in `sources`; those whose model is not known yet are left out."""
        self.num_left = self.series_cap
        parts = self._plan(sources)
        chosen = (each for each in self._families(parts) if self._selection.wants(each[0]))
        self.num_series, text = write(chosen, asked, openmetrics=openmetrics)
        return text

    @property
    def _of_a_model(self) -> int:
        """Series of a whole model."""
        has_maxima = self._selection.residual.window_maxima == "model"
        return len(_WINDOW_MAXIMA) * NUM_POPULATIONS if has_maxima else 0

    @property
    def _per_population(self) -> int:
        """Series of a layer and population."""
        has_maxima = self._selection.residual.window_maxima == "layer"
        num_maxima = sum(map(self._selection.wants, _WINDOW_MAXIMA)) if has_maxima else 0
        return 2 * sum(map(self._selection.wants, _SUMMARIES)) + num_maxima

    def _families(self, parts: Sequence["_Part"]) -> Iterator[tuple[Metric, list[Lines]]]:
        for signal, metric in enumerate(_SUMMARIES):
            yield metric, [_summary(part, signal) for part in parts]
        yield from self._maxima(parts)
        yield _NONFINITE, [_nonfinite(part) for part in parts]

    def _maxima(self, parts: Sequence["_Part"]) -> Iterator[tuple[Metric, list[Lines]]]:
        by = self._selection.residual.window_maxima
        for signal, metric in enumerate(_WINDOW_MAXIMA):
            if by == "layer":
                yield metric, [_maximum(part, signal) for part in parts]
            elif by == "model":
                yield metric, [_of_model(stages, signal) for stages in _by_engine(parts)]

    def _plan(self, sources: Sequence[SourceView]) -> list["_Part"]:
        known, self._labels = self._labels, {}
        parts: list[_Part] = []
        claimed: set[tuple[str, str, int]] = set()
        engines: set[tuple[str, str]] = set()
        for view in sources:
            table = _Table.of(view, claimed)
            if table is None:
                continue
            self.num_left -= self._of_a_model if table.key[:2] not in engines else 0
            engines.add(table.key[:2])
            num_kept, reserved = table.fit(self.num_left, self._per_population)
            self.num_left = max(0, self.num_left - reserved) if num_kept == table.num_layers else 0
            self.num_dropped += table.num_left_out(num_kept, self._per_population)
            labels = known.get(table.key) or _Labels(table.key)
            self._labels[table.key] = labels
            parts.append(table.part(labels, num_kept))
        return parts


class _Key(NamedTuple):
    """What a rendered label set depends on."""

    model_name: str
    engine: str
    layers: tuple[int, ...]


class _Labels:
    """Rendered names and labels, in layer-major order: row = layer * P + population."""

    def __init__(self, key: _Key) -> None:
        shared = [key.model_name, key.engine]
        sets = [
            label_set(_SUMMARIES[0].labels, [*shared, str(layer), phase, position])
            for layer in key.layers
            for phase, position in POPULATIONS
        ]
        self.summaries = [summary_names(metric, sets) for metric in _SUMMARIES]
        self.maxima = [[f"{metric.name}{each} " for each in sets] for metric in _WINDOW_MAXIMA]
        self.model_maxima = [
            [
                f"{metric.name}{label_set(metric.labels, [*shared, ALL, *each])} "
                for each in POPULATIONS
            ]
            for metric in _WINDOW_MAXIMA
        ]
        self.nonfinite = [
            f"{_NONFINITE.name}_total{label_set(_NONFINITE.labels, [*shared, str(layer)])} "
            for layer in key.layers
        ]


class _Part(NamedTuple):
    """What one engine publishes: rows of its label sets, and their numbers.

    engine: model's name and engine's number.
    rows, counts: [R]; sums, maxima: [R, S]; layers, nonfinite: [K], K layers kept.
    """

    engine: tuple[str, str]
    labels: _Labels
    rows: NDArray[np.intp]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    maxima: NDArray[np.float32]
    layers: NDArray[np.intp]
    nonfinite: NDArray[np.uint64]


class _Table(NamedTuple):
    """The totals of one engine in layer-major order.

    chosen: indices of its layers that no other rank has published already, [K].
    counts: [K, P]; sums, maxima: [K, P, S]; nonfinite: [K].
    """

    key: _Key
    chosen: NDArray[np.intp]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    maxima: NDArray[np.float32]
    nonfinite: NDArray[np.uint64]

    @classmethod
    def of(cls, view: SourceView, claimed: set[tuple[str, str, int]]) -> "_Table | None":
        totals, status = view.totals, view.status
        if totals is None or status is None:
            return None
        key = _Key(status.model_name, str(view.source.dp), totals.layers)
        chosen = []
        for index, layer in enumerate(totals.layers):
            # Two ranks that measured the same layer would make two samples of one series.
            if (key.model_name, key.engine, layer) not in claimed:
                claimed.add((key.model_name, key.engine, layer))
                chosen.append(index)
        places = np.array(chosen, np.intp)
        moments = totals.moments
        window = np.full_like(moments.extremes, np.nan) if totals.window is None else totals.window
        return cls(
            key,
            places,
            moments.count.T[places],
            moments.sums[..., 0].swapaxes(0, 1)[places],
            window[..., 1].swapaxes(0, 1)[places],
            moments.nonfinite[places],
        )

    @property
    def num_layers(self) -> int:
        return len(self.chosen)

    def fit(self, series: int, per_population: int) -> tuple[int, int]:
        """Layers that fit into `series`, and the series they may take."""
        # A window maximum comes and goes: its place is reserved, so that no layer flickers.
        per_layer = 1 + per_population * np.count_nonzero(self.counts, axis=1)
        ends = np.cumsum(per_layer)
        num_kept = int(np.searchsorted(ends, max(0, series), side="right"))
        return num_kept, int(ends[num_kept - 1]) if num_kept else 0

    def num_left_out(self, first_layer: int, per_population: int) -> int:
        """Series that the layers from `first_layer` on would have, at most."""
        counted = self.counts[first_layer:] > 0
        return int(per_population * np.count_nonzero(counted) + len(counted))

    def part(self, labels: _Labels, num_kept: int) -> _Part:
        counts = self.counts[:num_kept]
        kept, populations = np.nonzero(counts)
        return _Part(
            (self.key.model_name, self.key.engine),
            labels,
            self.chosen[kept] * NUM_POPULATIONS + populations,
            counts[kept, populations],
            self.sums[kept, populations],
            self.maxima[kept, populations],
            self.chosen[:num_kept],
            self.nonfinite[:num_kept],
        )


def _summary(part: _Part, signal: int) -> Lines:
    return Lines(part.labels.summaries[signal], part.rows, [part.counts, part.sums[:, signal]])


def _maximum(part: _Part, signal: int) -> Lines:
    known = ~np.isnan(part.maxima[:, signal])
    return Lines([part.labels.maxima[signal]], part.rows[known], [part.maxima[known, signal]])


def _by_engine(parts: Sequence[_Part]) -> list[list[_Part]]:
    """The stages of each engine."""
    stages: dict[tuple[str, str], list[_Part]] = {}
    for part in parts:
        stages.setdefault(part.engine, []).append(part)
    return list(stages.values())


def _of_model(stages: Sequence[_Part], signal: int) -> Lines:
    """The largest of all layers, by population."""
    largest = np.full(NUM_POPULATIONS, -np.inf, np.float32)
    for part in stages:
        known = ~np.isnan(part.maxima[:, signal])
        populations = part.rows[known] % NUM_POPULATIONS
        np.maximum.at(largest, populations, part.maxima[known, signal])
    found = np.flatnonzero(largest > -np.inf)
    return Lines([stages[0].labels.model_maxima[signal]], found, [largest[found]])


def _nonfinite(part: _Part) -> Lines:
    return Lines([part.labels.nonfinite], part.layers, [part.nonfinite])
