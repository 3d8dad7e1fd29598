"""Running totals of groups of signals."""

import numpy as np
import pytest

from sidecar.fold.tables import TableSeries, TableTotals, table_bytes
from sidecar.wire.frame import Cells, Table, Totals
from tests import fakes
from tests.fakes import NOW, SECOND


def confidence(*adapters: str, count: int = 8, scale: float = 1.0) -> Table:
    return fakes.table("confidence", adapters, count=count, scale=scale)


def groups(series: TableSeries) -> list[tuple[str, tuple[tuple[str, ...], ...]]]:
    return [(each.group, each.axes) for each in series.get()]


def only(series: TableSeries) -> TableTotals:
    (found,) = series.get()
    return found


def test_nothing_is_known_before_the_first_frame() -> None:
    """No data yet is no table."""
    assert TableSeries().get() == ()


def test_later_totals_replace_earlier_ones() -> None:
    """Totals are cumulative on the wire, so they are never added up here."""
    series = TableSeries()
    for scale in (1.0, 2.0):
        series.update(NOW, Totals([confidence("", scale=scale)]))
    expected = Cells.unpack(confidence("", scale=2.0))

    np.testing.assert_array_equal(only(series).cells.sums, expected.sums)
    np.testing.assert_array_equal(only(series).cells.count, expected.count)


def test_tables_are_ordered_by_group_and_axes() -> None:
    """Whatever the order of arrival, so that a cap always leaves out the same ones."""
    series = TableSeries()
    for layer in ("2", "0", "1"):
        series.update(NOW, Totals([fakes.table("router", [layer], fakes.PHASES)]))
    series.update(NOW, Totals([confidence("")]))

    assert [each.group for each in series.get()] == ["confidence", "router", "router", "router"]
    assert [each.axes[0][0] for each in series.get()] == ["", "0", "1", "2"]


def test_a_table_replaces_those_that_share_its_cells() -> None:
    """A sender that names another adapter does not leave the former totals frozen beside it."""
    series = TableSeries()
    for axes in (["", "a"], ["b"], ["", "a", "c"]):
        series.update(NOW, Totals([confidence(*axes)]))

    assert groups(series) == [("confidence", (("", "a", "c"),)), ("confidence", (("b",),))]


def test_tables_that_share_labels_but_no_cell_stand_side_by_side() -> None:
    """Cells are products: the same head of another layer is another cell."""
    series = TableSeries()
    for layer in ("0", "1"):
        series.update(NOW, Totals([fakes.table("attention", [layer], fakes.PHASES, ["0", "1"])]))

    assert len(series.get()) == 2


def test_a_window_tells_what_it_added() -> None:
    """Rows and sums between the last frame before it and its own last frame."""
    series = TableSeries()
    for k in range(8):  # at 0, 4, ... 28 s: two in the third window, at 20 and 24 s, and 28 s
        series.update(
            NOW + 4 * k * SECOND, Totals([confidence("", count=10 * k * k, scale=k + 1.0)])
        )
    series.advance(NOW + 30 * SECOND)
    recent = only(series).recent
    assert recent is not None

    assert recent.rows.tolist() == [10 * (7 * 7 - 4 * 4)]
    before, after = (Cells.unpack(confidence("", scale=s)).sums[..., 0] for s in (5.0, 8.0))
    np.testing.assert_array_equal(recent.sums, after - before)


def test_what_came_before_the_first_frame_is_in_no_window() -> None:
    """A sidecar that starts late does not tell a day's rows as those of ten seconds."""
    series = TableSeries()
    series.update(NOW, Totals([confidence("", count=10**9)]))
    assert only(series).recent is None

    series.advance(NOW + 10 * SECOND)
    recent = only(series).recent
    assert recent is not None
    assert recent.rows.tolist() == [0]


def test_extremes_are_those_of_the_last_closed_window() -> None:
    """An idle engine shows none, as with layers."""
    series = TableSeries()
    series.update(NOW, Totals([confidence("")]))
    assert only(series).window is None

    series.advance(NOW + 10 * SECOND)
    np.testing.assert_array_equal(only(series).window, Cells.unpack(confidence("")).extremes)
    series.advance(NOW + 20 * SECOND)
    assert only(series).window is None


def test_totals_that_fall_add_nothing() -> None:
    """A sender that breaks its word makes no number near 2^64."""
    series = TableSeries()
    for second, count in ((0, 8), (5, 3), (10, 3)):
        series.update(NOW + second * SECOND, Totals([confidence("", count=count)]))
    recent = only(series).recent
    assert recent is not None

    assert recent.rows.tolist() == [0]


def test_a_result_is_left_alone_by_later_frames() -> None:
    """What is being rendered never changes under the renderer."""
    series = TableSeries()
    series.update(NOW, Totals([confidence("", scale=1.0)]))
    before = only(series)
    copy = before.cells.sums.copy()
    series.update(NOW + 11 * SECOND, Totals([confidence("", scale=9.0)]))

    np.testing.assert_array_equal(before.cells.sums, copy)


def test_the_number_of_tables_is_bounded() -> None:
    """A sender that makes up labels in each frame: those unheard the longest go first."""
    series = TableSeries(max_tables=3)
    for k in range(5):
        series.update(NOW, Totals([confidence("kept"), confidence(f"a{k}")]))
        assert ("confidence", (("kept",),)) in groups(series)

    assert [axes[0][0] for _, axes in groups(series)] == ["a3", "a4", "kept"]


def test_the_bytes_of_tables_are_bounded() -> None:
    """Labels count too; and no table is larger than all the room there is."""
    size = table_bytes(confidence("a0"))
    series = TableSeries(max_table_bytes=2 * size)
    for k in range(5):
        series.update(NOW, Totals([confidence(f"a{k}")]))
    assert [axes[0][0] for _, axes in groups(series)] == ["a3", "a4"]
    assert series.num_bytes == 2 * size

    series.update(NOW, Totals([confidence(*(f"b{k}" for k in range(9)))]))
    assert series.get() == ()


@pytest.mark.parametrize("label", ["", "x" * 200])
def test_a_label_takes_memory_beside_its_characters(label: str) -> None:
    """An empty one is no way around the bound."""
    numbers = sum(len(part) for part in (confidence("").count, confidence("").sums))

    assert table_bytes(confidence(label)) >= numbers + 49 + len(label)
