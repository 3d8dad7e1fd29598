"""Runs: steps of a steady batch are reduced at once, and nobody can tell from the numbers."""

import copy
from collections import defaultdict
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.aside import MAX_ROWS, MAX_STEPS, Aside, most_steps
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.rows import Batch, RowMap
from sidecar.tap.run import Run
from sidecar.wire.frame import Arrays, Layers, Requests
from sidecar.wire.signature import Layout
from tests.tap.test_engine import Grouped, Served

# A prompt each, a steady batch, an arrival, a longer run, two ends, one request alone.
SCRIPT = [
    *[("step", ("a", 6), ("b", 5)), *[("step", ("a", 1), ("b", 1))] * 7],
    *[("step", ("a", 1), ("c", 3), ("b", 1)), *[("step", ("a", 1), ("b", 1), ("c", 1))] * 20],
    *[("finish", "b"), *[("step", ("a", 1), ("c", 1))] * 5],
    *[("finish", "a"), *[("step", ("c", 1))] * 3],
    ("finish", "c"),
]


class Together(Served):
    """A tapped toy without a pump, whose reductions are counted."""

    def __init__(self, path, guard: Guard, most_together: int, **options: object) -> None:
        super().__init__(path, guard, most_together=most_together, **options)
        self.tap._hold_ns = 1 << 62
        self.reduced: list[int] = []
        collect = self.slab.collect

        def counted(plan, *others):
            self.reduced.append(plan.num_steps)
            return collect(plan, *others)

        self.slab.collect = counted
        self.said: dict[type, list] = defaultdict(list)
        self.tap.arm(was_warmed_up=False)

    def play(self, script=SCRIPT) -> None:
        """Do what the script says, draining after each line as the pump would."""
        for what, *parts in script:
            if what == "step":
                self.step(*parts)
            else:
                self.tap.finish(set(parts))
            for kind, bodies in self.flush().items():
                self.said[kind] += bodies

    def numbers(self) -> dict[str, Arrays]:
        """Of everything, and of each request that has ended."""
        layers = self.said[Layers][-1]
        ended = [each for body in self.said[Requests] for each in body.requests]
        found = {each.id: Arrays.unpack(each.moments, 3) for each in ended}
        since_boot = copy.deepcopy(Arrays.unpack(layers.moments, 3))
        parts = [Arrays.unpack(each.moments, 3).extremes for each in self.said[Layers]]
        since_boot.extremes[..., 0] = np.fmin.reduce(parts)[..., 0]  # they are told once each
        since_boot.extremes[..., 1] = np.fmax.reduce(parts)[..., 1]
        return found | {"": since_boot}


@pytest.fixture
def alone(socket_path, guard) -> Together:
    """Each step reduced by itself."""
    return Together(socket_path, guard, 1)


@pytest.fixture
def together(socket_path, guard) -> Together:
    """As many at once as fit."""
    return Together(socket_path, guard, MAX_STEPS)


