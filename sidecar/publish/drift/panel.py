"""A panel: the channels that judge windows, and how windows are made for them.

Made anew for each baseline, since a channel judges by one baseline for all its life.
Guarantees: without a baseline only integrity judges; windows are folded and clipped by the plan of
the baseline when they are of its layout, and plainly when they are not.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.channel import Channel
from sidecar.fold.drift.header import Header, compare
from sidecar.fold.drift.integrity import IntegrityChannel
from sidecar.fold.drift.mix import MixChannel
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.tail import TailChannel, TailRule
from sidecar.fold.drift.traffic import TrafficChannel
from sidecar.fold.drift.window import Assembly, Window, Windows
from sidecar.publish.drift.seat import Seat
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

DEMO: Final = "demo"
_DEMO_MIN_REQUESTS: Final = 10
_DEMO_LONGEST: Final = 12  # lengths of a window


class WindowChannel(Channel, Protocol):
    """A channel that judges closed windows."""

    def update(self, window: Window) -> object:
        """Take one."""


class Terms(NamedTuple):
    """How is judged: the preset's name, and the length of a window where no baseline gives one."""

    preset: str
    window_ns: int

    @property
    def is_demo(self) -> bool:
        """Whether windows are short for a demonstration."""
        return self.preset == DEMO

    @property
    def policy(self) -> Policy:
        """How rare false alarms have to be."""
        return Policy.demo() if self.is_demo else Policy()

    @property
    def assembly(self) -> Assembly:
        """How windows are made where no baseline says it."""
        if self.is_demo:
            return Assembly(self.window_ns, _DEMO_MIN_REQUESTS, _DEMO_LONGEST * self.window_ns)
        return Assembly(self.window_ns)


class Panel:
    """Channels by the name of their verdicts, and the baseline that they judge by.

    seats: of channels that judge windows (`WindowChannel`), in order.
    integrity: one of them, where it is there.
    """

    def __init__(
        self,
        terms: Terms,
        baseline: Baseline | None = None,
        seats: Sequence[Seat[Any]] = (),
        integrity: Seat[IntegrityChannel] | None = None,
    ) -> None:
        self.baseline = baseline
        self.seats = {seat.channel.name: seat for seat in seats}
        self.integrity = integrity
        self._terms = terms

    @property
    def digest(self) -> str:
        """Of the baseline; "" without one."""
        return self.baseline.digest if self.baseline else ""

    @property
    def assembly(self) -> Assembly:
        """How windows are made: as the baseline's were."""
        return self.baseline.header.assembly if self.baseline else self._terms.assembly

    def open_windows(self, schema: Schema) -> tuple[Windows, str]:
        """Windows of one layout, and the digest of the baseline that folds them."""
        if self.baseline is None or self.baseline.schema != schema:
            return Windows(schema, self.assembly), ""
        rule = TailRule(self.baseline)
        windows = Windows(
            schema, self.assembly, self.baseline.plan, rule if rule.is_calibrated else None
        )
        return windows, self.digest

    def header(self, identity: Identity, layout: Layout | None) -> Header | None:
        """What is served, to be compared; None when there is nothing to compare it with."""
        if self.baseline is None:
            return None
        known = layout or self.baseline.header.layout
        return Header(identity, known, assembly=self.assembly)

    def doubt(self, layouts: Sequence[Layout]) -> str:
        """Why signatures of these layouts cannot be judged by the baseline; "" when they can."""
        if self.baseline is None or not layouts or self.baseline.header.layout in layouts:
            return ""
        served = self.baseline.header._replace(layout=layouts[0])
        told = "; ".join(map(str, compare(self.baseline.header, served).refusals))
        return f"not judged, since signatures are of another layout ({told}); fit a baseline anew"


def panel_of(terms: Terms, baseline: Baseline | None) -> Panel:
    """The channels that this baseline allows."""
    note = terms.policy.label
    integrity = Seat(IntegrityChannel(baseline), note)
    if baseline is None:
        return Panel(terms, None, [integrity], integrity)
    channels = (TrafficChannel, MixChannel, TailChannel)
    seats: list[Seat[Any]] = [Seat(make(baseline, terms.policy), note) for make in channels]
    return Panel(terms, baseline, [*seats, integrity], integrity)
