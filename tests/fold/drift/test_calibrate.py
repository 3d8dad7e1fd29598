"""Calibration by replay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.drift.calibrate import (
    DAYS,
    MAX_SHARE,
    calibrate,
    calibration_of,
    draw_months,
    peaks,
    replay_of,
    scale_of,
    upper_bound,
)
from sidecar.fold.drift.cusum import Cusum
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.ranks import largest
from sidecar.fold.drift.traffic import SCALE, TrafficChannel, eta_of
from tests.fold.drift.references import START, P, baseline


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    """None of 100: 1 - 0.1^(1/100); and tabled values of the beta distribution."""
    assert upper_bound(0, 100) == pytest.approx(1 - 0.1 ** (1 / 100))
    assert upper_bound(1, 10) == pytest.approx(0.3368, abs=1e-4)
    assert upper_bound(5, 20, confidence=0.95) == pytest.approx(0.4556, abs=1e-4)
    assert upper_bound(0, 0) == upper_bound(7, 7) == 1.0


@given(st.lists(st.floats(0, 5), min_size=12, max_size=60))
def test_the_scale_is_the_least_that_keeps_the_rate(highest: list[float]) -> None:
    """Scaled so, the bound is at most 28 %; a little less, and it is not, or nothing was scaled."""
    peak = np.array(highest)
    scale = scale_of(peak)

    def bound(factor: float) -> float:
        return upper_bound(int((peak >= factor).sum()), len(peak))

    assert bound(scale) <= MAX_SHARE
    assert scale == 1 or bound(scale * (1 - 1e-12)) > MAX_SHARE


def test_peaks_are_those_of_the_charts_one_after_the_other() -> None:
    """A month run window by window through the live charts has the same highest level."""
    replay = replay_of(baseline(1800, seed=70))
    months = draw_months(len(replay.days), np.random.default_rng(71), 2)[:, :4]

    for month, peak in zip(months, peaks(replay, months), strict=True):
        cusum, highest = Cusum(replay.charts, P), 0.0
        for scores in np.concatenate(replay.days[month]):
            cusum.update(scores, 0)
            highest = max(highest, float(cusum.shares().max()))
        assert peak == pytest.approx(highest)


def test_months_are_drawn_day_by_day() -> None:
    """30 days each, of the second half, from midnight to midnight; a stump of a day is left out."""
    reference = baseline(2016 + 100, seed=72)
    replay = replay_of(reference)
    months = draw_months(len(replay.days), np.random.default_rng(73))

    assert months.shape == (200, DAYS)
    assert set(months.ravel()) == set(range(len(replay.days)))
    # The second half begins 94 windows before day 4 and ends 100 into day 7: both are stumps.
    assert replay.days.shape[:2] == (3, 288)
    assert reference.times_ns[0] - START == 300 * 10**9


def test_calm_traffic_keeps_the_limits_of_the_formula() -> None:
    """Nothing is scaled, and the file holds the figures for its reader."""
    reference = baseline(2016, seed=74)
    found = calibrate(reference, np.random.default_rng(75), num_months=20)

    assert found.thresholds[SCALE] == 1.0
    assert found.replay["num_months"] == 20
    assert found.replay["num_alarmed_months"] == 0
    assert found.replay["upper_bound_of_share"] == pytest.approx(upper_bound(0, 20))
    assert 1 <= found.eta < 1.6
    channel = TrafficChannel(reference.calibrated(found))
    assert channel.eta == found.eta


def test_slow_traffic_is_replayed_deflated() -> None:
    """The scores of the second half are divided by what the first half says of its memory."""
    slow = np.repeat(np.random.default_rng(81).normal(size=(2016 // 36, P)), 36, axis=0)
    eta = eta_of(slow[:1008])
    days = replay_of(baseline(reservoir=slow)).days

    assert eta > 3
    assert 0 < np.nanmax(np.abs(days)) <= largest(1008) / eta + 1e-12


def test_traffic_that_moved_within_the_baseline_raises_the_limits() -> None:
    """A second half that lies one sd higher alarms in every month, until the limits are scaled."""
    rng = np.random.default_rng(76)
    reservoir = rng.normal(size=(2016, P))
    reservoir[1008:] += 1.0
    reference = baseline(reservoir=reservoir)
    found = calibrate(reference, np.random.default_rng(77), num_months=12)

    assert found.replay["num_alarmed_months"] == 12
    assert found.thresholds[SCALE] > 1
    assert upper_bound(int(found.replay["num_alarmed_months_after_scaling"]), 12) <= MAX_SHARE
    assert found.replay["is_rate_kept"] is True


def test_months_may_be_replayed_in_parts() -> None:
    """Peaks of parts of the months, put together, calibrate to the same."""
    reference, policy = baseline(2016, seed=78), Policy()
    replay = replay_of(reference, policy)
    months = draw_months(len(replay.days), np.random.default_rng(79), 12)
    parts = np.concatenate([peaks(replay, months[:5]), peaks(replay, months[5:])])

    whole = calibrate(reference, np.random.default_rng(79), policy, 12)
    assert calibration_of(reference, policy, parts) == whole


@pytest.mark.parametrize("num_windows", [0, 1, 2, 100, 800])
def test_too_few_days_are_not_replayed(num_windows: int) -> None:
    """The formula's limits stand, and the file says that nothing was replayed."""
    found = calibrate(baseline(num_windows), np.random.default_rng(80))

    assert found.thresholds[SCALE] == 1.0
    assert (found.replay["num_months"], found.replay["is_rate_kept"]) == (0, False)
