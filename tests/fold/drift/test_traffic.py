"""The traffic channel."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.baseline import Calibration
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.traffic import SCALE, TrafficChannel, judgeable
from sidecar.fold.drift.verdict import MAX_CAUSES, ChannelState
from sidecar.wire.signature import Layout
from tests.fold.drift.laws import goes_on_where_it_stopped
from tests.fold.drift.references import FIVE_MINUTES, HEADER, SCHEMA, START, P, baseline, window

WEEK = baseline()


def fed(channel: TrafficChannel, windows: range, shift: float = 0.0, stream: int = 0) -> None:
    rng = np.random.default_rng(windows.start)
    for k in windows:
        channel.update(window(rng, k, shift=shift, stream=stream))


def test_windows_like_the_baseline_are_calm() -> None:
    """A day of them: armed, nothing latched, and a level below the limit."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(288))
    verdict = channel.get(0)

    assert verdict.state is ChannelState.ARMED
    assert 0 < verdict.level < 1
    assert verdict.judged_ns == START + 288 * FIVE_MINUTES
    assert len(verdict.causes) <= MAX_CAUSES


def test_a_shift_pages_with_its_stream_its_side_and_its_beginning() -> None:
    """Half a request-sd, which is 5 window-sd of 100 requests: a page within 12 windows."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(100))
    fed(channel, range(100, 112), shift=-0.5, stream=5)
    verdict = channel.get(0)

    assert verdict.state is ChannelState.PAGE
    stream = SCHEMA.streams[5]
    worst = verdict.causes[0]
    assert (worst.stream, worst.layer, worst.phase) == (stream.name, stream.layer, stream.phase)
    assert (worst.signal, worst.side) == (stream.signal, "low")
    assert worst.share >= 1
    assert verdict.since_ns == worst.since_ns
    assert abs(worst.since_ns - START - 100 * FIVE_MINUTES) <= 3 * FIVE_MINUTES
    assert stream.name in verdict.reason


def test_a_ticket_comes_before_the_page() -> None:
    """On the way to its limit the same chart passes that of one false alarm a week."""
    channel = TrafficChannel(WEEK)
    rng = np.random.default_rng(21)
    states = [channel.update(window(rng, k, shift=0.5)).state for k in range(15)]

    order = [state for at, state in enumerate(states) if state not in states[:at]]
    assert order == [ChannelState.ARMED, ChannelState.TICKET, ChannelState.PAGE]


def test_a_page_is_latched_until_somebody_has_seen_it() -> None:
    """The shift goes and the page stays as it was; seen, the charts start again at 0."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(10), shift=0.5)
    paged = channel.get(0)
    fed(channel, range(10, 200))
    later = channel.get(0)
    assert (later.state, later.causes) == (ChannelState.PAGE, paged.causes)
    assert later.level < 1 <= paged.level

    channel.acknowledge(1)
    verdict = channel.get(1)
    assert (verdict.state, verdict.level) == (ChannelState.ARMED, 0)
    assert verdict.is_acknowledged
    assert verdict.causes == ()


