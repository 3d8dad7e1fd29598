"""The replica channel: each replica of a fleet against all the others, in the same minutes.

It may claim that a replica differs (tampered with, broken, another version): the others serve the
same traffic at the same time, so nothing that clients do moves one alone. That needs random
routing, at least three replicas and windows of the same minutes; where one of these fails the
channel is not armed, and says which.

    score    `leave_one_out.differences` of a slot, less `TOLERANCE` standard deviations of one
             request: no fleet is alike to the last bit, and many requests would show it
    chance   `odds.Odds`, learnt from the others
    page     `evidence.Evidence`: Rbar >= A, A = 12 months of windows x number of replicas

A replica that paged is no reference any more; where one window makes several cross the limit, only
the one that is furthest from the others pages.

Guarantees:
- One page in 12 months of a whole fleet whose replicas are alike, by design.
- What it says follows from the windows, in whatever order those of different replicas arrive,
  while they are at most two windows late (`slots.Slots`).
- A replica's first window after it came, or came back, is not judged: it may be part of one.
- Replicas that come and go cost no memory: one that sent nothing for a day of windows is forgotten,
  unless it paged and nobody has seen it; `MAX_REPLICAS` are held at most.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.affinity import Affinity
from sidecar.fold.drift.exported import checked, mapping, number, same, tagged
from sidecar.fold.drift.leave_one_out import Differences, differences
from sidecar.fold.drift.odds import CLIP, Odds
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.slots import Slot, Slots
from sidecar.fold.drift.standing import Standing
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.drift.window import LENGTH_NS, MIN_REQUESTS, Window

NAME: Final = "replica"
MIN_REPLICAS: Final = 3
MAX_REPLICAS: Final = 256
TOLERANCE: Final = 0.02  # standard deviations of one request
_YEAR_NS: Final = 360 * 86_400 * 10**9  # twelve months of 30 days
_WEEK_NS: Final = 7 * 86_400 * 10**9
_DAY: Final = 288  # windows of 5 minutes
_SILENT: Final = 6  # windows without a word of a replica, and it counts as absent
_UNJUDGED: Final = 3  # slots in a row that could not be judged, and the channel is not armed
_KIND: Final = "replica-contrast"
_VERSION: Final = 1

Floats = NDArray[np.float64]


class Replica(NamedTuple):
    """What is concluded of one replica.

    name: as it was given to `update`.
    state: armed, ticket or page; collecting until it was judged.
    level: share of the limit, now.
    since_ns: estimated start of the difference; None while there is none.
    causes: streams that differ, the largest first.
    is_present: whether it still sends windows.
    """

    name: str
    state: ChannelState
    level: float
    since_ns: int | None
    causes: tuple[Cause, ...]
    is_present: bool


class Counts(NamedTuple):
    """What became of windows: judged, too early in a replica's life or too few, too late."""

    judged: int = 0
    insufficient: int = 0
    late: int = 0


