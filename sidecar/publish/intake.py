"""The ingest thread: channel -> frame -> reducer, and the one lock around the reducer.

Guarantees: no message ends the thread, and each one that is not used is counted by cause;
`stop` returns within a second; readers hold the lock only to take a snapshot, never to render.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from sidecar.errors import FrameError
from sidecar.fold.reducer import Reducer, Snapshot
from sidecar.fold.requests import Measured
from sidecar.fold.scans import Scanned
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Frame, unpack

_POLL_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.05
Listener = Callable[[Frame, int], None]
_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)


def each_of(listeners: Sequence[Listener]) -> Listener:
    """One listener that tells all of them, in order."""

    def tell(frame: Frame, now_ns: int) -> None:
        for listener in listeners:
            listener(frame, now_ns)

    return tell


class Inbox(Protocol):
    """Where messages come from: `wire.channel.Receiver`, or a fake."""

    def receive(self, timeout_seconds: float) -> bytes | None:
        """The next message, or None when none came in time."""

    def close(self) -> None:
        """Release everything, at once."""


class Intake:
    """Owns the inbox, its thread and the state; all else reads snapshots.

    clock_ns: Unix time in nanoseconds, the same clock that the senders stamp with.
    listener: told of every frame that is used, and when it was read; it must not wait.
    """

    def __init__(
        self,
        inbox: Inbox,
        reducer: Reducer,
        key: bytes | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        listener: Listener | None = None,
    ) -> None:
        self._inbox = inbox
        self._reducer = reducer
        self._key = key
        self._clock_ns = clock_ns
        self._listener = listener
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-intake", daemon=True)
        self._logged: set[type[Exception]] = set()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the inbox."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._inbox.close()

    def accept(self, data: bytes) -> None:
        """Fold one message, or count why not; never raises."""
        now_ns = self._clock_ns()
        try:
            frame = unpack(data, self._key)
            with self._lock:
                is_used = self._reducer.update(frame, now_ns)
            if is_used and self._listener is not None:
                self._listener(frame, now_ns)
        except FrameError as error:
            self._refuse(error.cause, now_ns)
        except Exception as error:  # a bug of ours must not blind us to every later frame
            self._report(error, now_ns)

    def get(self) -> Snapshot:
        """Everything publishable now."""
        with self._lock:
            return self._reducer.get(self._clock_ns())

    def read(self, question: Callable[[Reducer], _Answer]) -> _Answer:
        """Ask the reducer for a copy of something; the ingest thread waits meanwhile."""
        with self._lock:
            return question(self._reducer)

    def requests(self, limit: int) -> list[Measured]:
        """The latest `limit` finished requests, latest first."""
        with self._lock:
            return self._reducer.requests(limit)

    def find(self, request_id: str) -> list[Measured]:
        """Finished requests with this engine id or client id."""
        with self._lock:
            return self._reducer.find(request_id)

    def signatures(self, limit: int) -> list[Signed]:
        """The latest signatures of `limit` requests, latest first."""
        with self._lock:
            return self._reducer.signatures(limit)

    def canaries(self) -> dict[str, str]:
        """`<prompt>@<round>` of the latest proven canaries, by engine id of their request."""
        with self._lock:
            return self._reducer.canaries()

    def scans(self) -> list[Scanned]:
        """The scanned requests, latest first."""
        with self._lock:
            return self._reducer.scans()

    def find_scans(self, request_id: str) -> list[Scanned]:
        """Scanned requests with this engine id or client id, latest first."""
        with self._lock:
            return self._reducer.find_scans(request_id)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                data = self._inbox.receive(_POLL_SECONDS)
            except Exception as error:  # the channel failed: keep trying, but never spin
                self._report(error, self._clock_ns())
                self._stopping.wait(_PAUSE_SECONDS)
                continue
            if data is not None:
                self.accept(data)

    def _refuse(self, cause: str, now_ns: int) -> None:
        with self._lock:
            self._reducer.refuse(cause, now_ns)

    def _report(self, error: Exception, now_ns: int) -> None:
        self._refuse("internal", now_ns)
        if type(error) not in self._logged:
            self._logged.add(type(error))
            _log.error("a message could not be folded; counted, logged once", exc_info=error)
