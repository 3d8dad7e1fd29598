"""Static buffers: what the graph writes, and how a step's result reaches the host.

Buffers are allocated once, while the model loads; addresses never change, because CUDA graphs bake
them. Grouping needs scratch space for `probes.CHUNK_CELLS` rows x layers at a time. The step path
takes a free result, launches the grouping, and returns: it never waits. On a GPU the copy to pinned
memory runs on a stream of its own; on a CPU there is nothing to copy.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap import probes
from sidecar.tap.rows import Plan

NUM_RESULTS: Final = 8  # steps between a forward pass and the pump that adds it up


@dataclass(frozen=True, slots=True)
class Result:
    """Host memory of one step: [G, L, NUM_SUMS], [G, L, NUM_BOUNDS] and the pulse of each layer.

    groups: staging for the row groups of this step, pinned when the device is a GPU.
    ready: recorded when the copy is complete; None on a CPU, where it is complete at once.
    """

    sums: torch.Tensor
    bounds: torch.Tensor
    pulse: torch.Tensor
    groups: torch.Tensor
    ready: torch.cuda.Event | None

    @property
    def is_ready(self) -> bool:
        """Whether the numbers are here; asking costs no wait."""
        return self.ready is None or bool(self.ready.query())  # type: ignore[no-untyped-call]

    def arrays(
        self, num_groups: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Views of the sums and bounds of the first groups, and of the pulses."""
        sums, bounds = self.sums[:num_groups], self.bounds[:num_groups]
        return sums.numpy(), bounds.numpy(), self.pulse.numpy()


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
        self._on_gpu = device.type == "cuda"
        # One group more than may be asked for: rows that are not to be counted end there.
        shape = (max_groups + 1, num_layers)
        self._results = [self._result(shape, capacity) for _ in range(NUM_RESULTS)]
        self._free = deque(self._results)
        if self._on_gpu:
            self._sums = torch.zeros(*shape, probes.NUM_SUMS, dtype=torch.float64, device=device)
            self._bounds = torch.zeros(*shape, probes.NUM_BOUNDS, device=device)
            self._groups = torch.zeros(capacity, dtype=torch.int64, device=device)
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def pulses(self) -> list[float]:
        """Forward passes seen by each layer so far; waits for the device, so not for the step."""
        return [float(pulse) for pulse in self.rows[:, probes.PULSE, 0].cpu()]

    def collect(self, plan: Plan) -> Result | None:
        """Start reducing the current rows by `plan`; None when no result is free."""
        num_rows = len(plan.groups)
        if not self._free or plan.num_groups > self.max_groups or num_rows > self.capacity:
            return None
        result = self._free.popleft()
        try:
            result.groups[:num_rows].numpy()[:] = plan.groups
            if self._on_gpu:
                self._reduce_on_gpu(result, num_rows, plan.num_groups + 1)
            else:
                self._reduce(result, num_rows, plan.num_groups + 1)
        except BaseException:
            self.release(result)
            raise
        return result

    def release(self, result: Result) -> None:
        """Give a result back once it has been added up."""
        self._free.append(result)

    def _reduce(self, result: Result, num_rows: int, num_groups: int) -> None:
        probes.group_rows(
            self.rows[..., :num_rows],
            result.groups[:num_rows],
            result.sums[:num_groups],
            result.bounds[:num_groups],
        )
        result.pulse.copy_(self.rows[:, probes.PULSE, 0])

    def _reduce_on_gpu(self, result: Result, num_rows: int, num_groups: int) -> None:
        main = torch.cuda.current_stream()
        main.wait_event(self._copied)  # of the previous step, long done
        groups = self._groups[:num_rows]
        groups.copy_(result.groups[:num_rows], non_blocking=True)
        sums, bounds = self._sums[:num_groups], self._bounds[:num_groups]
        probes.group_rows(self.rows[..., :num_rows], groups, sums, bounds)
        # On the main stream: the next forward pass overwrites the pulses.
        result.pulse.copy_(self.rows[:, probes.PULSE, 0], non_blocking=True)
        self._copies.wait_stream(main)
        with torch.cuda.stream(self._copies):
            result.sums[:num_groups].copy_(sums, non_blocking=True)
            result.bounds[:num_groups].copy_(bounds, non_blocking=True)
            self._copied.record(self._copies)
            if result.ready is not None:
                result.ready.record(self._copies)

    def _result(self, shape: tuple[int, int], capacity: int) -> Result:
        pin = self._on_gpu
        return Result(
            torch.zeros(*shape, probes.NUM_SUMS, dtype=torch.float64, pin_memory=pin),
            torch.zeros(*shape, probes.NUM_BOUNDS, pin_memory=pin),
            torch.zeros(shape[1], pin_memory=pin),
            torch.zeros(capacity, dtype=torch.int64, pin_memory=pin),
            torch.cuda.Event(blocking=True) if pin else None,  # type: ignore[no-untyped-call]
        )
