"""The thread that judges: never in the way of ingest, never ended by a channel, never forgetful."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import ConfigError, WatchError
from sidecar.fold.reducer import Reducer
from sidecar.publish.drift import watch as watching
from sidecar.publish.drift.judges import Judges
from sidecar.publish.drift.keeper import NAME, FileKeeper
from sidecar.publish.drift.panel import Terms, panel_of
from sidecar.publish.intake import Intake
from sidecar.store.snapshot import Saved, Snapshot
from sidecar.wire.frame import Body, Frame, Identity, Manifest, Status, pack
from tests import fakes
from tests.fakes import ENGINE, LIMITS, SECOND, FakeClock, FakeInbox, FakeSource
from tests.publish.drifting import MINUTE, START, FakeChannel, baseline, finished, states, watch


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

        assert slowest < 30  # the channel hangs for twice as long
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

    assert time.monotonic() - started < 30  # the channel hangs for twice as long
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
    terms = Terms("demo", 5 * SECOND)
    for made in (None, baseline()):
        view = Judges(terms, panel_of(terms, made)).get(START)
        told = [each.verdict.reason for each in view.channels if each.is_configured]

        assert len(told) == (4 if made else 1)
        assert all("demo preset" in reason for reason in told)


# --- restarts, memory ------------------------------------------------------------------------


def killed_and_restored(minutes: int, folder: Path) -> tuple[Life, FakeChannel]:
    """A sidecar that is killed after so many of its minutes, and one that goes on from its file."""
    first = Life(FakeChannel(pages_after=4), keeper=FileKeeper(folder))
    for _ in range(minutes):
        first.minute()
    channel = FakeChannel(pages_after=4)
    again = Life(channel, start_ns=first.clock(), keeper=FileKeeper(folder))
    again.source = first.source
    return again, channel


@pytest.mark.parametrize("minutes", range(1, 9))
def test_a_restart_goes_on_where_it_was_killed(minutes: int, tmp_path: Path) -> None:
    """Wherever it is killed: the same windows are judged, each once, as without."""
    unbroken = FakeChannel(pages_after=4)
    life = Life(unbroken)
    again, channel = killed_and_restored(minutes, tmp_path)
    for _ in range(10):
        life.minute()
    for _ in range(10 - minutes):
        again.minute()
    states_of = [states(each.watch.get().channels) for each in (life, again)]

    assert channel.num_windows == unbroken.num_windows
    assert [w.start_ns for w in channel.windows] == [
        w.start_ns for w in unbroken.windows[-len(channel.windows) :]
    ]
    assert states_of == [{"traffic": "page"}] * 2
    assert again.watch.get().keeping == ""


def test_nobody_is_told_of_a_page_before_it_is_kept(tmp_path: Path) -> None:
    """Killed at the moment at which the page is published, the next life tells of it."""
    life = Life(FakeChannel(pages_after=3), keeper=FileKeeper(tmp_path))
    while states(life.watch.get().channels) != {"traffic": "page"}:
        life.minute()
    again = Life(FakeChannel(pages_after=3), keeper=FileKeeper(tmp_path))

    assert states(again.watch.get().channels) == {"traffic": "page"}
    assert again.watch.get().history == life.watch.get().history


def test_nobody_is_told_of_an_acknowledgement_before_it_is_kept(tmp_path: Path) -> None:
    """Killed while the answer is on its way, the next life has seen it too."""
    life = Life(FakeChannel(), keeper=FileKeeper(tmp_path))
    asked = threading.Event()
    found: list[list[str]] = []

    def ask() -> None:
        asked.set()
        life.watch.ask(lambda judges, now_ns: judges.announce("release 7", now_ns))
        again = Life(FakeChannel(), keeper=FileKeeper(tmp_path))
        found.append([each.note for each in again.watch.get().deployments])

    asker = threading.Thread(target=ask)
    asker.start()
    asked.wait(60)
    eventually(lambda: life.watch.turn() or not asker.is_alive())  # type: ignore[func-returns-value]
    asker.join()

    assert found == [["release 7"]]


def test_what_is_open_at_a_shutdown_is_kept(tmp_path: Path) -> None:
    """Requests of an open window, and the announcements of deployments."""
    life = Life(FakeChannel(), keeper=FileKeeper(tmp_path))
    life.watch.start()
    life.watch.ask(lambda judges, now_ns: judges.announce("release 7", now_ns))
    life.hear(finished(START, 2))
    life.watch.stop()
    channel = FakeChannel()
    again = Life(channel, start_ns=START + 5 * MINUTE, keeper=FileKeeper(tmp_path))
    again.watch.turn()

    assert [window.num_requests for window in channel.windows] == [2]
    assert [each.note for each in again.watch.get().deployments] == ["release 7"]


@pytest.mark.parametrize("torn", [b"", b"nonsense", b"\x00" * 100])
def test_a_torn_state_is_said_and_put_aside(torn: bytes, tmp_path: Path) -> None:
    """The sidecar starts, begins again, and keeps what it was given for whoever wants to look."""
    (tmp_path / NAME).write_bytes(torn)
    life = Life(FakeChannel(), keeper=FileKeeper(tmp_path))
    for _ in range(5):
        life.minute()

    assert "the state of an earlier life was refused" in life.watch.get().keeping
    assert (tmp_path / f"{NAME}.refused").read_bytes() == torn
    assert Life(FakeChannel(), keeper=FileKeeper(tmp_path)).watch.get().keeping == ""


def test_a_state_of_another_release_begins_again_and_is_said(tmp_path: Path) -> None:
    """The file is whole, but what it holds is not what these judges keep."""
    FileKeeper(tmp_path).save(Snapshot(START, {"judges": Saved("", {"book": 3})}))
    life = Life(FakeChannel(), keeper=FileKeeper(tmp_path))

    assert "they begin again" in life.watch.get().keeping


def test_a_channel_judged_by_another_baseline_starts_again_and_says_so(tmp_path: Path) -> None:
    """The others go on."""
    life = Life(FakeChannel(), keeper=FileKeeper(tmp_path))
    life.minute()
    keeper = FileKeeper(tmp_path)
    kept = keeper.load()
    assert kept is not None
    state = kept.channels["traffic"].state
    keeper.save(kept._replace(channels={**kept.channels, "traffic": Saved("another", state)}))
    again = Life(FakeChannel(), keeper=FileKeeper(tmp_path)).watch.get().channels[1].verdict

    assert "its kept state was refused (traffic was judged by baseline another" in again.reason


def test_a_folder_that_nobody_can_write_to_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """One sentence with the key, before anything starts."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"SIDECAR_STATE_DIR: .*give a folder"):
        FileKeeper(tmp_path / "file" / "state")


def test_a_disk_that_fails_is_said_until_it_works_again(tmp_path: Path) -> None:
    """Judging goes on meanwhile."""
    folder = tmp_path / "state"
    life = Life(FakeChannel(), keeper=FileKeeper(folder))
    folder.rmdir()
    folder.write_text("a file in its place")
    for _ in range(4):
        life.minute()
    failing = life.watch.get()
    folder.unlink()
    life.clock.advance(watching.RETRY_SECONDS)
    life.watch.turn()

    assert "the state cannot be kept" in failing.keeping
    assert failing.num_scored > 0
    assert life.watch.get().keeping == ""


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
