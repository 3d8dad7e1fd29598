"""What was measured so far: running totals, and one account per living request.

Pure numpy; owned by the pump thread. Totals are float64 and cumulative since boot. Every row that
a plan names is added to exactly one account and once to the totals.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.rows import Ints, Plan
from sidecar.wire.frame import (
    MAX_TEXT,
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


class Ledger:
    """Adds grouped rows up, over everything and per request slot.

    layer_ids: global ids of the tapped layers. num_slots: request slots at the start; grows.
    """

    def __init__(self, layer_ids: list[int], num_slots: int) -> None:
        self.num_steps = 0
        self.num_requests = 0
        self._layer_ids = layer_ids
        self._totals = _Accounts(len(layer_ids), 1)
        self._requests = _Accounts(len(layer_ids), num_slots)

    def add(
        self, plan: Plan, sums: NDArray[np.float64], bounds: NDArray[np.float32], t_ns: int
    ) -> None:
        """Add the grouped rows of one step: [G, L, NUM_SUMS] and [G, L, NUM_BOUNDS]."""
        self.num_steps += 1
        self._open(plan, t_ns)
        for population in set(plan.populations.tolist()):
            mine = plan.populations == population
            sizes, powers, extremes = plan.sizes[mine], sums[mine], bounds[mine]
            self._requests.add(plan.slots[mine], population, sizes, powers, extremes)
            self._totals.add(
                _EVERYTHING,
                population,
                sizes.sum(keepdims=True),
                powers.sum(0, keepdims=True),
                extremes.max(0, keepdims=True),
            )

    def lose(self, plan: Plan, t_ns: int) -> None:
        """Account for the rows of a step that could not be collected."""
        self._open(plan, t_ns)
        np.add.at(self._requests.lost, plan.slots, plan.sizes)
        self._totals.lost += int(plan.sizes.sum())

    def finish(self, req_id: str, slot: int) -> Request | None:
        """Close the account of a finished request; None when it never had a row."""
        accounts = self._requests
        if slot >= accounts.num_slots or not accounts.start_ns[slot]:
            return None
        request = Request(
            req_id[:MAX_TEXT],  # the client chose most of it
            int(accounts.start_ns[slot]),
            int(accounts.end_ns[slot]),
            int(accounts.prompts[slot]),
            accounts.coverage(slot),
            accounts.arrays(slot).pack(),
        )
        accounts.clear(slot)
        self.num_requests += 1
        return request

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

    def _open(self, plan: Plan, t_ns: int) -> None:
        accounts = self._requests
        slots = plan.batch_slots
        if len(slots) and int(slots.max()) >= accounts.num_slots:
            accounts.grow(int(slots.max()) + 1)
        accounts.start_ns[slots] = np.where(
            accounts.start_ns[slots], accounts.start_ns[slots], t_ns
        )
        accounts.end_ns[slots] = t_ns
        accounts.prompts[slots] = plan.prompts
        if len(plan.cached):
            accounts.cached[slots] += plan.cached
            accounts.lost[slots] += plan.lost
            accounts.recomputed[slots] += plan.recomputed
            self._totals.cached += int(plan.cached.sum())
            self._totals.lost += int(plan.lost.sum())
            self._totals.recomputed += int(plan.recomputed.sum())


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
        self.cached: Ints = np.zeros(num_slots, np.int64)
        self.lost: Ints = np.zeros(num_slots, np.int64)
        self.recomputed: Ints = np.zeros(num_slots, np.int64)
        self.prompts: Ints = np.zeros(num_slots, np.int64)
        self.start_ns: Ints = np.zeros(num_slots, np.int64)
        self.end_ns: Ints = np.zeros(num_slots, np.int64)

    def add(
        self,
        slots: Ints,
        population: int,
        sizes: Ints,
        sums: NDArray[np.float64],
        bounds: NDArray[np.float32],
    ) -> None:
        """Add groups of one population to their owners in `slots`, each named once."""
        self.observed[slots, population] += sizes
        self.powers[slots, population] += sums[..., :_NUM_POWER_SUMS]
        self.count[slots, population] += sums[..., _NUM_POWER_SUMS].astype(np.uint64)
        self.nonfinite[slots] += sums[..., _NUM_POWER_SUMS + 1].astype(np.uint64)
        largest = np.maximum(self.bounds[slots, population], bounds)
        self.bounds[slots, population] = largest

    def coverage(self, slot: int) -> Coverage:
        """What became of the rows of one owner."""
        return Coverage(
            self.observed[slot].tolist(),
            int(self.cached[slot]),
            int(self.lost[slot]),
            int(self.recomputed[slot]),
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
            self.cached,
            self.lost,
            self.recomputed,
            self.prompts,
            self.start_ns,
            self.end_ns,
        ]
