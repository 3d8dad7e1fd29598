"""What an instrument is: one group of signals beside the residual stream, from step to table.

Two kinds. A row instrument has in-graph rows that are grouped by the plan of the step, right after
it was launched, like the slab. A sampler is handed what it reads by its own seat (the KV cache,
the logits) and hands back a `Pending` of its own. Both are read by the pump alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sidecar.tap import signature
from sidecar.tap.aside import Place
from sidecar.tap.rows import Plan
from sidecar.wire.frame import Table
from sidecar.wire.signature import Layout


class Pending(Protocol):
    """Numbers on their way to the host."""

    @property
    def is_ready(self) -> bool:
        """Whether they are here; asking costs no wait."""


class Instrument(Protocol):
    """What the pump needs of an instrument; called on the pump's thread alone."""

    def totals(self) -> Iterable[Table]:
        """Running totals; extremes since the last call."""

    def of_request(self, slot: int) -> Iterable[Table]:
        """What was measured of the request in `slot` so far, with the latest values."""

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""


class Sampler(Instrument, Protocol):
    """An instrument with a seat of its own."""

    def account(self, pending: Any) -> None:
        """Add up what a pending of this instrument holds, and free it."""


class RowInstrument(Instrument, Protocol):
    """An instrument whose in-graph rows are grouped by the plan of a step."""

    def keep(self, place: Place) -> bool:
        """Put the current rows aside. Step path.

        Returns True, where a guarded call that raised gives None.
        """

    def collect(self, plan: Plan, place: Place | None = None) -> Pending | None:
        """Start to reduce rows, those at `place` or else the current ones. Step path.

        None when there is no room.
        """

    def account(self, pending: Any, plan: Plan, kept: NDArray[np.bool_] | None) -> None:
        """Add up and free it. kept: [G] groups to count, when drafts were rejected."""


@dataclass
class Instruments:
    """What is measured beside the residual stream.

    layout: of the signatures. sketches: [sketched layers, 2, size] of a request slot.
    absent: groups of signals this engine cannot give, with the reason.
    """

    layout: Layout
    rows: list[RowInstrument] = field(default_factory=list)
    samplers: list[Sampler] = field(default_factory=list)
    sketches: Callable[[int], signature.Floats] | None = None
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[Instrument]:
        """Of both kinds."""
        return [*self.rows, *self.samplers]


def site_of(instrument: Instrument) -> str:
    """Where the exceptions of an instrument are counted."""
    return type(instrument).__name__
