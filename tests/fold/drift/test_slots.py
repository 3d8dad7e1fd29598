"""Windows of replicas, side by side: what a slot holds does not depend on who was heard first."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.slots import MAX_OPEN, PATIENCE, Slot, Slots
from sidecar.fold.drift.window import Window
from tests.fold.drift.fleets import LENGTH, NUM_STREAMS, START

REPLICAS = ("a", "b", "c")


def window(index: int, length: int = 1) -> Window:
    start_ns = START + index * LENGTH
    return Window(start_ns, start_ns + length * LENGTH, 30 + index, {})


def closed(slots: Slots, arrivals: Sequence[tuple[str, int]]) -> list[Slot]:
    told = []
    for replica, index in arrivals:
        slots.update(replica, window(index))
        told += slots.close()
    return told


def test_a_slot_closes_when_all_that_are_expected_are_in() -> None:
    """At once, and with each replica's window."""
    slots = Slots()
    slots.expect(REPLICAS)

    assert closed(slots, [("a", 0), ("b", 0)]) == []
    (slot,) = closed(slots, [("c", 0)])
    assert list(slot.windows) == ["a", "b", "c"]
    assert (slot.start_ns, slot.end_ns) == (START, START + LENGTH)


def test_a_silent_replica_is_waited_for_two_windows() -> None:
    """Not one, not three; what it sends later is counted."""
    slots = Slots()
    slots.expect(REPLICAS)
    both = [(name, index) for index in range(PATIENCE + 1) for name in "ab"]

    assert closed(slots, both[:-1]) == []
    (slot,) = closed(slots, both[-1:])
    assert list(slot.windows) == ["a", "b"]
    assert closed(slots, [("c", 0)]) == []
    assert slots.num_late == 1


def test_one_clock_that_runs_ahead_closes_nothing() -> None:
    """Time is what a second replica says too."""
    slots = Slots()
    slots.expect(REPLICAS)

    assert closed(slots, [("a", 0), ("a", 1000), ("b", 0)]) == []
    assert slots.clock_ns == START + LENGTH


def test_windows_of_other_lengths_are_other_slots() -> None:
    """Ten minutes of one replica are not compared with five of another."""
    slots = Slots()
    slots.expect(("a", "b"))
    slots.update("a", window(0, length=2))
    slots.update("b", window(0))
    slots.update("b", window(1))

    assert list(slots.close()) == []


@given(st.randoms(use_true_random=False))
def test_arrivals_in_any_order_make_the_same_slots(random: object) -> None:
    """Replicas in any order, each one's own windows in order, none more than two late."""
    plain = [(name, index) for index in range(12) for name in REPLICAS]
    jittered = sorted(plain, key=lambda each: each[1] + PATIENCE * random.random())  # type: ignore[attr-defined]
    by_replica = {name: iter(range(12)) for name in REPLICAS}
    shuffled = [(name, next(by_replica[name])) for name, _ in jittered]
    one, other = Slots(), Slots()
    for slots in (one, other):
        slots.expect(REPLICAS)

    assert closed(other, shuffled) == closed(one, plain)
    assert other.num_late == 0


def test_a_flood_of_odd_windows_is_bounded_and_pushes_nobody_out() -> None:
    """A lying exporter loses its own oldest windows."""
    slots = Slots()
    slots.expect(REPLICAS)
    slots.update("b", window(0))
    for index in range(500):
        slots.update("a", window(0, length=1000 + index))

    assert len(slots.export()["open"]) == MAX_OPEN + 1
    (slot,) = closed(slots, [("a", 0), ("c", 0)])[:1] or [None]
    assert slot is None or "b" in slot.windows


def test_it_goes_on_where_it_stopped() -> None:
    """Exported and restored, it closes the same slots; a stranger's state changes nothing."""
    arrivals = [(name, index) for index in range(6) for name in "ab"]
    one, other = Slots(), Slots()
    whole = closed(one, arrivals)
    first = closed(other, arrivals[:5])
    restored = Slots()
    restored.restore(other.export(), NUM_STREAMS)

    assert first + closed(restored, arrivals[5:]) == whole
    with pytest.raises(StateError):
        restored.restore({"open": [{"a": {}}]}, NUM_STREAMS)
    assert restored.export() == one.export()
