"""The thread that looks once a second and tells the feed what is new.

Guarantees: reads snapshots as any route does, so ingest and judges wait no longer for it than for
a scrape; at most `MAX_REQUESTS` requests are told a second; an exception is counted, logged once,
and the next second is tried; `stop` returns within `STOP_SECONDS`.
"""

import logging
import threading
from typing import Final, NamedTuple

from sidecar.fold.columns import COLUMN_NS
from sidecar.fold.requests import Measured
from sidecar.publish.drift.watch import Watch
from sidecar.publish.intake import Intake
from sidecar.publish.live import happenings
from sidecar.publish.live.feed import Feed
from sidecar.publish.live.summary import summary_answer

TURN_SECONDS: Final = 1.0
STOP_SECONDS: Final = 0.75
MAX_REQUESTS: Final = 32
_REPEAT_TURNS: Final = 5  # a status that did not change is told again after so many
_log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """What was told last."""

    status: tuple[object, ...] = ()
    change: int = 0
    column: int = -1
    request: tuple[str, str, int] = ("", "", 0)


class PulseView(NamedTuple):
    """How the live half fares.

    failed: clients by what went wrong. num_left_out: readings without room in the columns.
    """

    num_clients: int
    failed: dict[str, int]
    num_errors: int
    num_left_out: int


class Pulse:
    """Owns the feed and the only thread that publishes to it."""

    def __init__(self, intake: Intake, watch: Watch, feed: Feed | None = None) -> None:
        self.feed = feed or Feed()
        self.num_errors = 0
        self._intake = intake
        self._watch = watch
        self._seen = _Seen(change=_last_change(watch))
        self._turns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-pulse", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End, and let every client go."""
        self.feed.close()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def get(self) -> PulseView:
        """How the live half fares now."""
        left_out = self._intake.read(lambda r: r.timelines.num_left_out + r.lines.num_left_out)
        feed = self.feed
        return PulseView(feed.num_clients, feed.dropped(), self.num_errors, left_out)

    def turn(self) -> None:
        """Tell what is new; never raises."""
        try:
            self._tell_status()
            self._tell_changes()
            self._tell_requests()
            self._tell_column()
        except Exception as error:  # a bug of ours must not end the thread
            self.num_errors += 1
            if self.num_errors == 1:
                _log.error("live: a turn failed; counted, logged once", exc_info=error)

    def _run(self) -> None:
        while not self._stopping.wait(TURN_SECONDS):
            self.turn()

    def _tell_status(self) -> None:
        snapshot = self._intake.get()
        answer = happenings.status(snapshot, summary_answer(snapshot, self._watch.get()))
        key = (answer.summary.level, answer.summary.since_ns, *answer.summary.layers)
        if key != self._seen.status or self._turns % _REPEAT_TURNS == 0:
            self.feed.publish("status", answer)
        self._seen = self._seen._replace(status=key)
        self._turns += 1

    def _tell_changes(self) -> None:
        for change in self._watch.get().history:
            if change.number > self._seen.change:
                self.feed.publish("drift", happenings.change(change))
                self._seen = self._seen._replace(change=change.number)

    def _tell_requests(self) -> None:
        new: list[Measured] = []
        for each in self._intake.requests(MAX_REQUESTS):
            if happenings.key(each) == self._seen.request:
                break
            new.append(each)
        for each in reversed(new):
            self.feed.publish("request", happenings.request(each))
            self._seen = self._seen._replace(request=happenings.key(each))

    def _tell_column(self) -> None:
        closed = self._intake.read(lambda r: r.timelines.closed(r.timelines.sources()))
        last = closed[-1] if closed else self._seen.column
        if last != self._seen.column:  # less, too: a clock may be set back
            self.feed.publish("column", happenings.ColumnEvent(t_ns=last * COLUMN_NS))
        self._seen = self._seen._replace(column=last)


def _last_change(watch: Watch) -> int:
    history = watch.get().history
    return history[-1].number if history else 0
