"""From the device to the host without a wait: a few sets of host memory, lent step by step.

The step path takes a set, starts the copies and returns; the pump reads the set when it is ready
and gives it back. With none free the step is lost, and counted by whoever asked. On a GPU the
copies to pinned memory run on a stream of their own; on a CPU they are done at once, and what was
computed in place (`target`) needs none.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

NUM_LOANS: Final = 8  # steps between a forward pass and the pump that adds it up


@dataclass(frozen=True, slots=True)
class Loan:
    """Host memory of one step, by name.

    ready: recorded when the copies are complete; None on a CPU, where they are at once.
    """

    host: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None

    @property
    def is_ready(self) -> bool:
        """Whether the numbers are here; asking costs no wait."""
        return self.ready is None or bool(self.ready.query())  # type: ignore[no-untyped-call]

    def read(self, name: str, size: int | None = None) -> NDArray[Any]:
        """View of the first `size` entries of what was sent as `name`."""
        return self.host[name][:size].numpy()


class Ring:
    """Sets of host memory shaped like `examples`, device tensors that `send` will be given."""

    def __init__(
        self, examples: Mapping[str, torch.Tensor], device: torch.device, num_loans: int = NUM_LOANS
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._examples = dict(examples)
        self._free = deque(self._loan(examples) for _ in range(num_loans))
        if self._on_gpu:
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def take(self) -> Loan | None:
        """Host memory to send into, or None when all is lent. Step path.

        After it, work on the current stream may overwrite what was sent before.
        """
        if not self._free:
            return None
        if self._on_gpu:
            torch.cuda.current_stream().wait_event(self._copied)  # of the last step, long done
        return self._free.popleft()

    def target(self, loan: Loan) -> dict[str, torch.Tensor]:
        """Where to compute what will be sent: the examples, or on a CPU the loan itself."""
        return self._examples if self._on_gpu else loan.host

    def send(self, loan: Loan, values: Mapping[str, torch.Tensor]) -> None:
        """Start to copy each device tensor onto the beginning of its place. Step path."""
        if not self._on_gpu:
            self._copy(loan, values)
            return
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            self._copy(loan, values)
            self._copied.record(self._copies)
            if loan.ready is not None:
                loan.ready.record(self._copies)

    def give_back(self, loan: Loan) -> None:
        """Lend it to another step."""
        self._free.append(loan)

    def _copy(self, loan: Loan, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            place = loan.host[name]
            if value.data_ptr() != place.data_ptr():
                place[: len(value)].copy_(value, non_blocking=True)

    def _loan(self, examples: Mapping[str, torch.Tensor]) -> Loan:
        host = {
            name: torch.zeros(each.shape, dtype=each.dtype, pin_memory=self._on_gpu)
            for name, each in examples.items()
        }
        event = torch.cuda.Event(blocking=True) if self._on_gpu else None  # type: ignore[no-untyped-call]
        return Loan(host, event)


class Upload:
    """A device tensor that follows numbers of the host, without a wait.

    The staging memory rotates, so that a step's copy is done before its memory is used again.
    """

    def __init__(self, size: int, device: torch.device, num_stages: int = NUM_LOANS) -> None:
        on_gpu = device.type == "cuda"
        self.device = torch.zeros(size, dtype=torch.int64, device=device)
        self._stages = deque(
            torch.zeros(size, dtype=torch.int64, pin_memory=on_gpu)
            for _ in range(num_stages if on_gpu else 0)
        )

    def put(self, values: NDArray[np.int64]) -> torch.Tensor:
        """Device view of `values`; valid until the next call. Step path."""
        view = self.device[: len(values)]
        if not self._stages:
            view.numpy()[:] = values
            return view
        self._stages.rotate()
        stage = self._stages[0][: len(values)]
        stage.numpy()[:] = values
        return view.copy_(stage, non_blocking=True)
