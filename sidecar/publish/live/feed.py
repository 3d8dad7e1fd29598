"""Events for whoever watches: published by one thread, read by any number of clients.

Guarantees: publishing never waits for a client; all clients read the same ring of `MAX_EVENTS`
events, so that memory does not grow with their number; a client that falls behind the ring is
told so once and goes on from now, one that takes nothing for `STALLED_SECONDS` is hung up on, and
both are counted; at most `MAX_CLIENTS` are served.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from pydantic import BaseModel

MAX_EVENTS: Final = 2048
MAX_CLIENTS: Final = 64
CAUSES: Final = ("behind", "stalled", "refused")


class Event(NamedTuple):
    """One thing that happened. number: 1 for the first of this life of the sidecar."""

    number: int
    kind: str
    data: str


class Feed:
    """A ring of events, and the account of those who read it."""

    def __init__(
        self, max_events: int = MAX_EVENTS, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.num_clients = 0
        self.is_closed = False
        self._lock = threading.Lock()
        self._held: deque[Event] = deque(maxlen=max_events)
        self._latest: dict[str, Event] = {}
        self._num = 0
        self._life = clock_ns()
        self._dropped = dict.fromkeys(CAUSES, 0)

    @property
    def last(self) -> int:
        """Number of the latest event; 0 before any."""
        return self._num

    def publish(self, kind: str, answer: BaseModel) -> None:
        """Tell everybody who listens; from one thread."""
        event = Event(self._num + 1, kind, answer.model_dump_json(by_alias=True))
        with self._lock:
            self._held.append(event)
            self._latest[kind] = event
            self._num = event.number

    def after(self, number: int) -> Sequence[Event] | None:
        """The events after that one; None when some of them are no longer held."""
        with self._lock:
            if number == self._num:
                return ()
            first = self._held[0].number if self._held else self._num + 1
            if not first - 1 <= number < self._num:
                return None
            return tuple(islice(self._held, number + 1 - first, None))

    def latest(self, kind: str) -> Event | None:
        """The last event of its kind."""
        return self._latest.get(kind)

    def id_of(self, event: Event) -> str:
        """What a client repeats as Last-Event-ID, to go on from there."""
        return f"{self._life}-{event.number}"

    def number_of(self, last_event_id: str) -> int | None:
        """The number in such an id; None when it is not of this life of the sidecar."""
        life, _, number = last_event_id.partition("-")
        if life != str(self._life) or not (number.isascii() and number.isdecimal()):
            return None
        return int(number)

    def drop(self, cause: str) -> None:
        """Count a client, or what it did not get."""
        with self._lock:
            self._dropped[cause] += 1

    def dropped(self) -> dict[str, int]:
        """By cause: fell behind, stalled and hung up on, refused as one too many."""
        with self._lock:
            return dict(self._dropped)

    def close(self) -> None:
        """Let every client go."""
        self.is_closed = True
