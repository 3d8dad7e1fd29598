"""What keys do to what is shown."""

import pytest

from sidecar.top.view import View
from sidecar.wire.signals import Phase

SIGNALS = ("residual_rms", "residual_peak", "block_influence")


@pytest.mark.parametrize("key", ["q", "escape"])
def test_it_ends(key: str) -> None:
    """With q, as everywhere, and with Escape."""
    view = View()
    view.press(key)

    assert view.is_over


def test_it_pauses_and_goes_on() -> None:
    """The same key twice."""
    view = View()
    view.press("p")
    assert view.is_paused
    view.press("p")
    assert not view.is_paused


def test_signals_go_round() -> None:
    """One after another and back, beginning again at the end; nothing while none is known."""
    view = View()
    view.press("s")
    assert view.choice.signal == "residual_rms"
    for expected in (*SIGNALS[1:], SIGNALS[0]):
        view.press("s", SIGNALS)
        assert view.choice.signal == expected
    view.press("S", SIGNALS)
    assert view.choice.signal == SIGNALS[-1]


def test_a_signal_that_is_gone_gives_way() -> None:
    """Another sidecar, other signals: the first of them."""
    view = View()
    view.press("s", ("other",))

    assert view.choice.signal == "other"


def test_phases_alternate() -> None:
    """Decode first, for that is where time is spent."""
    view = View()
    assert view.choice.phase == Phase.DECODE
    view.press("f")
    assert view.choice.phase == Phase.PREFILL
    view.press("f")
    assert view.choice.phase == Phase.DECODE


def test_scrolling_stays_among_the_layers() -> None:
    """Never before the first, nor past the last; another order begins at the top."""
    view = View()
    view.press("k", SIGNALS, 5)
    assert view.first == 0
    view.press("page down", SIGNALS, 5)
    assert view.first == 4
    view.press("o", SIGNALS, 5)
    assert (view.first, view.by_deviation) == (0, True)


def test_other_keys_say_nothing() -> None:
    """A key without a meaning changes nothing."""
    view = View()
    view.press("x", SIGNALS, 5)

    assert view == View()
