"""The request tail."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.baseline import TailCalibration
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.tail import (
    ALPHA,
    TailChannel,
    TailRule,
    calibrated_tail,
    conformal,
    log_evidence,
    normal_deviate,
)
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.drift.window import Tail
from sidecar.wire.signature import entries
from tests.fold.drift.laws import goes_on_where_it_stopped
from tests.fold.drift.references import LAYOUT, START, baseline, window

NAMES = list(entries(LAYOUT))
CALIBRATION = TailCalibration.of(np.random.default_rng(60).normal(size=20_000))
REFERENCE = baseline(tail=CALIBRATION)


def request(values: np.ndarray, canary: str = "") -> Observation:
    return Observation(START, "engine", "chat", "", 10, 10, canary, values.astype(np.float32))


def test_a_request_is_judged_by_its_most_unusual_group() -> None:
    """Six sd on one signal of layer 3 in decode, among noise of less than one."""
    values = np.random.default_rng(61).uniform(-0.5, 0.5, len(NAMES))
    values[NAMES.index("residual/decode/l3/log_peak")] = 6.0
    score = TailRule(REFERENCE).score(request(values))

    assert (score.group, score.layer) == ("decode/l3", 3)
    # The made-up model has independent standard streams, 4 of a group.
    squared = sum(np.float32(values[k]) ** 2 for k, n in enumerate(NAMES) if "decode/l3" in n)
    assert score.deviation == pytest.approx(float(normal_deviate(np.array(squared), 4)))
    assert score.p == pytest.approx(1 / 20_001)


def test_what_goes_together_is_unusual_when_it_does_not() -> None:
    """Two signals that are nearly one: T is z' rho^-1 z, small along and large across."""
    rho = np.eye(4)
    rho[0, 1] = rho[1, 0] = 0.9
    related = tuple(
        each._replace(rho=rho if each.group.name == "decode/l3" else each.rho)
        for each in REFERENCE.related
    )
    rule = TailRule(replace(REFERENCE, related=related))
    first = NAMES.index("residual/decode/l3/log_rms")
    for pair in ((3.0, 3.0), (3.0, -3.0)):
        values = np.zeros(len(NAMES))
        values[first : first + 2] = pair
        z = np.array([*pair, 0.0, 0.0])
        expected = float(normal_deviate(z @ np.linalg.solve(rho, z), 4))
        assert rule.score(request(values)).deviation == pytest.approx(expected)


@pytest.mark.parametrize(("num_above", "expected"), [(10, True), (11, False)])
def test_the_tail_begins_below_one_in_a_thousand(num_above: int, expected: bool) -> None:
    """Against 11 999 requests p = (1 + 10) / 12 000 is the tail, and (1 + 11) / 12 000 is not."""
    values = np.ones(len(NAMES))
    deviation = TailRule(REFERENCE).score(request(values)).deviation
    scores = np.full(11_999, deviation - 1)
    scores[:num_above] = deviation + 1

    assert TailRule(baseline(tail=TailCalibration.of(scores)))(request(values)) is expected


@pytest.mark.parametrize("size", [4, 7, 16])
def test_groups_of_every_size_have_one_scale(size: int) -> None:
    """The cube root brings a chi-squared to a standard normal, to a few per mille in the tail."""
    draws = np.random.default_rng(62).chisquare(size, 200_000)
    deviates = normal_deviate(draws, size)

    for share in (0.5, 0.99, 0.999):
        assert np.quantile(deviates, share) == pytest.approx(NormalDist().inv_cdf(share), abs=0.12)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50), st.integers(-1, 21))
def test_p_is_the_formula_written_out(scores: list[int], deviation: int) -> None:
    """(1 + number of calibration scores at least as large) / (n + 1)."""
    tail = TailCalibration.of(np.array(scores, np.float64))
    num = sum(score >= deviation for score in scores)

    assert conformal(tail, float(deviation)) == (1 + num) / (len(scores) + 1)


def test_requests_like_the_calibration_are_rarely_in_the_tail() -> None:
    """At most one in a thousand on average; 4 sd of a Poisson count of 5 above it is 14."""
    rng = np.random.default_rng(63)
    rows = rng.normal(size=(15_000, len(NAMES)))
    tail = calibrated_tail(REFERENCE, (request(row) for row in rows[:10_000]))
    rule = TailRule(baseline(tail=tail))

    assert tail.num_requests == 10_000
    assert sum(rule(request(row)) is True for row in rows[10_000:]) < 5_000 * ALPHA + 9


def test_canary_requests_calibrate_nothing() -> None:
    """Their prompts are few and always the same."""
    rows = np.zeros((3, len(NAMES)))
    requests = [request(row, canary="p1@7") for row in rows[:2]] + [request(rows[2])]

    assert calibrated_tail(REFERENCE, requests).num_requests == 1


