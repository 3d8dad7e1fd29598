"""The pump: takes in, sends at the flush, survives what raises, and stops within a second."""

import itertools
import threading
import time

import pytest

from sidecar.tap import pump as module
from sidecar.tap.pump import (
    IDLE_POLL_SECONDS,
    LONGEST_POLL_SECONDS,
    POLL_SECONDS,
    STOP_SECONDS,
    Pump,
    Work,
    idle_work,
    paced,
)
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source, Status
from tests.tap.inbox import pumps

LIVE = Status("live")


def pump(path, guard, work: Work, flush_seconds: float = 0.05) -> Pump:
    made = Pump(Sender(path, Source("engine")), work, guard, flush_seconds)
    made.start()
    return made


def quickest_stop(path, guard, work: Work, after: float) -> float:
    """Seconds that stopping takes, the least of three: a busy machine may keep any of them waiting.

    Each is stopped `after` so many seconds, and has ended.
    """
    found = []
    for _ in range(3):
        running = pump(path, guard, work)
        time.sleep(after)
        began = time.monotonic()
        running.stop()
        found.append(time.monotonic() - began)
        running._thread.join(60)
        assert not pumps()
    return min(found)


def is_status(frame) -> bool:
    return isinstance(frame.body, Status)


def test_bodies_are_sent_at_every_flush_with_the_step(socket_path, inbox, guard) -> None:
    """Each flush sends every body, numbered in one sequence and stamped with the steps so far."""
    steps = iter(range(10, 10_000))
    work = Work(lambda: 0, lambda: [LIVE, Status("starting")], lambda: next(steps))
    pump(socket_path, guard, work)
    first = inbox.wait_for(is_status)
    rest = [inbox.wait_for(is_status) for _ in range(3)]
    states = [frame.body.state for frame in (first, *rest)]
    assert states in (["live", "starting"] * 2, ["starting", "live"] * 2)
    seqs = [frame.header.seq for frame in (first, *rest)]
    assert seqs == list(range(seqs[0], seqs[0] + 4))
    assert first.header.step >= 10
    assert rest[-1].header.step > first.header.step


def test_draining_goes_on_between_flushes(socket_path, guard) -> None:
    """What the step path leaves is taken in every few milliseconds, not once a flush."""
    drained = threading.Semaphore(0)
    work = Work(lambda: drained.release() or 0, list, lambda: 0)
    pump(socket_path, guard, work, flush_seconds=60.0)
    for _ in range(3):
        assert drained.acquire(timeout=60.0)


def test_it_polls_as_often_as_there_is_something_to_drain() -> None:
    """An idle engine is woken up less; many events of a poll shorten the next wait again."""
    waits = [POLL_SECONDS]
    for num_drained in (0, 0, 0, 1, 2, 9, 9, 9):
        waits.append(paced(waits[-1], num_drained, POLL_SECONDS))
    assert waits[1:] == [0.01, 0.015, 0.015, 0.015, 0.015, 0.0075, 0.005, 0.005]
    assert paced(IDLE_POLL_SECONDS, 0, IDLE_POLL_SECONDS) == IDLE_POLL_SECONDS


def test_an_idle_pump_polls_at_its_longest_wait(socket_path, guard) -> None:
    times: list[float] = []
    work = Work(lambda: times.append(time.monotonic()) or 0, list, lambda: 0)
    pump(socket_path, guard, work, flush_seconds=60.0)
    until = time.monotonic() + 60
    while len(times) < 13 and time.monotonic() < until:
        time.sleep(0.05)
    # Waits are never shorter than asked for, however busy the machine is.
    waits = [later - earlier for earlier, later in itertools.pairwise(times[2:])]
    assert waits
    assert min(waits) >= 0.9 * LONGEST_POLL_SECONDS


def test_the_first_frame_arrives_and_at_once(socket_path, inbox, guard) -> None:
    """With a receiver there no frame is dropped, not even the first, and none waits for a flush."""
    pump(socket_path, guard, idle_work(lambda: [LIVE]), flush_seconds=60.0)
    assert inbox.wait_for(is_status, seconds=30.0).header.seq == 1


