"""Changes of verdicts: each once, in order, numbered over a restart."""

import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.history import History
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict

CAUSE = Cause("residual/decode/l1/log_rms", 1, "log_rms", "decode", "high", 1.5, 70)
COLLECTING, ARMED, PAGE = ChannelState.COLLECTING, ChannelState.ARMED, ChannelState.PAGE


def verdict(state: ChannelState, channel: str = "traffic") -> Verdict:
    paging = state is PAGE
    causes = (CAUSE,) if paging else ()
    return Verdict(channel, state, f"it is {state}", since_ns=70 if paging else None, causes=causes)


def told(*states: ChannelState) -> History:
    history = History()
    for t_ns, state in enumerate(states):
        history.update([verdict(state), verdict(ARMED, "canary")], t_ns)
    return history


def test_each_change_is_told_once_with_what_brought_it() -> None:
    """From where to where, when and why; standing still is no change."""
    history = told(COLLECTING, ARMED, ARMED, PAGE, PAGE, ARMED)
    found = [each for each in history.get() if each.channel == "traffic"]

    assert [(each.t_ns, each.before, each.after) for each in found] == [
        (1, COLLECTING, ARMED),
        (3, ARMED, PAGE),
        (5, PAGE, ARMED),
    ]
    assert (found[1].since_ns, found[1].causes, found[1].reason) == (70, (CAUSE,), "it is page")
    assert [each.number for each in history.get()] == [1, 2, 3, 4]


def test_an_update_says_whether_something_changed() -> None:
    """What changed is worth keeping."""
    history = History()

    assert history.update([verdict(ARMED)], 1)
    assert not history.update([verdict(ARMED)], 2)


def test_a_restart_goes_on_with_states_and_numbers() -> None:
    """A channel that starts again by collecting is a change; one that goes on is none."""
    before = told(ARMED, PAGE)
    after = History()
    after.restore(before.export())

    assert after.get() == before.get()
    assert not after.update([verdict(PAGE)], 9)
    assert after.update([verdict(COLLECTING)], 10)
    assert (after.get()[-1].number, after.get()[-1].before) == (4, PAGE)


def test_the_oldest_changes_go_first() -> None:
    """The size is bounded, the numbers go on."""
    history = History(max_changes=2)
    for t_ns in range(6):
        history.update([verdict(ARMED if t_ns % 2 else PAGE)], t_ns)

    assert [each.number for each in history.get()] == [5, 6]


@pytest.mark.parametrize(
    "foreign", [None, {}, {"num": 1, "states": {"a": "nonsense"}, "held": []}, {"states": 3}]
)
def test_what_is_foreign_is_refused_whole(foreign: object) -> None:
    """StateError, and nothing has changed."""
    history = told(ARMED)
    before = history.get()
    with pytest.raises(StateError):
        history.restore(foreign)

    assert history.get() == before


def test_it_says_since_when_it_is_complete() -> None:
    """Since the first look, over a restart too; or just after the last change forgotten."""
    history = History(max_changes=2)
    assert history.since_ns is None
    for t_ns in range(1, 7):
        history.update([verdict(ARMED if t_ns % 2 else PAGE)], t_ns)
    again = History(max_changes=2)
    again.restore(history.export())
    again.update([verdict(PAGE)], 9)
    first = told(COLLECTING, COLLECTING)

    assert first.since_ns is not None
    assert first.get()[0].t_ns >= first.since_ns
    assert history.since_ns == again.since_ns == 5
