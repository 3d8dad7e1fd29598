"""The one sentence: is the model behaving as usual, and if not, since when and where?"""

import pytest

from sidecar.fold.drift.history import Change
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.reducer import Snapshot
from sidecar.publish.api.answers import SummaryAnswer
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.drift.seat import ChannelView, absent
from sidecar.publish.live.summary import summary_answer
from tests import fakes
from tests.fakes import LIMITS, NOW, SECOND, FakeSource, reduced
from tests.publish import drifting

WELL = reduced(FakeSource().frame(fakes.live())).get(NOW)
NOBODY = reduced().get(NOW)
SILENT = reduced(FakeSource().frame(fakes.live())).get(NOW + LIMITS.stale_ns + 5 * SECOND)
ARMED, PAGE, TICKET = ChannelState.ARMED, ChannelState.PAGE, ChannelState.TICKET
COLLECTING = ChannelState.COLLECTING


def cause(layer: int | None, share: float) -> Cause:
    return Cause(f"residual/decode/l{layer}/log_rms", layer, "log_rms", "decode", "high", share, 5)


def channel(
    name: str, state: ChannelState, since_ns: int | None = None, *causes: Cause
) -> ChannelView:
    return ChannelView(Verdict(name, state, f"{name} says so", 0.5, since_ns, causes))


def summary(
    *channels: ChannelView, snapshot: Snapshot = WELL, history: tuple[Change, ...] = ()
) -> SummaryAnswer:
    view: DriftView = drifting.watch().get()
    return summary_answer(snapshot, view._replace(channels=channels, history=history))


def test_a_page_says_since_when_and_in_which_layers() -> None:
    """The earliest estimate, and the layers that moved most, each once, the most first."""
    told = summary(
        channel("canary", PAGE, NOW, cause(3, 2.0), cause(7, 9.0), cause(None, 99.0)),
        channel("traffic", PAGE, NOW - 60 * SECOND, cause(3, 4.0)),
        channel("mix", TICKET, NOW - 3600 * SECOND, cause(1, 50.0)),
    )

    assert told.level == "page"
    assert told.since_ns == NOW - 60 * SECOND
    assert told.layers == [7, 3]
    assert told.sentence == (
        "The model does not behave as usual since 2026-09-21 14:12:20 UTC, most in layers 7 and 3 "
        "(canary: canary says so; traffic: traffic says so)."
    )


def test_layers_within_their_limits_are_not_accused() -> None:
    """A channel tells its largest streams, of which some may be far from their limits."""
    told = summary(channel("canary", PAGE, NOW, cause(2, 40.0), cause(0, 0.3), cause(5, 1.0)))

    assert told.layers == [2, 5]


def test_without_an_estimate_it_is_since_the_verdict_changed() -> None:
    """As the history has it; before any, it is not known."""
    paging = channel("integrity", PAGE)
    change = Change(1, NOW - SECOND, "integrity", ARMED, PAGE, "", None, ())

    assert summary(paging, history=(change,)).since_ns == NOW - SECOND
    assert summary(paging).since_ns is None
    assert "as usual (integrity" in summary(paging).sentence


def test_a_page_is_told_before_blindness_and_blindness_before_a_ticket() -> None:
    """What was found stands, and what cannot be seen any more is said with it."""
    paging, worth = channel("canary", PAGE, NOW), channel("mix", TICKET, NOW)
    page, blind = summary(paging, snapshot=SILENT), summary(worth, snapshot=SILENT)

    assert page.level == "page"
    assert "Beyond that the sidecar is blind: engine-dp0-pp0-tp0: silent" in page.sentence
    assert (blind.level, blind.since_ns) == ("blind", NOW)
    assert blind.sentence.startswith("The sidecar is blind: engine-dp0-pp0-tp0: silent for 35 s")
    assert summary(worth).level == "ticket"


def test_nobody_heard_is_blind_with_the_remedy() -> None:
    """It has never been otherwise."""
    told = summary(channel("canary", ARMED), snapshot=NOBODY)

    assert (told.level, told.since_ns) == ("blind", None)
    assert "SIDECAR_TAP=1" in told.sentence


def test_part_of_the_taps_is_partly_blind() -> None:
    """While another tap is live."""
    second = fakes.Source("engine", 1)
    snapshot = reduced(
        FakeSource().frame(fakes.live()), FakeSource(second).frame(fakes.Status("dead"))
    ).get(NOW)

    assert (
        "is partly blind: engine-dp1-pp0-tp0: its tap is dead"
        in summary(snapshot=snapshot).sentence
    )


@pytest.mark.parametrize(
    ("channels", "level", "words"),
    [
        ([channel("canary", ARMED)], "ok", "The model behaves as usual, says canary."),
        (
            [channel("canary", ARMED), channel("traffic", COLLECTING), channel("mix", ARMED)],
            "ok",
            "as usual, says canary and mix. Not judging yet: traffic: traffic says so.",
        ),
        ([channel("canary", COLLECTING)], "collecting", "nothing judges yet: canary: canary"),
        ([channel("integrity", ARMED)], "collecting", "nothing says what is usual: set SIDECAR"),
        ([absent("canary", "set it")], "collecting", "nothing says what is usual"),
    ],
)
def test_as_usual_needs_somebody_who_knows_what_is_usual(
    channels: list[ChannelView], level: str, words: str
) -> None:
    """A channel that compares and is armed; else the sentence says what is missing."""
    told = summary(*channels)

    assert told.level == level
    assert words in told.sentence
    assert told.layers == []
