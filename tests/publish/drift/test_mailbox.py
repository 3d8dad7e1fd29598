"""The queue before the judges: bounded, in order, and the giver never waits."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from sidecar.publish.drift.mailbox import Mailbox


@given(st.lists(st.one_of(st.integers(0, 5), st.none())))
def test_nothing_is_lost_or_held_beyond_the_bound(steps: list[int | None]) -> None:
    """Every item is refused or taken, once and in order; a number is put, None takes all."""
    box: Mailbox[int] = Mailbox(12)
    accepted: list[int] = []
    taken: list[int] = []
    for place, step in enumerate(steps):
        if step is None:
            taken += box.take(0)
        elif box.put(place, step):
            accepted.append(place)
        waiting = accepted[len(taken) :]
        assert sum(steps[each] or 0 for each in waiting) <= 12
    taken += box.take(0)

    assert taken == accepted


def test_room_that_was_refused_comes_back_when_all_is_taken() -> None:
    """The bound is on what waits, not on what ever came."""
    box: Mailbox[str] = Mailbox(2)

    assert [box.put(each, 1) for each in "abc"] == [True, True, False]
    assert box.take(0) == ["a", "b"]
    assert box.put("d", 2)


def test_a_taker_is_woken_by_an_item_and_by_a_call() -> None:
    """Long before its time is over."""
    box: Mailbox[str] = Mailbox(10)
    taken: list[list[str]] = []
    for wake in (lambda: box.put("a", 1), box.wake):
        taker = threading.Thread(target=lambda: taken.append(box.take(60)))
        started = time.monotonic()
        taker.start()
        while taker.is_alive():
            wake()
            taker.join(0.01)
        assert time.monotonic() - started < 30

    assert taken[0]
    assert set(taken[0]) == {"a"}
