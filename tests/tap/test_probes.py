"""What is measured: a row's signals against float64 numpy, and the sums over groups of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sidecar.tap import probes
from sidecar.tap.probes import (
    ALONG,
    INFLUENCE,
    LARGEST,
    LOG_RMS,
    NONFINITE,
    NUM_BOUNDS,
    NUM_COLUMNS,
    NUM_SUMS,
    PEAK,
    POWER,
    PULSE,
    group_rows,
    record,
    row_moments,
    row_signals,
)
from sidecar.wire.frame import NUM_POWERS, NUM_SIGNALS

Floats = NDArray[np.float64]


def oracle(before: torch.Tensor, after: torch.Tensor) -> Floats:
    """Signals [3, T] by their formulas in `wire.signals`, in float64."""
    x, h = before.double().numpy(), after.double().numpy()
    rms = np.sqrt((h**2).mean(-1))
    cosine = (x * h).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(h, axis=-1)
    return np.stack([np.log(rms), np.abs(h).max(-1) / rms, 1 - cosine])


def stream(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signals_of(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Signals [3, T] of the rows of one pass, as they are made after it."""
    return torch.stack(row_signals(*row_moments(before, after)[:NONFINITE]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 8), (1, 1024), (7, 64), (33, 129)])
def test_signals_of_a_row_are_those_of_float64_numpy(shape, dtype) -> None:
    """RMS, peak and influence agree with their formulas in float64, for every float type."""
    before = stream(*shape).to(dtype)
    after = (before.float() + 0.3 * stream(*shape, seed=1)).to(dtype)
    got = signals_of(before, after).double().numpy()
    want = oracle(before, after)
    np.testing.assert_allclose(got[LOG_RMS], want[LOG_RMS], atol=1e-6)
    np.testing.assert_allclose(got[PEAK], want[PEAK], rtol=1e-5)
    np.testing.assert_allclose(got[INFLUENCE], want[INFLUENCE], atol=1e-6)
    assert not row_moments(before, after)[NONFINITE].any()


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e15])
def test_signals_hold_over_the_range_of_float32(scale) -> None:
    """A tiny or a huge stream has the same peak and influence, and the RMS that scales with it."""
    before, after = stream(3, 64), stream(3, 64, seed=1)
    plain = signals_of(before, after)
    scaled = signals_of(before * scale, after * scale)
    np.testing.assert_allclose(scaled[LOG_RMS] - plain[LOG_RMS], np.log(scale), rtol=1e-5)
    torch.testing.assert_close(scaled[PEAK], plain[PEAK])
    torch.testing.assert_close(scaled[INFLUENCE], plain[INFLUENCE], atol=1e-5, rtol=0)


def test_a_huge_first_row_leaves_the_others_alone() -> None:
    """An attention sink, tens of times larger, changes no other row's signals."""
    before, after = stream(4, 32), stream(4, 32, seed=1)
    plain = signals_of(before, after)
    after[0] *= 1e4
    after[0, 5] = 1e9
    sunk = signals_of(before, after)
    torch.testing.assert_close(sunk[:, 1:], plain[:, 1:], rtol=0, atol=0)
    np.testing.assert_allclose(sunk[PEAK, 0], np.sqrt(32), rtol=1e-4)


def test_a_row_of_zeros_has_finite_signals() -> None:
    """A zero row, such as a padding row, gives no NaN: tiny RMS, no peak, influence 1."""
    signals = signals_of(torch.zeros(1, 16), torch.zeros(1, 16))
    assert torch.isfinite(signals).all()
    assert signals[LOG_RMS].exp().item() < 1e-14
    assert signals[PEAK].item() == 0.0
    assert signals[INFLUENCE].item() == 1.0


