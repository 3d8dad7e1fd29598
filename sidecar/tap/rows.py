"""Whose rows they are: token rows of a batch, by request, phase and position.

Batch order is the order of the rows, after the runner has prepared its inputs (the scheduler's
own order differs). Every row of every batch ends in exactly one of: a group, `recomputed`; and
every token of a request in exactly one of `observed`, `prefix_cached`, `lost`, `shed`,
`opted_out`. Rows of draft tokens stand in groups of their own until it is known which of them were
accepted; the others belong to no request.
Pure numpy; steady decode costs four small array operations a step.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    batch_slots, prompts, ends: [n] slot, prompt length, and position after the last row.
    cached, lost, recomputed, opted_out: [n] tokens that these rows prove were never computed, were
    computed unseen, are computed again, or may not be measured; empty when all are 0.
    owners, drafts: [G] place in the batch, and which draft token (from 1) a group is the row of, 0
    being any other row; empty without draft tokens.
    entered: requests of the batch that have no row before it, with their slots.
    """

    groups: Ints
    num_groups: int
    slots: Ints
    populations: Ints
    sizes: Ints
    batch_slots: Ints
    prompts: Ints
    ends: Ints
    cached: Ints
    lost: Ints
    recomputed: Ints
    opted_out: Ints
    owners: Ints
    drafts: Ints
    entered: tuple[tuple[int, str], ...]

    def accept(self, accepted: Ints) -> NDArray[np.bool_]:
        """[G] which groups are to be counted, when `accepted` [n] draft tokens were."""
        mine: NDArray[np.bool_] = self.drafts <= accepted[self.owners]
        return mine


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

    def plan(self, batch: Batch, opted_out: Collection[str] = ()) -> Plan:
        """Where the rows of `batch` belong; remembers that they have been seen.

        opted_out: requests whose rows may not be measured.
        """
        if not opted_out and self._is_steady(batch):
            _, plan = self._steady  # type: ignore[misc]  # _is_steady has checked for None
            self._next[plan.batch_slots] += 1
            return plan._replace(ends=batch.starts + 1, entered=())
        slots = np.fromiter(
            (self._slot(req) for req in batch.req_ids), np.int64, len(batch.req_ids)
        )
        plan = _spread(self._plan(batch, slots, opted_out), batch.real)
        self._is_new[slots] = False
        self._next[slots] = np.maximum(self._next[slots], _certain(batch))
        self._steady = None if opted_out or not _repeats(batch, plan) else (batch.req_ids[:], plan)
        return plan

    def settle(self, plan: Plan, accepted: Ints) -> None:
        """Remember that `accepted` [n] of the draft tokens of the batch of `plan` were."""
        self._next[plan.batch_slots] += accepted

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

    def _is_steady(self, batch: Batch) -> bool:
        if self._steady is None or self._steady[0] != batch.req_ids:
            return False
        if not batch.real.all() or (len(batch.drafts) and batch.drafts.any()):
            return False
        expected = self._next[self._steady[1].batch_slots]
        return bool((batch.counts == 1).all() and (batch.starts == expected).all())

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

    def _plan(self, batch: Batch, slots: Ints, opted_out: Collection[str]) -> Plan:
        seen = self._next[slots]
        is_new = self._is_new[slots]
        gap = np.maximum(batch.starts - seen, 0)
        again = np.clip(seen - batch.starts, 0, batch.counts)

        owner = np.repeat(np.arange(len(slots)), batch.counts)
        ends = np.cumsum(batch.counts)
        position = np.arange(len(owner)) + (batch.starts - ends + batch.counts)[owner]
        decode = position >= batch.prompts[owner]
        population = 2 * decode + (position >= NUM_FIRST_POSITIONS)

        fresh = position >= seen[owner]
        muted = _muted(batch, opted_out)
        hidden = np.bincount(owner[fresh & muted[owner]], minlength=len(slots))
        fresh &= ~muted[owner]
        draft = np.maximum(position - (_certain(batch) - 1)[owner], 0)
        key = (4 * (owner + len(slots) * draft) + population)[fresh]
        # Positions rise within a request, so rows of one group stand together.
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else NO_GAP
        sizes = np.diff(np.r_[begins, len(key)])
        groups = np.full(len(owner), len(begins), np.int64)
        groups[fresh] = np.repeat(np.arange(len(begins)), sizes)
        heads = np.flatnonzero(fresh)[begins]
        has_drafts = bool(len(batch.drafts) and batch.drafts.any())
        return Plan(
            groups,
            len(begins),
            slots[owner[heads]],
            population[heads],
            sizes,
            slots,
            batch.prompts,
            batch.starts + batch.counts,
            *_gaps(gap, is_new, again),
            hidden if len(opted_out) and hidden.any() else NO_GAP,
            owner[heads] if has_drafts else NO_GAP,
            draft[heads] if has_drafts else NO_GAP,
            tuple((int(slots[i]), batch.req_ids[i]) for i in np.flatnonzero(is_new)),
        )


def _spread(plan: Plan, real: NDArray[np.bool_]) -> Plan:
    """The same plan over rows with padding between them."""
    if real.all():
        return plan
    groups = np.full(len(real), plan.num_groups, np.int64)
    groups[real] = plan.groups
    return plan._replace(groups=groups)


def _certain(batch: Batch) -> Ints:
    """[n] position after the last row that no rejection can undo."""
    ends = batch.starts + batch.counts
    return ends - batch.drafts if len(batch.drafts) else ends


def _muted(batch: Batch, opted_out: Collection[str]) -> NDArray[np.bool_]:
    if not opted_out:
        return np.zeros(len(batch.req_ids), bool)
    return np.fromiter((req in opted_out for req in batch.req_ids), bool, len(batch.req_ids))


def _gaps(gap: Ints, is_new: NDArray[np.bool_], again: Ints) -> tuple[Ints, Ints, Ints]:
    """Split unseen tokens into prefix-cached (before a request's first row) and lost (later)."""
    if not gap.any() and not again.any():
        return NO_GAP, NO_GAP, NO_GAP
    return np.where(is_new, gap, 0), np.where(is_new, 0, gap), again


def _repeats(batch: Batch, plan: Plan) -> bool:
    """Whether a batch of the same requests, one row later, has the same plan."""
    if len(plan.drafts) or not batch.real.all():
        return False
    settled = batch.starts >= np.maximum(batch.prompts, NUM_FIRST_POSITIONS)
    return bool((batch.counts == 1).all() and settled.all() and not len(plan.cached))
