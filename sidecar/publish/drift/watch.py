"""The thread that judges drift: fed by the ingest thread through a bounded queue, asked by the API.

Guarantees: ingest never waits for a channel; what finds no room is counted; readers get the last
published view at once, however long a channel takes, and can see how old it is; a verdict is kept
before it is published, so nobody is told of an alarm that a crash could undo, and what cannot be
kept is tried again every `RETRY_SECONDS`; questions that change something are answered within
`ASK_SECONDS` or refused; `stop` returns within `STOP_SECONDS`, after everything was kept, unless a
channel hangs. Time is a clock given.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from sidecar.errors import StateError, WatchError
from sidecar.publish.drift.judges import DriftView, Heard, Judges, Overflow, Served, Told
from sidecar.publish.drift.mailbox import Mailbox
from sidecar.store.snapshot import Snapshot
from sidecar.wire.frame import Body, Frame, Layers, Manifest, Serving, Signatures, Status

MAX_BYTES: Final = 32 << 20
ASK_SECONDS: Final = 2.0
STOP_SECONDS: Final = 2.0
STALLED_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 0.25
_ITEM_BYTES: Final = 1024  # about what one signature or message takes beside its numbers
_BUSY: Final = "the thread that judges drift is busy or stopped; ask again, and read its log"
_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)


class _Question(NamedTuple):
    """Something to do between two items, and where its answer goes."""

    ask: Callable[[Judges, int], object]
    answer: "Future[object]"


class Keeper(Protocol):
    """Where the state of the judges outlives the process."""

    @property
    def reason(self) -> str:
        """What is wrong with keeping it; "" when all is well."""

    def save(self, snapshot: Snapshot) -> bool:
        """Replace what is kept; whether that was done. A failure becomes the reason."""

    def load(self) -> Snapshot | None:
        """What an earlier life kept; None when there is nothing of use."""


class Watch:
    """Owns the judges, and their only thread.

    keeper: where their state is kept; None keeps it in memory alone.
    clock_ns: Unix time in nanoseconds, the same that the senders stamp with.
    """

    def __init__(
        self,
        judges: Judges,
        keeper: Keeper | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._judges = judges
        self._keeper = keeper
        self._clock_ns = clock_ns
        self._mailbox: Mailbox[Heard | _Question] = Mailbox(max_bytes)
        self._num_left_out = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-drift", daemon=True)
        self._is_logged = False
        self._refusal = ""
        self._kept_ns = clock_ns()
        self._is_kept = True  # all that was to be
        self._restore()
        self._view = self._look()

    def start(self) -> None:
        """Begin to judge."""
        self._thread.start()

    def stop(self) -> None:
        """Judge what waits, keep the state, and end."""
        self._stopping.set()
        self._mailbox.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            _log.error("a drift channel hangs; what it learnt since its last window is not kept")

    def hear(self, frame: Frame, now_ns: int) -> None:
        """Take an accepted frame, read at `now_ns`; never waits."""
        body = _of_interest(frame.body)
        if body is None:
            return
        num_items, num_bytes = _size(body)
        if not self._mailbox.put(Heard(frame.header.source, body, now_ns), num_bytes):
            self._num_left_out += num_items

    def get(self) -> DriftView:
        """Everything publishable, as of the last turn; an old view says so."""
        view = self._view._replace(num_left_out=self._num_left_out)
        seconds = (self._clock_ns() - view.now_ns) / 1e9
        return view if seconds <= STALLED_SECONDS else _stalled(view, seconds)

    def ask(self, question: Callable[[Judges, int], _Answer]) -> _Answer:
        """Have the thread do something with the judges at its time.

        Raises what the question raises, and WatchError when it is not answered in time; it may
        still be done later.
        """
        answer: Future[object] = Future()
        if not self._mailbox.put(_Question(question, answer), _ITEM_BYTES):
            raise WatchError(_BUSY)
        try:
            return answer.result(ASK_SECONDS)  # type: ignore[return-value]
        except NotInTime as error:
            if not answer.done():
                raise WatchError(_BUSY) from error
            raise

    def turn(self, timeout_seconds: float = 0.0) -> None:
        """Do what waits, close what is over, publish; never raises."""
        for item in self._mailbox.take(timeout_seconds):
            self._do(item)
        self._guarded(lambda: self._judges.advance(self._clock_ns()))
        self._guarded(self._settle)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.turn(_TURN_SECONDS)
        self.turn()
        self._guarded(self._keep)
        self._guarded(self._judges.close)

    def _do(self, item: Heard | _Question) -> None:
        if isinstance(item, Heard):
            self._guarded(lambda: self._judges.take(item))
            return
        try:
            answer = item.ask(self._judges, self._clock_ns())
        except Exception as error:  # the asker learns of it; the thread goes on
            item.answer.set_exception(error)
        else:
            self._guarded(self._settle)  # whoever looks after the answer sees what it did
            item.answer.set_result(answer)

    def _guarded(self, action: Callable[[], _Answer]) -> _Answer | None:
        """What it returns; None when it raised."""
        try:
            return action()
        except Exception as error:  # a bug of ours must not end the thread
            self._judges.num_errors += 1
            if not self._is_logged:
                self._is_logged = True
                _log.error("drift: an item could not be judged; counted", exc_info=error)
            return None

    def _settle(self) -> None:
        """Keep what is new, then publish: in this order, or a crash between would undo an alarm."""
        # Looking is where the judges notice that a verdict is another.
        view = self._guarded(self._look) or self._view
        if self._is_due():
            self._guarded(self._keep)
        self._view = view._replace(keeping=self._keeping())

    def _is_due(self) -> bool:
        """Whether to keep now; a clock that was set back is no reason to wait for it."""
        since_ns = abs(self._clock_ns() - self._kept_ns)
        if not self._is_kept:
            return since_ns >= RETRY_SECONDS * 1e9
        return self._judges.has_news or since_ns >= self._view.terms.window_ns

    def _look(self) -> DriftView:
        return self._judges.get(self._clock_ns())._replace(keeping=self._keeping())

    def _keeping(self) -> str:
        reason = self._keeper.reason if self._keeper else _IN_MEMORY
        return "; ".join(filter(None, (self._refusal, reason)))

    def _keep(self) -> None:
        self._judges.has_news = False
        self._kept_ns = self._clock_ns()
        if self._keeper is not None:
            self._is_kept = False
            self._is_kept = self._keeper.save(self._judges.export(self._kept_ns))

    def _restore(self) -> None:
        kept = self._keeper.load() if self._keeper else None
        if kept is None:
            return
        try:
            self._judges.restore(kept)
        except StateError as error:
            self._refusal = (
                f"the windows of an earlier life were refused, they begin again: {error}"
            )


_IN_MEMORY: Final = (
    "kept in memory alone, so a restart begins again; set SIDECAR_STATE_DIR to a folder that lasts"
)


def _stalled(view: DriftView, seconds: float) -> DriftView:
    reason = f"nothing was judged for {seconds:.0f} s: a channel hangs, see the sidecar's log"
    channels = tuple(each.doubted(reason) for each in view.channels)
    return view._replace(channels=channels)


def _of_interest(body: Body) -> Told | None:
    """What a frame holds for drift: final signatures, what is executed, what was served."""
    match body:
        case Layers():
            counts = np.frombuffer(body.moments.nonfinite, "<u8").tolist()
            return Overflow(dict(zip(body.layers, counts, strict=True)))
        case Signatures():
            final = [each for each in body.signatures if each.is_final]
            return Signatures(body.layout, final) if final else None
        case Serving():
            return Served(len(body.finished)) if body.finished else None
        case Manifest():  # the list of files is long, and its digest says it all
            return msgspec.structs.replace(body, files=[])
        case Status():
            return body
    return None


def _size(body: Told) -> tuple[int, int]:
    """How many items, and about how many bytes in memory."""
    if not isinstance(body, Signatures):
        return 1, 8 * _ITEM_BYTES
    num_items = len(body.signatures)
    return num_items, num_items * _ITEM_BYTES + sum(len(each.values) for each in body.signatures)
