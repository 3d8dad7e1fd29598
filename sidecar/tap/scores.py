"""Scores of the user's probes: one per request and probe, and how they were distributed.

Owned by the pump thread. A request is counted once, when it is over, with the score that it then
has; scores that are not finite are not counted.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.pooling import Columns, Doubles, Pool
from sidecar.tap.probe_file import Probe
from sidecar.tap.rows import Ints, Plan
from sidecar.tap.tally import Tally
from sidecar.wire.frame import Table


class Scores:
    """Scores of `probes`, whose products stand at `places` [P]; all name the same quantiles."""

    def __init__(self, probes: list[Probe], places: Ints, num_slots: int) -> None:
        self._names = [probe.name for probe in probes]
        self._biases = np.array([probe.bias for probe in probes], np.float64)
        quantiles = list(probes[0].quantiles) if probes else []
        self._limits = np.array([[probe.quantiles[q] for q in quantiles] for probe in probes])
        self._pools = [
            (mine, Pool(_columns(probes, places, mine), num_slots)) for mine in _alike(probes)
        ]
        self._totals = Tally("probe", [self._names])
        self._exceedances = Tally("probe_exceedance", [self._names, quantiles])

    def add(self, plan: Plan, parts: NDArray[np.float32], kept: NDArray[np.bool_] | None) -> None:
        """Add the groups of one step; see `pooling.Pool.add`."""
        for _, pool in self._pools:
            pool.add(plan, parts, kept)

    def of(self, slot: int) -> Doubles:
        """[P] scores of a request so far; NaN where none of its rows was pooled."""
        # Every pooling is an average or a choice of rows, so the bias may be added at the end.
        scores = self._biases.copy()
        for mine, pool in self._pools:
            scores[mine] += pool.values(slot)
        return scores

    def of_request(self, slot: int) -> Iterator[Table]:
        """The scores of a request so far, as one row of each probe."""
        scores = self.of(slot)
        if np.isfinite(scores).any():
            tally = Tally("probe", [self._names])
            _add(tally, np.arange(len(scores)), scores[:, None])
            yield tally.table(last=True)

    def totals(self) -> Iterator[Table]:
        """Scores of the requests that are over, and how many exceeded each quantile."""
        if self._names:
            yield self._totals.table()
            self._totals.forget_extremes()
        if self._limits.size:
            yield self._exceedances.table()

    def clear(self, slot: int) -> None:
        """Count the request in `slot`, which is over."""
        scores = self.of(slot)
        _add(self._totals, np.arange(len(scores)), scores[:, None])
        if self._limits.size:
            exceeded = np.flatnonzero(
                np.isfinite(scores[:, None]) & (scores[:, None] > self._limits)
            )
            _add(self._exceedances, exceeded, np.zeros((len(exceeded), 0)))
        for _, pool in self._pools:
            pool.clear(slot)


def _alike(probes: list[Probe]) -> list[Ints]:
    """Numbers of the probes, together where they are pooled alike."""
    kinds = [(probe.pooling, probe.rows) for probe in probes]
    return [
        np.array([number for number, each in enumerate(kinds) if each == kind])
        for kind in dict.fromkeys(kinds)
    ]


def _columns(probes: list[Probe], places: Ints, mine: Ints) -> Columns:
    first = probes[int(mine[0])]
    alphas = np.array([probes[number].alpha for number in mine.tolist()])
    return Columns(first.pooling, first.rows, places[mine], alphas)


def _add(tally: Tally, cells: Ints, values: NDArray[np.float64]) -> None:
    tally.add(np.zeros(len(cells), np.int64), cells, values)