def test_influence_is_0_for_the_same_1_for_orthogonal_2_for_opposite() -> None:
    """Block influence measures the angle between a layer's input and output, never below 0."""
    x = stream(50, 64)
    same = signals_of(x, 3 * x)[INFLUENCE]
    assert (same >= 0).all()
    assert (same < 1e-6).all()
    opposite = signals_of(x, -2 * x)[INFLUENCE]
    torch.testing.assert_close(opposite, torch.full((50,), 2.0), atol=1e-6, rtol=0)
    e = torch.eye(2, 8)
    torch.testing.assert_close(signals_of(e[:1], 5 * e[1:])[INFLUENCE], torch.ones(1))


def test_non_finite_elements_are_counted_and_stay_in_their_row() -> None:
    """NaN and Inf are counted by element, spoil their own row's signals, and no other row's."""
    before, after = stream(4, 16), stream(4, 16, seed=1)
    plain = signals_of(before, after)
    after[1, :3] = torch.nan
    after[2, 0], after[2, 7] = torch.inf, -torch.inf
    signals = signals_of(before, after)
    assert row_moments(before, after)[NONFINITE].tolist() == [0, 3, 2, 0]
    assert not torch.isfinite(signals[LOG_RMS, 1:3]).any()
    torch.testing.assert_close(signals[:, [0, 3]], plain[:, [0, 3]], rtol=0, atol=0)


def test_record_writes_its_own_rows_only() -> None:
    """A pass over n rows leaves the rows beyond n as they were."""
    rows = torch.full((NUM_COLUMNS, 6), -7.0)
    before, after = stream(4, 8), stream(4, 8, seed=1)
    record(rows, before, after)
    torch.testing.assert_close(rows[:PULSE, :4], row_moments(before, after), rtol=0, atol=0)
    assert (rows[:, 4:] == -7.0).all()


def test_record_counts_the_passes_of_every_row() -> None:
    """The pulse of a row is the number of passes that wrote it."""
    rows = torch.zeros(NUM_COLUMNS, 4)
    for num_rows in (4, 2, 1):
        record(rows, stream(num_rows, 8), stream(num_rows, 8))
    assert rows[PULSE].tolist() == [3, 2, 1, 1]


def test_the_pulse_wraps_before_float32_stops_counting() -> None:
    """At the end of its period a pulse starts again at 1, so it always moves and is never 0."""
    rows = torch.zeros(NUM_COLUMNS, 1)
    rows[PULSE] = probes._PULSE_PERIOD - 2
    seen = []
    for _ in range(3):
        record(rows, stream(1, 8), stream(1, 8))
        seen.append(rows[PULSE, 0].item())
    assert seen == [probes._PULSE_PERIOD - 1, 1, 2]
    assert probes._PULSE_PERIOD < 2**24  # from there on, float32 x + 1 == x


def naive_groups(rows: Floats, groups: NDArray[np.int64], num_groups: int) -> tuple[Floats, Floats]:
    """The contract of `group_rows`, one row and one layer at a time."""
    num_layers, _, num_rows = rows.shape
    sums = np.zeros((num_groups, num_layers, NUM_SUMS))
    bounds = np.full((num_groups, num_layers, NUM_BOUNDS), -np.inf)
    for layer in range(num_layers):
        for row in range(num_rows):
            power, largest, along, nonfinite, _ = rows[layer, :, row]
            cell = sums[groups[row], layer]
            cell[-1] += nonfinite
            rms = np.sqrt(power)
            peak, influence = largest / rms, np.maximum(1.0 - along / rms, 0.0)
            values = np.array([rms, peak, influence])
            if not np.isfinite(values).all():
                continue
            logs = np.array([np.log(rms), np.log(max(peak, 1e-30)), np.log(max(influence, 1e-7))])
            cell[:9] += np.stack([values, logs, logs**2], -1).ravel()  # [S, 3], as on the wire
            cell[9] += 1
            both = np.concatenate([-values, values])
            bounds[groups[row], layer] = np.maximum(bounds[groups[row], layer], both)
    return sums, bounds


