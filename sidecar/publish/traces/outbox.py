"""The outbox: spans wait here, bounded, and one thread sends them in batches.

Guarantees: `put` never waits; at any moment

    finished = sent + dropped (by cause) + waiting

holds exactly, whatever the receiver does. A batch that was not taken is tried again `MAX_TRIES`
times in all, with pauses of a second: a longer one would only be added to the time that a receiver
was away. What waits meanwhile is at most `CAPACITY` spans, of which the oldest go first. `stop`
returns within `STOP_SECONDS`, and counts what it could not send.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from opentelemetry.sdk.trace import ReadableSpan

from sidecar.publish.traces.account import Account

CAPACITY: Final = 2048
BATCH: Final = 256
MAX_TRIES: Final = 8
PAUSE_SECONDS: Final = 1.0
LINGER_SECONDS: Final = 1.0  # a batch that is not full waits for company
STOP_SECONDS: Final = 0.75
CAUSES: Final = ("queue_full", "not_taken", "shutdown")
_log = logging.getLogger(__name__)


class Carrier(Protocol):
    """What takes spans away: an exporter of OpenTelemetry, or a fake."""

    def export(self, spans: Sequence[ReadableSpan]) -> bool:
        """Whether the receiver took them all; may take seconds."""

    def shutdown(self) -> None:
        """Release everything, and break off what is under way."""


class Outbox:
    """Owns the carrier, the queue and their thread.

    pause: waits so many seconds, or less once `stop` was called; a fake need not wait.
    """

    def __init__(
        self,
        carrier: Carrier,
        capacity: int = CAPACITY,
        linger_seconds: float = LINGER_SECONDS,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._carrier = carrier
        self._capacity = capacity
        self._linger_seconds = linger_seconds
        self._changed = threading.Condition()
        self._queue: deque[ReadableSpan] = deque()
        self._on_the_way: list[ReadableSpan] = []
        self._finished = self._sent = self._taken = self._refused = 0
        self._dropped = dict.fromkeys(CAUSES, 0)
        self._stopping = threading.Event()
        self._pause = pause or self._stopping.wait
        self._thread = threading.Thread(target=self._run, name="sidecar-spans", daemon=True)
        self._is_over = self._is_logged = False

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send what can be sent in `STOP_SECONDS`, count the rest, and end."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        deadline = time.monotonic() + STOP_SECONDS
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS / 2)
        self._carrier.shutdown()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._drop("shutdown", len(self._queue) + len(self._on_the_way))
            self._queue.clear()
            self._on_the_way = []
            self._is_over = True

    def put(self, span: ReadableSpan) -> None:
        """Take a finished span; never waits. The oldest goes when there is no room."""
        with self._changed:
            self._finished += 1
            if self._is_over:
                self._drop("shutdown", 1)
                return
            self._queue.append(span)
            while self._num_waiting > self._capacity and self._queue:
                self._queue.popleft()
                self._drop("queue_full", 1)
            self._changed.notify()

    def get(self) -> Account:
        """The account now."""
        with self._changed:
            return Account(
                self._finished,
                self._sent,
                dict(self._dropped),
                self._num_waiting,
                self._capacity,
                self._taken,
                self._refused,
            )

    @property
    def _num_waiting(self) -> int:
        return len(self._queue) + len(self._on_the_way)

    def _drop(self, cause: str, num: int) -> None:
        self._dropped[cause] += num

    def _run(self) -> None:
        while (batch := self._next()) and self._send(batch):
            pass

    def _next(self) -> list[ReadableSpan]:
        """The oldest spans; nothing only when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping.is_set())
            if len(self._queue) < BATCH and not self._stopping.is_set():
                self._changed.wait_for(
                    lambda: len(self._queue) >= BATCH or self._stopping.is_set(),
                    self._linger_seconds,
                )
            num = min(BATCH, len(self._queue))
            self._on_the_way = [self._queue.popleft() for _ in range(num)]
            return self._on_the_way

    def _send(self, batch: list[ReadableSpan]) -> bool:
        """Whether to go on; what is on the way when it is not is counted by `stop`."""
        for attempt in range(MAX_TRIES):
            is_taken = self._try(batch)
            self._note(batch, is_taken=is_taken)
            if is_taken or self._stopping.is_set():
                return is_taken
            if attempt + 1 < MAX_TRIES:
                self._pause(PAUSE_SECONDS)
        self._give_up(batch)
        return True

    def _note(self, batch: list[ReadableSpan], *, is_taken: bool) -> None:
        with self._changed:
            self._taken += is_taken
            self._refused += not is_taken
            # Not when `stop` counted them as lost meanwhile.
            if is_taken and self._on_the_way is batch:
                self._sent += len(batch)
                self._on_the_way = []

    def _give_up(self, batch: list[ReadableSpan]) -> None:
        with self._changed:
            if self._on_the_way is batch:
                self._drop("not_taken", len(batch))
                self._on_the_way = []

    def _try(self, batch: Sequence[ReadableSpan]) -> bool:
        try:
            return self._carrier.export(batch)
        except Exception as error:  # of a library of others: it must not end the thread
            if not self._is_logged:
                self._is_logged = True
                _log.error("spans could not be sent; counted, logged once", exc_info=error)
            return False
