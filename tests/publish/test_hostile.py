"""Whatever accepted frames hold, the reducer takes them, stays small, and everything renders."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.fold.reducer import Reducer
from sidecar.fold.tables import MAX_TABLE_BYTES, MAX_TABLES
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import (
    NUM_EXTREMES,
    NUM_POWERS,
    Body,
    Requests,
    Signature,
    Signatures,
    Table,
    Totals,
)
from sidecar.wire.scan import CONFIDENCE, Scan
from sidecar.wire.signals import GROUPS
from sidecar.wire.signature import Layout, size
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, SECOND, FakeSource
from tests.publish.plain import pages

# Few different ones, so that tables meet, overlap and hold a label twice.
LABELS = st.lists(st.sampled_from(["", "0", "1", "a", 'q"\\\n', "é", "x" * 256]), max_size=4)
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324])
ENDS = st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf])


def drawn(draw: st.DrawFn, values: st.SearchStrategy[float], num: int, dtype: str) -> bytes:
    few = draw(st.lists(values, min_size=1, max_size=3))
    return np.resize(np.array(few), num).astype(dtype).tobytes()


@st.composite
def tables(draw: st.DrawFn) -> Table:
    group = draw(st.sampled_from(list(GROUPS.values())))
    axes = [draw(LABELS) for _ in group.axes]
    num_cells = int(np.prod([len(labels) for labels in axes]))
    num_values = num_cells * len(group.signals)
    few = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    counts = np.resize(np.array(few, "<u8"), num_cells)
    return Table(
        group.id,
        axes,
        counts.tobytes(),
        drawn(draw, FLOATS, num_values * NUM_POWERS, "<f8"),
        drawn(draw, ENDS, num_values * NUM_EXTREMES, "<f4"),
        drawn(draw, ENDS, num_values, "<f4") if draw(st.booleans()) else b"",
    )


@st.composite
def signatures(draw: st.DrawFn) -> Signatures:
    layout = Layout(draw(st.lists(st.integers(0, 9), max_size=3)), probes=draw(LABELS))
    values = drawn(draw, ENDS, size(layout), "<f4")
    ids = draw(st.lists(st.sampled_from("abcdef"), max_size=5))
    return Signatures(
        layout,
        [Signature(each, NOW, draw(st.booleans()), 1, 1, "", 0, values) for each in ids],
    )


@st.composite
def requests(draw: st.DrawFn) -> Requests:
    one = fakes.request(draw(st.sampled_from("abc")), num_layers=1)
    one.tables = draw(st.lists(tables(), max_size=3))
    return Requests([0], [one])


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    positions = draw(st.lists(st.sampled_from([0, 1, 2, 3, 2**32 - 1]), max_size=4))
    scan = fakes.scan(
        draw(st.sampled_from("ab")),
        positions,
        num_layers=draw(st.integers(0, 2)),
        num_prompt_tokens=draw(st.sampled_from([0, 2, 1 << 62])),
        num_rows=draw(st.integers(0, 4)),
        is_final=draw(st.booleans()),
        nonfinite=draw(st.integers(0, 1)),
    )
    scan.values = drawn(draw, ENDS, len(scan.values) // 4, "<f4")
    tokens = draw(st.lists(st.integers(0, 4), max_size=3))
    scan.token_positions = np.array(tokens, "<u4").tobytes()
    scan.confidence = drawn(draw, ENDS, len(tokens) * len(CONFIDENCE), "<f4")
    return scan


BODIES: st.SearchStrategy[Body] = st.one_of(
    st.lists(tables(), max_size=4).map(Totals), signatures(), requests(), scans()
)
STEPS = st.lists(st.tuples(st.integers(0, 25), BODIES), max_size=12)


@settings(deadline=None, max_examples=100)
@given(STEPS)
def test_no_accepted_frame_stops_anything(steps: list[tuple[int, Body]]) -> None:
    """Every frame that the border accepts is folded, and each page is written."""
    engine, now = FakeSource(), NOW
    reducer = Reducer(LIMITS)
    reducer.update(engine.frame(fakes.live(), now), now)
    for seconds, body in steps:
        now += seconds * SECOND
        reducer.update(engine.frame(body, now), now)
    reducer.update(
        FakeSource(FRONTEND).frame(fakes.serving(gone=[fakes.aborted(each) for each in "ab"]), now),
        now,
    )

    assert reducer.get(now).sources[0].tally.received == len(steps) + 1
    assert all(pages(reducer, now))


def test_labels_made_up_in_each_frame_fill_no_memory() -> None:
    """As many as fit into frames of any number: the tables held stay within their bounds."""
    engine, reducer = FakeSource(), Reducer(LIMITS)
    for k in range(400):
        long = [f"{k}-{index}".ljust(MAX_TEXT, "x") for index in range(200)]
        body = Totals([fakes.table("probe", long), fakes.table("confidence", [f"a{k}"])])
        reducer.update(engine.frame(body), NOW)
    (view,) = reducer.get(NOW).sources
    num_bytes = sum(
        each.cells.sums.nbytes + sum(len(label) for axis in each.axes for label in axis)
        for each in view.tables
    )

    assert 1 < len(view.tables) <= MAX_TABLES
    assert num_bytes <= MAX_TABLE_BYTES
    assert ("confidence", (("a399",),)) in [(each.group, each.axes) for each in view.tables]
