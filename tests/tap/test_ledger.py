"""What was measured so far: every row in one account and once in the totals, none left behind."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap.ledger import Ledger
from sidecar.tap.probes import NUM_BOUNDS, NUM_COLUMNS, NUM_SUMS, group_rows
from sidecar.tap.rows import Batch, RowMap
from sidecar.wire.frame import NUM_POPULATIONS, Arrays, Coverage, Layers, Request

LAYERS = [4, 5, 9]  # global ids, as on a pipeline stage
T0 = 1_000


def values(name: str, start: int, count: int) -> torch.Tensor:
    """Signals of `count` rows of a request, [L, NUM_COLUMNS, count]; a row has its own for ever."""
    rows = np.empty((len(LAYERS), NUM_COLUMNS, count), np.float32)
    for row in range(count):
        rng = np.random.default_rng([ord(name), start + row])
        rows[:, :, row] = rng.uniform(0.1, 2.0, (len(LAYERS), NUM_COLUMNS))
        rows[:, 3, row] = 0
        if (start + row) % 7 == 6:  # now and then a layer's row is not finite
            rows[1, 0, row] = np.nan
            rows[1, 3, row] = 2
    return torch.from_numpy(rows)


@dataclass
class Served:
    """A ledger and the row map before it, fed as the engine feeds them."""

    ledger: Ledger = field(default_factory=lambda: Ledger(LAYERS, 2))
    rows: RowMap = field(default_factory=lambda: RowMap(2))
    step: int = 0

    def run(self, *parts: tuple[str, int, int, int], is_lost: bool = False) -> None:
        """One forward pass of (request, start, count, prompt) parts."""
        names, *numbers = zip(*parts, strict=True)
        plan = self.rows.plan(
            Batch(list(names), *(np.array(column, np.int64) for column in numbers))
        )
        self.step += 1
        if is_lost:
            self.ledger.lose(plan, T0 + self.step)
            return
        signals = torch.cat([values(name, start, count) for name, start, count, _ in parts], -1)
        sums = torch.empty(plan.num_groups + 1, len(LAYERS), NUM_SUMS, dtype=torch.float64)
        bounds = torch.empty(plan.num_groups + 1, len(LAYERS), NUM_BOUNDS)
        group_rows(signals, torch.from_numpy(plan.groups), sums, bounds)
        self.ledger.add(
            plan,
            sums[: plan.num_groups].numpy(),
            bounds[: plan.num_groups].numpy(),
            T0 + self.step,
        )

    def finish(self, name: str) -> Request:
        """The record of a finished request."""
        ((_, slot),) = self.rows.forget([name])
        request = self.ledger.finish(name, slot)
        assert request is not None
        return request

    def layers(self) -> tuple[Layers, Arrays]:
        """The running totals."""
        body = self.ledger.layers()
        return body, Arrays.unpack(body.moments, len(LAYERS))


def arrays(request: Request) -> Arrays:
    return Arrays.unpack(request.moments, len(LAYERS))


def test_a_request_is_the_sum_of_its_rows() -> None:
    """Counts, sums and extremes of one request equal those of its rows, by population."""
    served = Served()
    served.run(("a", 0, 6, 6))
    served.run(("a", 6, 1, 6))
    request = served.finish("a")
    assert request.id == "a"
    assert request.num_prompt_tokens == 6
    assert request.start_ns == T0 + 1
    assert request.end_ns == T0 + 2
    assert request.coverage == Coverage([4, 2, 0, 1])
    got = arrays(request)
    rows = values("a", 0, 7).double().numpy()
    peaks = rows[0, 1]  # of the first layer, whose rows are all finite
    np.testing.assert_allclose(got.sums[0, 0, 1, 0], peaks[:4].sum())
    np.testing.assert_allclose(got.sums[1, 0, 1, 1], np.log(peaks[4:6]).sum(), rtol=1e-6)
    np.testing.assert_allclose(got.sums[3, 0, 1, 2], np.log(peaks[6]) ** 2, rtol=1e-5)
    np.testing.assert_allclose(got.extremes[0, 0, 1], [peaks[:4].min(), peaks[:4].max()])
    assert np.isnan(got.extremes[2]).all()  # no row of that population
    assert got.count[:, 0].tolist() == [4, 2, 0, 1]


def test_rows_that_are_not_finite_are_counted_apart() -> None:
    """A non-finite row is observed, but not in the count nor the sums of its layer alone."""
    served = Served()
    served.run(("a", 0, 7, 7))  # position 6 is not finite at the second layer
    request = served.finish("a")
    got = arrays(request)
    assert request.coverage.observed == [4, 3, 0, 0]
    assert got.count[1].tolist() == [3, 2, 3]
    assert got.nonfinite.tolist() == [0, 2, 0]
    assert np.isfinite(got.sums).all()
    assert np.isfinite(got.extremes[:2]).all()


def test_totals_are_the_sum_of_the_requests() -> None:
    """What all requests have observed, cached, lost and recomputed adds up to the totals."""
    served = Served()
    served.run(("a", 0, 5, 8), ("b", 3, 4, 7))  # b has three cached tokens
    served.run(("c", 0, 2, 2), ("a", 5, 3, 8))
    served.run(("b", 7, 1, 7), ("c", 2, 1, 2), is_lost=True)
    served.run(("a", 2, 6, 8))  # preempted, and computed again
    served.run(("a", 8, 1, 8), ("b", 8, 1, 7), ("c", 3, 1, 2))
    requests = [served.finish(name) for name in "cab"]
    body, totals = served.layers()
    assert body.layers == LAYERS
    assert body.num_steps == 4  # the lost step was not measured
    assert body.num_requests == 3
    each = [arrays(request) for request in requests]
    np.testing.assert_array_equal(totals.count, sum(part.count for part in each))
    np.testing.assert_array_equal(totals.nonfinite, sum(part.nonfinite for part in each))
    np.testing.assert_allclose(totals.sums, sum(part.sums for part in each), rtol=1e-12)
    largest = np.fmax.reduce([part.extremes[..., 1] for part in each])
    np.testing.assert_array_equal(totals.extremes[..., 1], largest)
    for part in ("prefix_cached", "lost", "recomputed"):
        total = sum(getattr(request.coverage, part) for request in requests)
        assert getattr(body.coverage, part) == total
    assert (body.coverage.prefix_cached, body.coverage.lost, body.coverage.recomputed) == (3, 2, 6)
    observed = np.sum([request.coverage.observed for request in requests], 0)
    assert body.coverage.observed == observed.tolist()
    assert sum(body.coverage.observed) == 9 + (9 - 3 - 1) + (4 - 1)


def test_a_lost_step_is_counted_by_its_requests() -> None:
    """Rows that could not be collected are lost for their request, and cost it nothing else."""
    served = Served()
    served.run(("a", 0, 6, 6), ("b", 0, 3, 3), is_lost=True)
    served.run(("a", 6, 1, 6), ("b", 3, 1, 3))
    a, b = served.finish("a"), served.finish("b")
    assert a.coverage == Coverage([0, 0, 0, 1], lost=6)
    assert b.coverage == Coverage([0, 0, 1, 0], lost=3)
    assert a.start_ns == T0 + 1


def test_a_request_without_a_row_has_no_record() -> None:
    """A slot that nothing was added to gives no record, whether it is known or beyond the table."""
    ledger = Ledger(LAYERS, 2)
    assert ledger.finish("a", 0) is None
    assert ledger.finish("b", 99) is None
    assert ledger.num_requests == 0


def test_a_slot_is_empty_for_its_next_owner() -> None:
    """Nothing of a finished request is left in the record of the one that follows it."""
    fresh, reused = Served(), Served()
    reused.run(("z", 3, 9, 12))
    reused.run(("z", 0, 12, 12))
    reused.run(("z", 12, 1, 12), is_lost=True)
    reused.finish("z")
    for served in (fresh, reused):
        served.step = 10
        served.run(("a", 0, 2, 5))
    assert reused.finish("a") == fresh.finish("a")


def test_a_client_cannot_name_its_request_out_of_the_frame() -> None:
    """A request id of any length fits the field it travels in."""
    served = Served()
    served.run(("x", 0, 1, 1))
    ((_, slot),) = served.rows.forget(["x"])
    request = served.ledger.finish("x" * 5000, slot)
    assert request is not None
    assert request.id == "x" * 256


def test_the_tables_grow_with_the_requests() -> None:
    """More requests at once than slots at the start: all accounts are kept."""
    served, names = Served(), "abcdefghij"
    for name in names:
        served.run((name, 0, 3, 3))
    served.run(*[(name, 3, 1, 3) for name in names[5:]])
    for place, name in enumerate(names):
        alone = Served()
        alone.run((name, 0, 3, 3))
        if place >= 5:
            alone.run((name, 3, 1, 3))
        together, apart = served.finish(name), alone.finish(name)
        assert together.coverage == apart.coverage == Coverage([3, 0, int(place >= 5), 0])
        assert together.moments == apart.moments
        assert together.num_prompt_tokens == 3
        assert together.start_ns == T0 + 1 + place


def test_extremes_of_the_totals_cover_the_time_since_the_last_call() -> None:
    """Sums stay for ever; the smallest and largest start anew with each call."""
    served = Served()
    served.run(("a", 0, 4, 4))
    _, first = served.layers()
    _, idle = served.layers()
    served.run(("a", 4, 1, 4))
    _, last = served.layers()
    assert np.isfinite(first.extremes[0]).all()
    assert np.isnan(idle.extremes).all()
    np.testing.assert_array_equal(idle.sums, first.sums)
    assert np.isnan(last.extremes[0]).all()
    peak = values("a", 4, 1)[0, 1, 0].item()
    np.testing.assert_allclose(last.extremes[3, 0, 1], [peak, peak])
    assert last.count[:, 0].tolist() == [4, 0, 0, 1]


PROMPTS = {"a": 3, "b": 9, "c": 14}
NUM_TOKENS = 18


@st.composite
def interleavings(draw: st.DrawFn) -> list[list[tuple[str, int, int, int]]]:
    """Steps that serve every request to its end: chunked, batched and ordered anyhow."""
    at = dict.fromkeys(PROMPTS, 0)
    steps = []
    while living := sorted(name for name in at if at[name] < NUM_TOKENS):
        names = draw(st.lists(st.sampled_from(living), min_size=1, unique=True))
        step = []
        for name in names:
            count = draw(st.integers(1, max(1, PROMPTS[name] - at[name])))
            step.append((name, at[name], count, PROMPTS[name]))
            at[name] += count
        steps.append(step)
    return steps


@given(interleavings())
@settings(max_examples=40, deadline=None)
def test_served_together_equals_served_alone(steps) -> None:
    """However its rows are chunked and mixed with others', a request's record is its own."""
    together = Served()
    for step in steps:
        together.run(*step)
    for name, prompt in PROMPTS.items():
        alone = Served()
        alone.run((name, 0, prompt, prompt))
        for position in range(prompt, NUM_TOKENS):
            alone.run((name, position, 1, prompt))
        got, want = together.finish(name), alone.finish(name)
        assert got.coverage == want.coverage
        assert sum(got.coverage.observed) == NUM_TOKENS
        mine, own = arrays(got), arrays(want)
        np.testing.assert_array_equal(mine.count, own.count)
        np.testing.assert_array_equal(mine.nonfinite, own.nonfinite)
        np.testing.assert_array_equal(mine.extremes, own.extremes)
        np.testing.assert_allclose(mine.sums, own.sums, rtol=1e-12)
        assert mine.count.shape == (NUM_POPULATIONS, len(LAYERS))
