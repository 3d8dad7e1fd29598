"""The mix channel."""

import math

import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.mix import MixChannel, excess, shares_of
from sidecar.fold.drift.verdict import ChannelState
from tests.fold.drift.laws import goes_on_where_it_stopped
from tests.fold.drift.references import FIVE_MINUTES, START, STRATA, baseline, window

WEEK = baseline()
USUAL = (60, 39, 1)


def fed(channel: MixChannel, num_requests: tuple[int, int, int], windows: range) -> None:
    rng = np.random.default_rng(windows.start)
    for k in windows:
        counts = tuple(rng.multinomial(100, np.array(num_requests) / 100))
        channel.update(window(rng, k, num_requests=counts))


def test_the_excess_is_the_formula_written_out() -> None:
    """G over expected counts, less its mean, per request; nothing where nothing came."""
    shares = np.array([0.5, 0.3, 0.2])
    g = 2 * (60 * math.log(60 / 50) + 40 * math.log(40 / 30))

    assert excess(np.array([60, 40, 0]), shares) == pytest.approx((g - 2) / 200)
    assert np.isnan(excess(np.array([0, 0, 0]), shares))


def test_the_usual_mix_has_no_excess_on_average() -> None:
    """The mean of G is its degrees of freedom, however many requests a window has."""
    rng = np.random.default_rng(50)
    shares = np.array([0.5, 0.3, 0.2])
    for n in (100, 1000):
        found = excess(rng.multinomial(n, shares, size=4000), shares)
        assert abs(found.mean()) * 2 * n < 0.2  # sd of the mean is 0.03


def test_a_stratum_that_never_came_may_come() -> None:
    """Its share is small and not 0, so that G is finite."""
    shares = shares_of(np.array([[10, 0], [10, 0]]))

    assert 0 < shares[1] < 0.05
    assert np.isfinite(excess(np.array([5, 5]), shares))


def test_the_usual_mix_raises_nothing() -> None:
    """A day as in the baseline."""
    channel = MixChannel(WEEK)
    fed(channel, USUAL, range(288))

    assert channel.get(0).state is ChannelState.ARMED


def test_a_shifted_mix_is_a_ticket_that_names_the_strata() -> None:
    """Never a page, however long it lasts; what grew is high, what shrank is low."""
    channel = MixChannel(WEEK)
    fed(channel, USUAL, range(50))
    fed(channel, (20, 79, 1), range(50, 150))
    verdict = channel.get(0)

    assert verdict.state is ChannelState.TICKET
    sides = {cause.stream: cause.side for cause in verdict.causes}
    assert (sides[STRATA[0]], sides[STRATA[1]]) == ("low", "high")
    assert abs(verdict.since_ns - START - 50 * FIVE_MINUTES) <= 3 * FIVE_MINUTES


def test_a_mix_that_always_drifts_counts_for_less() -> None:
    """Where the baseline's own mix moves for a day and a half at a time, so may what comes."""
    rng = np.random.default_rng(53)
    lean = np.repeat(rng.uniform(-0.2, 0.2, 5), 432)[:2016, None]
    shares = np.array([0.6, 0.39, 0.01]) + lean * [1, -1, 0]
    mix = np.stack([rng.multinomial(100, share) for share in shares])
    slow, fast = MixChannel(baseline(mix=mix)), MixChannel(baseline(mix=rng.permutation(mix)))
    for channel in (slow, fast):
        fed(channel, (20, 79, 1), range(50))

    assert slow.get(0).level < 0.5 * fast.get(0).level


def test_strata_never_seen_are_a_ticket_at_once_and_known_when_acknowledged() -> None:
    """30 requests of new kinds in one window; seen, they are not told of again."""
    channel = MixChannel(WEEK)
    rng = np.random.default_rng(51)
    assert channel.update(window(rng, 0, num_new=29)).state is ChannelState.ARMED
    verdict = channel.update(window(rng, 1, num_new=30))
    assert verdict.state is ChannelState.TICKET
    assert "30 requests of kinds that the baseline never saw" in verdict.reason

    channel.acknowledge(0)
    assert channel.update(window(rng, 2, num_new=30)).state is ChannelState.ARMED


def test_a_short_baseline_is_not_judged_by() -> None:
    """Below three days the mix of a day is not known."""
    channel = MixChannel(baseline(863))
    fed(channel, (10, 89, 1), range(60))

    assert channel.get(0).state is ChannelState.COLLECTING
    assert "863 of 864 windows" in channel.get(0).reason


@pytest.mark.parametrize("at", [0, 1, 30, 55, 60])
def test_a_split_anywhere_changes_nothing(at: int) -> None:
    """Export, pack, unpack, restore into a new channel and go on: equal to the bit."""
    rng = np.random.default_rng(52)
    windows = [window(rng, k, num_requests=(60, 40, 0)) for k in range(50)]
    windows += [window(rng, k, num_requests=(20, 80, 0)) for k in range(50, 60)]
    goes_on_where_it_stopped(lambda: MixChannel(WEEK), windows, at)


def test_a_foreign_state_is_refused() -> None:
    """Of another baseline or torn."""
    channel = MixChannel(WEEK)
    for state in (MixChannel(baseline(2017)).export(), {**channel.export(), "latest": None}):
        with pytest.raises(StateError):
            channel.restore(state)
