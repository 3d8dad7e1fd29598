"""Static buffers: addresses that stay, a ring that runs dry without waiting, and limits."""

import numpy as np
import pytest
import torch

from sidecar.tap.probes import NUM_BOUNDS, NUM_COLUMNS, NUM_SUMS, PULSE, group_rows, record
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.rows import Plan
from sidecar.tap.slab import Slab

NUM_LAYERS, CAPACITY, MAX_GROUPS = 2, 8, 3


def slab() -> Slab:
    return Slab(NUM_LAYERS, CAPACITY, MAX_GROUPS, torch.device("cpu"))


def plan(groups: list[int], num_groups: int) -> Plan:
    """A plan of which only the groups matter here."""
    sizes = np.bincount(groups, minlength=num_groups)[:num_groups]
    ids = np.arange(num_groups)
    return Plan(np.array(groups, np.int64), num_groups, ids, 0 * ids, sizes, ids, ids, ids, sizes)


def fill(made: Slab, num_rows: int, seed: int = 0) -> None:
    """What a forward pass leaves in the rows."""
    generator = torch.Generator().manual_seed(seed)
    for layer in made.rows:
        before, change = torch.randn(2, num_rows, 16, generator=generator)
        record(layer, before, before + change)


def test_a_collected_step_is_the_grouping_of_its_rows() -> None:
    """Sums and extremes of the planned rows come back, with the pulse of each layer."""
    made = slab()
    fill(made, 5)
    fill(made, 5, seed=1)
    groups = [0, 2, 1, 1, 2]  # the last group is one of rows not to be counted
    result = made.collect(plan(groups, 2))
    assert result is not None
    assert result.is_ready
    sums, bounds, pulse = made.read(result, 2)
    want_sums = torch.zeros(3, NUM_LAYERS, NUM_SUMS, dtype=torch.float64)
    want_bounds = torch.zeros(3, NUM_LAYERS, NUM_BOUNDS)
    group_rows(made.rows[..., :5], torch.tensor(groups), want_sums, want_bounds)
    np.testing.assert_array_equal(sums, want_sums[:2])
    np.testing.assert_array_equal(bounds, want_bounds[:2])
    assert pulse.tolist() == [2.0, 2.0]
    assert made.pulses() == [2.0, 2.0]


