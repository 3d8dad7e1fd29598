"""The thread that judges: never in the way of ingest, never ended by a channel, never forgetful."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import WatchError
from sidecar.fold.reducer import Reducer
from sidecar.publish import watch as watching
from sidecar.publish.intake import Intake
from sidecar.publish.watch import Watch
from sidecar.wire.frame import Body, Frame, Identity, Manifest, Status, pack
from tests import fakes
from tests.fakes import ENGINE, LIMITS, FakeClock, FakeInbox, FakeSource
from tests.publish.drifting import MINUTE, START, FakeChannel, finished, states, watch


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


class Life:
    """A watch, its clock and the source it hears."""

    def __init__(self, *channels: FakeChannel, start_ns: int = START, **others: object) -> None:
        self.clock = FakeClock(start_ns)
        self.source = FakeSource()
        self.watch = watch(*channels, clock=self.clock, **others)  # type: ignore[arg-type]

    def hear(self, body: Body) -> None:
        now = self.clock()
        self.watch.hear(self.source.frame(body, now), now)

    def minute(self, num: int = 2, **others: object) -> None:
        """Requests that end now, and a turn a minute later."""
        self.hear(finished(self.clock(), num, **others))  # type: ignore[arg-type]
        self.watch.turn()
        self.clock.advance(60)
        self.watch.turn()


def test_windows_reach_every_channel_by_the_clock_given() -> None:
    """Closed by time alone, each once, and counted as scored."""
    channels = FakeChannel("traffic"), FakeChannel("mix")
    life = Life(*channels)
    for _ in range(6):
        life.minute()
    view = life.watch.get()
    starts = [window.start_ns for window in channels[0].windows]

    assert starts == [START + k * MINUTE for k in range(len(starts))]
    assert len(starts) >= 3
    assert [w.start_ns for w in channels[1].windows] == starts
    assert view.num_scored == view.counts.num_closed == len(starts)
    assert view.counts.num_used == 12
    assert view.now_ns == life.clock()


def test_canary_requests_reach_no_window() -> None:
    """They are counted apart; only proven ones carry a canary."""
    channel = FakeChannel()
    life = Life(channel)
    for _ in range(5):
        life.minute(canary="p1@1790000000000")
    for _ in range(4):
        life.minute()
    view = life.watch.get()

    assert (view.num_canary, view.counts.num_used) == (10, 8)
    assert sum(window.num_requests for window in channel.windows) <= 8
    assert all(window.num_requests == 2 for window in channel.windows)


def test_only_final_signatures_count() -> None:
    """A long request is told of every second, and is one request."""
    life = Life(FakeChannel())
    life.hear(fakes.signatures("a", "b", is_final=False))
    life.hear(finished(num=1))
    life.watch.turn()

    assert life.watch.get().counts.num_used == 1


def test_a_channel_that_fails_takes_no_other_with_it() -> None:
    """It is counted and says so; the others judge every window."""
    broken, well = FakeChannel("traffic"), FakeChannel("mix")
    broken.error = ValueError("x")
    life = Life(broken, well)
    for _ in range(6):
        life.minute()
    view = life.watch.get()
    by_name = {each.verdict.channel: each for each in view.channels}

    assert by_name["traffic"].num_errors == len(well.windows) >= 3
    assert "it cannot judge (ValueError)" in by_name["traffic"].verdict.reason
    assert states(view.channels) == {"traffic": "collecting", "mix": "armed"}
    assert view.num_errors == 0


def test_an_exception_outside_of_the_channels_is_counted_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Values of a layout that nobody can read cost one item."""
    life = Life(FakeChannel())
    frame = life.source.frame(finished())
    torn = finished()
    torn.signatures[0].values = b"12345"  # the border refuses such a frame; a bug might not
    life.watch.hear(Frame(frame.header, torn), life.clock())
    life.watch.hear(frame, life.clock())
    life.watch.turn()
    view = life.watch.get()

    assert (view.num_errors, view.counts.num_used) == (1, 1)
    assert len(caplog.records) == 1


