"""The signature of a request: its statistics so far, as the one vector that drift is judged by.

Pure numpy. Residual entries are over the rows after the first positions, which are attention sinks
with norms of their own. What was not measured is NaN.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.frame import Arrays, Cells, Request, Table
from sidecar.wire.signals import POPULATIONS, Phase, Position
from sidecar.wire.signature import Layout

Floats = NDArray[np.float32]

_REST: Final = [POPULATIONS.index((phase, Position.REST)) for phase in Phase]
_RMS, _PEAK, _INFLUENCE = range(3)
_VALUE, _PHI = range(2)
_ENTROPY, _MARGIN, _SURPRISAL = 0, 2, 3  # columns of the confidence group
_EFFECTIVE, _SINK = 2, 3  # columns of the attention groups
_SMALLEST_RMS: Final = 1e-30


def values(
    layout: Layout, layer_ids: list[int], request: Request, sketches: Floats | None
) -> Floats:
    """Entries in the order of `wire.signature.entries`.

    layer_ids: global ids of the layers in `request.moments`.
    sketches: [sketched layers, 2, sketch size]; None when nothing is sketched.
    """
    tables = {table.group: table for table in request.tables}
    parts: list[NDArray[Any]] = [
        _residual(layout, layer_ids, request),
        _by_layer(tables.get("attention_mean"), layout.attention_layers, 3, _attention),
        _by_layer(tables.get("router"), layout.router_layers, 2, _router),
        _confidence(tables.get("confidence")),
        _sketches(layout, sketches),
        _probes(tables.get("probe"), layout.probes),
    ]
    return np.concatenate([part.astype(np.float32).ravel() for part in parts])


def _residual(layout: Layout, layer_ids: list[int], request: Request) -> NDArray[np.float64]:
    moments = Arrays.unpack(request.moments, len(layer_ids))
    places = [layer_ids.index(layer) for layer in layout.layers]
    count = moments.count[_REST][:, places].astype(np.float64)
    sums = moments.sums[_REST][:, places]
    largest = moments.extremes[_REST][:, places, _RMS, 1].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[..., _PHI] / count[..., None]
        log_max = np.log(np.maximum(largest, _SMALLEST_RMS))
    return np.stack([means[..., _RMS], log_max, means[..., _INFLUENCE], means[..., _PEAK]], -1)


def _by_layer(
    table: Table | None,
    layers: list[int],
    num_entries: int,
    read: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """[phase, layer, entry] of a group whose axes are layer and phase."""
    found = np.full((len(Phase), len(layers), num_entries), np.nan)
    if table is not None:
        means = read(_means(Cells.unpack(table)))
        at = [table.axes[0].index(str(layer)) for layer in layers]
        found[:] = means.swapaxes(0, 1)[:, at]
    return found


def _attention(means: NDArray[np.float64]) -> NDArray[np.float64]:
    entropy, sink = means[..., 0, _VALUE], means[..., _SINK, _PHI]
    return np.stack([entropy, sink, means[..., _EFFECTIVE, _PHI]], -1)


def _router(means: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([means[..., 0, _VALUE], means[..., 1, _PHI]], -1)


def _confidence(table: Table | None) -> NDArray[np.float64]:
    """Mean and last entropy, mean margin, least log-probability of the chosen tokens."""
    if table is None:
        return np.full(4, np.nan)
    cells = Cells.unpack(table)
    spoken = np.flatnonzero(cells.count)
    if not len(spoken):
        return np.full(4, np.nan)
    cell = int(spoken[0])  # a request has one adapter
    means = _means(cells)[cell, :, _VALUE]
    last = cells.last[cell, _ENTROPY] if len(cells.last) else np.nan
    least = -cells.extremes[cell, _SURPRISAL, 1]
    return np.array([means[_ENTROPY], last, means[_MARGIN], least], np.float64)


def _sketches(layout: Layout, sketches: Floats | None) -> Floats:
    if sketches is not None:
        return sketches
    return np.full((len(layout.sketch_layers), 2, layout.sketch_size), np.nan, np.float32)


def _probes(table: Table | None, names: list[str]) -> NDArray[np.float64]:
    found = np.full(len(names), np.nan)
    if table is not None:
        means = _means(Cells.unpack(table))[:, 0, _VALUE]
        found[[names.index(name) for name in table.axes[0]]] = means
    return found


def _means(cells: Cells) -> NDArray[np.float64]:
    """[..., S, 3] mean of each power; NaN where no row was."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = cells.sums / cells.count[..., None, None].astype(np.float64)
    return means


def evenly(layers: list[int], num: int) -> list[int]:
    """At most `num` of `layers`, evenly spaced, the first and the last included."""
    return list(_evenly(layers, num))


def _evenly(layers: list[int], num: int) -> Iterator[int]:
    if num >= len(layers):
        yield from layers
    elif num == 1:
        yield layers[-1]
    elif num > 1:
        for step in range(num):
            yield layers[round(step * (len(layers) - 1) / (num - 1))]
