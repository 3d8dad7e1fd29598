"""Fitting: observations in, a `Baseline` out; parts of a fleet's traffic add up exactly.

    survey = Survey(schema); survey.update(...) for each observation; plan = survey.get()
    fit = Fit(header, plan); fit.update(...) for each observation again; baseline = fit.get()

Law, tested: eight replicas fitted apart with one plan and merged in any order are the pooled fit,
to 1e-12 of the spread of each number. That is why a fit keeps cells (`cells`) and not scores.
Canary requests are left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, BaselineError, StateError
from sidecar.fold.drift.arrays import Pack, packed, unpacked
from sidecar.fold.drift.baseline import Baseline, moments_from_plain, moments_to_plain
from sidecar.fold.drift.cells import Cells, Sums
from sidecar.fold.drift.header import Header, joined
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Plan, Survey
from sidecar.fold.drift.related import (
    CoMoments,
    comoments_from_plain,
    comoments_to_plain,
    groups_of,
    related,
)
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.score import Reference, Score, between_variance
from sidecar.fold.drift.spread import NUM_BUCKETS, Spread
from sidecar.fold.drift.strata import stratum_of

_PENDING: Final = 4096  # rows folded at once


class Fit:
    """A fold of observations into a `Baseline`. Span and counts of `header` are its own.

    Memory: 12 bytes per cell, stratum present and stream (14 days, 12 strata, 96 streams: 56 MB),
    and 3 kB per stratum and stream.
    """

    def __init__(self, header: Header, plan: Plan) -> None:
        self.header = header
        self.plan = plan
        self._schema = Schema.of(header.layout)
        num_strata, num_streams = len(plan.strata), self._schema.num_streams
        self._groups = groups_of(header.layout)
        self._strata = [Moments(num_streams) for _ in range(num_strata)]
        self._spread = [Spread(num_streams) for _ in range(num_strata)]
        self._related = [[CoMoments(len(g.places)) for g in self._groups] for _ in plan.strata]
        self._cells = Cells(num_streams)
        self._pending: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
        self._num_pending = 0

    def update(self, item: Observation) -> None:
        """Take one request."""
        if item.canary:
            return
        start_ns = item.t_ns - item.t_ns % self.header.assembly.length_ns
        key = start_ns, self.plan.place(stratum_of(item))
        self._pending.setdefault(key, []).append(item.values)
        self._span(item.t_ns, item.t_ns)
        self._num_pending += 1
        if self._num_pending >= _PENDING:
            self._fold()

    def get(self) -> Baseline:
        """The baseline so far."""
        self._fold()
        tau2, reservoir, times_ns, mix = self._windows()
        columns = zip(*self._related, strict=True)
        return Baseline(
            header=self.header,
            plan=self.plan,
            strata=tuple(moments.get() for moments in self._strata),
            spread=np.stack([spread.get() for spread in self._spread]),
            tau2=tau2,
            reservoir=reservoir,
            times_ns=times_ns,
            mix=mix,
            related=tuple(
                related(group, column) for group, column in zip(self._groups, columns, strict=True)
            ),
        )

    def merge(self, other: Self) -> None:
        """Take everything that `other` took; it must be of one plan and comparable.

        Raises BaselineError with what differs.
        """
        header = joined(self.header, other.header)
        if not self.plan.equals(other.plan):
            raise BaselineError(
                "two fits of different plans do not add up; fit both with the plan of one of them"
            )
        self._fold()
        other._fold()
        self.header = header
        self._cells.merge(other._cells)
        for g in range(len(self._strata)):
            self._strata[g].merge(other._strata[g])
            self._spread[g].merge(other._spread[g])
            for mine, theirs in zip(self._related[g], other._related[g], strict=True):
                mine.merge(theirs)

    def to_plain(self, pack: Pack = packed) -> dict[str, Any]:
        """As a msgpack-able map: what is needed to merge it later."""
        self._fold()
        return {
            "header": self.header.to_plain(),
            "plan": self.plan.to_plain(pack),
            "strata": moments_to_plain(tuple(self._strata), pack),
            "spread": pack(np.stack([spread.get() for spread in self._spread])),
            "related": comoments_to_plain(self._related, pack),
            "cells": self._cells.to_plain(pack),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The fit in `plain`; StateError when it is none of this release."""
        try:
            header = Header.from_plain(plain["header"])
            num_streams = Schema.of(header.layout).num_streams
            fit = cls(header, Plan.from_plain(plain["plan"], num_streams))
            fit._read(plain, num_streams)
        except UNREADABLE as error:
            raise StateError(f"no fit of a baseline: {error!r}") from error
        return fit

    def _read(self, plain: Mapping[str, Any], num_streams: int) -> None:
        num_strata = len(self.plan.strata)
        self._strata = list(moments_from_plain(plain["strata"], num_strata, num_streams))
        counts = unpacked(plain["spread"], "<i8", (num_strata, num_streams, NUM_BUCKETS))
        for spread, each in zip(self._spread, counts, strict=True):
            spread.counts = each
        self._related = comoments_from_plain(plain["related"], self._groups, num_strata)
        self._cells = Cells.from_plain(plain["cells"], num_streams, num_strata)

    def _span(self, start_ns: int, end_ns: int) -> None:
        header = self.header
        if not header.end_ns or not header.start_ns <= start_ns <= end_ns <= header.end_ns:
            first = min(start_ns, header.start_ns or start_ns)
            self.header = header._replace(start_ns=first, end_ns=max(end_ns, header.end_ns))

    def _fold(self) -> None:
        by_place: dict[int, list[NDArray[np.float32]]] = {}
        for (start_ns, place), rows in self._pending.items():
            self._fold_cell(start_ns, place, np.stack(rows))
            by_place.setdefault(place, []).extend(rows)
        for place, rows in by_place.items():
            self._fold_stratum(place, np.stack(rows).astype(np.float64))
        self._pending.clear()
        self._num_pending = 0

    def _fold_cell(self, start_ns: int, place: int, values: NDArray[np.float32]) -> None:
        batch = Moments(self._schema.num_streams)
        batch.update(self._schema.scalars(values), self.plan.low[place], self.plan.high[place])
        self._strata[place].merge(batch)
        self._cells.update(start_ns, place, Sums(batch.num_rows, batch.n, batch.total))

    def _fold_stratum(self, place: int, values: NDArray[np.float64]) -> None:
        low, high = self.plan.low[place], self.plan.high[place]
        streams = self._schema.places
        values[:, streams] = np.clip(values[:, streams], low, high)
        self._spread[place].update(values[:, streams], low, high)
        for group, moments in zip(self._groups, self._related[place], strict=True):
            moments.update(values[:, group.places])

    def _windows(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """(tau2 [G, p], D [K, p], ends [K], requests [K, G])."""
        series, windows = self._cells.series(self.header.assembly, len(self._strata))
        score = Score((len(windows), self._schema.num_streams))
        tau2 = []
        for place, moments in enumerate(self._strata):
            counts, mean = self._cells.of(place, windows)
            n = counts.astype(np.float64)
            reference = Reference.of(moments, self.header.identity.dtype)
            tau2.append(between_variance(mean, n, np.nan_to_num(reference.sigma2)))
            score.update(mean, n, reference._replace(tau2=tau2[-1]))
        return np.stack(tau2), score.get(), series.end_ns, series.num_rows


def fit(header: Header, observations: Iterable[Observation], plan: Plan | None = None) -> Fit:
    """Both passes over `observations`, which must be readable twice unless there is a plan."""
    if plan is None:
        survey = Survey(Schema.of(header.layout))
        for each in observations:
            survey.update(each)
        plan = survey.get()
    fitted = Fit(header, plan)
    for each in observations:
        fitted.update(each)
    return fitted
