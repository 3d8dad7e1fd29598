"""The latest scans, put together from their parts."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold import scans
from sidecar.fold.scans import RecentScans, Scanned
from sidecar.wire.scan import MAX_ROWS, Scan
from tests import fakes
from tests.fakes import NOW, FakeSource, reduced

SOURCE = "engine-dp0-pp0-tp0"


def scanned(*parts: Scan) -> Scanned:
    recent = RecentScans()
    for k, part in enumerate(parts):
        recent.update(SOURCE, NOW + k, part)
    return recent.get()[0]


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=4))
def test_parts_add_up_to_the_whole(order: list[int], cuts: list[int]) -> None:
    """Cut anywhere and told in any order, the picture is that of one telling."""
    edges = [0, *sorted(cuts), 12]
    parts = [
        fakes.scan(positions=order[a:b], is_final=b == 12, nonfinite=a % 3)
        for a, b in itertools.pairwise(edges)
    ]
    # After the final part comes nothing more of a request.
    parts = [msgspec.structs.replace(part, is_final=False) for part in parts[:-1]] + parts[-1:]
    told, whole = scanned(*parts).columns(), scanned(fakes.scan()).columns()

    assert told.positions.tolist() == list(range(12))
    np.testing.assert_array_equal(told.values, whole.values)
    assert told.confidence is not None
    np.testing.assert_array_equal(told.confidence, whole.confidence)
    for part in parts:
        at = np.frombuffer(part.positions, "<u4")
        expected = np.frombuffer(part.nonfinite, "<u4").reshape(len(at), 3) if part.nonfinite else 0
        np.testing.assert_array_equal(told.nonfinite[at], expected)


def test_what_was_not_told_is_counted() -> None:
    """Rows of the request that no part held: here those of positions 0 to 3, and of 10 and 11."""
    one = scanned(fakes.scan(positions=range(4, 10)))

    assert (one.num_columns, one.num_left_out) == (6, 6)
    assert one.columns().positions.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_row_without_a_token_has_no_confidence() -> None:
    """Rows within the prompt lead to none; a token whose row was lost has no column."""
    columns = scanned(fakes.scan(positions=[5, 7, 9])).columns()
    assert columns.confidence is not None
    assert np.isnan(columns.confidence[0]).all()
    assert columns.confidence[1:, 0].tolist() == [7, 9]

    lost = fakes.scan(positions=[9])
    lost.positions = lost.values = b""
    assert scanned(fakes.scan(positions=[2], is_final=False), lost).columns().confidence is None


def test_a_request_that_is_told_anew_begins_anew() -> None:
    """Another life of the engine, or a client that sends an id twice."""
    again = scanned(fakes.scan(positions=[0, 1]), fakes.scan(positions=[1, 2]))
    assert again.columns().positions.tolist() == [1, 2]

    going = fakes.scan(positions=[0, 1], is_final=False)
    other = scanned(going, fakes.scan(positions=[3], num_layers=2))
    assert other.columns().values.shape == (1, 2, 3)
    shorter = scanned(going, fakes.scan(positions=[3], num_rows=4))
    assert shorter.columns().positions.tolist() == [3]


def test_a_row_is_told_once() -> None:
    """A part with a row that is known adds none, and the rest is counted as left out."""
    one = scanned(fakes.scan(positions=[0, 1], is_final=False), fakes.scan(positions=[1, 2]))

    assert one.columns().positions.tolist() == [0, 1]
    assert one.num_left_out == 10
    assert one.scan.is_final


def test_rows_of_a_scan_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes; what does not fit is counted as left out."""
    first = fakes.scan(positions=range(MAX_ROWS), is_final=False, num_rows=2000)
    more = fakes.scan(positions=range(MAX_ROWS, MAX_ROWS + 9), num_rows=2000)
    assert scanned(first, more).num_left_out == 2000 - MAX_ROWS

    monkeypatch.setattr(scans, "MAX_SCAN_BYTES", 600)
    going = fakes.scan(positions=range(10), is_final=False)
    assert scanned(going, fakes.scan(positions=[10, 11])).num_columns == 10
    assert scanned(fakes.scan(positions=range(300), num_rows=300)).num_columns == 0


def test_scans_are_bounded_and_the_longest_unheard_go_first() -> None:
    """By their number, and by their bytes."""
    recent = RecentScans(max_scans=2)
    for name in ("a", "b", "a", "c"):
        recent.update(SOURCE, NOW, fakes.scan(name, [0]))
    assert [each.scan.id for each in recent.get()] == ["c", "a"]

    recent = RecentScans(max_bytes=4000)
    for round_ in range(50):
        recent.update(SOURCE, NOW, fakes.scan(f"r{round_}"))
        assert recent._num_bytes <= 4000
    assert 2 <= len(recent.get()) < 10


def test_a_request_is_found_by_either_id() -> None:
    """Its own in the engine, and the one its client knows; stages of a pipeline are kept apart."""
    recent = RecentScans()
    recent.update(SOURCE, NOW, fakes.scan("cmpl-1-0-0badcafe"))
    recent.update("engine-dp0-pp1-tp0", NOW, fakes.scan("cmpl-1-0-0badcafe"))

    for name in ("cmpl-1-0", "cmpl-1-0-0badcafe"):
        assert [each.source[-7:] for each in recent.find(name)] == ["pp1-tp0", "pp0-tp0"]
    assert recent.find("cmpl-2-0") == []


def test_the_reducer_keeps_what_frames_tell() -> None:
    """With the time of the frame that told the last part."""
    source = FakeSource()
    reducer = reduced(
        source.frame(fakes.scan(positions=[0, 1], is_final=False), NOW),
        source.frame(fakes.scan(positions=[2, 3]), NOW + 5),
        now_ns=NOW + 9,
    )
    (found,) = reducer.scans()

    assert (found.source, found.t_ns, found.num_columns) == (SOURCE, NOW + 5, 4)
    assert reducer.find_scans("cmpl-1-0") == [found]
