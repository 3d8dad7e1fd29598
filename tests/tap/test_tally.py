"""Additive statistics by owner and cell: against plain sums over the rows, whatever their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap.tally import Tally, transformed
from sidecar.wire.frame import Cells, Frame, Header, Source, Totals, pack, unpack
from sidecar.wire.signals import GROUPS, Transform

LAYERS, PHASES = ["3", "7"], ["prefill", "decode"]
NUM_CELLS = 4


def tally(num_owners: int = 1) -> Tally:
    return Tally("router", [LAYERS, PHASES], num_owners)


def cells_of(made: Tally, owner: int = 0, *, last: bool = False) -> Cells:
    """The table of one owner, as it comes out of the wire."""
    table = made.table(owner, last=last)
    header = Header("boot-one", Source("engine"), 1, 1, 1, 0)
    (back,) = unpack(pack(Frame(header, Totals([table])))).body.tables
    return Cells.unpack(back)


def add(made: Tally, *rows: tuple[int, int, float, float]) -> None:
    """Add (owner, cell, first signal, second signal) rows."""
    owners, cells, *values = zip(*rows, strict=True)
    made.add(np.array(owners), np.array(cells), np.array(values, np.float32).T)


def test_a_cell_holds_the_sums_of_its_rows() -> None:
    """Count, powers of the value and of its transform, extremes and the latest value."""
    made = tally()
    add(made, (0, 1, 0.5, 4.0), (0, 1, 0.25, 1.0))
    add(made, (0, 2, 0.75, 2.0))
    got = cells_of(made, last=True)
    assert got.count.tolist() == [[0, 2], [1, 0]]
    np.testing.assert_allclose(got.sums[0, 1, 0], [0.75, 0.75, 0.3125])
    np.testing.assert_allclose(got.sums[0, 1, 1], [5.0, np.log(4.0), np.log(4.0) ** 2])
    assert got.extremes[0, 1].tolist() == [[0.25, 0.5], [1.0, 4.0]]
    assert got.last[0, 1].tolist() == [0.25, 1.0]
    assert np.isnan(got.extremes[0, 0]).all()
    assert np.isnan(got.last[1, 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_none_is_left_out_whole(value) -> None:
    """One such signal would poison its sum for ever, and half a row has no count."""
    made = tally()
    add(made, (0, 0, 0.5, value), (0, 0, 0.5, 2.0), (0, 1, value, 2.0))
    got = cells_of(made, last=True)
    assert got.count.tolist() == [[1, 0], [0, 0]]
    assert got.sums[0, 0, :, 0].tolist() == [0.5, 2.0]
    assert np.isnan(got.last[0, 1]).all()


def test_the_latest_of_several_rows_of_one_cell_is_the_last() -> None:
    """Rows come in order, within one addition too."""
    made = tally()
    add(made, (0, 0, 0.1, 1.0), (0, 0, 0.9, 5.0), (0, 0, 0.5, 3.0))
    assert cells_of(made, last=True).last[0, 0].tolist() == [0.5, 3.0]
    assert len(cells_of(made).last) == 0


rows = st.tuples(
    st.integers(0, 9),
    st.integers(0, NUM_CELLS - 1),
    st.floats(0.125, 1.0, width=32),
    st.floats(0.125, 8.0, width=32),
)


@given(parts=st.lists(st.lists(rows, max_size=8), max_size=5))
@settings(deadline=None)
def test_additions_equal_their_concatenation(parts) -> None:
    """Owner by owner and cell by cell, in one addition or many, also beyond the first owners."""
    many, once = tally(), tally()
    for part in filter(None, parts):
        add(many, *part)
    if flat := [row for part in parts for row in part]:
        add(once, *flat)
    for owner in range(10):
        assert many.has_rows(owner) == once.has_rows(owner) == any(r[0] == owner for r in flat)
        if not many.has_rows(owner):
            continue
        got, want = cells_of(many, owner, last=True), cells_of(once, owner, last=True)
        np.testing.assert_array_equal(got.count, want.count)
        np.testing.assert_array_equal(got.extremes, want.extremes)
        np.testing.assert_array_equal(got.last, want.last)
        np.testing.assert_allclose(got.sums, want.sums, rtol=1e-12)
        for cell in range(NUM_CELLS):
            mine = np.array([row[2:] for row in flat if row[:2] == (owner, cell)])
            assert int(got.count.reshape(-1)[cell]) == len(mine)
            sums = got.sums.reshape(NUM_CELLS, 2, 3)[cell, :, 0]
            np.testing.assert_allclose(sums, mine.sum(0) if len(mine) else 0)


def test_what_was_added_up_elsewhere_is_added_as_it_is() -> None:
    """Sums of a device reach the cell of their owner, beside rows that came one by one."""
    made, plain = tally(), tally()
    two = [(5, 3, 0.5, 2.0), (5, 3, 0.25, 4.0)]
    add(plain, *two)
    add(made, two[0])
    values = np.array([two[1][2:]], np.float64)
    phi = transformed("router", values)
    sums = np.stack([values, phi, phi * phi], -1)
    bounds = np.stack([-values, values], -1).astype(np.float32)
    made.add_sums(np.array([5]), np.array([3]), np.array([1]), sums, bounds)
    got, want = cells_of(made, 5), cells_of(plain, 5)
    np.testing.assert_array_equal(got.count, want.count)
    np.testing.assert_allclose(got.sums, want.sums)
    np.testing.assert_array_equal(got.extremes, want.extremes)


def test_a_cleared_owner_is_empty_for_the_next() -> None:
    """Nothing of a request stays in its slot; other owners keep theirs."""
    made, fresh = tally(2), tally(2)
    add(made, (0, 1, 0.5, 4.0), (1, 1, 0.5, 4.0))
    made.clear(1)
    made.clear(99)
    assert made.table(1, last=True) == fresh.table(1, last=True)
    assert not made.has_rows(1)
    assert not made.has_rows(99)
    assert made.has_rows(0)


def test_extremes_begin_anew_and_sums_stay() -> None:
    """After each frame the extremes of the totals cover the next one alone."""
    made = tally()
    add(made, (0, 0, 0.5, 4.0))
    made.forget_extremes()
    got = cells_of(made)
    assert got.count[0, 0] == 1
    assert np.isnan(got.extremes).all()
    add(made, (0, 0, 0.25, 8.0))
    assert cells_of(made).extremes[0, 0].tolist() == [[0.25, 0.25], [8.0, 8.0]]


def test_a_group_of_counts_alone_has_no_sums() -> None:
    """Expert load: rows are counted, and there is nothing to sum."""
    made = Tally("expert_load", [["0"], ["0", "1", "2"]])
    made.add(np.zeros(3, np.int64), np.array([2, 2, 0]), np.zeros((3, 0)))
    table = made.table(last=True)
    assert cells_of(made).count.tolist() == [[1, 0, 2]]
    assert (table.sums, table.extremes, table.last) == (b"", b"", b"")


def test_a_label_is_cut_to_its_field() -> None:
    """A name that an operator chose cannot make the frame be refused."""
    assert Tally("probe", [["x" * 5000]]).table().axes == [["x" * 256]]


EXTREME = np.array([0.0, 1e-40, 1.0, 1.0 - 1e-9, 1e30, -1.0])


@pytest.mark.parametrize("group", [name for name, group in GROUPS.items() if group.signals])
def test_every_transform_of_a_finite_value_is_finite(group) -> None:
    """A margin of 0, a probability of 1 and a number that cannot be are all summed safely."""
    signals = GROUPS[group].signals
    values = np.repeat(EXTREME[:, None], len(signals), 1)
    phi = transformed(group, values)
    assert np.isfinite(phi).all()
    half = transformed(group, np.full((1, len(signals)), 0.25))[0]
    by_kind = {
        Transform.IDENTITY: 0.25,
        Transform.LOG: np.log(0.25),
        Transform.LOGIT: np.log(0.25 / 0.75),
    }
    np.testing.assert_allclose(half, [by_kind[signal.transform] for signal in signals])
