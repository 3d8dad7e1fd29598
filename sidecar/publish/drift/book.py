"""The windows of each layout, and the last ones that closed, for whoever asks with a cursor.

Guarantees: at most `MAX_LAYOUTS` layouts are folded, and requests of a further one are counted; at
most `MAX_WINDOWS` closed windows and `MAX_BYTES` of them are held, the oldest go first, and a
reader who comes too late is told that some are gone; cursors grow, also over a restart.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Window, Windows
from sidecar.wire.signature import Layout

MAX_LAYOUTS: Final = 8
MAX_WINDOWS: Final = 288  # a day of five minutes each
MAX_BYTES: Final = 32 << 20
_BYTES_PER_STREAM: Final = 48  # count, sum, squares, two ends, non-finite


class Closed(NamedTuple):
    """A closed window.

    cursor: Unix ns at which it was closed, made larger than any before.
    schema: the streams its moments are of.
    baseline: digest of the baseline whose strata and clips it was folded by; "" for none.
    """

    cursor: int
    schema: Schema
    baseline: str
    window: Window

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return 1024 + len(self.window.strata) * self.schema.num_streams * _BYTES_PER_STREAM


class Counts(NamedTuple):
    """What became of requests and windows, in this life of the sidecar.

    num_used: requests folded; num_late, num_early: those outside of every open window.
    num_foreign: those of a layout beyond `MAX_LAYOUTS`.
    num_closed, num_insufficient: windows.
    """

    num_used: int = 0
    num_late: int = 0
    num_early: int = 0
    num_foreign: int = 0
    num_closed: int = 0
    num_insufficient: int = 0


class _Open(NamedTuple):
    """The windows of one layout, and the digest of the baseline that they fold by."""

    schema: Schema
    windows: Windows
    baseline: str


Opener = Callable[[Schema], tuple[Windows, str]]


class Book:
    """Observations in, closed windows out and kept.

    opener: makes the windows of a layout, and tells the digest of the baseline they fold by.
    """

    def __init__(
        self, opener: Opener, max_windows: int = MAX_WINDOWS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._opener = opener
        self._max_windows = max_windows
        self._max_bytes = max_bytes
        self._open: dict[bytes, _Open] = {}
        self._held: deque[Closed] = deque()
        self._num_bytes = 0
        self._last = self._gone = 0  # cursors: given last; of the last window no longer held
        self._num_used = self._num_foreign = 0
        self._retired = Counts()

    def update(self, layout: Layout, items: Sequence[Observation], now_ns: int) -> list[Closed]:
        """Take requests of one layout; the windows that closed, which are none as a rule."""
        opened = self._opened(layout, now_ns)
        if opened is None:
            self._num_foreign += len(items)
            return []
        self._num_used += len(items)
        closed = [each for item in items for each in opened.windows.update(item)]
        return [self._keep(opened, window, now_ns) for window in closed]

    def advance(self, now_ns: int) -> list[Closed]:
        """The windows that are closed by `now_ns`."""
        return [
            self._keep(opened, window, now_ns)
            for opened in self._open.values()
            for window in opened.windows.advance(now_ns)
        ]

    def held(self) -> tuple[tuple[Closed, ...], int]:
        """Closed windows, the oldest first, and the cursor of the last one no longer held."""
        return tuple(self._held), self._gone

    def schemas(self) -> list[Schema]:
        """Of the layouts heard."""
        return [opened.schema for opened in self._open.values()]

    def counts(self) -> Counts:
        """What became of everything so far."""
        total = self._retired
        for opened in self._open.values():
            total = _added(total, _counts(opened.windows))
        num_used = self._num_used - total.num_late - total.num_early
        return total._replace(num_used=num_used, num_foreign=self._num_foreign)

    def reopen(self) -> None:
        """Fold by another baseline from now on; what was open is given up."""
        for opened in self._open.values():
            self._retired = _added(self._retired, _counts(opened.windows))
        self._open.clear()

    def export(self) -> dict[str, Any]:
        """What is open, msgpack-able; closed windows are not kept over a restart."""
        return {
            "cursor": self._last,
            "open": [
                {"layout": key, "baseline": opened.baseline, "windows": opened.windows.export()}
                for key, opened in self._open.items()
            ],
        }

    def restore(self, exported: Any) -> None:
        """Go on with what was open. Raises StateError, with nothing changed, when it is foreign.

        Windows that were folded by another baseline are passed over.
        """
        found: dict[bytes, _Open] = {}
        try:
            last = int(exported["cursor"])
            for each in exported["open"][:MAX_LAYOUTS]:
                layout = msgspec.msgpack.decode(each["layout"], type=Layout)
                schema = Schema.of(layout)
                windows, baseline = self._opener(schema)
                if baseline == each["baseline"]:
                    windows.restore(each["windows"])
                    found[each["layout"]] = _Open(schema, windows, baseline)
        except (*UNREADABLE, msgspec.MsgspecError) as error:
            raise StateError(f"no open windows: {error!r}") from error
        self._last = self._gone = last
        self._open = found

    def _opened(self, layout: Layout, now_ns: int) -> _Open | None:
        key = msgspec.msgpack.encode(layout)
        if key not in self._open and len(self._open) < MAX_LAYOUTS:
            schema = Schema.of(layout)
            self._open[key] = _Open(schema, *self._opener(schema))
            self._open[key].windows.advance(now_ns)  # from now on it is told the time
        return self._open.get(key)

    def _keep(self, opened: _Open, window: Window, now_ns: int) -> Closed:
        self._last = max(self._last + 1, now_ns)
        closed = Closed(self._last, opened.schema, opened.baseline, window)
        self._held.append(closed)
        self._num_bytes += closed.num_bytes
        while len(self._held) > self._max_windows or self._num_bytes > self._max_bytes:
            gone = self._held.popleft()
            self._gone = gone.cursor
            self._num_bytes -= gone.num_bytes
        return closed


def _counts(windows: Windows) -> Counts:
    return Counts(
        num_late=windows.num_late,
        num_early=windows.num_early,
        num_closed=windows.num_closed,
        num_insufficient=windows.num_insufficient,
    )


def _added(one: Counts, other: Counts) -> Counts:
    return Counts(*(a + b for a, b in zip(one, other, strict=True)))