def test_a_shift_that_goes_on_pages_again_after_it_was_seen() -> None:
    """The baseline does not adapt: only a new one ends it."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(20), shift=0.5)
    channel.acknowledge(1)
    fed(channel, range(20, 40), shift=0.5)

    assert channel.get(0).state is ChannelState.PAGE


@pytest.mark.parametrize(
    ("num_windows", "reason"),
    [
        (863, "863 of 2016 windows, ticket only from 864"),
        (864, "ticket only: 864 of 2016 windows"),
        (2015, "ticket only: 2015 of 2016 windows"),
        (2016, "as in the baseline"),
    ],
)
def test_a_short_baseline_does_not_page(num_windows: int, reason: str) -> None:
    """Below 3 days nothing, below 7 a ticket at most, and the reason counts the windows."""
    channel = TrafficChannel(baseline(num_windows))
    assert reason in channel.get(0).reason
    fed(channel, range(20), shift=0.5)

    expected = {863: ChannelState.COLLECTING, 2016: ChannelState.PAGE}
    assert channel.get(0).state is expected.get(num_windows, ChannelState.TICKET)


def test_a_demo_pages_early_and_says_so() -> None:
    """Forty windows are enough for it, and each verdict names the preset."""
    channel = TrafficChannel(baseline(40), Policy.demo())
    assert "demo preset" in channel.get(0).reason
    fed(channel, range(20), shift=1.0)

    assert channel.get(0).state is ChannelState.PAGE
    assert "demo preset" in channel.get(0).reason


def test_a_channel_that_would_be_blind_does_not_arm() -> None:
    """A deflation that keeps every score within the dead-band is refused, with the figures."""
    calibrated = WEEK.calibrated(Calibration(14.5, {}, {}))
    channel = TrafficChannel(calibrated)
    fed(channel, range(20), shift=3.0)
    verdict = channel.get(0)

    assert verdict.state is ChannelState.COLLECTING
    assert "deflation 14.5 leaves scores of at most 0.24, within the dead-band 0.25" in (
        verdict.reason
    )


def test_slow_traffic_counts_for_less() -> None:
    """Twice the deflation, about half the level and less; the reservoir's own without a replay."""
    channels = [TrafficChannel(WEEK.calibrated(Calibration(eta, {}, {}))) for eta in (1, 2)]
    for channel in channels:
        fed(channel, range(10), shift=0.5)
    assert channels[1].get(0).level < 0.55 * channels[0].get(0).level

    rng = np.random.default_rng(27)
    slow = baseline(reservoir=np.repeat(rng.normal(size=(2016 // 72, P)), 72, axis=0))
    assert TrafficChannel(slow).eta > 5
    assert TrafficChannel(slow.calibrated(Calibration(1.5, {}, {}))).eta == 1.5


def test_limits_are_as_the_replay_scaled_them() -> None:
    """Twice the limit, half the level."""
    plain, scaled = (
        TrafficChannel(WEEK.calibrated(Calibration(1.2, {SCALE: scale}, {}))) for scale in (1, 2)
    )
    for channel in (plain, scaled):
        fed(channel, range(10), shift=0.5)

    assert scaled.get(0).level == pytest.approx(plain.get(0).level / 2)


def test_constant_and_rare_streams_are_not_judged() -> None:
    """A constant has its own rule; a stream of few windows has no reference."""
    reservoir = np.random.default_rng(22).normal(size=(2016, P))
    reservoir[:, 0] = 1.0
    reservoir[:1100, 1] = np.nan
    assert np.flatnonzero(~judgeable(reservoir)).tolist() == [0, 1]

    channel = TrafficChannel(baseline(reservoir=reservoir))
    for k in range(100):
        scores = np.zeros(P)
        scores[:2] = 9.0
        channel.judge(scores, k, k + 1)
    assert not {SCHEMA.streams[0].name, SCHEMA.streams[1].name} & {
        cause.stream for cause in channel.get(0).causes
    }


def test_a_baseline_in_which_nothing_moves_is_refused() -> None:
    """There is nothing to rank among."""
    channel = TrafficChannel(baseline(reservoir=np.zeros((2016, P))))

    assert channel.get(0).state is ChannelState.COLLECTING
    assert "no stream moves" in channel.get(0).reason


def test_a_window_that_says_nothing_changes_no_level() -> None:
    """Fewer than 5 requests in every stratum: no mean to speak of."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(20), shift=0.2)
    before = channel.get(0)
    channel.update(window(np.random.default_rng(23), 20, num_requests=(4, 4, 4)))

    assert channel.get(0).level == before.level
    assert channel.get(0).causes == before.causes


@settings(max_examples=15)
@given(st.integers(0, 30), st.sampled_from([0.0, 0.5]))
def test_a_split_anywhere_changes_nothing(at: int, shift: float) -> None:
    """Export, pack, unpack, restore into a new channel and go on: equal to the bit."""
    rng = np.random.default_rng(24)
    windows = [window(rng, k, shift=shift) for k in range(30)]
    goes_on_where_it_stopped(lambda: TrafficChannel(WEEK), windows, at)


def test_a_state_of_another_baseline_is_refused() -> None:
    """And the channel goes on with its own."""
    channel = TrafficChannel(WEEK)
    fed(channel, range(20), shift=0.5)
    before = channel.export()
    other = replace(WEEK, tau2=WEEK.tau2 + 1)
    for state in (TrafficChannel(other).export(), {}, {**before, "latch": None}):
        with pytest.raises(StateError):
            channel.restore(state)

    assert channel.export() == before


def test_a_window_of_96_streams_takes_few_milliseconds() -> None:
    """14 days, 100 streams: 5 ms on a quiet core; ten times as wide a bound for a busy one."""
    wide = HEADER._replace(layout=Layout(list(range(12))))
    channel = TrafficChannel(baseline(4032, header=wide))
    rng = np.random.default_rng(26)
    windows = [window(rng, k, num_streams=100) for k in range(20)]
    seconds = []
    for each in windows:
        start = time.perf_counter()
        channel.update(each)
        seconds.append(time.perf_counter() - start)

    assert min(seconds) < 0.05
