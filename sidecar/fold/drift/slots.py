"""Windows of several replicas, put side by side: one slot for each stretch of time.

Guarantees: what a slot holds and when it closes follows from the windows alone, in whatever order
they arrive while the slot is open; slots close in order of time; one replica whose clock runs ahead
closes nothing, since time is what the second latest replica says; memory is that of `MAX_OPEN`
windows of each replica.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.window import Window

PATIENCE: Final = 2  # windows after its end for which a slot waits for a replica
MAX_OPEN: Final = 16  # of one replica; the oldest gives way

_Span = tuple[int, int]  # end and start, so that order is by end


class Slot(NamedTuple):
    """Windows of one stretch of time, by replica."""

    start_ns: int
    end_ns: int
    windows: dict[str, Window]


class Slots:
    """Windows in, closed slots out.

    num_late: windows that came after their slot was closed.
    """

    def __init__(self) -> None:
        self.num_late = 0
        self._open: dict[_Span, dict[str, Window]] = {}
        self._latest: dict[str, int] = {}  # end of the latest window of each replica
        self._members: frozenset[str] = frozenset()
        self._closed_ns = 0

    @property
    def latest_ns(self) -> Mapping[str, int]:
        """End of the latest window of each replica."""
        return self._latest

    @property
    def clock_ns(self) -> int:
        """End of the latest window that two replicas, at least, have reached."""
        ends = sorted(self._latest.values())
        return ends[-2] if len(ends) > 1 else 0

    def expect(self, replicas: Collection[str]) -> None:
        """These are all there are: a slot that has them all need not wait."""
        self._members = frozenset(replicas)

    def forget(self, replica: str) -> None:
        """It is gone; what it sent to open slots stays."""
        self._latest.pop(replica, None)

    def update(self, replica: str, window: Window) -> None:
        """Take one window; a second one of the same replica and time is ignored."""
        span = (window.end_ns, window.start_ns)
        self._latest[replica] = max(window.end_ns, self._latest.get(replica, 0))
        if window.end_ns <= self._closed_ns:
            self.num_late += 1
            return
        self._open.setdefault(span, {}).setdefault(replica, window)
        self._bound(replica)

    def close(self) -> Iterator[Slot]:
        """Yield what is complete, or has waited long enough, oldest first."""
        while self._open and self._is_due(span := min(self._open)):
            self._closed_ns = span[0]
            windows = self._open.pop(span)
            yield Slot(span[1], span[0], dict(sorted(windows.items())))

    def export(self) -> dict[str, Any]:
        """Plain values."""
        held = [
            {name: window.to_plain() for name, window in windows.items()}
            for _, windows in sorted(self._open.items())
        ]
        return {
            "open": held,
            "latest": dict(self._latest),
            "members": sorted(self._members),
            "closed_ns": self._closed_ns,
            "num_late": self.num_late,
        }

    def restore(self, exported: Mapping[str, Any], num_streams: int) -> None:
        """Go on from `export()`. Raises StateError, and changes nothing, when it is foreign."""
        try:
            held = [
                {str(name): Window.from_plain(each, num_streams) for name, each in windows.items()}
                for windows in exported["open"]
            ]
            latest = {str(name): int(end_ns) for name, end_ns in exported["latest"].items()}
            members = frozenset(str(name) for name in exported["members"])
            closed_ns, num_late = int(exported["closed_ns"]), int(exported["num_late"])
        except UNREADABLE as error:
            raise StateError(f"no state of slots: {error!r}; delete the snapshot") from error
        self._open = {_span(windows): windows for windows in held}
        self._latest, self._members = latest, members
        self._closed_ns, self.num_late = closed_ns, num_late

    def _is_due(self, span: _Span) -> bool:
        end_ns, start_ns = span
        is_complete = bool(self._members) and self._members <= self._open[span].keys()
        return is_complete or self.clock_ns >= end_ns + PATIENCE * (end_ns - start_ns)

    def _bound(self, replica: str) -> None:
        spans = sorted(span for span, windows in self._open.items() if replica in windows)
        for span in spans[:-MAX_OPEN]:
            del self._open[span][replica]
            if not self._open[span]:
                del self._open[span]


def _span(windows: Mapping[str, Window]) -> _Span:
    window = next(iter(windows.values()))
    return window.end_ns, window.start_ns
