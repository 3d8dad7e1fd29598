"""The seat of a channel: it may fail, and says so."""

import logging

import pytest

from sidecar.fold.drift.verdict import ChannelState
from sidecar.publish.drift.seat import Seat, absent
from tests.fakes import NOW
from tests.publish.drifting import FakeChannel


def run(seat: Seat[FakeChannel]) -> bool:
    return seat.run("judge", lambda channel: channel.update(None))  # type: ignore[arg-type]


def test_what_a_channel_concludes_is_told_unchanged() -> None:
    """State, level, causes and reason."""
    channel = FakeChannel(pages_after=2)
    seat = Seat(channel)
    assert run(seat)
    view = seat.get(NOW)

    assert view.verdict == channel.get(NOW)
    assert (view.is_configured, view.num_pages, view.num_errors) == (True, 0, 0)


def test_a_failure_is_counted_logged_once_and_not_called_armed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until what failed succeeds again."""
    channel = FakeChannel()
    seat = Seat(channel)
    channel.error = ZeroDivisionError("x")
    assert not any(run(seat) for _ in range(3))
    failing = seat.get(NOW)
    channel.error = None
    assert run(seat)
    mended = seat.get(NOW)

    assert failing.verdict.state is ChannelState.COLLECTING
    assert "it cannot judge (ZeroDivisionError): this is a bug: report it" in failing.verdict.reason
    assert failing.num_errors == mended.num_errors == 3
    assert mended.verdict == channel.get(NOW)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_page_stays_a_page_when_its_channel_fails() -> None:
    """Nobody misses it, and the failure is told beside it."""
    channel = FakeChannel(pages_after=1)
    seat = Seat(channel)
    run(seat)
    channel.error = RuntimeError()
    run(seat)
    verdict = seat.get(NOW).verdict

    assert verdict.state is ChannelState.PAGE
    assert "it cannot judge" in verdict.reason


def test_a_channel_that_cannot_even_say_how_it_stands_is_told_as_it_was() -> None:
    """The last verdict, and why there is no later one."""

    class Mute(FakeChannel):
        def get(self, now_ns: int) -> object:  # type: ignore[override]
            raise KeyError(now_ns)

        def export(self) -> dict[str, object]:
            raise OSError

    seat = Seat(Mute())
    view = seat.get(NOW)

    assert view.verdict.state is ChannelState.COLLECTING
    assert "it cannot get (KeyError)" in view.verdict.reason
    assert seat.export() is None
    assert seat.get(NOW).num_errors == 3


def test_pages_are_counted_when_they_begin() -> None:
    """Not while they last; again after an acknowledgement; not those of an earlier life."""
    channel = FakeChannel(pages_after=1)
    seat = Seat(channel)
    counts = [seat.get(NOW).num_pages]
    for _ in range(2):
        run(seat)
        counts += [seat.get(NOW).num_pages, seat.get(NOW).num_pages]
        seat.run("acknowledge", lambda each: each.acknowledge(NOW))
        seat.get(NOW)
    run(seat)
    later = Seat(FakeChannel(pages_after=1))
    later.restore(channel.export)

    assert counts == [0, 1, 1, 2, 2]
    view = later.get(NOW)
    assert (view.verdict.state, view.num_pages) == (ChannelState.PAGE, 0)


@pytest.mark.parametrize("state", [{"name": "another"}, 3, []])
def test_a_state_that_is_refused_is_said_and_changes_nothing(state: object) -> None:
    """The channel starts again, and its reason says why."""
    seat = Seat(FakeChannel())
    seat.restore(lambda: state)  # type: ignore[arg-type, return-value]

    assert "its kept state was refused (not mine; delete it)" in seat.get(NOW).verdict.reason


def test_a_note_stands_before_every_reason() -> None:
    """Such as that of a demonstration."""
    seat = Seat(FakeChannel(), "demo preset")

    assert seat.get(NOW).verdict.reason == "demo preset; 0 windows"


def test_what_is_not_there_says_how_to_get_it() -> None:
    """Neither armed nor silent."""
    view = absent("canary", "set X")

    assert not view.is_configured
    assert view.verdict[:3] == ("canary", ChannelState.COLLECTING, "not configured: set X")
