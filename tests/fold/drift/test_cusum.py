"""The CUSUM pair."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.cusum import Charts, Cusum, limit

CHARTS = Charts.pair(num_streams=3, run_length=25_920, num_windows=4032)
SCORES = st.lists(
    st.tuples(*[st.one_of(st.floats(-4, 4), st.just(math.nan))] * 3), min_size=1, max_size=40
)


def ran(rows: list[tuple[float, ...]], start: int = 0, cusum: Cusum | None = None) -> Cusum:
    cusum = cusum or Cusum(CHARTS, 3)
    for k, row in enumerate(rows, start):
        cusum.update(np.array(row), 100 * k)
    return cusum


def test_limits_are_the_published_ones() -> None:
    """96 streams and a false page in 3 months: 26.9 and 14.25; four times the streams add ln 4."""
    assert limit(1 / 4, 4 * 96, 25_920) == pytest.approx(26.90, abs=0.005)
    assert limit(1 / 2, 4 * 96, 25_920) == pytest.approx(14.25, abs=0.005)
    assert limit(1 / 4, 16 * 96, 25_920) - limit(1 / 4, 4 * 96, 25_920) == pytest.approx(2.8, 0.02)


@given(st.floats(0.05, 1), st.integers(1, 5000), st.floats(10, 1e6))
def test_a_limit_solves_siegmunds_formula(k: float, num_charts: int, run_length: float) -> None:
    """Put into the formula, the limit gives the run length back."""
    b = limit(k, num_charts, run_length) + 1.166
    back = (math.exp(2 * k * b) - 2 * k * b - 1) / (2 * k**2) / num_charts

    assert back == pytest.approx(run_length, rel=1e-6) or back > run_length


@given(SCORES)
def test_charts_are_the_formula_written_out(rows: list[tuple[float, ...]]) -> None:
    """One chart after the other in plain Python gives the same levels and the same onsets."""
    cusum = ran(rows)

    bands = zip(CHARTS.signs, CHARTS.dead_bands, strict=True)
    for c, (sign, k) in enumerate(bands):
        for j in range(3):
            level, zero_ns = 0.0, 0
            for i, row in enumerate(rows):
                zero_ns = 100 * i if level == 0 else zero_ns
                level = level if math.isnan(row[j]) else max(0.0, level + sign * row[j] - k)
            assert cusum.levels[c, j] == pytest.approx(level, abs=1e-12)
            assert cusum.since_ns[c, j] == zero_ns


@given(SCORES, st.integers(0, 40))
def test_a_split_anywhere_changes_nothing(rows: list[tuple[float, ...]], at: int) -> None:
    """Export, pack, unpack, restore and go on: equal to the bit."""
    restored = Cusum(CHARTS, 3)
    packed = msgspec.msgpack.encode(ran(rows[:at]).export())
    restored.restore(msgspec.msgpack.decode(packed))
    split = ran(rows[at:], min(at, len(rows)), restored)

    assert split.export() == ran(rows).export()


def test_a_state_of_other_charts_is_refused() -> None:
    """Another number of streams or another limit is not gone on from, and nothing changes."""
    cusum = ran([(1.0, 2.0, 3.0)])
    before = cusum.export()
    for charts, p in ((CHARTS, 4), (CHARTS.scaled(1.1), 3)):
        with pytest.raises(StateError):
            cusum.restore(Cusum(charts, p).export())

    assert cusum.export() == before


def test_a_shift_names_its_stream_its_side_and_its_beginning() -> None:
    """The chart that reaches its limit first is that of what moved; it left 0 when it moved."""
    rng = np.random.default_rng(7)
    cusum = Cusum(CHARTS, 3)
    for k in range(400):
        scores = np.clip(rng.normal(size=3), -3.6, 3.6)
        scores[1] -= 2.0 * (k >= 300)
        cusum.update(scores, k)
        if cusum.shares().max() >= 1:
            break
    c, j = np.unravel_index(cusum.shares().argmax(), cusum.shares().shape)

    assert 300 < k < 330
    assert (CHARTS.signs[c], j) == (-1.0, 1)
    assert 285 <= cusum.since_ns[c, j] <= 303


def test_a_short_baseline_widens_the_dead_band() -> None:
    """K = 100 windows know their own mean to 0.1 only: k is 0.4 instead of a quarter."""
    np.testing.assert_allclose(Charts.pair(3, 1000, 100).dead_bands, [0.4, 0.5, 0.4, 0.5])
    np.testing.assert_allclose(Charts.pair(3, 1000, 16).dead_bands, [1.0, 1.0])
    np.testing.assert_allclose(CHARTS.dead_bands, [0.25, 0.5, 0.25, 0.5])


def test_the_run_length_without_a_change_is_at_least_the_wanted_one() -> None:
    """64 runs of 4 independent normal streams with A = 300; Siegmund's formula is exact to 10 %."""
    charts = Charts.pair(4, 300, 100_000)
    rng = np.random.default_rng(8)
    levels = np.zeros((64, 4, 4))
    run_lengths = np.zeros(64)
    for _ in range(6000):
        running = ~(levels >= charts.limits[:, None]).any(axis=(1, 2))
        run_lengths += running
        moved = charts.step(levels, rng.normal(size=(64, 4)))
        levels = np.where(running[:, None, None], moved, levels)

    # Rates of overlapping charts add to at most their sum, so longer than A; 64 runs: sd 12 %.
    assert 300 * 0.65 < run_lengths.mean() < 300 * 2.5


def test_river_sees_the_same_run() -> None:
    """Page-Hinkley of another library, without forgetting, is our chart with the mean known."""
    drift = pytest.importorskip("river.drift")
    rng = np.random.default_rng(9)
    # A long stretch first, so that river's running mean is the 0 that ours knows.
    calm = rng.normal(size=4_000)
    calm -= calm.mean()
    theirs = drift.PageHinkley(min_instances=1, delta=0.5, threshold=1e9, alpha=1.0, mode="up")
    for value in calm:
        theirs.update(float(value))
    shifted = rng.normal(size=60) + 1.5

    charts = Charts(np.array([1.0]), np.array([0.5]), np.array([14.0]))
    ours = Cusum(charts, 1)
    for k, value in enumerate([*calm, *shifted]):
        ours.update(np.array([value]), k)
    for value in shifted:
        theirs.update(float(value))

    assert ours.levels[0, 0] > 30
    increase = theirs._sum_increase - theirs._min_increase
    assert ours.levels[0, 0] == pytest.approx(increase, rel=0.05)
