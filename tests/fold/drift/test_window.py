"""Windows: every request is in one, or counted; live ones and a recording's are the same."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.strata import OTHER
from sidecar.fold.drift.window import Assembly, Tail, Window, Windows
from tests.fold.drift.traffic import LAYOUT, SECOND, START_NS, observation, traffic

SCHEMA = Schema.of(LAYOUT)
MINUTE = 60 * SECOND
CELL = 5 * MINUTE
SMALL = Assembly(CELL, min_requests=3, longest_ns=15 * MINUTE)


def at(*minutes: float) -> list:
    """Requests so many minutes after the start of a cell."""
    return [observation(START_NS + int(minute * MINUTE)) for minute in minutes]


def closed(windows: Windows, observations: list) -> list[Window]:
    found = [window for each in observations for window in windows.update(each)]
    return [*found, *windows.flush()]


def spans(windows: list[Window]) -> list[tuple[int, int, int]]:
    """(first minute, last minute, requests) of each."""
    return [
        ((w.start_ns - START_NS) // MINUTE, (w.end_ns - START_NS) // MINUTE, w.num_requests)
        for w in windows
    ]


def test_a_window_closes_with_its_cell() -> None:
    """With enough requests it ends where its five minutes end, not where the requests do."""
    assert spans(closed(Windows(SCHEMA, SMALL), at(0, 1, 2, 5, 6, 7))) == [(0, 5, 3), (5, 10, 3)]


def test_a_thin_window_is_extended() -> None:
    """Until it has enough, across the idle stretch in between."""
    assert spans(closed(Windows(SCHEMA, SMALL), at(0, 11, 12, 15, 16, 17))) == [
        (0, 15, 3),
        (15, 20, 3),
    ]


def test_a_window_that_stays_thin_is_insufficient() -> None:
    """After the longest time it says nothing, and the next begins with the next request."""
    windows = Windows(SCHEMA, SMALL)

    assert spans(closed(windows, at(0, 6, 16, 17, 18))) == [(15, 20, 3)]
    assert (windows.num_closed, windows.num_insufficient) == (1, 1)


def test_an_idle_night_is_no_window() -> None:
    """Nothing came, so nothing is insufficient but the thin start."""
    windows = Windows(SCHEMA, SMALL)

    assert spans(closed(windows, at(0, 600, 601, 602))) == [(600, 605, 3)]
    assert windows.num_insufficient == 1


def test_the_clock_closes_windows_without_requests() -> None:
    """A minute after the end, so that what was under way still counts."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS)
    for each in at(0, 1, 2):
        assert windows.update(each) == []

    assert windows.advance(START_NS + CELL + MINUTE - 1) == []
    assert spans(windows.advance(START_NS + CELL + MINUTE)) == [(0, 5, 3)]
    assert windows.advance(START_NS) == []


def test_the_clock_gives_a_thin_window_up() -> None:
    """It is counted when it has no room left, not when the next request happens to come."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS)
    windows.update(at(0)[0])

    windows.advance(START_NS + 3 * CELL + MINUTE - 1)
    assert windows.num_insufficient == 0
    windows.advance(START_NS + 3 * CELL + MINUTE)
    assert windows.num_insufficient == 1


def test_late_requests_are_counted_not_used() -> None:
    """A closed window does not change any more."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS + 2 * CELL)

    assert windows.update(at(3)[0]) == []
    assert windows.num_late == 1
    windows.update(at(6)[0])
    assert windows.num_late == 1


