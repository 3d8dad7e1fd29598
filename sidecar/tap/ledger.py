"""What was measured so far: running totals, and one account per living request.

Pure numpy; owned by the pump thread. Totals are float64 and cumulative since boot. Every row that
a plan names is added to exactly one account and once to the totals.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.rows import Ints, Plan
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import (
    NUM_EXTREMES,
    NUM_POPULATIONS,
    NUM_POWERS,
    NUM_SIGNALS,
    Arrays,
    Coverage,
    Layers,
    Request,
)

_NUM_POWER_SUMS: Final = NUM_SIGNALS * NUM_POWERS
_EVERYTHING: Final = np.zeros(1, np.int64)  # the totals have one owner
_CAUSES: Final = ("prefix_cached", "lost", "recomputed", "shed", "opted_out", "rejected")


class Ledger:
    """Adds grouped rows up, over everything and per request slot.

    layer_ids: global ids of the tapped layers. num_slots: request slots at the start; grows.
    """

    def __init__(self, layer_ids: list[int], num_slots: int) -> None:
        self.num_steps = 0
        self.num_requests = 0
        self._names: dict[int, str] = {}  # by slot
        self._layer_ids = layer_ids
        self._totals = _Accounts(len(layer_ids), 1)
        self._requests = _Accounts(len(layer_ids), num_slots)

    def add(
        self,
        plan: Plan,
        sums: NDArray[np.float64],
        bounds: NDArray[np.float32],
        t_ns: int,
        *,
        accepted: Ints | None = None,
        places: Ints | None = None,
    ) -> None:
        """Add the grouped rows of one step, or of a run: [G, L, NUM_SUMS] and [G, L, NUM_BOUNDS].

        accepted: [n] draft tokens accepted of each request, where the plan has draft rows.
        places: indices of the layers that were reduced, when not all were.
        """
        self.num_steps += plan.num_steps
        self._open(plan, t_ns, accepted)
        groups = _Groups(plan.slots, plan.populations, plan.sizes, sums, bounds)
        if accepted is not None:
            groups = groups.pick(plan.accept(accepted)).merged()
        for population in set(groups.populations.tolist()):
            mine = groups.pick(groups.populations == population)
            self._requests.add(mine, population, places)
            self._totals.add(mine.summed(), population, places)

    def lose(
        self, plan: Plan, t_ns: int, cause: str = "lost", *, accepted: Ints | None = None
    ) -> None:
        """Account for the rows of a step that were not collected: `lost`, or `shed` on purpose."""
        self._open(plan, t_ns, accepted)
        tokens = plan.tokens(0 if accepted is None else accepted)
        self._count(cause, plan, np.where(plan.muted, 0, tokens) if len(plan.muted) else tokens)

    def finish(self, req_id: str, slot: int, *, is_out: bool = False) -> Request | None:
        """Close the account of a finished request; None when it never had a row.

        is_out: it asked not to be measured, so it is not counted either.
        """
        request = self.peek(req_id, slot)
        if request is not None:
            self._requests.clear(slot)
            self._names.pop(slot, None)
            self.num_requests += not is_out
        return request

    def peek(self, req_id: str, slot: int) -> Request | None:
        """The account of a request so far; None when it has no row yet."""
        accounts = self._requests
        if slot >= accounts.num_slots or not accounts.start_ns[slot]:
            return None
        return Request(
            req_id[:MAX_TEXT],  # the client chose most of it
            int(accounts.start_ns[slot]),
            int(accounts.end_ns[slot]),
            int(accounts.prompts[slot]),
            accounts.coverage(slot),
            accounts.arrays(slot).pack(),
        )

    def num_generated(self, slot: int) -> int:
        """Rows of a living request after its prompt, whether measured or not."""
        accounts = self._requests
        if slot >= accounts.num_slots:
            return 0
        return max(0, int(accounts.ends[slot] - accounts.prompts[slot]))

    def num_rows(self, slot: int) -> int:
        """Rows of a living request, whether measured or not."""
        accounts = self._requests
        return int(accounts.ends[slot]) if slot < accounts.num_slots else 0

    def running_since(self, t_ns: int) -> list[tuple[int, str]]:
        """Slots and ids of living requests that may be measured and began by `t_ns`."""
        starts = self._requests.start_ns
        return [(slot, name) for slot, name in self._names.items() if 0 < starts[slot] <= t_ns]

    def layers(self) -> Layers:
        """Running totals; the extremes cover the time since the last call."""
        body = Layers(
            self._layer_ids,
            self.num_steps,
            self.num_requests,
            self._totals.coverage(0),
            self._totals.arrays(0).pack(),
        )
        self._totals.bounds[:] = -np.inf
        return body

    def _open(self, plan: Plan, t_ns: int, accepted: Ints | None) -> None:
        accounts = self._requests
        slots = plan.batch_slots
        if len(slots) and int(slots.max()) >= accounts.num_slots:
            accounts.grow(int(slots.max()) + 1)
        self._names.update(plan.entered)
        starts = accounts.start_ns[slots]
        accounts.start_ns[slots] = np.where(starts, starts, t_ns)
        accounts.end_ns[slots] = t_ns
        accounts.prompts[slots] = plan.prompts
        ends = plan.ends if accepted is None else plan.ends + accepted
        accounts.ends[slots] = np.maximum(accounts.ends[slots], ends)
        if len(plan.cached):
            self._count("prefix_cached", plan, plan.cached)
            self._count("lost", plan, plan.lost)
            self._count("recomputed", plan, plan.recomputed)
        if len(plan.muted) or plan.has_drafts:
            self._doubt(plan, plan.tokens(0 if accepted is None else accepted))

    def _doubt(self, plan: Plan, tokens: Ints) -> None:
        """Account for rows that may not be measured, or did not come to be a token."""
        if len(plan.muted):
            self._count("opted_out", plan, np.where(plan.muted, tokens, 0))
        if plan.has_drafts:
            # Of no request: the totals alone know of them.
            self._totals.rejected += int((plan.tokens(plan.num_drafts) - tokens).sum())

    def _count(self, cause: str, plan: Plan, tokens: Ints) -> None:
        """Add [n] tokens to one part of the coverage, of the requests and of the totals."""
        getattr(self._requests, cause)[plan.batch_slots] += tokens
        total = getattr(self._totals, cause)
        total += int(tokens.sum())


class _Groups(NamedTuple):
    """Grouped rows and whose they are, [G]; each owner is named once per population."""

    slots: Ints
    populations: Ints
    sizes: Ints
    sums: NDArray[np.float64]
    bounds: NDArray[np.float32]

    def pick(self, chosen: NDArray[np.bool_]) -> "_Groups":
        return _Groups(
            self.slots[chosen],
            self.populations[chosen],
            self.sizes[chosen],
            self.sums[chosen],
            self.bounds[chosen],
        )

    def merged(self) -> "_Groups":
        """Groups of one owner and population made one: accepted draft rows join the others."""
        key = NUM_POPULATIONS * self.slots + self.populations
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        heads = order[starts]
        return _Groups(
            self.slots[heads],
            self.populations[heads],
            np.add.reduceat(self.sizes[order], starts),
            np.add.reduceat(self.sums[order], starts),
            np.maximum.reduceat(self.bounds[order], starts),
        )

    def summed(self) -> "_Groups":
        """All of them as one group, of the one owner that the totals have."""
        return _Groups(
            _EVERYTHING,
            self.populations[:1],
            self.sizes.sum(keepdims=True),
            self.sums.sum(0, keepdims=True),
            self.bounds.max(0, keepdims=True),
        )


class _Accounts:
    """Statistics of `num_slots` owners, by population and layer."""

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self.num_slots = num_slots
        cells = (num_slots, NUM_POPULATIONS, num_layers)
        self.count = np.zeros(cells, np.uint64)
        self.powers = np.zeros((*cells, _NUM_POWER_SUMS))
        self.bounds = np.full((*cells, 2 * NUM_SIGNALS), -np.inf, np.float32)
        self.nonfinite = np.zeros((num_slots, num_layers), np.uint64)
        self.observed = np.zeros((num_slots, NUM_POPULATIONS), np.int64)
        self.prefix_cached: Ints = np.zeros(num_slots, np.int64)
        self.lost: Ints = np.zeros(num_slots, np.int64)
        self.recomputed: Ints = np.zeros(num_slots, np.int64)
        self.shed: Ints = np.zeros(num_slots, np.int64)
        self.opted_out: Ints = np.zeros(num_slots, np.int64)
        self.rejected: Ints = np.zeros(num_slots, np.int64)
        self.prompts: Ints = np.zeros(num_slots, np.int64)
        self.ends: Ints = np.zeros(num_slots, np.int64)
        self.start_ns: Ints = np.zeros(num_slots, np.int64)
        self.end_ns: Ints = np.zeros(num_slots, np.int64)

    def add(self, groups: _Groups, population: int, places: Ints | None) -> None:
        """Add groups of one population, each of another owner."""
        slots, sums = groups.slots, groups.sums
        counts = sums[..., _NUM_POWER_SUMS].astype(np.uint64)
        nonfinite = sums[..., _NUM_POWER_SUMS + 1].astype(np.uint64)
        # A plain index is twice as fast as one by layers.
        cells: Any = (slots, population)
        layers: Any = slots
        if places is not None:
            cells, layers = (slots[:, None], population, places), (slots[:, None], places)
        self.observed[slots, population] += groups.sizes
        self.powers[cells] += sums[..., :_NUM_POWER_SUMS]
        self.count[cells] += counts
        self.nonfinite[layers] += nonfinite
        self.bounds[cells] = np.maximum(self.bounds[cells], groups.bounds)

    def coverage(self, slot: int) -> Coverage:
        """What became of the rows of one owner."""
        return Coverage(
            self.observed[slot].tolist(),
            **{cause: int(getattr(self, cause)[slot]) for cause in _CAUSES},
        )

    def arrays(self, slot: int) -> Arrays:
        """Statistics of one owner, as the wire wants them."""
        num_layers = self.nonfinite.shape[1]
        low, high = -self.bounds[slot, ..., :NUM_SIGNALS], self.bounds[slot, ..., NUM_SIGNALS:]
        extremes = np.stack([low, high], -1)
        extremes[~np.isfinite(extremes)] = np.nan
        shape = (NUM_POPULATIONS, num_layers, NUM_SIGNALS)
        return Arrays(
            self.count[slot],
            self.nonfinite[slot],
            self.powers[slot].reshape(*shape, NUM_POWERS),
            extremes.reshape(*shape, NUM_EXTREMES),
        )

    def clear(self, slot: int) -> None:
        """Empty one account for its next owner."""
        for table in self._tables():
            table[slot] = 0
        self.bounds[slot] = -np.inf

    def grow(self, num_slots: int) -> None:
        """Make room for at least `num_slots` owners."""
        more = _Accounts(self.nonfinite.shape[1], max(num_slots, 2 * self.num_slots))
        more.bounds[: self.num_slots] = self.bounds
        for new, old in zip(more._tables(), self._tables(), strict=True):
            new[: self.num_slots] = old
        self.__dict__.update(more.__dict__)

    def _tables(self) -> list[NDArray[np.generic]]:
        return [
            self.count,
            self.powers,
            self.nonfinite,
            self.observed,
            *(getattr(self, cause) for cause in _CAUSES),
            self.prompts,
            self.ends,
            self.start_ns,
            self.end_ns,
        ]