def test_a_raising_drain_is_counted_and_the_flush_goes_on(socket_path, inbox, guard) -> None:
    """What raises while taking in is counted and disarmed; statuses keep coming."""

    def drain() -> None:
        raise RuntimeError("a bug of ours")

    pump(socket_path, guard, Work(drain, lambda: [LIVE], lambda: 0))
    last = [inbox.wait_for(is_status).header.seq for _ in range(5)][-1]
    assert last >= 5
    assert guard.errors == {"pump": 3}


def test_raising_bodies_are_counted_and_the_draining_goes_on(socket_path, guard) -> None:
    """What raises while packing is counted and disarmed; taking in goes on."""
    drained = threading.Semaphore(0)

    def bodies() -> list[Status]:
        raise RuntimeError("a bug of ours")

    pump(socket_path, guard, Work(drained.release, bodies, lambda: 0))
    deadline = time.monotonic() + 60
    while guard.errors != {"flush": 3} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert guard.errors == {"flush": 3}
    while drained.acquire(blocking=False):
        pass
    assert drained.acquire(timeout=60.0)


def test_stop_drains_and_delivers_what_is_left(socket_path, inbox, guard, monkeypatch) -> None:
    """What came after the last flush is taken in, sent, and handed over before the end."""
    monkeypatch.setattr(module, "STOP_SECONDS", 60.0)  # as much as a busy machine needs
    monkeypatch.setattr(module, "LINGER_SECONDS", 30.0)
    waiting: list[int] = []
    taken: list[int] = []

    def drain() -> None:
        while waiting:
            taken.append(waiting.pop())

    work = Work(drain, lambda: [Status("live", detail="x" * 2000) for _ in taken], lambda: 0)
    running = pump(socket_path, guard, work, flush_seconds=60.0)
    assert inbox.read(0.3) == []  # the one flush of this minute had nothing to say
    waiting.extend(range(50))
    running.stop()
    told = [inbox.wait_for(is_status).header.seq for _ in range(50)]
    assert told == list(range(1, 51))
    assert inbox.read(0.1) == []


def test_stopping_without_a_receiver_takes_less_than_a_second(socket_path, guard) -> None:
    """With nobody listening, hundreds of unsent frames are dropped at once."""
    work = idle_work(lambda: [LIVE] * 200)
    assert quickest_stop(socket_path, guard, work, after=0.2) < STOP_SECONDS


def test_stopping_before_a_receiver_that_does_not_read_takes_less_than_a_second(
    socket_path, inbox, guard
) -> None:
    """With the queues full of frames that nobody takes, the rest is dropped in time."""
    big = Status("live", detail="x" * 2000)
    work = idle_work(lambda: [big] * 2000)
    assert quickest_stop(socket_path, guard, work, after=0.4) < STOP_SECONDS


@pytest.mark.parametrize("stuck", ["drain", "bodies"])
def test_stopping_a_stuck_pump_takes_a_second_at_most(stuck, socket_path, guard) -> None:
    """A pump that never comes back is left behind: shutting down the engine does not wait."""
    release, entered = threading.Event(), threading.Event()

    def hang() -> list[Status]:
        entered.set()
        release.wait(120)
        return []

    idle = Work(lambda: 0, list, lambda: 0)
    running = pump(socket_path, guard, idle._replace(**{stuck: hang}))
    assert entered.wait(60)
    began = time.monotonic()
    running.stop()
    took = time.monotonic() - began
    release.set()
    assert STOP_SECONDS <= took < 60  # it hangs for twice as long


def test_the_one_thread_is_a_named_daemon(socket_path, guard) -> None:
    """One thread, which never keeps the engine's process alive, and says whose it is."""
    pump(socket_path, guard, idle_work(list))
    (thread,) = pumps()
    assert thread.daemon


def test_a_pump_that_never_started_can_be_stopped(socket_path, guard) -> None:
    """Stopping before starting is no error and takes no time."""
    Pump(Sender(socket_path, Source("engine")), idle_work(list), guard, 1.0).stop()
    assert not socket_path.exists()
