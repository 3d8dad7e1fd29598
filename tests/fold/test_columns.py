"""Rings of seconds: what is held, what is cleared, and where growth between readings belongs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.columns import COLUMN_NS, MAX_SPREAD, NUM_COLUMNS, Ring, spread

START = 1_790_000_000


def written(*seconds: int) -> Ring:
    """A ring in which each of these seconds, in that order, was given its own number."""
    ring = Ring((1,), np.nan)
    for second in seconds:
        row = ring.open(second)
        if row is not None:
            row[:] = second - START
    return ring


@given(st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_the_last_ten_minutes_are_held(steps: list[int]) -> None:
    """Whatever is skipped reads as empty, also when a ring went round."""
    seconds = [START + int(total) for total in np.cumsum(steps)]
    ring = written(*seconds)
    span = range(seconds[-1] - 2 * NUM_COLUMNS, seconds[-1] + 10)
    found = ring.read(span)[:, 0]
    held = {s for s in seconds if s > seconds[-1] - NUM_COLUMNS}

    assert [s for s, value in zip(span, found, strict=True) if not np.isnan(value)] == sorted(held)
    assert all(found[s - span.start] == s - START for s in held)
    assert (ring.first, ring.last) == (max(seconds[0], seconds[-1] - NUM_COLUMNS + 1), seconds[-1])


def test_a_late_reading_finds_its_second() -> None:
    """Nothing between is cleared, and the latest stays the latest."""
    ring = written(START, START + 9, START + 4)

    assert ring.last == START + 9
    assert ring.read(range(START, START + 10))[[0, 4, 9], 0].tolist() == [0, 4, 9]


def test_what_came_before_the_first_second_is_not_held() -> None:
    """A ring cannot be written behind its beginning."""
    ring = written(START, START + 5)

    assert ring.open(START - 1) is None
    assert ring.read(range(START - 3, START)).size == np.isnan(ring.read(range(3))).sum()


def test_a_clock_that_is_set_back_begins_the_ring_again() -> None:
    """Else it would stand still until that clock has caught up."""
    ring = written(START, START + 1, START - 3600)

    assert (ring.first, ring.last) == (START - 3600, START - 3600)
    assert np.isnan(ring.read(range(START, START + 2))).all()


def test_a_part_of_each_row_can_be_read() -> None:
    """Only what is asked for is copied."""
    ring = Ring((2, 3))
    row = ring.open(START)
    assert row is not None
    row[:] = np.arange(6).reshape(2, 3)

    assert ring.read(range(START, START + 1), (1, slice(0, 2))).tolist() == [[3.0, 4.0]]


@given(st.integers(0, 10**6), st.integers(0, 20 * 10**9))
def test_growth_belongs_to_the_seconds_since_the_reading_before(start: int, gap: int) -> None:
    """Never to the second of the reading before, unless both are of one second."""
    before_ns, now_ns = start * 997, start * 997 + gap
    seconds = spread(before_ns, now_ns)
    before, now = before_ns // COLUMN_NS, now_ns // COLUMN_NS

    assert seconds[-1] == now
    assert len(seconds) == (now - before if 1 <= now - before <= MAX_SPREAD else 1)
