"""The replica channel: who pages, who does not, and when it says that it cannot know."""

from collections.abc import Iterable, Mapping
from statistics import median

import msgspec
import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift import contrast, odds
from sidecar.fold.drift.contrast import MAX_REPLICAS, ContrastChannel, Replica
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.drift.window import Window
from tests.fold.drift.fleets import LENGTH, NUM_STREAMS, SCHEMA, START, Fleet, shift, skewed

PAGE, ARMED, COLLECTING = ChannelState.PAGE, ChannelState.ARMED, ChannelState.COLLECTING


def channel(fleet: Fleet) -> ContrastChannel:
    made = ContrastChannel(SCHEMA, length_ns=LENGTH)
    made.expect(fleet.names)
    return made


def feed(judge: ContrastChannel, windows: Mapping[str, Window]) -> None:
    for name, window in windows.items():
        judge.update(name, window)


def run(judge: ContrastChannel, fleet: Fleet, indices: Iterable[int]) -> int | None:
    """Feed windows until one pages; its index."""
    for index in indices:
        feed(judge, fleet.windows(index))
        if judge.num_pages:
            return index
    return None


def states(judge: ContrastChannel) -> dict[str, ChannelState]:
    return {each.name: each.state for each in judge.replicas()}


def found(judge: ContrastChannel) -> Replica:
    (paged,) = [each for each in judge.replicas() if each.state is PAGE]
    return paged


def test_replicas_that_are_alike_never_page() -> None:
    """500 windows of eight replicas: 80 000 scores a side; design: 1 in a year."""
    fleet = Fleet(num_requests=40)
    judge = channel(fleet)

    assert run(judge, fleet, range(500)) is None
    assert set(states(judge).values()) == {ARMED}
    assert judge.get(0).reason == "8 replicas agree"
    assert judge.counts == (499 * 8, 8, 0)  # the first windows may be parts of one


def test_one_bad_replica_of_eight_pages_within_thirty_windows() -> None:
    """Two standard deviations of a window's mean in two of 20 streams: the median of 9 fleets."""
    delays = []
    for seed in range(9):
        fleet = Fleet(seed=seed)
        fleet.shifts = {fleet.names[3]: shift(2.0, 2)}
        judge = channel(fleet)
        delays.append(run(judge, fleet, range(80)) or 80)

        assert found(judge).name == fleet.names[3]
    assert median(delays) <= 20
    assert max(delays) <= 30


def test_a_smaller_shift_of_half_the_streams_takes_a_little_longer() -> None:
    """One and a half of these standard deviations in ten streams."""
    delays = []
    for seed in range(5):
        fleet = Fleet(seed=seed)
        fleet.shifts = {fleet.names[0]: shift(1.5, 10)}
        delays.append(run(channel(fleet), fleet, range(80)) or 80)
    assert median(delays) <= 30


def test_it_says_what_differs_on_which_side_and_since_when() -> None:
    """Streams 2 and 3 fall in window 40: named, low, within a few windows of the truth."""
    fleet = Fleet(seed=5)
    judge = channel(fleet)
    run(judge, fleet, range(40))
    shifted = np.zeros(NUM_STREAMS)
    shifted[2:4] = -0.3
    fleet.shifts = {fleet.names[6]: shifted}
    run(judge, fleet, range(40, 80))
    verdict, paged = judge.get(0), found(judge)

    assert verdict.state is PAGE
    assert "10.0.0.6:9478 differs" in verdict.reason
    assert {each.stream for each in verdict.causes[:2]} == {
        SCHEMA.streams[2].name,
        SCHEMA.streams[3].name,
    }
    assert (verdict.causes[0].layer, verdict.causes[0].side) == (0, "low")
    assert paged.since_ns == verdict.since_ns
    assert abs(paged.since_ns - (START + 40 * LENGTH)) <= 3 * LENGTH
    assert [name for name, state in states(judge).items() if state is PAGE] == [fleet.names[6]]


