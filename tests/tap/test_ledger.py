"""What was measured so far: every row in one account and once in the totals, none left behind."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.tap.ledger import Ledger
from sidecar.tap.probes import (
    LARGEST,
    NONFINITE,
    NUM_BOUNDS,
    NUM_COLUMNS,
    NUM_SUMS,
    POWER,
    group_rows,
)
from sidecar.tap.rows import Batch, RowMap
from sidecar.wire.frame import NUM_POPULATIONS, Arrays, Coverage, Layers, Request

LAYERS = [4, 5, 9]  # global ids, as on a pipeline stage
T0 = 1_000


def values(name: str, start: int, count: int) -> torch.Tensor:
    """Moments of `count` rows of a request, [L, NUM_COLUMNS, count]; a row has its own for ever.

    The mean square is 1, so the second column is the peak.
    """
    rows = np.empty((len(LAYERS), NUM_COLUMNS, count), np.float32)
    for row in range(count):
        rng = np.random.default_rng([ord(name), start + row])
        rows[:, :, row] = rng.uniform(0.1, 2.0, (len(LAYERS), NUM_COLUMNS))
        rows[:, POWER, row] = 1.0
        rows[:, NONFINITE, row] = 0
        if (start + row) % 7 == 6:  # now and then a layer's row is not finite
            rows[1, POWER, row] = np.nan
            rows[1, NONFINITE, row] = 2
    return torch.from_numpy(rows)


def part_values(
    name: str, start: int, count: int, prompt: int, drafts: int, accepted: int
) -> torch.Tensor:
    """Rows of one part of a batch; those of rejected drafts are of another token altogether."""
    certain = count - drafts + accepted
    return torch.cat(
        [values(name, start, certain), values("z", start + certain, count - certain)], -1
    )


@dataclass
class Served:
    """A ledger and the row map before it, fed as the engine feeds them."""

    ledger: Ledger = field(default_factory=lambda: Ledger(LAYERS, 2))
    rows: RowMap = field(default_factory=lambda: RowMap(2))
    step: int = 0

    def run(self, *parts: tuple[str, int, int, int], is_lost: bool = False) -> None:
        """One forward pass of (request, start, count, prompt) parts."""
        self.draft(*[(*part, 0, 0) for part in parts], cause="lost" if is_lost else "")

    def draft(
        self,
        *parts: tuple[str, int, int, int, int, int],
        cause: str = "",
        muted: Collection[str] = (),
        places: list[int] | None = None,
    ) -> None:
        """One pass of (request, start, count, prompt, drafts, accepted) parts.

        cause: why it was not collected, if so. places: the layers that are.
        """
        names, starts, counts, prompts, drafts, taken = zip(*parts, strict=True)
        numbers = [np.array(column, np.int64) for column in (starts, counts, prompts, drafts)]
        plan = self.rows.plan(Batch(list(names), *numbers), muted)
        accepted = self.rows.settle(plan, np.array(taken)) if plan.has_drafts else None
        self.step += 1
        if cause:
            self.ledger.lose(plan, T0 + self.step, cause, accepted=accepted)
            return
        signals = torch.cat([part_values(*part) for part in parts], -1)
        at = None if places is None else np.array(places)
        signals = signals if at is None else signals[at]
        sums = torch.empty(plan.num_groups + 1, len(signals), NUM_SUMS, dtype=torch.float64)
        bounds = torch.empty(plan.num_groups + 1, len(signals), NUM_BOUNDS)
        group_rows(signals, torch.from_numpy(plan.groups), sums, bounds)
        self.ledger.add(
            plan,
            sums[: plan.num_groups].numpy(),
            bounds[: plan.num_groups].numpy(),
            T0 + self.step,
            accepted=accepted,
            places=at,
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
    peaks = rows[0, LARGEST]  # of the first layer, whose rows are all finite
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
    peak = values("a", 4, 1)[0, LARGEST, 0].item()
    np.testing.assert_allclose(last.extremes[3, 0, 1], [peak, peak])
    assert last.count[:, 0].tolist() == [4, 0, 0, 1]


def test_several_accepted_drafts_of_one_request_are_one_addition() -> None:
    """All of them reach the account, although they come as groups of one owner and population."""
    drafted, plain = Served(), Served()
    for served in (drafted, plain):
        served.run(("a", 0, 5, 5), ("b", 0, 5, 5))
    drafted.draft(("b", 5, 4, 5, 3, 3), ("a", 5, 3, 5, 2, 1))
    for at in range(5, 9):
        plain.run(("b", at, 1, 5), *[("a", at, 1, 5)] * (at < 7))
    for name, num in (("a", 2), ("b", 4)):
        assert drafted.ledger.num_generated(drafted.rows._slot_of[name]) == num
        got, want = drafted.finish(name), plain.finish(name)
        assert got.coverage == want.coverage == Coverage([4, 1, 0, num])
        np.testing.assert_allclose(arrays(got).sums, arrays(want).sums, rtol=1e-12)
        np.testing.assert_array_equal(arrays(got).extremes, arrays(want).extremes)
    body, totals = drafted.layers()
    assert body.coverage == Coverage([8, 2, 0, 6], rejected=1)
    np.testing.assert_allclose(totals.sums, plain.layers()[1].sums, rtol=1e-12)


def test_rejected_drafts_are_of_no_request() -> None:
    """A step whose drafts were all rejected adds its certain rows, and counts the others."""
    served = Served()
    served.run(("a", 0, 5, 5))
    served.draft(("a", 5, 3, 5, 2, 0))
    served.draft(("a", 6, 3, 5, 2, 0))
    request = served.finish("a")
    assert request.coverage == Coverage([4, 1, 0, 2])
    assert served.layers()[0].coverage.rejected == 4


@pytest.mark.parametrize("cause", ["lost", "shed"])
def test_a_step_that_was_not_collected_has_a_cause(cause) -> None:
    """What was lost or shed is told apart; accepted drafts are tokens, the others are not."""
    served = Served()
    served.run(("a", 0, 5, 5))
    served.draft(("a", 5, 4, 5, 3, 2), cause=cause)
    served.run(("a", 8, 1, 5))
    request = served.finish("a")
    assert request.coverage == Coverage([4, 1, 0, 1], **{cause: 3})
    body, _ = served.layers()
    assert body.coverage == Coverage([4, 1, 0, 1], **{cause: 3}, rejected=1)
    assert body.num_steps == 2


def test_a_request_that_asked_not_to_be_measured_is_a_count() -> None:
    """Its tokens are counted as opted out, collected or not; it leaves no number and no name."""
    served, alone = Served(), Served()
    for cause in ("", "shed"):
        start = 0 if not cause else 5
        both = [("a", start, 5, 8, 0, 0), ("b", start, 5, 8, 0, 0)]
        served.draft(*both, muted={"a"}, cause=cause)
        alone.draft(both[1], cause=cause)
    served.draft(("a", 10, 3, 8, 2, 1), ("b", 10, 1, 8, 0, 0), muted={"a"})
    alone.draft(("b", 10, 1, 8, 0, 0))
    assert [name for _, name in served.ledger.running_since(T0 + 9)] == ["b"]
    body, totals = served.layers()
    np.testing.assert_array_equal(totals.sums, alone.layers()[1].sums)
    assert body.coverage == Coverage([4, 1, 0, 1], shed=5, opted_out=12, rejected=1)
    ((_, slot),) = served.rows.forget(["a"])
    request = served.ledger.finish("a", slot, is_out=True)
    assert request is not None
    assert request.coverage == Coverage([0, 0, 0, 0], opted_out=12)
    assert not arrays(request).count.any()
    assert served.ledger.num_requests == 0
    served.finish("b")
    assert served.ledger.num_requests == 1


def test_chosen_layers_alone_are_added_to() -> None:
    """A step of which only some layers were reduced leaves the others as they were."""
    served, whole = Served(), Served()
    served.draft(("a", 0, 6, 6, 0, 0), places=[2, 0])
    whole.run(("a", 0, 6, 6))
    request, full = served.finish("a"), whole.finish("a")
    assert request.coverage == full.coverage
    got, want = arrays(request), arrays(full)
    assert got.count[1].tolist() == [2, 0, 2]
    for layer in (0, 2):
        np.testing.assert_array_equal(got.sums[:, layer], want.sums[:, layer])
        np.testing.assert_array_equal(got.extremes[:, layer], want.extremes[:, layer])
    assert not got.sums[:, 1].any()
    assert np.isnan(got.extremes[:, 1]).all()


def test_the_living_are_known_by_name_until_they_end() -> None:
    """A request is running from its first row on, under its whole id; a finished one is not."""
    served = Served()
    served.run(("a", 0, 3, 3))
    served.run(("b", 0, 3, 3), ("a", 3, 1, 3))
    assert [name for _, name in served.ledger.running_since(T0)] == []
    assert [name for _, name in served.ledger.running_since(T0 + 1)] == ["a"]
    assert [name for _, name in served.ledger.running_since(T0 + 2)] == ["a", "b"]
    served.finish("a")
    assert [name for _, name in served.ledger.running_since(T0 + 2)] == ["b"]
    served.finish("b")
    assert served.ledger._names == {}


def test_an_account_can_be_looked_at_while_its_request_runs() -> None:
    """What `peek` shows is what `finish` would give, and it closes nothing."""
    served = Served()
    assert served.ledger.peek("a", 0) is None
    assert served.ledger.num_generated(99) == 0
    served.run(("a", 0, 3, 3))
    assert served.ledger.num_generated(0) == 0
    served.run(("a", 3, 1, 3))
    assert served.ledger.num_generated(0) == 1
    seen = served.ledger.peek("a", 0)
    assert seen == served.ledger.peek("a", 0) == served.finish("a")


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


Part = tuple[str, int, int, int, int, int]


@dataclass
class Serving:
    """A scheduler that does anything it may: chunks, drafts, preemptions, resumes and losses."""

    data: st.DataObject
    served: Served = field(default_factory=Served)
    at: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROMPTS, 0))
    most: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROMPTS, 0))
    num_rows: int = 0

    def part(self, name: str) -> Part:
        """A chunk of its prompt, or a token and some drafts."""
        at, prompt = self.at[name], PROMPTS[name]
        # Hypothesis likes 0 best: the simplest service is the fastest.
        if at < prompt:
            left = self.data.draw(st.integers(0, prompt - at - 1))
            return (name, at, prompt - at - left, prompt, 0, 0)
        most = min(3, NUM_TOKENS - at - 1)
        drafts = most - self.data.draw(st.integers(0, most))
        return (
            name,
            at,
            1 + drafts,
            prompt,
            drafts,
            drafts - self.data.draw(st.integers(0, drafts)),
        )

    def step(self, **said: object) -> None:
        """One pass of some requests, each as far as its accepted drafts."""
        living = sorted(name for name in self.at if self.at[name] < NUM_TOKENS)
        waiting = self.data.draw(st.sets(st.sampled_from(living), max_size=len(living) - 1))
        order = self.data.draw(st.permutations(sorted(set(living) - waiting)))
        parts = [self.part(name) for name in order]
        self.served.draft(*parts, **said)
        for name, start, count, _, drafts, accepted in parts:
            self.at[name] = start + count - drafts + accepted
            self.most[name] = max(self.most[name], self.at[name])
            self.num_rows += count

    def preempt(self) -> None:
        """A request begins anew, perhaps with some of its prefix in the cache."""
        name = self.data.draw(st.sampled_from(sorted(self.at)))
        self.at[name] = self.data.draw(st.integers(0, self.at[name]))

    @property
    def is_over(self) -> bool:
        return all(at >= NUM_TOKENS for at in self.at.values())


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_drafts_are_accepted_a_record_is_its_own(data) -> None:
    """However it was guessed at and computed again, a record is that of its tokens alone."""
    serving = Serving(data)
    while not serving.is_over:
        serving.step()
        if data.draw(st.integers(0, 9)) == 9:
            serving.preempt()
    for name, prompt in PROMPTS.items():
        alone = Served()
        alone.run((name, 0, prompt, prompt))
        for position in range(prompt, NUM_TOKENS):
            alone.run((name, position, 1, prompt))
        got, want = serving.served.finish(name), alone.finish(name)
        assert got.coverage.observed == want.coverage.observed
        assert got.coverage.lost == got.coverage.prefix_cached == 0
        np.testing.assert_array_equal(arrays(got).count, arrays(want).count)
        np.testing.assert_array_equal(arrays(got).extremes, arrays(want).extremes)
        np.testing.assert_allclose(arrays(got).sums, arrays(want).sums, rtol=1e-12)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_row_and_every_token_end_in_exactly_one_account(data) -> None:
    """Measured or not, accepted or not, computed again or muted: all of them are counted once."""
    muted = data.draw(st.sets(st.sampled_from(sorted(PROMPTS))), "muted")
    prefix = {name: data.draw(st.integers(0, num - 1)) for name, num in PROMPTS.items()}
    serving = Serving(data, at=dict(prefix))
    while not serving.is_over:
        serving.step(cause=data.draw(st.sampled_from(["", "", "lost", "shed"])), muted=muted)
        if data.draw(st.integers(0, 9)) == 9:
            serving.preempt()
    body, _ = serving.served.layers()
    whole, num_measured = body.coverage, sum(body.coverage.observed)
    assert serving.num_rows == num_measured + sum(
        (whole.lost, whole.shed, whole.opted_out, whole.recomputed, whole.rejected)
    )
    for name in PROMPTS:
        coverage = serving.served.finish(name).coverage
        parts = (coverage.prefix_cached, coverage.lost, coverage.shed, coverage.opted_out)
        assert sum(coverage.observed) + sum(parts) == serving.most[name]
        assert coverage.prefix_cached <= prefix[name]
        assert coverage.rejected == 0
        assert bool(coverage.opted_out) == (name in muted)
        assert not (name in muted and any((*coverage.observed, coverage.lost, coverage.shed)))
