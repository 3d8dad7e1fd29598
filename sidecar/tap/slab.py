"""Static buffers: what the graph writes, and how a step's rows are added up.

Buffers are allocated once, while the model loads; addresses never change, because CUDA graphs bake
them. Grouping needs scratch space for `probes.CHUNK_CELLS` rows x layers at a time. The step path
takes a free loan, launches the grouping, and returns: it never waits.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap import probes
from sidecar.tap.aside import Aside, Place
from sidecar.tap.ring import Loan, Ring, Upload
from sidecar.tap.rows import Plan


class Grouped(NamedTuple):
    """Sums [G, L, NUM_SUMS] and bounds [G, L, NUM_BOUNDS] of the first groups, pulses [L]."""

    sums: NDArray[np.float64]
    bounds: NDArray[np.float32]
    pulses: NDArray[np.float32]


class Selection(NamedTuple):
    """Layers by their index in the slab, on the host and on the device."""

    places: NDArray[np.int64]
    device_places: torch.Tensor


class Slab:
    """Rows of every tapped layer, [L, NUM_COLUMNS, capacity], and a ring of results.

    capacity: most token rows in one forward pass. max_groups: most groups in one.
    """

    def __init__(
        self, num_layers: int, capacity: int, max_groups: int, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.max_groups = max_groups
        self.rows = torch.zeros(num_layers, probes.NUM_COLUMNS, capacity, device=device)
        # One group more than may be asked for: rows that are not to be counted end there.
        shape = (max_groups + 1, num_layers)
        results = {
            "sums": torch.zeros(*shape, probes.NUM_SUMS, dtype=torch.float64, device=device),
            "bounds": torch.zeros(*shape, probes.NUM_BOUNDS, device=device),
            "pulses": torch.zeros(num_layers, device=device),
        }
        self._ring = Ring(results, device)
        self._aside = Aside(self.rows)
        self._groups = Upload(capacity, device)

    def pulses(self) -> list[float]:
        """Forward passes seen by each layer so far; waits for the device, so not for the step."""
        return [float(pulse) for pulse in self.rows[:, probes.PULSE, 0].cpu()]

    def select(self, layers: list[int]) -> Selection:
        """A choice of layers, by their index in the slab, to collect alone."""
        places = np.array(layers, np.int64)
        return Selection(places, torch.from_numpy(places).to(self.rows.device))

    def keep(self, place: Place) -> None:
        """Put the current rows aside. Step path."""
        self._aside.put(self.rows, place)

    def collect(
        self, plan: Plan, selection: Selection | None = None, place: Place | None = None
    ) -> Loan | None:
        """Start reducing rows by `plan`; None when no loan is free. Step path.

        selection: the layers to reduce; None for all of them. place: of what was put aside; None
        for the current rows.
        """
        if plan.num_groups > self.max_groups or len(plan.groups) > self.capacity:
            return None
        loan = self._ring.take()
        if loan is None:
            return None
        try:
            target = self._ring.target(loan)
            rows, pulses = self._current(plan) if place is None else self._put_aside(place)
            target["pulses"].copy_(pulses)
            self._ring.send(loan, self._reduce(rows, plan, selection, target))
        except BaseException:
            self.release(loan)
            raise
        return loan

    def _current(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of `plan`, and the pulses of every layer after them."""
        return self.rows[..., : len(plan.groups)], self.rows[:, probes.PULSE, 0]

    def _put_aside(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of a run, and the pulses after it: the pass that ended it has beaten once more."""
        rows = self._aside.rows(place)
        return rows, rows[:, probes.PULSE, place.num_steps - 1]

    def _reduce(
        self,
        rows: torch.Tensor,
        plan: Plan,
        selection: Selection | None,
        target: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        num_groups = plan.num_groups + 1
        sums, bounds = target["sums"][:num_groups], target["bounds"][:num_groups]
        if selection is None:
            chosen_sums, chosen_bounds = sums, bounds
        else:  # they stand at the beginning of the result, in order
            rows = rows.index_select(0, selection.device_places)
            chosen_sums, chosen_bounds = sums[:, : len(rows)], bounds[:, : len(rows)]
        probes.group_rows(rows, self._groups.put(plan.groups), chosen_sums, chosen_bounds)
        return {"sums": sums, "bounds": bounds, "pulses": target["pulses"]}

    def read(self, loan: Loan, num_groups: int, selection: Selection | None = None) -> Grouped:
        """What a loan that is ready holds, of the chosen layers; pulses are those of all."""
        width = None if selection is None else len(selection.places)
        sums, bounds = loan.read("sums", num_groups), loan.read("bounds", num_groups)
        return Grouped(sums[:, :width], bounds[:, :width], loan.read("pulses"))

    def release(self, loan: Loan) -> None:
        """Give a loan back once it has been added up."""
        self._ring.give_back(loan)