@pytest.mark.parametrize("num_replicas", [3, 8])
def test_a_broken_replica_does_not_make_the_others_page(num_replicas: int) -> None:
    """Fifty standard deviations move everybody's reference; only the broken one is blamed."""
    fleet = Fleet(num_replicas=num_replicas, seed=2)
    fleet.shifts = {fleet.names[1]: shift(50.0, NUM_STREAMS)}
    judge = channel(fleet)
    for index in range(60):
        feed(judge, fleet.windows(index))

    assert judge.num_pages == 1
    assert found(judge).name == fleet.names[1]


def test_of_several_that_cross_the_limit_at_once_the_furthest_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing learnt, clipped scores of the broken one and of the others are the same."""
    monkeypatch.setattr(odds, "_PRIOR", 1e12)
    for seed in range(3):
        fleet = Fleet(num_replicas=4, seed=seed)
        fleet.shifts = {fleet.names[seed]: shift(50.0, NUM_STREAMS)}
        judge = channel(fleet)
        run(judge, fleet, range(40))

        assert found(judge).name == fleet.names[seed]


def test_a_page_stays_until_it_is_acknowledged() -> None:
    """Also when the replica is well again; then all starts at 0, and a bad one pages again."""
    fleet = Fleet(seed=3)
    bad = fleet.shifts = {fleet.names[0]: shift(4.0, 5)}
    judge = channel(fleet)
    paged = run(judge, fleet, range(40)) or 40
    fleet.shifts = {}
    for index in range(paged + 1, paged + 20):
        feed(judge, fleet.windows(index))
    assert judge.get(0).state is PAGE
    judge.acknowledge(0)
    assert judge.get(0).state is ARMED
    assert judge.get(0).is_acknowledged
    fleet.shifts = bad
    for index in range(paged + 20, paged + 40):
        feed(judge, fleet.windows(index))

    assert judge.num_pages == 2
    assert judge.get(0).state is PAGE
    assert not judge.get(0).is_acknowledged


def test_a_difference_too_small_to_matter_never_pages() -> None:
    """15 thousandths of one request's deviation, which 5000 requests a window would show."""
    fleet = Fleet(num_replicas=4, num_requests=5000, seed=4)
    fleet.shifts = {fleet.names[0]: np.full(NUM_STREAMS, 0.015)}
    judge = channel(fleet)

    assert run(judge, fleet, range(60)) is None


def test_bursts_of_like_requests_raise_the_bar_instead_of_paging() -> None:
    """Windows that are one and a half deviations off by themselves are learnt to be chance."""
    fleet = Fleet(bursts=1.5, seed=2)
    judge = channel(fleet)

    assert run(judge, fleet, range(150)) is None