def test_a_request_that_was_not_measured_whole_is_judged_by_what_was() -> None:
    """One group missing leaves the others; none left is no judgement."""
    values = np.zeros(len(NAMES))
    values[[k for k, name in enumerate(NAMES) if "/l3/" in name]] = np.nan
    rule = TailRule(REFERENCE)

    assert rule.score(request(values)).layer == 0
    assert rule(request(np.full(len(NAMES), np.nan))) is None


@pytest.mark.parametrize(
    "tail", [None, TailCalibration.of(np.arange(9_999.0)), TailCalibration(0, np.zeros(0))]
)
def test_without_calibration_nothing_is_judged(tail: TailCalibration | None) -> None:
    """Fewer than 10 000 requests cannot tell one in a thousand; the reason counts them."""
    reference = baseline(tail=tail)
    channel = TailChannel(reference)
    channel.update(window(np.random.default_rng(64), tail=Tail(100, 100)))
    num = tail.num_requests if tail else 0

    assert TailRule(reference)(request(np.zeros(len(NAMES)))) is None
    assert channel.get(0).state is ChannelState.COLLECTING
    assert f"{num} of 10000 requests" in channel.get(0).reason


def test_evidence_is_the_formula_written_out() -> None:
    """Y log(lam1 / lam0) - (lam1 - lam0), with lam0 twice what the calibration expects."""
    expected = [7 * math.log(f) - (f - 1) * 2 * 1e-3 * 500 for f in (2, 4, 16)]

    np.testing.assert_allclose(log_evidence(500, 7).ravel(), expected)


@pytest.mark.parametrize("share", [ALPHA, 2 * ALPHA])
def test_no_bet_gains_on_average_up_to_twice_the_tail(share: float) -> None:
    """Over all counts that 500 requests may have, each as likely as it is, e is at most 1."""
    num = 500
    mean = np.zeros(3)
    for count in range(60):
        likely = math.comb(num, count) * share**count * (1 - share) ** (num - count)
        mean += likely * np.exp(log_evidence(num, count).ravel())

    assert (mean <= 1 + 1e-9).all()


def test_a_calm_tail_raises_nothing() -> None:
    """A week of 200 requests a window, one in a thousand of them in the tail."""
    channel = TailChannel(REFERENCE)
    rng = np.random.default_rng(65)
    plain = window(rng)
    for count in rng.binomial(200, ALPHA, 2016):
        channel.update(plain._replace(tail=Tail(200, int(count))))

    assert channel.get(0).state is ChannelState.ARMED


def test_a_tail_that_grows_is_a_ticket_and_then_a_page() -> None:
    """Two of a hundred instead of one of a thousand; the onset is where it began."""
    channel = TailChannel(REFERENCE)
    rng = np.random.default_rng(66)
    for k in range(50):
        channel.update(window(rng, k, tail=Tail(100, 0)))
    windows = [window(rng, k, tail=Tail(100, 2)) for k in range(50, 62)]
    states = [channel.update(each).state for each in windows]

    order = [state for at, state in enumerate(states) if state not in states[:at]]
    assert order == [ChannelState.ARMED, ChannelState.TICKET, ChannelState.PAGE]
    assert channel.get(0).since_ns == windows[0].start_ns

    channel.acknowledge(0)
    assert (channel.get(0).state, channel.get(0).level) == (ChannelState.ARMED, 0)


def test_a_window_in_which_nothing_was_judged_changes_nothing() -> None:
    """No request judged is no evidence that the tail is thin."""
    channel = TailChannel(REFERENCE)
    rng = np.random.default_rng(67)
    channel.update(window(rng, 0, tail=Tail(100, 3)))
    before = channel.export()
    channel.update(window(rng, 1, tail=Tail(0, 0)))

    assert channel.export() == before


@pytest.mark.parametrize("at", [0, 3, 8, 12])
def test_a_split_anywhere_changes_nothing(at: int) -> None:
    """Export, pack, unpack, restore into a new channel and go on: equal to the bit."""
    rng = np.random.default_rng(68)
    windows = [window(rng, k, tail=Tail(100, 2 * (k > 4))) for k in range(12)]
    goes_on_where_it_stopped(lambda: TailChannel(REFERENCE), windows, at)


def test_a_foreign_state_is_refused() -> None:
    """Of another baseline or torn."""
    channel = TailChannel(REFERENCE)
    for state in (TailChannel(baseline()).export(), {**channel.export(), "evidence": 1}):
        with pytest.raises(StateError):
            channel.restore(state)
