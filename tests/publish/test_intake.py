"""The ingest thread: every message is used or counted, and none ends the thread."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from sidecar.errors import FrameError
from sidecar.fold.reducer import Reducer
from sidecar.publish.intake import Intake
from sidecar.wire.channel import Receiver, Sender
from sidecar.wire.frame import MAX_BYTES, SCHEMA, Frame, pack
from tests import fakes
from tests.fakes import ENGINE, LIMITS, NOW, FakeClock, FakeInbox, FakeSource

KEY = b"sixteen bytes or more"


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def intake(*messages: bytes | Exception, key: bytes | None = None) -> Intake:
    return Intake(FakeInbox(messages), Reducer(LIMITS), key, FakeClock())


def message(key: bytes | None = None, boot: str = "boot-one") -> bytes:
    return pack(FakeSource(boot=boot).frame(fakes.live()), key)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (bytes(MAX_BYTES + 1), "oversized"),
        (b"hello", "magic"),
        (b"LIS\x63" + bytes(80), "schema"),
        (message(b"another key altogether"), "mac"),
    ],
)
def test_what_cannot_be_read_is_counted_by_cause(data: bytes, cause: str) -> None:
    """The cause of the border becomes the label."""
    reading = intake(key=KEY)
    reading.accept(data)
    reading.accept(message(KEY))
    snapshot = reading.get()

    assert {name: n for name, n in snapshot.refused.items() if n} == {cause: 1}
    assert snapshot.sources[0].tally.received == 1


def test_a_bug_of_ours_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the fold costs one frame, not the thread."""

    class Broken(Reducer):
        def update(self, frame: Frame, now_ns: int) -> None:
            raise ZeroDivisionError

    reading = Intake(FakeInbox(), Broken(LIMITS), None, FakeClock())
    for _ in range(3):
        reading.accept(message())

    assert reading.get().refused["internal"] == 3
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR


def test_the_thread_survives_every_message(caplog: pytest.LogCaptureFixture) -> None:
    """Garbage, an error of the channel, an error of the border: the next frame is folded."""
    reading = intake(
        b"", OSError("channel"), b"LIS" + bytes([SCHEMA]), FrameError("magic", ""), message()
    )
    reading.start()
    eventually(lambda: bool(reading.get().sources))
    reading.stop()
    refused = reading.get().refused

    assert (refused["magic"], refused["decode"], refused["internal"]) == (1, 1, 2)
    assert len(caplog.records) == 2


def test_stopping_takes_less_than_a_second() -> None:
    """While waiting for a message, and before it was ever started."""
    for start in (True, False):
        # The quickest of several: a busy machine may keep any of them waiting.
        assert min(_seconds_to_stop(start=start) for _ in range(5)) < 1


def _seconds_to_stop(*, start: bool) -> float:
    inbox = FakeInbox()
    reading = Intake(inbox, Reducer(LIMITS))
    if start:
        reading.start()
    started = time.monotonic()
    reading.stop()
    seconds = time.monotonic() - started
    assert inbox.closed
    return seconds


def test_requests_are_read_under_the_same_lock() -> None:
    """Lists and look-ups come from the same state."""
    reading = intake()

    assert reading.requests(10) == reading.find("x") == reading.signatures(10) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "i.sock"


@pytest.fixture
def listening(path: Path) -> Iterator[Intake]:
    """An intake on a real channel, with real time."""
    reading = Intake(Receiver(path), Reducer(LIMITS))
    reading.start()
    yield reading
    reading.stop()


def test_frames_travel_from_a_real_sender(path: Path, listening: Intake) -> None:
    """What was handed over is received, and the account of frames is closed."""
    sender = Sender(path, ENGINE)
    eventually(lambda: sender.send(fakes.live()))
    for _ in range(50):
        assert sender.send(fakes.layers())
    eventually(lambda: listening.get().ages.num_values == 51)
    view = listening.get().sources[0]
    sender.close()

    assert view.tally.sent == sender.num_sent
    assert view.tally.dropped == sender.num_dropped
    assert view.tally.received == 51


def test_an_oversized_frame_is_counted_on_the_way(path: Path, listening: Intake) -> None:
    """Between our limit and the transport's, a message arrives only to be counted."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    stranger.connect(f"ipc://{path}")
    stranger.send(bytes(MAX_BYTES + 1))
    eventually(lambda: listening.get().refused["oversized"] == 1)
    stranger.close(linger=0)
    context.term()


def test_time_is_read_when_a_message_comes() -> None:
    """Age is counted from packing to reading."""
    clock = FakeClock(NOW)
    reading = Intake(FakeInbox(), Reducer(LIMITS), None, clock)
    data = message()
    clock.advance(LIMITS.max_age_ns / 1e9 + 1)
    reading.accept(data)

    assert reading.get().sources[0].tally.stale == 1
