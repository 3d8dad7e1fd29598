"""The plan of a baseline: which strata it keeps apart, and where it clips; made by a first look.

A baseline is fitted in two passes. The first, `Survey`, learns how often each stratum comes and
how far each stream spreads; the second, `baseline.Fit`, can then fold rare strata and winsorise at
mu +- 8 sd exactly as live windows will, so that reference and judged windows are of one kind. Parts
that were fitted with one plan add up exactly (docs/decisions/0012-two-passes.md).
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import BaselineError, StateError
from sidecar.fold.drift.arrays import Pack, packed, unpacked
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.strata import OTHER, is_rare, stratum_of

Floats = NDArray[np.float64]

CLIP_SD: Final = 8.0
MAX_STRATA: Final = 1024  # of one survey; what comes beyond counts as OTHER
_PENDING: Final = 256  # rows folded at once


class Plan(NamedTuple):
    """Strata and clips; G strata, p streams.

    strata: [G] kept apart; `OTHER` is the last, always.
    rare: those that were seen and fold into `OTHER`; any further one is new.
    low, high: [G, p] values are clipped to these; infinite where the spread is not known.
    """

    strata: tuple[str, ...]
    rare: frozenset[str]
    low: Floats
    high: Floats

    def place(self, stratum: str) -> int:
        """Place of `stratum` among the strata; that of `OTHER` when it is not kept apart."""
        return self.strata.index(stratum) if stratum in self.strata else len(self.strata) - 1

    def is_new(self, stratum: str) -> bool:
        """Whether the first look never saw `stratum`."""
        return stratum not in self.strata and stratum not in self.rare

    def equals(self, other: Self) -> bool:
        """Whether parts fitted with both add up."""
        return (
            self.strata == other.strata
            and self.rare == other.rare
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    def to_plain(self, pack: Pack = packed) -> dict[str, Any]:
        """As a msgpack-able map."""
        return {
            "strata": list(self.strata),
            "rare": sorted(self.rare),
            "low": pack(self.low),
            "high": pack(self.high),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], num_streams: int) -> Self:
        """The plan in `plain`; StateError when it is none of `num_streams` streams."""
        try:
            strata = tuple(str(name) for name in plain["strata"])
            rare = frozenset(str(name) for name in plain["rare"])
            low, high = plain["low"], plain["high"]
        except (KeyError, TypeError) as error:
            raise StateError(f"no plan of a baseline: {error!r}") from error
        if strata[-1:] != (OTHER,) or len(set(strata)) != len(strata):
            raise StateError(f"a plan's strata are distinct and end in {OTHER}")
        shape = (len(strata), num_streams)
        return cls(strata, rare, unpacked(low, "<f8", shape), unpacked(high, "<f8", shape))


class Survey:
    """The first look: a fold of observations into a `Plan`; canary requests are left out.

    Memory: 6 numbers per stream of at most `MAX_STRATA` strata.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._strata: dict[str, Moments] = {}
        self._pending: dict[str, list[NDArray[np.float32]]] = {}
        self._num_pending = 0

    def update(self, item: Observation) -> None:
        """Take one request."""
        if item.canary:
            return
        self._pending.setdefault(stratum_of(item), []).append(item.values)
        self._num_pending += 1
        if self._num_pending >= _PENDING:
            self._fold()

    def get(self) -> Plan:
        """The plan so far."""
        self._fold()
        num_all = sum(moments.num_rows for moments in self._strata.values())
        rare = {
            name
            for name, moments in self._strata.items()
            if name == OTHER or is_rare(moments.num_rows, num_all)
        }
        kept = sorted(self._strata.keys() - rare)
        # Clips of OTHER are of everything, since what a live OTHER will hold is not known.
        groups = [self._strata[name] for name in kept] + [self._everything()]
        bounds = [_bounds(moments) for moments in groups]
        low, high = (np.stack(side) for side in zip(*bounds, strict=True))
        return Plan((*kept, OTHER), frozenset(rare - {OTHER}), low, high)

    def merge(self, other: Self) -> None:
        """Take everything that `other` took."""
        if other.schema != self.schema:
            raise BaselineError("signatures of different layouts cannot be surveyed together")
        self._fold()
        other._fold()
        for name, moments in other._strata.items():
            self._moments(name).merge(moments)

    def _fold(self) -> None:
        for name, rows in self._pending.items():
            self._moments(name).update(self.schema.scalars(np.stack(rows)))
        self._pending.clear()
        self._num_pending = 0

    def _moments(self, name: str) -> Moments:
        is_full = len(self._strata) >= MAX_STRATA
        key = OTHER if is_full and name not in self._strata else name
        return self._strata.setdefault(key, Moments(self.schema.num_streams))

    def _everything(self) -> Moments:
        all_of_them = Moments(self.schema.num_streams)
        for name in sorted(self._strata):
            all_of_them.merge(self._strata[name])
        return all_of_them


def _bounds(moments: Moments) -> tuple[Floats, Floats]:
    """Clips at mu -+ 8 sd, rounded to float32 so that sums of clipped values stay exact."""
    reach = CLIP_SD * np.sqrt(moments.variance)
    known = reach > 0  # not where it is NaN; a constant stream is not clipped, or its change hides
    low = np.where(known, moments.mean - reach, -np.inf)
    high = np.where(known, moments.mean + reach, np.inf)
    with np.errstate(over="ignore"):  # beyond float32 nothing is clipped
        rounded = low.astype(np.float32), high.astype(np.float32)
    return rounded[0].astype(np.float64), rounded[1].astype(np.float64)