def grouped(rows: torch.Tensor, groups: NDArray[np.int64], num_groups: int) -> tuple[Floats, ...]:
    """`group_rows` into dirty memory, as the ring of results hands it out."""
    num_layers = rows.shape[0]
    sums = torch.full((num_groups, num_layers, NUM_SUMS), 99.0, dtype=torch.float64)
    bounds = torch.full((num_groups, num_layers, NUM_BOUNDS), 99.0)
    group_rows(rows, torch.from_numpy(groups), sums, bounds)
    return sums.numpy(), bounds.double().numpy()


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[torch.Tensor, NDArray[np.int64], int]:
    """Rows as `record` writes them, some of them not finite, in groups, some of them empty."""
    num_layers = draw(st.integers(1, 3))
    num_rows = draw(st.integers(1, 12))
    num_groups = draw(st.integers(1, 5))
    groups = draw(st.lists(st.integers(0, num_groups - 1), min_size=num_rows, max_size=num_rows))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = np.zeros((num_layers, NUM_COLUMNS, num_rows))
    # Powers of two, whose roots are exact: no influence stays none, whose logarithm has a floor.
    rms = 2.0 ** rng.integers(-6, 7, (num_layers, num_rows))
    rows[:, POWER] = rms**2
    rows[:, LARGEST] = rms * rng.choice([0.0, 1.0, 4.5, 300.0], (num_layers, num_rows))
    rows[:, ALONG] = rms * rng.choice([1.0, 0.75, 0.0, -1.0], (num_layers, num_rows))
    for row in draw(st.sets(st.integers(0, num_rows - 1))):
        layer = draw(st.integers(0, num_layers - 1))
        rows[layer, draw(st.sampled_from([POWER, LARGEST, ALONG])), row] = draw(
            st.sampled_from([np.nan, np.inf])
        )
        rows[layer, NONFINITE, row] = draw(st.integers(0, 64))
    return torch.from_numpy(rows).float(), np.array(groups, np.int64), num_groups


@given(grouped_rows())
@settings(max_examples=100, deadline=None)
def test_groups_add_up_as_one_row_at_a_time_does(case) -> None:
    """Sums and extremes of each group and layer equal a loop over rows; dirty memory is no harm."""
    rows, groups, num_groups = case
    sums, bounds = grouped(rows, groups, num_groups)
    want_sums, want_bounds = naive_groups(rows.double().numpy(), groups, num_groups)
    np.testing.assert_allclose(sums, want_sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bounds, want_bounds, rtol=1e-5)


@given(grouped_rows(), st.data())
@settings(max_examples=50, deadline=None)
def test_the_sum_of_two_parts_is_the_sum_of_the_whole(case, data) -> None:
    """Merge law: grouping the rows of A, then of B, and merging, equals grouping A and B."""
    rows, groups, num_groups = case
    cut = data.draw(st.integers(0, len(groups)))
    sums_a, bounds_a = grouped(rows[..., :cut], groups[:cut], num_groups)
    sums_b, bounds_b = grouped(rows[..., cut:], groups[cut:], num_groups)
    sums, bounds = grouped(rows, groups, num_groups)
    np.testing.assert_allclose(sums_a + sums_b, sums, rtol=1e-12)
    np.testing.assert_array_equal(np.maximum(bounds_a, bounds_b), bounds)


def test_many_rows_of_one_group_are_added_in_float64() -> None:
    """A million rows lose no digit: the sum is exact to float64, not to float32."""
    num_rows = 1 << 20
    rows = torch.zeros(1, NUM_COLUMNS, num_rows)
    rows[:, POWER] = 1.0
    rows[:, LARGEST] = 1.0 + 2**-20
    sums, _ = grouped(rows, np.zeros(num_rows, np.int64), 1)
    powers = sums[0, 0, :-2].reshape(NUM_SIGNALS, NUM_POWERS)
    assert powers[1, 0] == num_rows + 1  # the sum of the peaks
    assert sums[0, 0, -2] == num_rows