def test_numbers_are_the_same_and_reductions_are_few(alone, together) -> None:
    """Totals, every request's own account, steps and coverage; in a sixth of the reductions."""
    alone.play()
    together.play()
    first, second = alone.numbers(), together.numbers()
    assert set(first) == set(second) == {"", "a", "b", "c"}
    for name, arrays in first.items():
        for ours, theirs in zip(astuple(arrays), astuple(second[name]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    ends = [made.said[Layers][-1] for made in (alone, together)]
    assert ends[0].coverage == ends[1].coverage
    assert ends[0].num_steps == ends[1].num_steps == sum(together.reduced) == 37
    assert len(together.reduced) * 4 < len(alone.reduced) == 37
    assert together.guard.errors == {}


def test_a_finished_request_has_its_last_rows(together) -> None:
    """An end ends the run, whoever's it is."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 3])
    assert together.said[Layers][-1].num_steps < 4
    together.play([("finish", "a")])
    (body,) = together.said[Requests]
    assert sum(body.requests[0].coverage.observed) == 8


def test_time_ends_a_run(together) -> None:
    """Rows do not wait for others that may never come."""
    together.tap._hold_ns = 0
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 3])
    assert together.reduced == [1, 1, 1, 1]


@pytest.mark.parametrize("changed", [{"is_on": False}, {"steps_every": 1000}, {"selection": [1]}])
def test_a_change_of_what_is_measured_ends_a_run(changed, together) -> None:
    """Rows from before are reduced as it was ordered then, and those after as it is now."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 4])
    governor = together.tap.governor
    if "selection" in changed:
        changed = {"selection": together.slab.select(changed["selection"])}
    governor.orders = governor.orders._replace(**changed)
    together.play([*[("step", ("a", 1))] * 2, ("finish", "a")])
    per_layer = Arrays.unpack(together.said[Layers][-1].moments, 3).count.sum(0).tolist()
    assert per_layer == ([9, 11, 9] if "selection" in changed else [9, 9, 9])
    coverage = together.said[Layers][-1].coverage
    assert sum(coverage.observed) + coverage.shed == 11


def test_a_stop_reports_what_was_put_aside(together, monkeypatch) -> None:
    """The engine's last rows are not left behind."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 4])
    together.tap.stop()
    assert sum(together.reduced) == 5


def test_a_run_is_judged_by_the_pulses_after_it(together) -> None:
    """Not by those of the pass that ended it: the judgement of that one would find none new."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 4])
    judged = []
    update = together.tap._liveness.update

    def watched(pulses):
        update(pulses)
        judged.append((int(pulses[0]), list(together.tap._liveness.dead_layers)))

    together.tap._liveness.update = watched
    together.play([("step", ("a", 1), ("b", 3)), ("finish", "a", "b")])
    assert judged == [(5, []), (6, [])]


def test_a_layer_that_stands_still_for_a_run_is_dead(together) -> None:
    """Seen when the run is over; the layers that went on are not."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 4, ("step", ("a", 1), ("b", 2))])
    together.detach[1]()
    together.play([("finish", "b"), *[("step", ("a", 1))] * 5, ("finish", "a")])
    assert max(together.reduced[1:]) > 1
    assert together.tap._liveness.dead_layers == [7]


def test_rows_that_cannot_be_put_aside_are_lost_alone(together, monkeypatch) -> None:
    """And counted; the run goes on without them."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 3])
    keep = together.slab.keep
    monkeypatch.setattr(together.slab, "keep", lambda _place: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        together.step(("a", 1))
    monkeypatch.setattr(together.slab, "keep", keep)
    together.play([*[("step", ("a", 1))] * 2, ("finish", "a")])
    coverage = together.said[Layers][-1].coverage
    assert (sum(coverage.observed), coverage.lost) == (10, 1)


def test_a_reduction_that_fails_loses_its_run_and_no_other_step(together, monkeypatch) -> None:
    """The step that ends the run is measured."""
    together.play([("step", ("a", 5)), *[("step", ("a", 1))] * 3])
    collect = together.slab.collect

    def failing(plan, *others):
        monkeypatch.setattr(together.slab, "collect", collect)
        raise ZeroDivisionError

    monkeypatch.setattr(together.slab, "collect", failing)
    together.play([("step", ("a", 1), ("b", 4)), ("finish", "a", "b")])
    coverage = together.said[Layers][-1].coverage
    assert (sum(coverage.observed), coverage.lost) == (10, 3)
    assert together.guard.errors == {"step": 1}


def test_a_scan_sees_each_step(together) -> None:
    """While requests are scanned nothing is put aside: rows are told one by one."""
    together.play([("step", ("a", 5)), ("step", ("a", 1))])
    together.tap.scanner.is_busy = lambda _wish: True
    together.play([*[("step", ("a", 1))] * 3])
    assert together.reduced == [1, 1, 1, 1, 1]


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 20))
def test_rows_put_aside_come_back_by_token_row_and_step(num_rows, width, limit) -> None:
    """Whatever their number: the rows of one token row stand together."""
    batch = Batch([f"r{i}" for i in range(num_rows)], *np.full((3, num_rows), 1), np.zeros(0))
    plan = RowMap(num_rows).plan(batch)
    run = Run.begin(plan, None, limit)
    if run is None:
        assert limit == 1 or 2 * num_rows > MAX_ROWS
        return
    made = Aside(torch.zeros(width, num_rows + 3))
    steps = torch.randn(run.place.most, width, num_rows + 3)
    for step in steps:
        made.put(step, run.next_place)
        run.add(batch, plan, 0)
        kept = steps[: run.place.num_steps, :, :num_rows].permute(1, 2, 0)
        assert torch.equal(made.rows(run.place), kept.flatten(-2))
    assert run.is_over(1)
    assert run.place.most * num_rows <= MAX_ROWS


def test_no_more_steps_than_fit() -> None:
    """Two at least, or there is nothing to gain."""
    assert [most_steps(n) for n in (0, 1, 64, 65, 512, 513)] == [16, 16, 16, 15, 2, 1]


def test_a_run_without_a_step_has_no_plan() -> None:
    """Nobody may reduce it."""
    batch = Batch(["a"], *np.full((3, 1), 4), np.zeros(0))
    run = Run.begin(RowMap(1).plan(batch), None, 4)
    with pytest.raises(LookupError, match="no step"):
        run.whole()


class Other(Grouped):
    """An instrument with a site of its own."""


def test_an_instrument_that_cannot_put_aside_is_left_out_of_the_run_alone(
    socket_path, guard
) -> None:
    """Its memory may hold anything then; the others, and its later steps, are measured."""
    first, second = Grouped(), Other()
    made = Together(socket_path, guard, 16, instruments=Instruments(Layout([6]), [first, second]))
    second.keep = lambda _place: 1 / 0
    made.play([("step", ("a", 5)), *[("step", ("a", 1))] * 2])
    del second.keep
    made.play([("step", ("b", 4)), ("finish", "a", "b")])
    assert [plan.num_steps for plan in first.accounted] == [1, 2, 1]
    assert [plan.num_steps for plan in second.accounted] == [1, 1]
    assert [place.num_steps for place in first.places] == [1, 2]
    assert guard.errors == {"Other": 2}
