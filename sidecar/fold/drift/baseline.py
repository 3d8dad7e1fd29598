"""The baseline: a frozen reference that windows of served requests are scored against.

It is made by `fit.Fit.get` out of observations, and never adapts by itself: a slow change would
otherwise become the reference. What is judged with it (detection, tail) is stored beside it.

Guarantees: a baseline does not change; two with one `digest` score and judge alike; its reservoir
holds at most 4032 window scores (14 days of 5 minutes), 3 MB for 96 streams.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.arrays import Pack, fingerprint, packed, unpacked
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.plan import Plan
from sidecar.fold.drift.related import Group, Related, groups_of
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.score import Reference, Score
from sidecar.fold.drift.spread import NUM_BUCKETS
from sidecar.fold.drift.window import Window

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_TAIL_SCORES: Final = 10_000
MIN_CONSTANT_ROWS: Final = 200  # equal values of fewer requests may be chance


class Calibration(NamedTuple):
    """What the replay of the second half of the reservoir said; see `calibrate`.

    eta: long-run deflation of the rank scores.
    thresholds: limits of the detectors by name, such as `cusum/0.25/page`.
    replay: figures of the replay, for the reader: months, share with a false page, its bound.
    """

    eta: float
    thresholds: dict[str, float]
    replay: dict[str, float | int | str | bool]


class TailCalibration(NamedTuple):
    """Tail scores of `num_requests` benign requests, of which the largest are kept.

    largest: [at most MAX_TAIL_SCORES], rising. Adding two keeps the largest of both, in any order.
    """

    num_requests: int
    largest: Floats

    @classmethod
    def of(cls, scores: Floats) -> Self:
        """The calibration by these scores, in any order; those that are not finite do not count."""
        finite = np.sort(scores[np.isfinite(scores)])
        return cls(len(finite), finite[-MAX_TAIL_SCORES:])

    def add(self, other: Self) -> Self:
        """The calibration by the requests of both."""
        both = np.sort(np.concatenate([self.largest, other.largest]))
        return type(self)(self.num_requests + other.num_requests, both[-MAX_TAIL_SCORES:])


@dataclass(frozen=True, eq=False)
class Baseline:
    """G strata, p streams, K windows.

    strata: [G] moments, in the order of `plan.strata`, clipped as the plan says.
    spread: [G, p, buckets] counts, see `spread`.
    tau2: [G, p] variance between windows beyond sampling.
    reservoir: [K, p] scores D of the baseline's own windows; NaN where nothing was measured.
    times_ns: [K] Unix time of their ends, rising.
    mix: [K, G] requests by stratum in these windows.
    related: how groups of entries vary together.
    calibration, tail: None until they were computed.
    """

    header: Header
    plan: Plan
    strata: tuple[Moments, ...]
    spread: Ints
    tau2: Floats
    reservoir: Floats
    times_ns: Ints
    mix: Ints
    related: tuple[Related, ...]
    calibration: Calibration | None = None
    tail: TailCalibration | None = None

    @cached_property
    def schema(self) -> Schema:
        """The streams."""
        return Schema.of(self.header.layout)

    @property
    def num_windows(self) -> int:
        """K."""
        return len(self.reservoir)

    @cached_property
    def num_requests(self) -> int:
        """Requests it was fitted on."""
        return sum(moments.num_rows for moments in self.strata)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """[G] what each stratum is compared with."""
        dtype = self.header.identity.dtype
        pairs = zip(self.strata, self.tau2, strict=True)
        return tuple(Reference.of(moments, dtype, tau2) for moments, tau2 in pairs)

    @cached_property
    def is_constant(self) -> NDArray[np.bool_]:
        """[G, p] where all of at least 200 values were equal: any other value is a change."""
        return np.stack(
            [
                (each.n >= MIN_CONSTANT_ROWS) & (each.smallest == each.largest)
                for each in self.strata
            ]
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of everything that judges; snapshots are bound to it."""
        canonical = msgspec.msgpack.encode(self.to_plain(fingerprint), order="deterministic")
        return hashlib.sha256(canonical).hexdigest()

    def score(self, window: Window) -> Floats:
        """D [p] of a window made with this baseline's plan; NaN where no stratum said anything.

        Strata that the plan does not keep apart count as `OTHER`.
        """
        score = Score((self.schema.num_streams,))
        found = sorted(self._by_place(window).items())
        if found:
            places = [place for place, _ in found]
            n = np.stack([moments.n for _, moments in found]).astype(np.float64)
            total = np.stack([moments.total for _, moments in found])
            references = self._stacked.at(places)
            score.update_all(total / np.maximum(n, 1), n, references)
        return score.get()

    def changed_constants(self, window: Window) -> NDArray[np.bool_]:
        """[p] where a stream that was constant in the baseline had another value in `window`."""
        changed = np.zeros(self.schema.num_streams, bool)
        for place, moments in self._by_place(window).items():
            value = self.strata[place].smallest
            other = (moments.n > 0) & ((moments.smallest != value) | (moments.largest != value))
            changed |= self.is_constant[place] & other
        return changed

    def mix_of(self, window: Window) -> Ints:
        """[G] requests of `window` by stratum; a row such as those of `mix`."""
        counts = np.zeros(len(self.strata), np.int64)
        for place, moments in self._by_place(window).items():
            counts[place] = moments.num_rows
        return counts

    def calibrated(self, calibration: Calibration) -> Self:
        """The same baseline with detection calibrated."""
        return replace(self, calibration=calibration)

    def with_tail(self, tail: TailCalibration) -> Self:
        """The same baseline with the request tail calibrated."""
        return replace(self, tail=tail)

    def _by_place(self, window: Window) -> dict[int, Moments]:
        found: dict[int, Moments] = {}
        for name, moments in window.strata.items():
            place = self.plan.place(name)
            if place in found:  # not in place: the window's own moments stay as they are
                together = found[place].get()
                together.merge(moments)
                found[place] = together
            else:
                found[place] = moments
        return found

    @cached_property
    def _stacked(self) -> Reference:
        """`references` as arrays [G, p]."""
        return Reference.stacked(self.references)

    def to_plain(self, pack: Pack = packed) -> dict[str, Any]:
        """As a msgpack-able map."""
        return {
            "header": self.header.to_plain(),
            "plan": self.plan.to_plain(pack),
            "strata": moments_to_plain(self.strata, pack),
            "spread": pack(self.spread),
            "tau2": pack(self.tau2),
            "reservoir": pack(self.reservoir),
            "times_ns": pack(self.times_ns),
            "mix": pack(self.mix),
            "related": [_related_to_plain(each, pack) for each in self.related],
            "calibration": self.calibration and self.calibration._asdict(),
            "tail": self.tail
            and {"num_requests": self.tail.num_requests, "largest": pack(self.tail.largest)},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The baseline in `plain`; StateError when it is none of this release."""
        try:
            return cls._read(plain)
        except UNREADABLE as error:
            raise StateError(f"no baseline: {error!r}") from error

    @classmethod
    def _read(cls, plain: Mapping[str, Any]) -> Self:
        header = Header.from_plain(plain["header"])
        num_streams = Schema.of(header.layout).num_streams
        plan = Plan.from_plain(plain["plan"], num_streams)
        num_strata = len(plan.strata)
        times_ns = unpacked(plain["times_ns"], "<i8", (None,))
        groups = groups_of(header.layout)
        pairs = zip(groups, plain["related"], strict=True)
        tail = plain["tail"]
        calibration = plain["calibration"]
        return cls(
            header=header,
            plan=plan,
            strata=moments_from_plain(plain["strata"], num_strata, num_streams),
            spread=unpacked(plain["spread"], "<i8", (num_strata, num_streams, NUM_BUCKETS)),
            tau2=unpacked(plain["tau2"], "<f8", (num_strata, num_streams)),
            reservoir=unpacked(plain["reservoir"], "<f8", (len(times_ns), num_streams)),
            times_ns=times_ns,
            mix=unpacked(plain["mix"], "<i8", (len(times_ns), num_strata)),
            related=tuple(_related_from_plain(each, group, num_strata) for group, each in pairs),
            calibration=calibration and _calibration_from_plain(calibration),
            tail=tail
            and TailCalibration(
                int(tail["num_requests"]), unpacked(tail["largest"], "<f8", (None,))
            ),
        )


def moments_to_plain(strata: tuple[Moments, ...], pack: Pack) -> dict[str, Any]:
    """Moments [G] as stacked arrays."""
    num_rows = pack(np.array([each.num_rows for each in strata], np.int64))
    stacked = {name: np.stack([getattr(each, name) for each in strata]) for name in _ARRAYS}
    return {"num_rows": num_rows, **{name: pack(array) for name, array in stacked.items()}}


def moments_from_plain(
    plain: Mapping[str, Any], num_strata: int, num_streams: int
) -> tuple[Moments, ...]:
    """What `moments_to_plain` wrote; StateError when it is not of these strata and streams."""
    shape = (num_strata, num_streams)
    num_rows = unpacked(plain["num_rows"], "<i8", (num_strata,))
    stacked = {name: unpacked(plain[name], kind, shape) for name, kind in _ARRAYS.items()}
    strata = []
    for g in range(num_strata):
        moments = Moments(num_streams)
        moments.num_rows = int(num_rows[g])
        for name, array in stacked.items():
            setattr(moments, name, array[g])
        strata.append(moments)
    return tuple(strata)


_ARRAYS: Final = {
    "n": "<i8",
    "nonfinite": "<i8",
    "total": "<f8",
    "m2": "<f8",
    "smallest": "<f8",
    "largest": "<f8",
}


def _calibration_from_plain(plain: Mapping[str, Any]) -> Calibration:
    thresholds = {str(name): float(value) for name, value in plain["thresholds"].items()}
    return Calibration(float(plain["eta"]), thresholds, dict(plain["replay"]))


def _related_to_plain(related: Related, pack: Pack) -> dict[str, Any]:
    return {
        "mean": pack(related.mean),
        "sd": pack(related.sd),
        "rho": pack(related.rho),
        "num_rows": pack(related.num_rows),
    }


def _related_from_plain(plain: Mapping[str, Any], group: Group, num_strata: int) -> Related:
    size = len(group.places)
    return Related(
        group,
        unpacked(plain["mean"], "<f8", (num_strata, size)),
        unpacked(plain["sd"], "<f8", (num_strata, size)),
        unpacked(plain["rho"], "<f8", (size, size)),
        unpacked(plain["num_rows"], "<i8", (num_strata,)),
    )