def test_ingest_does_not_wait_for_a_stuck_channel() -> None:
    """Frames are folded and published at once while a channel hangs; what finds no room counts."""
    channel, release = FakeChannel(), threading.Event()
    channel.before_update = lambda: release.wait(60)
    clock, source = FakeClock(START), FakeSource()
    judging = watch(channel, clock=clock, max_bytes=64 << 10)
    intake = Intake(FakeInbox(), Reducer(LIMITS), None, clock, listener=judging.hear)
    judging.start()
    try:
        intake.accept(pack(source.frame(finished(START, 2), START)))
        eventually(lambda: judging.get().counts.num_used == 2)
        clock.advance(300)
        slowest = 0.0
        for _ in range(100):
            data = pack(source.frame(finished(clock(), 10), clock()))
            started = time.monotonic()
            intake.accept(data)
            slowest = max(slowest, time.monotonic() - started)
        eventually(lambda: judging.get().num_left_out > 0)
        num_left_out = judging.get().num_left_out

        assert slowest < 1
        assert intake.get().sources[0].tally.received == 101
        assert num_left_out <= 1000
    finally:
        release.set()
        judging.stop()
    assert judging.get().counts.num_used + judging.get().num_left_out == 1002


def test_a_view_that_is_old_says_so() -> None:
    """Nothing is called armed by a thread that hangs; a page stays one."""
    life = Life(FakeChannel("traffic"), FakeChannel("mix", pages_after=0))
    life.watch.turn()
    fresh = life.watch.get()
    life.clock.advance(watching.STALLED_SECONDS + 1)
    stalled = life.watch.get()

    assert states(fresh.channels) == {"traffic": "armed", "mix": "page"}
    assert states(stalled.channels) == {"traffic": "collecting", "mix": "page"}
    assert all(
        "nothing was judged for 31 s" in c.verdict.reason
        for c in stalled.channels
        if c.is_configured
    )


def test_questions_are_answered_by_the_thread_at_its_time() -> None:
    """And what they raise is raised to whoever asked."""
    life = Life(FakeChannel())
    life.watch.start()
    try:
        assert life.watch.ask(lambda judges, now_ns: now_ns) == START
        with pytest.raises(ZeroDivisionError):
            life.watch.ask(lambda judges, now_ns: 1 // 0)
        assert life.watch.ask(lambda judges, now_ns: threading.current_thread().name) == (
            "sidecar-drift"
        )
    finally:
        life.watch.stop()


def test_a_question_that_is_not_answered_in_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the remedy, and no thread of the API is held for longer."""
    monkeypatch.setattr(watching, "ASK_SECONDS", 0.01)
    life = Life(FakeChannel())

    with pytest.raises(WatchError, match="busy or stopped; ask again"):
        life.watch.ask(lambda judges, now_ns: 1)


def test_stopping_does_not_wait_for_a_stuck_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar ends within five seconds whatever a channel does."""
    monkeypatch.setattr(watching, "STOP_SECONDS", 0.1)
    channel, release = FakeChannel(), threading.Event()
    channel.before_update = lambda: release.wait(60)
    life = Life(channel)
    life.watch.start()
    life.hear(finished(num=2))
    eventually(lambda: life.watch.get().counts.num_used == 2)
    life.clock.advance(300)
    started = time.monotonic()
    life.watch.stop()

    assert time.monotonic() - started < 5
    release.set()


def test_what_engines_execute_is_told() -> None:
    """Identity and manifest by source; a front end executes nothing."""
    life = Life(FakeChannel())
    life.hear(Status("live", identity=Identity(model_name="m", dtype="bfloat16")))
    life.hear(Manifest("complete", weights_digest="w", tokenizer_digest="t"))
    life.watch.turn()
    executed = life.watch.get().executed

    assert executed[ENGINE.name].identity == Identity(model_name="m", dtype="bfloat16")
    assert executed[ENGINE.name].manifest == Manifest(
        "complete", weights_digest="w", tokenizer_digest="t"
    )


def test_the_demonstrations_preset_is_said_in_every_reason() -> None:
    """Nobody takes its alarms for the real ones."""
    from tests.publish.drifting import judges

    life = Watch(judges(FakeChannel(), preset="demo"), None, FakeClock())

    assert life.get().channels[1].verdict.reason.startswith("demo preset, windows of 60 s: ")


# --- memory, restarts ------------------------------------------------------------------------


def test_memory_stays_bounded_over_many_requests() -> None:
    """10^5 requests in 100 minutes: the second half takes no more memory than its windows."""
    channel = FakeChannel()
    life = Life(channel)
    resident = []
    for minute in range(100):
        for _ in range(2):
            life.hear(finished(life.clock(), 500))
        life.watch.turn()
        life.clock.advance(60)
        life.watch.turn()
        channel.windows.clear()
        if minute in (49, 99):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)

    assert life.watch.get().counts.num_used == 100_000
    assert len(life.watch.get().windows) > 90
    assert resident[1] - resident[0] < 16 << 20  # half of the requests alone would be 60 MB