def test_a_result_keeps_its_step_while_the_next_ones_run() -> None:
    """Later passes and their results do not touch a result that the pump has not read yet."""
    made = slab()
    fill(made, 4)
    first = made.collect(plan([0, 0, 1, 1], 2))
    assert first is not None
    before = [array.copy() for array in made.read(first, 2)]
    for seed in range(1, NUM_LOANS):
        fill(made, 8, seed)
        assert made.collect(plan([0] * 8, 1)) is not None
    for now, then in zip(made.read(first, 2), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_reused_result_holds_nothing_of_its_last_step() -> None:
    """After a whole turn of the ring the same plan gives the same numbers in the same memory."""
    made = slab()
    fill(made, 3)
    seen = []
    for _ in range(NUM_LOANS + 1):
        result = made.collect(plan([0, 0, 1], 2))
        assert result is not None
        seen.append(made.read(result, 2).sums.copy())
        made.release(result)
    for sums in seen[1:]:
        np.testing.assert_array_equal(sums, seen[0])


def test_an_empty_ring_gives_none_and_release_gives_back() -> None:
    """With every result taken a step is refused at once; each release makes room for one."""
    made = slab()
    results = [made.collect(plan([0], 1)) for _ in range(NUM_LOANS)]
    assert all(results)
    assert made.collect(plan([0], 1)) is None
    made.release(results[3])
    assert made.collect(plan([0], 1)) is results[3]
    assert made.collect(plan([0], 1)) is None


@pytest.mark.parametrize(
    ("groups", "num_groups", "is_taken"),
    [
        ([0] * CAPACITY, 1, True),
        ([0] * (CAPACITY + 1), 1, False),
        ([0, 1, 2], MAX_GROUPS, True),
        ([0, 1, 2, MAX_GROUPS], MAX_GROUPS, True),  # and one row not to be counted
        ([0, 1, 2, 3], MAX_GROUPS + 1, False),
    ],
)
def test_a_step_beyond_the_limits_is_refused(groups, num_groups, is_taken) -> None:
    """More rows or groups than there is memory for are not collected, and take no result."""
    made = slab()
    assert (made.collect(plan(groups, num_groups)) is not None) == is_taken
    free = NUM_LOANS - is_taken
    assert [made.collect(plan([0], 1)) is None for _ in range(NUM_LOANS)].count(False) == free


def test_addresses_never_change() -> None:
    """CUDA graphs bake addresses: rows and results stay where they were allocated."""
    made = slab()
    rows = made.rows.data_ptr()
    views = [made.rows[layer].data_ptr() for layer in range(NUM_LAYERS)]
    addresses = set()
    for seed in range(3 * NUM_LOANS):
        fill(made, CAPACITY, seed)
        result = made.collect(plan([0] * CAPACITY, 1))
        assert result is not None
        addresses.add(result.host["sums"].data_ptr())
        made.release(result)
    assert made.rows.data_ptr() == rows
    assert [made.rows[layer].data_ptr() for layer in range(NUM_LAYERS)] == views
    assert len(addresses) == NUM_LOANS
    assert made.rows.shape == (NUM_LAYERS, NUM_COLUMNS, CAPACITY)


def test_a_step_in_inference_mode_can_be_read_outside() -> None:
    """The engine runs in inference mode and the pump does not; the memory serves both."""
    made = slab()
    with torch.inference_mode():
        fill(made, 2)
        result = made.collect(plan([0, 0], 1))
    assert result is not None
    sums, _, pulse = made.read(result, 1)
    assert sums[0, 0, -2] == 2
    assert pulse.tolist() == made.rows[:, PULSE, 0].tolist() == [1.0, 1.0]


def test_a_step_that_cannot_be_grouped_gives_its_result_back(monkeypatch) -> None:
    """However often grouping raises, the ring keeps all its results."""
    made = slab()

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("sidecar.tap.probes.group_rows", broken)
    for _ in range(2 * NUM_LOANS):
        with pytest.raises(RuntimeError, match="broken"):
            made.collect(plan([0, 0], 1))
    monkeypatch.undo()

    assert made.collect(plan([0, 0], 1)) is not None


@pytest.mark.parametrize("chosen", [[1], [0], [1, 0], [0, 1], []])
def test_chosen_layers_are_reduced_alone_and_in_order(chosen) -> None:
    """Each result is that of its own layer; the pulses are those of all."""
    made = slab()
    fill(made, 5)
    asked = plan([0, 2, 1, 1, 2], 2)
    everything = made.collect(asked)
    selection = made.select(chosen)
    loan = made.collect(asked, selection)
    assert everything is not None
    assert loan is not None
    want, got = made.read(everything, 2), made.read(loan, 2, selection)
    np.testing.assert_array_equal(got.sums, want.sums[:, chosen])
    np.testing.assert_array_equal(got.bounds, want.bounds[:, chosen])
    assert got.pulses.tolist() == [1.0] * NUM_LAYERS
    assert selection.places.tolist() == selection.device_places.tolist() == chosen


def test_a_slab_without_layers_collects_nothing_and_works() -> None:
    """A rank that speaks for no layer takes its steps through the same ring."""
    made = Slab(0, CAPACITY, MAX_GROUPS, torch.device("cpu"))
    assert made.pulses() == []
    for _ in range(2 * NUM_LOANS):
        loan = made.collect(plan([0, 0, 1], 2))
        assert loan is not None
        grouped = made.read(loan, 2)
        assert grouped.sums.shape == (2, 0, NUM_SUMS)
        assert grouped.bounds.shape == (2, 0, NUM_BOUNDS)
        assert grouped.pulses.tolist() == []
        made.release(loan)