def test_a_clock_ahead_closes_nobodys_windows() -> None:
    """A request from tomorrow is counted, and the others go on as if it had not come."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS)
    windows.update(observation(START_NS + 86_400 * SECOND))
    for each in at(0, 1, 2):
        windows.update(each)

    assert windows.num_early == 1
    assert spans(windows.advance(START_NS + 2 * CELL)) == [(0, 5, 3)]


def test_canaries_are_in_no_window() -> None:
    """They are no traffic."""
    assert closed(Windows(SCHEMA, SMALL), [observation(canary="a@1")] * 9) == []


def test_lateness_is_at_most_two_cells() -> None:
    """Demo windows of seconds do not wait a minute for late requests."""
    windows = Windows(SCHEMA, Assembly(SECOND, 1, 12 * SECOND))
    windows.advance(START_NS)
    windows.update(observation())

    assert len(windows.advance(START_NS + 3 * SECOND)) == 1


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_every_request_is_in_one_window_or_counted(seconds: list[int], order: object) -> None:
    """Windows do not overlap, hold at least the minimum, and no request is lost unseen."""
    windows = Windows(SCHEMA, SMALL)
    items = [observation(START_NS + each * SECOND) for each in seconds]
    order.shuffle(items)  # type: ignore[attr-defined]
    found = closed(windows, items)

    assert windows.num_closed == len(found)
    assert all(window.num_requests >= 3 for window in found)
    assert all(a.end_ns <= b.start_ns for a, b in pairwise(found))
    assert all(w.end_ns - w.start_ns <= SMALL.longest_ns for w in found)
    used = sum(window.num_requests for window in found)
    assert used + windows.num_late <= len(items)
    # What is in no window is late, or was in a stretch that was or still is too thin.
    lost = len(items) - used - windows.num_late
    assert lost <= 2 * (windows.num_insufficient + 1)


@given(st.integers(0, 2**32))
def test_order_within_the_time_allowed_changes_nothing(seed: int) -> None:
    """Requests that come up to a minute late give the same windows."""
    rng = np.random.default_rng(seed)
    items = [observation(START_NS + int(s) * SECOND) for s in np.sort(rng.integers(0, 3000, 60))]
    delayed = sorted(items, key=lambda item: item.t_ns + rng.integers(0, 60) * SECOND)
    in_order = closed(Windows(SCHEMA, SMALL), items)

    assert spans(closed(Windows(SCHEMA, SMALL), delayed)) == spans(in_order)


def test_a_plan_folds_and_clips() -> None:
    """Rare and new strata count as other, new ones are told, and outliers do not move the mean."""
    survey = Survey(SCHEMA)
    for each in [*traffic(1000), *[observation(route="rare")] * 3]:
        survey.update(each)
    plan = survey.get()
    windows = Windows(SCHEMA, SMALL, plan)
    (window,) = closed(
        windows,
        [observation(level=500.0), observation(route="rare"), observation(route="new")],
    )

    assert set(window.strata) == {"chat|-|p64-127|g16-31", OTHER}
    assert window.num_new == 1
    assert window.strata[OTHER].num_rows == 2
    chat = window.strata["chat|-|p64-127|g16-31"]
    np.testing.assert_array_equal(chat.mean, plan.high[plan.place("chat|-|p64-127|g16-31")])


def test_strata_without_a_plan_are_bounded() -> None:
    """Beyond 256 kinds in a cell they count as other."""
    (window,) = closed(Windows(SCHEMA, SMALL), [observation(route=f"r{i}") for i in range(300)])

    assert len(window.strata) == 257
    assert window.strata[OTHER].num_rows == 44


def test_the_tail_is_counted() -> None:
    """Requests judged, and those beyond the limit; those that could not be judged are neither."""
    answers = iter([True, False, None, True])
    windows = Windows(SCHEMA, SMALL, tail_rule=lambda _: next(answers))
    (window,) = closed(windows, at(0, 1, 2, 3))

    assert window.tail == Tail(num_judged=3, num_beyond=2)


def test_a_restart_in_the_middle_changes_nothing() -> None:
    """What was open goes on from its export, partial windows included, through JSON."""
    items = traffic(300, seconds=20.0)
    whole = closed(Windows(SCHEMA), items)
    for cut in (1, 40, 150, 299):
        first, second = Windows(SCHEMA), Windows(SCHEMA)
        found = [window for each in items[:cut] for window in first.update(each)]
        second.restore(json.loads(json.dumps(first.export(), allow_nan=False)))
        found += closed(second, items[cut:])

        assert [w.to_plain() for w in found] == [w.to_plain() for w in whole]


@pytest.mark.parametrize(
    "foreign", [{}, {"cells": 3}, {"cells": [], "partial": {}, "closed_ns": 0, "x": 1}]
)
def test_a_foreign_restart_is_refused_and_changes_nothing(foreign: dict) -> None:
    """The windows stay as they were."""
    windows = Windows(SCHEMA, SMALL)
    windows.update(at(0)[0])
    before = windows.export()
    if foreign.get("partial") == {}:
        foreign = {**foreign, "partial": {"start_ns": 0}}
    with pytest.raises(StateError):
        windows.restore(foreign)

    assert windows.export() == before


def test_plain_windows_come_back() -> None:
    """To the bit, through JSON; foreign ones are refused."""
    (window,) = closed(Windows(SCHEMA, SMALL), traffic(9))
    plain = json.loads(json.dumps(window.to_plain(), allow_nan=False))

    assert Window.from_plain(plain, SCHEMA.num_streams).to_plain() == window.to_plain()
    for change in ({"tail": [1]}, {"strata": []}, {"start_ns": "x"}, {"num_new": None}):
        with pytest.raises(StateError, match="no window"):
            Window.from_plain({**plain, **change}, SCHEMA.num_streams)
    with pytest.raises(StateError, match="streams"):
        Window.from_plain(plain, 3)


def test_windows_of_two_replicas_add_up() -> None:
    """The window of both is the window of all their requests."""
    items = traffic(60)
    (whole,) = closed(Windows(SCHEMA, SMALL), items)
    (one,), (two,) = (closed(Windows(SCHEMA, SMALL), items[part::2]) for part in (0, 1))
    both = one.add(two)

    assert both[:3] == whole[:3]
    for name, moments in whole.strata.items():
        assert both.strata[name].total.tolist() == moments.total.tolist()
        np.testing.assert_allclose(both.strata[name].m2, moments.m2, rtol=1e-12)
    assert one.num_requests == 30


def test_without_a_plan_values_are_not_clipped() -> None:
    """A window of raw strata says what was there."""
    (window,) = closed(Windows(SCHEMA, SMALL), [observation(level=500.0)] * 3)

    assert set(window.strata["chat|-|p64-127|g16-31"].mean) == {500.0}


@pytest.mark.parametrize("is_restored", [False, True])
def test_a_clock_that_is_set_back_begins_windows_anew(is_restored: bool) -> None:
    """What was open is given up and counted; requests after it are in windows, none is late."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS + 66 * MINUTE)
    for each in at(66, 67):
        windows.update(each)
    if is_restored:
        held, windows = windows.export(), Windows(SCHEMA, SMALL)
        windows.restore(held)
    windows.advance(START_NS + 2 * MINUTE)
    for each in at(1, 2, 3):
        windows.update(each)
    found = windows.advance(START_NS + 7 * MINUTE)

    assert spans(found) == [(0, 5, 3)]
    assert (windows.num_late, windows.num_early, windows.num_insufficient) == (0, 0, 1)


def test_a_clock_that_is_a_little_behind_changes_nothing() -> None:
    """Two threads read one clock: what is open stays open."""
    windows = Windows(SCHEMA, SMALL)
    windows.advance(START_NS + 2 * MINUTE)
    for each in at(0, 1, 2):
        windows.update(each)
    windows.advance(START_NS + MINUTE)

    assert spans(windows.advance(START_NS + 6 * MINUTE)) == [(0, 5, 3)]
