"""Stand-ins for drift: a channel that does as it is told, and requests that finish when told."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.errors import StateError
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.drift.window import Assembly, Window, Windows
from sidecar.publish.book import Book
from sidecar.publish.judges import Judges, Terms
from sidecar.publish.keeper import Keeper
from sidecar.publish.seat import Seat
from sidecar.publish.watch import MAX_BYTES, Watch
from sidecar.wire.frame import Signature, Signatures
from sidecar.wire.signature import Layout, size
from tests.fakes import NOW, SECOND, FakeClock

MINUTE = 60 * SECOND
START = NOW - NOW % MINUTE  # a window begins here
ASSEMBLY = Assembly(length_ns=MINUTE, min_requests=2, longest_ns=5 * MINUTE)
LAYOUT = Layout([0, 1])
CAUSE = Cause("residual/decode/l1/log_rms", 1, "log_rms", "decode", "high", 1.5, NOW)


class FakeChannel:
    """Counts the windows it was given; pages after `pages_after` of them; fails when told to."""

    def __init__(self, name: str = "traffic", pages_after: int = 10**9) -> None:
        self.name = name
        self.windows: list[Window] = []
        self.num_windows = 0
        self.pages_after = pages_after
        self.is_acknowledged = False
        self.error: Exception | None = None  # raised by every update
        self.before_update: Callable[[], object] = lambda: None

    def update(self, window: Window) -> None:
        self.before_update()
        if self.error is not None:
            raise self.error
        self.windows.append(window)
        self.num_windows += 1

    def get(self, now_ns: int) -> Verdict:
        is_page = self.num_windows >= self.pages_after
        return Verdict(
            self.name,
            ChannelState.PAGE if is_page else ChannelState.ARMED,
            f"{self.num_windows} windows",
            level=self.num_windows / max(1, self.pages_after),
            since_ns=NOW if is_page else None,
            causes=(CAUSE,) if is_page else (),
            judged_ns=now_ns,
            is_acknowledged=self.is_acknowledged,
        )

    def acknowledge(self, now_ns: int) -> None:
        self.num_windows = 0
        self.is_acknowledged = True

    def export(self) -> dict[str, Any]:
        return {"name": self.name, "num_windows": self.num_windows}

    def restore(self, exported: dict[str, Any]) -> None:
        if not isinstance(exported, dict) or exported.get("name") != self.name:
            raise StateError("not mine; delete it")
        self.num_windows = exported["num_windows"]


def finished(
    t_ns: int = START, num: int = 1, layout: Layout = LAYOUT, canary: str = "", level: float = 0.0
) -> Signatures:
    """`num` requests that end at `t_ns`, all their values at `level`."""
    values = np.full(size(layout), level, "<f4").tobytes()
    return Signatures(
        layout,
        [Signature(f"r{k}", t_ns, True, 64, 9, "", 0, values, "chat", canary) for k in range(num)],  # noqa: FBT003
    )


def book(assembly: Assembly = ASSEMBLY, baseline: str = "", **limits: int) -> Book:
    """Windows of a minute, without a baseline unless its digest is given."""

    def opener(schema: Schema) -> tuple[Windows, str]:
        return Windows(schema, assembly), baseline

    return Book(opener, **limits)


def judges(*channels: FakeChannel, preset: str = "production") -> Judges:
    """Judges over windows of a minute."""
    terms = Terms(preset, MINUTE)
    seats = [Seat(channel, terms.note) for channel in channels]
    return Judges(terms, book(), seats)


def watch(
    *channels: FakeChannel,
    clock: FakeClock | None = None,
    folder: Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Watch:
    """A watch over fake channels; its thread is not started."""
    keeper = Keeper(folder) if folder else None
    return Watch(judges(*channels), keeper, clock or FakeClock(), max_bytes)


def states(channels: Sequence[Any]) -> dict[str, str]:
    """State by channel, of those configured."""
    return {c.verdict.channel: str(c.verdict.state) for c in channels if c.is_configured}