def test_skewed_streams_raise_the_bar_instead_of_paging(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of 500 windows, 1000 windows of log-normal values: 2 pages by design."""
    monkeypatch.setattr(contrast, "_YEAR_NS", 500 * LENGTH)
    fleet = Fleet(num_replicas=4, num_requests=40, draw=skewed, seed=1)
    judge = channel(fleet)
    for index in range(1000):
        feed(judge, fleet.windows(index))
        if judge.get(0).state is PAGE:
            judge.acknowledge(0)

    assert judge.num_pages <= 2


def test_two_replicas_are_too_few() -> None:
    """It says so, and how many it needs."""
    fleet = Fleet(num_replicas=2)
    judge = channel(fleet)
    run(judge, fleet, range(10))
    verdict = judge.get(0)

    assert verdict.state is COLLECTING
    assert verdict.reason.startswith("windows of 2 replicas are heard, and a contrast needs 3")


def test_sessions_kept_at_replicas_disarm_it() -> None:
    """Different users are no fault of a replica: no page, and the reason names the routing."""
    fleet = Fleet(seed=1)
    fleet.shifts = {fleet.names[0]: shift(6.0, NUM_STREAMS)}
    names = list(fleet.windows(0)["10.0.0.0:9478"].strata)
    fleet.mixes = {
        name: dict(zip(names, (0.2 + 0.08 * i, 0.8 - 0.08 * i), strict=True))
        for i, name in enumerate(fleet.names)
    }
    judge = channel(fleet)

    assert run(judge, fleet, range(60)) is None
    assert judge.get(0).state is COLLECTING
    assert judge.get(0).reason.startswith("routing is not random")
    fleet.mixes, fleet.shifts = {}, {}
    run(judge, fleet, range(60, 90))
    assert judge.get(0).state is ARMED


def test_windows_that_do_not_align_disarm_it() -> None:
    """Exporters with other window lengths are told to agree."""
    fleet = Fleet(num_replicas=4)
    judge = channel(fleet)
    for index in range(0, 40, 4):
        for place, (name, window) in enumerate(fleet.windows(index).items()):
            judge.update(name, window._replace(end_ns=window.start_ns + (place + 1) * LENGTH))

    assert judge.get(0).state is COLLECTING
    assert "do not align" in judge.get(0).reason


def test_replicas_come_and_go_without_a_page_or_a_leak() -> None:
    """Each lives for some 30 windows under a name of its own; a day later it is forgotten."""
    fleet = Fleet(num_requests=40, seed=7)
    judge = ContrastChannel(SCHEMA, length_ns=LENGTH)
    most = 0
    for index in range(450):
        names = [f"pod-{place}-{(index + 7 * place) // 30}" for place in range(5)]
        judge.expect(names)
        feed(judge, fleet.windows(index, names))
        most = max(most, len(judge.replicas()))

    assert judge.num_pages == 0
    assert most <= 5 * (288 // 30 + 3)
    assert sum(each.is_present for each in judge.replicas()) <= 10


def test_the_first_window_after_a_gap_is_not_judged() -> None:
    """It may be half of one: a replica that restarts with every window is never compared."""
    fleet = Fleet(num_replicas=4, seed=1)
    fleet.shifts = {fleet.names[0]: shift(50.0, NUM_STREAMS)}
    judge = channel(fleet)
    for index in range(40):
        windows = fleet.windows(index)
        judge.expect(fleet.names if index % 2 else fleet.names[1:])
        feed(judge, windows if index % 2 else dict(list(windows.items())[1:]))

    assert judge.num_pages == 0
    assert states(judge)[fleet.names[0]] is COLLECTING


def test_there_is_room_for_so_many_replicas() -> None:
    """Further ones are counted and cost nothing."""
    judge = ContrastChannel(SCHEMA)
    (window,) = Fleet(num_replicas=1).windows(0).values()
    for index in range(MAX_REPLICAS + 10):
        judge.update(f"pod-{index}", window)

    assert len(judge.replicas()) == MAX_REPLICAS
    assert judge.counts.insufficient == 10


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_changes_nothing(seed: int) -> None:
    """Replicas in any order, up to two windows late: the same state, to the bit."""
    fleet = Fleet(num_replicas=4, seed=9)
    fleet.shifts = {fleet.names[2]: shift(2.0, 5)}
    arrivals = [(k, *each) for k in range(25) for each in fleet.windows(k).items()]
    one, other = channel(fleet), channel(fleet)
    for _, name, window in arrivals:
        one.update(name, window)
    rng = np.random.default_rng(seed)
    lag = {name: 1.9 * rng.random() for name in fleet.names}  # each one's own, so in its order
    for _, name, window in sorted(arrivals, key=lambda each: each[0] + lag[each[1]]):
        other.update(name, window)

    assert other.get(0) == one.get(0)
    assert other.export() == one.export()


def test_it_goes_on_where_it_stopped() -> None:
    """Through bytes, in the middle of a window, and to the same page; a stranger's is refused."""
    fleet = Fleet(num_replicas=4, seed=6)
    fleet.shifts = {fleet.names[2]: shift(2.0, 5)}
    arrivals = [each for k in range(30) for each in fleet.windows(k).items()]
    one, other, third = channel(fleet), channel(fleet), channel(fleet)
    for name, window in arrivals:
        one.update(name, window)
    for name, window in arrivals[:34]:
        other.update(name, window)
    third.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(other.export())))
    for name, window in arrivals[34:]:
        third.update(name, window)

    assert third.get(0) == one.get(0)
    assert third.export() == one.export()
    assert one.num_pages == 1
    foreign = ContrastChannel(SCHEMA, length_ns=2 * LENGTH)
    with pytest.raises(StateError, match="delete the snapshot"):
        foreign.restore(one.export())
    with pytest.raises(StateError):
        third.restore({**one.export(), "replicas": {"a": {}}})
    assert third.export() == one.export()
