"""What a channel says."""

from sidecar.fold.drift.verdict import MAX_CAUSES, Cause, ChannelState, worst_causes


def cause(name: str, share: float) -> Cause:
    return Cause(name, 1, "log_rms", "decode", "high", share, None)


def test_states_are_ordered_from_collecting_to_page() -> None:
    """The worst of several channels is the one with the largest rank."""
    assert max(ChannelState, key=lambda state: state.rank) is ChannelState.PAGE
    assert [state.rank for state in ChannelState] == [0, 1, 2, 3]


def test_causes_are_the_largest_first_and_bounded() -> None:
    """Only as many causes as are published, and equal shares stand in order of name."""
    many = [cause(f"stream-{k:02}", k / 10) for k in range(MAX_CAUSES + 5)]
    worst = worst_causes([*many, cause("a", 2.4)])

    assert len(worst) == MAX_CAUSES
    assert [each.stream for each in worst[:3]] == ["a", "stream-24", "stream-23"]
