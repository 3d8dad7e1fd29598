"""Text of the per-layer families: the first and most important of the many series.

Guarantees: label sets are rendered once per source and life, then only numbers are; beyond
`series_cap` whole layers are left out, from the end, always the same ones.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.source import SourceView
from sidecar.publish.lines import Lines, summary_names, write
from sidecar.publish.text import label_set
from sidecar.wire.frame import NUM_POPULATIONS, NUM_SIGNALS
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
_NONFINITE: Final = BY_ID["nonfinite_values"]
# Sum, count and window maximum of each signal.
_SERIES_PER_POPULATION: Final = 3 * NUM_SIGNALS


class LayerWriter:
    """Writes the per-layer families of all engines; remembers their rendered labels.

    num_series: series in the last text.
    num_dropped: series left out of all texts so far because of the cap.
    num_left: series that the cap leaves to others after the last text; 0 once a layer is left out.
    """

    def __init__(self, series_cap: int) -> None:
        self.series_cap = series_cap
        self.num_series = 0
        self.num_dropped = 0
        self.num_left = series_cap
        self._labels: dict[_Key, _Labels] = {}

    def write(self, sources: Sequence[SourceView], *, openmetrics: bool) -> str:
        """Text of the engines in `sources`; those whose model is not known yet are left out."""
        self.num_left = self.series_cap
        parts = self._plan(sources)
        self.num_series, text = write(_families(parts), openmetrics=openmetrics)
        return text

    def _plan(self, sources: Sequence[SourceView]) -> list["_Part"]:
        known, self._labels = self._labels, {}
        parts: list[_Part] = []
        claimed: set[tuple[str, str, int]] = set()
        for view in sources:
            table = _Table.of(view, claimed)
            if table is None:
                continue
            num_kept, reserved = table.fit(self.num_left)
            self.num_left = self.num_left - reserved if num_kept == table.num_layers else 0
            self.num_dropped += table.num_series(num_kept)
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
        self.nonfinite = [
            f"{_NONFINITE.name}_total{label_set(_NONFINITE.labels, [*shared, str(layer)])} "
            for layer in key.layers
        ]


class _Part(NamedTuple):
    """What one engine publishes: rows of its label sets, and their numbers.

    rows, counts: [R]; sums, maxima: [R, S]; layers, nonfinite: [K], K layers kept.
    """

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

    def fit(self, series: int) -> tuple[int, int]:
        """Layers that fit into `series`, and the series they may take."""
        # A window maximum comes and goes: its place is reserved, so that no layer flickers.
        per_layer = 1 + _SERIES_PER_POPULATION * np.count_nonzero(self.counts, axis=1)
        ends = np.cumsum(per_layer)
        num_kept = int(np.searchsorted(ends, series, side="right"))
        return num_kept, int(ends[num_kept - 1]) if num_kept else 0

    def num_series(self, first_layer: int) -> int:
        """Series of the layers from `first_layer` on."""
        counted = self.counts[first_layer:] > 0
        maxima = np.count_nonzero(~np.isnan(self.maxima[first_layer:]) & counted[..., None])
        return int(2 * NUM_SIGNALS * np.count_nonzero(counted) + maxima + len(counted))

    def part(self, labels: _Labels, num_kept: int) -> _Part:
        counts = self.counts[:num_kept]
        kept, populations = np.nonzero(counts)
        return _Part(
            labels,
            self.chosen[kept] * NUM_POPULATIONS + populations,
            counts[kept, populations],
            self.sums[kept, populations],
            self.maxima[kept, populations],
            self.chosen[:num_kept],
            self.nonfinite[:num_kept],
        )


def _families(parts: Sequence[_Part]) -> Iterator[tuple[Metric, list[Lines]]]:
    for signal, metric in enumerate(_SUMMARIES):
        yield metric, [_summary(part, signal) for part in parts]
    for signal, metric in enumerate(_WINDOW_MAXIMA):
        yield metric, [_maximum(part, signal) for part in parts]
    yield _NONFINITE, [_nonfinite(part) for part in parts]


def _summary(part: _Part, signal: int) -> Lines:
    return Lines(part.labels.summaries[signal], part.rows, [part.counts, part.sums[:, signal]])


def _maximum(part: _Part, signal: int) -> Lines:
    known = ~np.isnan(part.maxima[:, signal])
    return Lines([part.labels.maxima[signal]], part.rows[known], [part.maxima[known, signal]])


def _nonfinite(part: _Part) -> Lines:
    return Lines([part.labels.nonfinite], part.layers, [part.nonfinite])