class ContrastChannel:
    """A fold of (replica, window); a `Channel`.

    schema: of every window; others are for the caller to refuse.
    length_ns: of a window, to turn months into windows.
    is_demo: said in every reason: short windows have no rate that means anything.
    """

    name = NAME

    def __init__(
        self,
        schema: Schema,
        *,
        length_ns: int = LENGTH_NS,
        tolerance: float = TOLERANCE,
        is_demo: bool = False,
    ) -> None:
        self.schema = schema
        self.num_pages = 0
        self._length_ns = length_ns
        self._tolerance = tolerance
        self._is_demo = is_demo
        self._slots = Slots()
        self._affinity = Affinity()
        self._replicas: dict[str, Standing] = {}
        self._departed = Odds(schema.num_streams)
        self._counts = Counts()
        self._num_unjudged = 0
        self._judged_ns = 0
        self._is_acknowledged = False

    def expect(self, replicas: Collection[str]) -> None:
        """These are all there are now: a slot that has them all is judged at once."""
        self._slots.expect(replicas)

    def update(self, replica: str, window: Window) -> None:
        """Take a closed window of a replica, each replica's own in order of time."""
        is_room = replica in self._replicas or len(self._replicas) < MAX_REPLICAS
        if is_room and window.num_requests >= MIN_REQUESTS:
            self._replicas.setdefault(replica, Standing(self.schema.num_streams))
            self._slots.update(replica, window)
        else:
            self._count(insufficient=1)
        for slot in self._slots.close():
            self._judge(slot)

    def get(self, now_ns: int) -> Verdict:  # noqa: ARG002 - the seam's
        """What is concluded; `now_ns` changes nothing: time is the windows'."""
        told = self.replicas()
        suspect = max(told, key=lambda each: (each.state.rank, each.level), default=None)
        state = ChannelState.COLLECTING if suspect is None else suspect.state
        reason = self._doubt()
        if reason and state is not ChannelState.PAGE:
            state, suspect = ChannelState.COLLECTING, None
        elif suspect is not None and state.rank >= ChannelState.TICKET.rank:
            reason = _accusation(suspect, told)
        return Verdict(
            self.name,
            state,
            self._marked(reason or f"{self._num_present()} replicas agree"),
            max((each.level for each in told), default=0.0),
            suspect.since_ns if suspect is not None else None,
            suspect.causes if suspect is not None else (),
            self._judged_ns,
            self._is_acknowledged,
        )

    def replicas(self) -> tuple[Replica, ...]:
        """What is concluded of each replica, by name."""
        ticket = self._limit(_WEEK_NS)
        held = sorted(self._replicas.items())
        return tuple(self._told(name, standing, ticket) for name, standing in held)

    @property
    def counts(self) -> Counts:
        """What became of windows since the start."""
        return self._counts._replace(late=self._slots.num_late)

    @property
    def association(self) -> float:
        """How far routing keeps kinds of requests at replicas: Cramer's V of the last windows."""
        return self._affinity.size

    def latest_ns(self, replica: str) -> int:
        """End of the latest window taken of a replica; 0 before any."""
        return self._slots.latest_ns.get(replica, 0)

    def acknowledge(self, now_ns: int) -> None:  # noqa: ARG002 - the seam's
        """Pages and tickets were seen: all evidence starts again at 0; what is learnt stays."""
        for standing in self._replicas.values():
            standing.zero()
        self._is_acknowledged = True

    def export(self) -> dict[str, Any]:
        """Everything needed to go on; plain values and bytes."""
        fields = {
            "schema": self.schema.digest,
            "length_ns": self._length_ns,
            "slots": self._slots.export(),
            "affinity": self._affinity.export(),
            "replicas": {name: each.export() for name, each in self._replicas.items()},
            "departed": self._departed.export(),
            "num_judged": self._counts.judged,
            "num_insufficient": self._counts.insufficient,
            "num_pages": self.num_pages,
            "num_unjudged": self._num_unjudged,
            "judged_ns": self._judged_ns,
            "is_acknowledged": self._is_acknowledged,
        }
        return tagged(_KIND, _VERSION, fields)

    def restore(self, exported: dict[str, Any]) -> None:
        """Go on from `export()`. Raises StateError, and changes nothing, when it is foreign."""
        held = checked(exported, _KIND, _VERSION)
        same(held, "schema", self.schema.digest)
        same(held, "length_ns", self._length_ns)
        p = self.schema.num_streams
        slots, affinity = Slots(), Affinity()
        slots.restore(mapping(held, "slots"), p)
        affinity.restore(mapping(held, "affinity"))
        standings = mapping(held, "replicas").items()
        replicas = {name: Standing.restored(each, p) for name, each in standings}
        departed = Odds.restored(held.get("departed"), p)
        numbers = [number(held, key) for key in ("num_pages", "num_unjudged", "judged_ns")]
        counts = Counts(*(number(held, key) for key in ("num_judged", "num_insufficient")))
        self._slots, self._affinity, self._replicas = slots, affinity, replicas
        self._departed, self._counts = departed, counts
        self.num_pages, self._num_unjudged, self._judged_ns = numbers
        self._is_acknowledged = held.get("is_acknowledged") is True

    def _judge(self, slot: Slot) -> None:
        self._forget(slot.end_ns)
        if len(slot.windows) < MIN_REPLICAS:
            self._num_unjudged += 1
            self._count(insufficient=len(slot.windows))
            return
        kept = self._affinity.update([_num_by_stratum(each) for each in slot.windows.values()])
        steady = {name for name in slot.windows if self._is_steady(name)}
        for name in slot.windows:
            self._replicas[name].heard_ns = slot.end_ns
        self._judged_ns = slot.end_ns
        innocent = {name for name in steady if self._replicas[name].paged_ns is None}
        if kept or len(innocent) < MIN_REPLICAS:
            self._hold(slot, kept=kept)
            return
        self._num_unjudged = 0
        self._count(judged=len(steady), insufficient=len(slot.windows) - len(steady))
        self._compare(slot, sorted(steady), innocent)

    def _hold(self, slot: Slot, *, kept: bool) -> None:
        """Judge nobody; where routing is to blame, what was gathered under it is worth nothing."""
        self._count(insufficient=len(slot.windows))
        self._num_unjudged += 1
        if kept:
            for standing in self._replicas.values():
                if standing.paged_ns is None:
                    standing.zero()

    def _compare(self, slot: Slot, names: list[str], innocent: set[str]) -> None:
        found = differences(
            [slot.windows[name].strata for name in names],
            np.array([name in innocent for name in names]),
            self.schema.num_streams,
        )
        scores = self._scores(found)
        everyone = self._everyone(innocent)
        limit = self._limit(_YEAR_NS)
        for name, score in zip(names, scores, strict=True):
            own = self._replicas[name].odds
            others = everyone.less(own) if name in innocent else everyone
            self._replicas[name].update(others.log_evidence(score), slot.start_ns, limit)
        for name, score in zip(names, scores, strict=True):
            if name in innocent:
                self._replicas[name].odds.update(score)
        self._page(slot, dict(zip(names, found.score, strict=True)), innocent)

    def _scores(self, found: Differences) -> Floats:
        """[N, 2, p]: how far above, and how far below, the others; clipped."""
        slack = self._tolerance * found.slack
        both = np.stack([found.score - slack, -found.score - slack], axis=1)
        return np.clip(both, -CLIP, CLIP)

    def _everyone(self, innocent: set[str]) -> Odds:
        everyone = Odds(self.schema.num_streams)
        everyone.merge(self._departed)
        for name in innocent:
            everyone.merge(self._replicas[name].odds)
        return everyone

    def _page(self, slot: Slot, score: Mapping[str, Floats], innocent: set[str]) -> None:
        over = sorted(name for name in innocent if self._replicas[name].evidence.is_alarming)
        if not over:
            return
        guilty = max(over, key=lambda name: float(np.nansum(np.square(score[name]))))
        standing = self._replicas[guilty]
        standing.page(slot.end_ns, standing.worst(self.schema.streams))
        self.num_pages += 1
        self._is_acknowledged = False

    def _is_steady(self, name: str) -> bool:
        """Whether it was in the slot before this one, so that it served the whole of this one."""
        return self._judged_ns > 0 and self._replicas[name].heard_ns == self._judged_ns

    def _forget(self, now_ns: int) -> None:
        for name, standing in list(self._replicas.items()):
            silent_ns = now_ns - self._slots.latest_ns.get(name, 0)
            if silent_ns > _DAY * self._length_ns and standing.paged_ns is None:
                self._departed.retire(standing.odds)
                self._slots.forget(name)
                del self._replicas[name]

    def _limit(self, span_ns: int) -> float:
        """A: windows in `span_ns`, times the replicas that are judged."""
        return max(span_ns / self._length_ns, 2.0) * max(self._num_present(), MIN_REPLICAS)

    def _told(self, name: str, standing: Standing, ticket_limit: float) -> Replica:
        causes = standing.causes or standing.worst(self.schema.streams)
        state = ChannelState.ARMED if standing.num_judged else ChannelState.COLLECTING
        if standing.evidence.log_mean >= np.log(ticket_limit):
            state = ChannelState.TICKET
        if standing.paged_ns is not None:
            state = ChannelState.PAGE
        since_ns = causes[0].since_ns if state.rank >= ChannelState.TICKET.rank else None
        level = standing.evidence.level
        return Replica(name, state, level, since_ns, causes, self._is_present(name))

    def _is_present(self, name: str) -> bool:
        silent_ns = self._slots.clock_ns - self._slots.latest_ns.get(name, 0)
        return silent_ns <= _SILENT * self._length_ns

    def _num_present(self) -> int:
        return sum(self._is_present(name) for name in self._replicas)

    def _doubt(self) -> str:
        """Why the channel is not armed, with the remedy; "" when it is."""
        present = self._num_present()
        innocent = sum(
            self._is_present(name) and each.paged_ns is None
            for name, each in self._replicas.items()
        )
        if innocent < MIN_REPLICAS:
            paged = "" if innocent == present else f" that did not page ({present} with those)"
            return (
                f"windows of {innocent} replicas{paged} are heard, and a contrast needs "
                f"{MIN_REPLICAS}: run more, or rely on the canary"
            )
        if self._affinity.is_kept:
            return (
                "routing is not random: replicas get different kinds of requests (association "
                f"{self._affinity.size:.2f}, at most 0.05 is judged); balance them by chance or by "
                "load rather than by session, or rely on the canary"
            )
        if self._num_unjudged >= _UNJUDGED:
            return (
                "windows of the replicas do not align, so that no three are of the same minutes: "
                "give all exporters the same SIDECAR_WINDOW_SECONDS, correct clocks, and at least "
                f"{MIN_REQUESTS} requests a window"
            )
        if not self._counts.judged:
            return "no two windows in a row of three replicas yet: wait for them"
        return ""

    def _marked(self, reason: str) -> str:
        return f"demo preset, short windows: {reason}" if self._is_demo else reason

    def _count(self, judged: int = 0, insufficient: int = 0) -> None:
        held = self._counts
        self._counts = held._replace(
            judged=held.judged + judged, insufficient=held.insufficient + insufficient
        )


def _num_by_stratum(window: Window) -> Mapping[str, int]:
    return {name: moments.num_rows for name, moments in window.strata.items()}


def _accusation(suspect: Replica, told: Collection[Replica]) -> str:
    """Who differs from whom, and in what most."""
    cause = suspect.causes[0]
    others = sum(each.state is suspect.state for each in told) - 1
    also = f" (and {others} more)" if others else ""
    return (
        f"replica {suspect.name}{also} differs from the rest of the fleet, most in {cause.stream}, "
        f"which is too {cause.side}: compare its image, weights and device with the others'"
    )
