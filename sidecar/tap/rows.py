"""Whose rows they are: token rows of a batch, by request, phase and position.

Batch order is the order of the rows, after the runner has prepared its inputs (the scheduler's
own order differs). Every row of every batch ends in exactly one of: a group, `recomputed`, muted;
and every token of a request in exactly one of `observed`, `prefix_cached`, `lost`, `shed`,
`opted_out`. Rows of draft tokens stand in groups of their own until it is known which of them were
accepted; the others belong to no request.
Pure numpy; steady decode costs a few small array operations a step.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.frame import NUM_POPULATIONS
from sidecar.wire.signals import NUM_FIRST_POSITIONS

Ints = NDArray[np.int64]

NO_GAP: Final[Ints] = np.zeros(0, np.int64)
NO_FLAGS: Final[NDArray[np.bool_]] = np.zeros(0, bool)


class Batch(NamedTuple):
    """What one forward pass computes, as the runner ordered it.

    req_ids: [n] request ids. starts: [n] position of each request's first row.
    counts: [n] rows of each request. prompts: [n] prompt lengths in tokens.
    drafts: [n] how many of the last rows are of draft tokens; empty when none are.
    partial: [n] whether the request's last row leads to no token, its prefill being unfinished;
    empty when that is so for none.
    real: [all rows] which rows of the pass are rows of these requests, and not padding between
    them; empty when all are.
    """

    req_ids: list[str]
    starts: Ints
    counts: Ints
    prompts: Ints
    drafts: Ints = NO_GAP
    partial: NDArray[np.bool_] = NO_FLAGS
    real: NDArray[np.bool_] = NO_FLAGS


class Plan(NamedTuple):
    """How the rows of one batch fall into groups of one request and one population each.

    groups: [T] group of each row; `num_groups` itself is the group of rows not to be counted.
    slots, populations, sizes: [G] request slot, population index and rows of each group.
    batch_slots, prompts, ends: [n] slot, prompt length, and position after the last row that no
    rejection can undo.
    fresh: [n] how far `ends` lies beyond what had been seen; less than 0 where it falls short.
    cached, lost, recomputed: [n] tokens that these rows prove were never computed, were computed
    unseen, or are computed again; empty when all are 0.
    muted: [n] requests that may not be measured; empty when there is none.
    num_drafts: [n] draft tokens of each request; empty when there are none.
    owners, drafts: [G] place in the batch, and which draft token (from 1) a group is the row of, 0
    being any other row; empty without draft tokens.
    entered: requests that have no row before this batch and may be measured, with their slots.
    num_steps: forward passes that these rows are of.
    """

    groups: Ints
    num_groups: int
    slots: Ints
    populations: Ints
    sizes: Ints
    batch_slots: Ints
    prompts: Ints
    ends: Ints
    fresh: Ints
    cached: Ints = NO_GAP
    lost: Ints = NO_GAP
    recomputed: Ints = NO_GAP
    muted: NDArray[np.bool_] = NO_FLAGS
    num_drafts: Ints = NO_GAP
    owners: Ints = NO_GAP
    drafts: Ints = NO_GAP
    entered: tuple[tuple[int, str], ...] = ()
    num_steps: int = 1

    @property
    def has_drafts(self) -> bool:
        """Whether some rows count only once it is known which drafts were accepted."""
        return len(self.num_drafts) > 0

    def accept(self, accepted: Ints) -> NDArray[np.bool_]:
        """[G] which groups are to be counted, when `accepted` [n] draft tokens were."""
        mine: NDArray[np.bool_] = self.drafts <= accepted[self.owners]
        return mine

    def repeated(self, num_steps: int) -> "Plan":
        """This plan of a steady batch and those of the steps before it as one, rows by group.

        The rows of a group stand together, in the order of the steps.
        """
        return self._replace(
            groups=np.repeat(self.groups, num_steps),
            sizes=num_steps * self.sizes,
            fresh=num_steps * self.fresh,
            num_steps=num_steps,
        )

    def tokens(self, accepted: Ints | int) -> Ints:
        """[n] tokens that had no row before this batch, when `accepted` [n] draft tokens were."""
        tokens: Ints = np.maximum(self.fresh + accepted, 0)
        return tokens


class RowMap:
    """Remembers how far each request has been measured; turns batches into plans.

    capacity: requests alive at once before the tables grow.
    """

    def __init__(self, capacity: int) -> None:
        self._slot_of: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self._next: Ints = np.zeros(capacity, np.int64)
        self._is_new = np.ones(capacity, bool)
        self._steady: tuple[list[str], Plan] | None = None

    @property
    def capacity(self) -> int:
        """Slots there are, used or free."""
        return len(self._next)

    @property
    def is_steady(self) -> bool:
        """Whether the last batch had one settled row of each request, and may well be repeated."""
        return self._steady is not None

    def plan(self, batch: Batch, opted_out: Collection[str] = ()) -> Plan:
        """Where the rows of `batch` belong; remembers that they have been seen.

        opted_out: requests whose rows may not be measured.
        """
        if (plan := self._steady_plan(batch)) is not None:
            return plan
        slots = np.fromiter(map(self._slot, batch.req_ids), np.int64, len(batch.req_ids))
        plan = _spread(self._plan(batch, slots, _muted(batch, opted_out)), batch.real)
        self._is_new[slots] = False
        self._next[slots] = np.maximum(self._next[slots], plan.ends)
        self._steady = (batch.req_ids[:], plan) if _repeats(batch, plan) else None
        return plan

    def settle(self, plan: Plan, accepted: Ints) -> Ints:
        """Remember that `accepted` [n] of the draft tokens of the batch of `plan` were.

        Returns as many of them as there were. The requests must not have been forgotten.
        """
        settled: Ints = np.clip(accepted, 0, plan.num_drafts)
        slots = plan.batch_slots
        self._next[slots] = np.maximum(self._next[slots], plan.ends + settled)
        return settled

    def forget(self, req_ids: list[str]) -> list[tuple[str, int]]:
        """Free the slots of finished requests; returns those that were known, with their slots."""
        known = [(req, self._slot_of.pop(req)) for req in req_ids if req in self._slot_of]
        for _, slot in known:
            self._free.append(slot)
            self._next[slot] = 0
            self._is_new[slot] = True
        if known:
            self._steady = None
        return known

    def _steady_plan(self, batch: Batch) -> Plan | None:
        """The last plan, one row later, when this batch repeats the last one."""
        if self._steady is None or self._steady[0] != batch.req_ids:
            return None
        plan = self._steady[1]
        expected = self._next[plan.batch_slots]
        # A request with draft rows has one that is certain too, so more than one.
        if ((batch.counts != 1) | (batch.starts != expected)).any() or not batch.real.all():
            return None
        ends = expected + 1
        self._next[plan.batch_slots] = ends
        return plan._replace(ends=ends)

    def _slot(self, req_id: str) -> int:
        slot = self._slot_of.get(req_id)
        if slot is None:
            if not self._free:
                self._grow()
            slot = self._slot_of[req_id] = self._free.pop()
        return slot

    def _grow(self) -> None:
        size = len(self._next)
        self._free = list(range(2 * size - 1, size - 1, -1))
        self._next = np.concatenate([self._next, np.zeros(size, np.int64)])
        self._is_new = np.concatenate([self._is_new, np.ones(size, bool)])

    def _plan(self, batch: Batch, slots: Ints, muted: NDArray[np.bool_]) -> Plan:
        seen = self._next[slots]
        is_new = self._is_new[slots]
        gap = np.maximum(batch.starts - seen, 0)
        again = np.clip(seen - batch.starts, 0, batch.counts)
        num_drafts = batch.drafts if len(batch.drafts) and batch.drafts.any() else NO_GAP
        ends = batch.starts + batch.counts
        certain = ends - num_drafts if len(num_drafts) else ends

        owner = np.repeat(np.arange(len(slots)), batch.counts)
        position = np.arange(len(owner)) + (ends - np.cumsum(batch.counts))[owner]
        decode = position >= batch.prompts[owner]
        population = 2 * decode + (position >= NUM_FIRST_POSITIONS)

        counted = position >= seen[owner]
        if len(muted):
            counted &= ~muted[owner]
        key = NUM_POPULATIONS * owner + population
        if len(num_drafts):
            draft = np.maximum(position - (certain - 1)[owner], 0)
            key += NUM_POPULATIONS * len(slots) * draft
        key = key[counted]
        # Positions rise within a request, so rows of one group stand together.
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else NO_GAP
        sizes = np.diff(np.r_[begins, len(key)])
        groups = np.full(len(owner), len(begins), np.int64)
        groups[counted] = np.repeat(np.arange(len(begins)), sizes)
        heads = np.flatnonzero(counted)[begins]
        return Plan(
            groups,
            len(begins),
            slots[owner[heads]],
            population[heads],
            sizes,
            slots,
            batch.prompts,
            certain,
            certain - np.maximum(batch.starts, seen),
            *_gaps(gap, is_new, again),
            muted,
            num_drafts,
            owner[heads] if len(num_drafts) else NO_GAP,
            draft[heads] if len(num_drafts) else NO_GAP,
            _entered(batch, slots, is_new & ~muted if len(muted) else is_new),
        )


def _spread(plan: Plan, real: NDArray[np.bool_]) -> Plan:
    """The same plan over rows with padding between them."""
    if real.all():
        return plan
    groups = np.full(len(real), plan.num_groups, np.int64)
    groups[real] = plan.groups
    return plan._replace(groups=groups)


def _muted(batch: Batch, opted_out: Collection[str]) -> NDArray[np.bool_]:
    if not opted_out:
        return NO_FLAGS
    muted = np.fromiter((req in opted_out for req in batch.req_ids), bool, len(batch.req_ids))
    return muted if muted.any() else NO_FLAGS


def _entered(batch: Batch, slots: Ints, is_new: NDArray[np.bool_]) -> tuple[tuple[int, str], ...]:
    return tuple((int(slots[i]), batch.req_ids[i]) for i in np.flatnonzero(is_new))


def _gaps(gap: Ints, is_new: NDArray[np.bool_], again: Ints) -> tuple[Ints, Ints, Ints]:
    """Split unseen tokens into prefix-cached (before a request's first row) and lost (later)."""
    if not gap.any() and not again.any():
        return NO_GAP, NO_GAP, NO_GAP
    return np.where(is_new, gap, 0), np.where(is_new, 0, gap), again


def _repeats(batch: Batch, plan: Plan) -> bool:
    """Whether a batch of the same requests, one row later, has the same plan."""
    if not batch.req_ids or plan.has_drafts or plan.entered or len(plan.cached):
        return False
    settled = batch.starts >= np.maximum(batch.prompts, NUM_FIRST_POSITIONS)
    return bool((batch.counts == 1).all() and batch.real.all() and settled.all())
