"""Averaged e-detectors."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.evidence import MAX_LOG, Bets, Evidence
from sidecar.fold.drift.ranks import grid

BETS = Bets.of_ranks(4032)
RUN_LENGTH = 1000.0
PSI = [math.log(np.exp(lam * grid(4032)).mean()) for lam in (0.125, 0.25, 0.5, 1, 2)]
SCORES = st.lists(
    st.tuples(*[st.one_of(st.floats(-3.6, 3.6), st.just(math.nan))] * 2), min_size=1, max_size=30
)


def ran(rows: list[tuple[float, ...]], start: int = 0, held: Evidence | None = None) -> Evidence:
    held = held or Evidence.of(BETS, 2, RUN_LENGTH)
    for k, row in enumerate(rows, start):
        held.update(BETS.log_evidence(np.array(row)), 100 * k)
    return held


@pytest.mark.parametrize(
    ("bets", "num_windows"),
    [(BETS, 4032), (Bets.of_ranks(200, eta=3), 200), (Bets.exchangeable(7), 7)],
)
def test_no_bet_gains_on_average_without_a_change(bets: Bets, num_windows: int) -> None:
    """Over all the ranks there are, each as likely, the mean of e is at most 1."""
    means = np.exp(bets.log_evidence(grid(num_windows))).mean(axis=-1)

    assert (means <= 1 + 1e-12).all()
    if bets.margin == 0:
        np.testing.assert_allclose(means, 1.0)


def test_short_baselines_and_slow_traffic_bet_on_large_shifts_only() -> None:
    """lambda below 4 eta / sqrt K goes, the two largest stay, and eps is at least 2 / sqrt K."""
    assert Bets.of_ranks(4032, eta=2).lambdas[0, 0] == 0.25
    assert BETS.lambdas[:, 0].tolist() == [0.125, 0.25, 0.5, 1.0, 2.0]
    assert Bets.of_ranks(4032, eta=3).lambdas[:, 0].tolist() == [0.25, 0.5, 1.0, 2.0]
    assert Bets.of_ranks(16).lambdas[:, 0].tolist() == [1.0, 2.0]
    assert Bets.of_ranks(100).margin == 0.25
    assert Bets.of_ranks(16, margin=0.0).margin == 0.5


@given(SCORES)
def test_evidence_is_the_formula_written_out(rows: list[tuple[float, ...]]) -> None:
    """R <- (1 + R) e for each side, lambda and stream in plain Python, and its average."""
    every = np.zeros((2, 5, 2))
    since_ns = np.zeros((2, 5, 2), np.int64)
    for s, sign in enumerate((1, -1)):
        for c, (lam, p) in enumerate(zip((0.125, 0.25, 0.5, 1, 2), PSI, strict=True)):
            for j in range(2):
                r = likelihood = 0.0
                for k, row in enumerate(rows):
                    since_ns[s, c, j] = 100 * k if likelihood == 0 else since_ns[s, c, j]
                    if not math.isnan(row[j]):
                        log_e = lam * (sign * row[j] - 0.25) - p
                        r = (1 + r) * math.exp(log_e)
                        likelihood = max(0.0, likelihood + log_e)
                every[s, c, j] = r

    mean = float(every.mean())
    held = ran(rows)
    np.testing.assert_array_equal(held.since_ns, since_ns)
    assert math.exp(held.log_mean) == pytest.approx(mean, rel=1e-9)
    assert held.is_alarming == (mean >= RUN_LENGTH)
    assert held.level == pytest.approx(math.log1p(mean) / math.log1p(RUN_LENGTH), rel=1e-9)


@given(SCORES, st.integers(0, 30))
def test_a_split_anywhere_changes_nothing(rows: list[tuple[float, ...]], at: int) -> None:
    """Export, pack, unpack, restore and go on: equal to the bit."""
    restored = Evidence.of(BETS, 2, RUN_LENGTH)
    packed = msgspec.msgpack.encode(ran(rows[:at]).export())
    restored.restore(msgspec.msgpack.decode(packed))
    split = ran(rows[at:], min(at, len(rows)), restored)

    assert split.export() == ran(rows).export()


def test_a_state_of_another_detector_is_refused() -> None:
    """Other streams, other bets or another run length; nothing changes."""
    held = ran([(1.0, 2.0)])
    before = held.export()
    for other in (
        Evidence.of(BETS, 3, RUN_LENGTH),
        Evidence.of(Bets.of_ranks(16), 2, RUN_LENGTH),
        Evidence.of(BETS, 2, 2 * RUN_LENGTH),
    ):
        with pytest.raises(StateError):
            held.restore(other.export())

    assert held.export() == before


def test_evidence_without_end_is_capped_and_falls_again() -> None:
    """100 000 windows of the largest score overflow nothing."""
    held = Evidence.of(BETS, 2, RUN_LENGTH)
    for k in range(1000):
        held.update(BETS.log_evidence(np.array([3.6, -3.6])), k)

    assert held.log_r.max() == MAX_LOG
    assert held.is_alarming
    np.testing.assert_allclose(held.portions().sum(), 1.0)
    held.update(BETS.log_evidence(np.array([-3.6, 3.6])), 1000)
    assert held.log_r.max() < MAX_LOG


def test_the_onset_is_that_of_the_bet_with_the_most_evidence() -> None:
    """A weak shift and then a strong one: small bets saw the first, the largest only the second."""
    held = ran([(0.9, 0.0)] * 40 + [(3.0, 0.0)] * 12)
    most = held.log_r[0, :, 0].argmax()

    assert len(set(held.since_ns[0, :, 0].tolist())) > 1
    assert held.onsets()[0, 0] == held.since_ns[0, most, 0]
    assert held.onsets()[0, 0] != held.since_ns[0, held.log_r[0, :, 0].argmin(), 0]


def test_after_a_page_was_seen_the_onset_is_a_new_one() -> None:
    """What is found next began after the acknowledgement."""
    held = ran([(3.0, 3.0)] * 20)
    held.zero()
    ran([(3.0, 3.0)] * 3, 20, held)

    assert held.onsets()[0].tolist() == [2000, 2000]


def test_nothing_seen_is_no_evidence() -> None:
    """At the start, and after an acknowledgement, all levels are 0 and nothing warns."""
    held = ran([(3.0, 3.0)] * 20)
    held.zero()

    for each in (held, Evidence.of(BETS, 2, RUN_LENGTH), Evidence.of(BETS, 0, RUN_LENGTH)):
        assert (each.level, each.is_alarming, each.log_mean) == (0.0, False, -math.inf)
        assert not each.shares().any()
        assert not each.portions().any()


def test_a_shift_names_its_stream_its_side_and_its_beginning() -> None:
    """Nearly all the evidence is on the low side of the second stream, and began when it moved."""
    rng = np.random.default_rng(10)
    rows = np.clip(rng.normal(size=(340, 2)), -3.6, 3.6)
    rows[300:, 1] -= 1.5
    held = ran([tuple(row) for row in np.clip(rows, -3.6, 3.6)])
    side, stream = np.unravel_index(held.portions().argmax(), (2, 2))

    assert held.is_alarming
    assert (side, stream) == (1, 1)
    assert held.portions()[1, 1] > 0.99
    assert held.shares()[1, 1] == pytest.approx(held.level, rel=1e-3)
    assert 28_500 <= held.onsets()[1, 1] <= 30_500


def test_the_run_length_holds_for_streams_that_are_the_same() -> None:
    """Ten copies of one stream: the mean run length is still at least A = 100, by much."""
    num_runs, num_windows = 60, 1500
    bets = Bets.exchangeable(50)
    rng = np.random.default_rng(11)
    lengths = []
    for _ in range(num_runs):
        held = Evidence.of(bets, 10, 100.0)
        scores = grid(50)[rng.integers(0, 51, num_windows)]
        for k in range(num_windows):
            held.update(bets.log_evidence(np.full(10, scores[k])), k)
            if held.is_alarming:
                break
        lengths.append(k + 1)

    # sd of the mean of 60 run lengths is about 13 %.
    assert np.mean(lengths) > 100 * 0.7
