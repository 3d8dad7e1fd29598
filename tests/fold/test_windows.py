"""Extremes and growth over the last closed window of 10 s."""

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.windows import WINDOW_NS, Extremes, Growth, Stamped
from tests.fakes import NOW, SECOND


def ends(smallest: float, largest: float) -> NDArray[np.float32]:
    return np.array([[smallest, largest]], np.float32)


def at(seconds: float, smallest: float, largest: float) -> Stamped:
    return Stamped(NOW + int(seconds * SECOND), ends(smallest, largest))


def test_an_open_window_is_not_shown() -> None:
    """A scrape never sees half a window."""
    extremes = Extremes()
    extremes.update(at(0, 1, 2))
    extremes.update(at(9.9, 1, 3))

    assert extremes.get() is None


def test_a_window_shows_when_the_next_one_begins() -> None:
    """The widest ends of all its frames, none of the next window's."""
    extremes = Extremes()
    extremes.update(at(0, 2, 5))
    extremes.update(at(9, 1, 3))
    extremes.update(at(10, 0, 9))

    np.testing.assert_array_equal(ends(1, 5), extremes.get())


def test_frames_without_rows_change_nothing() -> None:
    """NaN stands for no row, and stays only where no frame had one."""
    nan = float("nan")
    extremes = Extremes()
    extremes.update(Stamped(NOW, np.array([[1, 2], [nan, nan]], np.float32)))
    extremes.update(Stamped(NOW, np.array([[nan, nan], [nan, nan]], np.float32)))
    extremes.advance(NOW + WINDOW_NS)

    np.testing.assert_array_equal(np.array([[1, 2], [nan, nan]], np.float32), extremes.get())


def test_an_idle_window_shows_nothing() -> None:
    """After a window without frames the one before it is gone: nothing is frozen."""
    extremes = Extremes()
    extremes.update(at(0, 1, 2))
    extremes.advance(NOW + 2 * WINDOW_NS)

    assert extremes.get() is None


def test_a_frame_one_window_late_finds_its_window() -> None:
    """A slow frame still counts where it belongs."""
    extremes = Extremes()
    extremes.update(at(5, 2, 3))
    extremes.update(at(11, 7, 8))
    extremes.update(at(9, 1, 2))

    np.testing.assert_array_equal(ends(1, 3), extremes.get())


def test_a_clock_set_back_starts_anew() -> None:
    """Windows go on at once when a source's clock falls back an hour."""
    extremes = Extremes()
    extremes.update(at(0, 1, 2))
    extremes.update(at(10, 1, 2))
    extremes.update(at(-3600, 5, 6))
    assert extremes.get() is None
    extremes.update(at(-3590, 7, 8))

    np.testing.assert_array_equal(ends(5, 6), extremes.get())


def test_signalling_nan_is_quiet() -> None:
    """A stranger's bit patterns raise no warning; at worst they hide his own window."""
    strange = np.array([[0x7F800001, 0x7F800001]], np.uint32).view(np.float32)
    extremes = Extremes()
    extremes.update(Stamped(NOW, ends(1, 2)))
    extremes.update(Stamped(NOW, strange))
    extremes.update(at(10, 3, 4))
    extremes.advance(NOW + 2 * WINDOW_NS)

    np.testing.assert_array_equal(ends(3, 4), extremes.get())


def readings(*seconds: int) -> Growth[int]:
    """A quantity that is as large as the time at which it was read."""
    growth: Growth[int] = Growth()
    for each in seconds:
        growth.update(each * SECOND, each)
    return growth


def test_growth_is_between_the_last_readings_of_two_windows() -> None:
    """The window from 10 to 20 s began with the reading of 9 s."""
    growth = readings(3, 9, 11, 15, 19)
    assert growth.get() == (3, 9)

    growth.advance(20 * SECOND)
    assert growth.get() == (9, 19)


def test_growth_needs_a_closed_window() -> None:
    """Half a window is never told."""
    assert Growth[int]().get() is None
    assert readings(3, 9).get() is None


def test_an_empty_window_has_not_grown() -> None:
    """Neither one that passed in silence, nor one of other frames."""
    growth = readings(3, 9)
    for second in (25, 30):
        growth.advance(second * SECOND)
        assert growth.get() == (9, 9)


def test_growth_follows_a_clock_that_was_set_back() -> None:
    """It does not wait for the clock to catch up."""
    growth = readings(103, 109, 111, 3, 8)
    assert growth.get() is None

    growth.advance(10 * SECOND)
    assert growth.get() == (109, 8)


def test_a_reading_a_window_late_is_the_latest_all_the_same() -> None:
    """Readings are cumulative: none is lost, at worst it shows a window later."""
    growth = readings(3, 11, 9)
    growth.advance(20 * SECOND)

    assert growth.get() == (3, 9)
