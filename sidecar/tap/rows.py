"""Whose rows they are: token rows of a batch, by request, phase and position.

Batch order is the order of the rows, after the runner has prepared its inputs (the scheduler's
own order differs). Every row of every batch ends in exactly one of: a group, `recomputed`; and
every token of a request in exactly one of `observed`, `prefix_cached`, `lost`.
Pure numpy; steady decode costs four small array operations a step.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.signals import NUM_FIRST_POSITIONS

Ints = NDArray[np.int64]

NO_GAP: Final[Ints] = np.zeros(0, np.int64)


class Batch(NamedTuple):
    """What one forward pass computes, as the runner ordered it.

    req_ids: [n] request ids. starts: [n] position of each request's first row.
    counts: [n] rows of each request. prompts: [n] prompt lengths in tokens.
    """

    req_ids: list[str]
    starts: Ints
    counts: Ints
    prompts: Ints


class Plan(NamedTuple):
    """How the rows of one batch fall into groups of one request and one population each.

    groups: [T] group of each row; `num_groups` itself is the group of rows not to be counted.
    slots, populations, sizes: [G] request slot, population index and rows of each group.
    batch_slots, prompts: [n] slot and prompt length of each request of the batch.
    cached, lost, recomputed: [n] tokens that these rows prove were never computed, were computed
    unseen, or are computed again; empty when all are 0.
    """

    groups: Ints
    num_groups: int
    slots: Ints
    populations: Ints
    sizes: Ints
    batch_slots: Ints
    prompts: Ints
    cached: Ints
    lost: Ints
    recomputed: Ints


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

    def plan(self, batch: Batch) -> Plan:
        """Where the rows of `batch` belong; remembers that they have been seen."""
        if self._is_steady(batch):
            _, plan = self._steady  # type: ignore[misc]  # _is_steady has checked for None
            self._next[plan.batch_slots] += 1
            return plan
        slots = np.fromiter(
            (self._slot(req) for req in batch.req_ids), np.int64, len(batch.req_ids)
        )
        plan = self._plan(batch, slots)
        self._is_new[slots] = False
        self._next[slots] = np.maximum(self._next[slots], batch.starts + batch.counts)
        self._steady = (list(batch.req_ids), plan) if _repeats(batch, plan) else None
        return plan

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

    def _plan(self, batch: Batch, slots: Ints) -> Plan:
        seen = self._next[slots]
        gap = np.maximum(batch.starts - seen, 0)
        again = np.clip(seen - batch.starts, 0, batch.counts)

        owner = np.repeat(np.arange(len(slots)), batch.counts)
        ends = np.cumsum(batch.counts)
        position = np.arange(len(owner)) + (batch.starts - ends + batch.counts)[owner]
        decode = position >= batch.prompts[owner]
        population = 2 * decode + (position >= NUM_FIRST_POSITIONS)

        fresh = position >= seen[owner]
        key = (4 * owner + population)[fresh]
        # Positions rise within a request, so rows of one group stand together.
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else NO_GAP
        sizes = np.diff(np.r_[begins, len(key)])
        groups = np.full(len(owner), len(begins), np.int64)
        groups[fresh] = np.repeat(np.arange(len(begins)), sizes)
        heads = key[begins]
        return Plan(
            groups,
            len(begins),
            slots[heads // 4],
            heads % 4,
            sizes,
            slots,
            batch.prompts,
            *_gaps(gap, self._is_new[slots], again),
        )


def _gaps(gap: Ints, is_new: NDArray[np.bool_], again: Ints) -> tuple[Ints, Ints, Ints]:
    """Split unseen tokens into prefix-cached (before a request's first row) and lost (later)."""
    if not gap.any() and not again.any():
        return NO_GAP, NO_GAP, NO_GAP
    return np.where(is_new, gap, 0), np.where(is_new, 0, gap), again


def _repeats(batch: Batch, plan: Plan) -> bool:
    """Whether a batch of the same requests, one row later, has the same plan."""
    settled = batch.starts >= np.maximum(batch.prompts, NUM_FIRST_POSITIONS)
    return bool((batch.counts == 1).all() and settled.all() and not len(plan.cached))
