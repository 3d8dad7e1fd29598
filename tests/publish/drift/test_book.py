"""The book of windows: bounded in layouts, windows and bytes; a reader knows what it missed."""

import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.observation import Observation, observation_of
from sidecar.fold.signatures import Signed
from sidecar.publish.drift.book import MAX_LAYOUTS, Book, Closed
from sidecar.wire.signature import Layout
from tests.publish.drifting import LAYOUT, MINUTE, START, book, finished


def items(t_ns: int, num: int = 2, layout: Layout = LAYOUT) -> list[Observation]:
    body = finished(t_ns, num, layout)
    return [observation_of(Signed("engine", layout, each)) for each in body.signatures]


def fed(made: Book, num_minutes: int, layout: Layout = LAYOUT) -> list[Closed]:
    """Two requests in each of so many minutes, and the windows that closed."""
    closed = []
    for k in range(num_minutes):
        now_ns = START + k * MINUTE
        closed += made.advance(now_ns)
        closed += made.update(layout, items(now_ns, layout=layout), now_ns)
    return closed + made.advance(START + (num_minutes + 5) * MINUTE)


def test_the_oldest_windows_go_first_and_a_reader_is_told() -> None:
    """By number and by bytes; the last one that went is remembered."""
    all_held = book()
    closed = fed(all_held, 10)
    by_number, by_bytes = book(max_windows=4), book(max_bytes=3 * closed[0].num_bytes)

    assert all_held.held() == (tuple(closed), 0)
    assert len(closed) == 10
    for made, num in ((by_number, 4), (by_bytes, 3)):
        fed(made, 10)
        windows, gone = made.held()
        assert [each.window.start_ns for each in windows] == [
            each.window.start_ns for each in closed[-num:]
        ]
        assert 0 < gone < windows[0].cursor


def test_cursors_grow_also_when_the_clock_does_not() -> None:
    """Windows closed at one moment, and after the clock ran back, have cursors of their own."""
    made = book()
    first = fed(made, 5)
    made.update(LAYOUT, items(START + 11 * MINUTE), START + 9 * MINUTE)
    again = made.advance(START + 30 * MINUTE)
    cursors = [each.cursor for each in (*first, *again)]

    assert cursors == sorted(set(cursors))
    assert len(again) == 1


def test_a_layout_too_many_is_counted_not_folded() -> None:
    """Stages of a pipeline have a layout each; a stranger's make-up no memory."""
    made = book()
    for k in range(MAX_LAYOUTS + 3):
        layout = Layout([k])
        made.update(layout, items(START, 2, layout), START)

    assert made.counts().num_foreign == 6
    assert made.counts().num_used == 2 * MAX_LAYOUTS
    assert len(made.schemas()) == MAX_LAYOUTS


def test_layouts_make_windows_of_their_own() -> None:
    """Numbers of two layouts are never added."""
    made, other = book(), Layout([5])
    made.update(LAYOUT, items(START), START)
    made.update(other, items(START, 3, other), START)
    closed = made.advance(START + 9 * MINUTE)

    assert {c.schema.layout.layers[-1]: c.window.num_requests for c in closed} == {1: 2, 5: 3}


def test_every_request_is_counted_once() -> None:
    """Used, late or early."""
    made = book()
    fed(made, 5)
    now_ns = START + 10 * MINUTE
    made.update(LAYOUT, [*items(START), *items(now_ns), *items(now_ns + 9 * MINUTE)], now_ns)
    counts = made.counts()

    assert (counts.num_used, counts.num_late, counts.num_early) == (12, 2, 2)
    assert counts.num_closed == 5


def test_another_baseline_folds_anew_and_keeps_the_counts() -> None:
    """What was open is given up, since it was folded by other strata."""
    made = book()
    fed(made, 5)
    before = made.counts()
    made.update(LAYOUT, items(START + 11 * MINUTE), START + 11 * MINUTE)
    made.reopen()

    assert made.counts() == before._replace(num_used=12)
    assert made.advance(START + 30 * MINUTE) == []


def test_what_is_open_goes_on_after_a_restart() -> None:
    """Killed between windows: the same windows close, with the same numbers, as without."""
    unbroken, killed = book(), book()
    now_ns = START + 5 * MINUTE
    for made in (unbroken, killed):
        fed(made, 4)
        made.update(LAYOUT, items(START + 9 * MINUTE), START + 9 * MINUTE)
    again = book()
    again.restore(killed.export())
    for made in (unbroken, again):
        made.update(LAYOUT, items(START + 9 * MINUTE + 1, 3), START + 9 * MINUTE + 1)
    (one,), (other,) = (made.advance(START + 20 * MINUTE) for made in (unbroken, again))

    assert one.window.to_plain() == other.window.to_plain()
    assert other.window.num_requests == 5
    assert other.cursor > now_ns
    assert again.held()[1] >= killed.held()[0][-1].cursor


def test_windows_of_another_baseline_are_not_gone_on_with() -> None:
    """They were clipped and folded by it."""
    made = book(baseline="one")
    made.update(LAYOUT, items(START), START)
    again = book(baseline="two")
    again.restore(made.export())

    assert again.advance(START + 9 * MINUTE) == []


@pytest.mark.parametrize(
    "exported",
    [
        None,
        {},
        {"cursor": "x", "open": []},
        {"cursor": 1, "open": 3},
        {"cursor": 1, "open": [{}]},
        {"cursor": 1, "open": [{"layout": b"", "baseline": "", "windows": {}}]},
    ],
)
def test_a_foreign_state_is_refused(exported: object) -> None:
    """And what is open stays as it was."""
    made = book()
    made.update(LAYOUT, items(START), START)
    with pytest.raises(StateError, match="no open windows"):
        made.restore(exported)

    assert len(made.advance(START + 9 * MINUTE)) == 1
