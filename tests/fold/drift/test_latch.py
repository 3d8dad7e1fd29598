"""The latch."""

import msgspec
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.latch import Latch, Raised
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict

CAUSE = Cause("residual/decode/l3/log_rms", 3, "log_rms", "decode", "high", 1.1, 400)
TICKET = Raised(ChannelState.TICKET, "a ticket", 300, (CAUSE,), 500)
PAGE = Raised(ChannelState.PAGE, "a page", 400, (CAUSE, CAUSE._replace(layer=4)), 600)
CALM = Verdict("traffic", ChannelState.ARMED, "nothing found", 0.2, judged_ns=700)


def latched(*raised: Raised) -> Latch:
    latch = Latch()
    for each in raised:
        latch.update(each)
    return latch


def test_a_calm_channel_is_left_as_it_is() -> None:
    """Nothing raised, nothing to say."""
    assert Latch().get(CALM) == CALM


def test_what_was_raised_stays_with_its_causes_and_the_level_of_now() -> None:
    """The state, reason and causes of the moment; level and time of what is judged now."""
    assert latched(PAGE).get(CALM) == Verdict(
        "traffic", ChannelState.PAGE, "a page", 0.2, 400, PAGE.causes, 700
    )


def test_a_page_replaces_a_ticket_and_nothing_replaces_a_page() -> None:
    """The first page's causes are kept, since later ones are mixed with its consequences."""
    later = PAGE._replace(reason="a later page", raised_ns=900)

    assert latched(TICKET, PAGE).raised == PAGE
    assert latched(PAGE, TICKET, later).raised == PAGE


def test_an_acknowledgement_opens_it_until_the_next() -> None:
    """Afterwards the channel is as calm as it is, and says that somebody has seen the last."""
    latch = latched(PAGE)
    latch.acknowledge(800)
    assert latch.get(CALM) == CALM._replace(is_acknowledged=True)

    latch.update(TICKET)
    assert latch.get(CALM).state is ChannelState.TICKET
    assert not latch.get(CALM).is_acknowledged


def test_there_is_nothing_to_acknowledge_in_a_calm_channel() -> None:
    """Nobody has seen what was not there."""
    latch = Latch()
    latch.acknowledge(800)

    assert not latch.get(CALM).is_acknowledged


@pytest.mark.parametrize("latch", [Latch(), latched(TICKET), latched(TICKET, PAGE)])
def test_it_survives_a_restart(latch: Latch) -> None:
    """A page raised before is still there after, to the last cause."""
    restored = Latch()
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(latch.export())))
    assert restored.get(CALM) == latch.get(CALM)

    latch.acknowledge(800)
    restored.restore(latch.export())
    assert restored.get(CALM) == latch.get(CALM)


@pytest.mark.parametrize("change", [{"kind": "cusum"}, {"raised": ["page"]}, {"raised": 3}])
def test_a_foreign_state_is_refused(change: dict[str, object]) -> None:
    """And what was latched stays."""
    latch = latched(PAGE)
    with pytest.raises(StateError):
        latch.restore({**latch.export(), **change})

    assert latch.raised == PAGE
