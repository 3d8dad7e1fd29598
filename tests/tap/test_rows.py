"""Whose rows they are: plans against an oracle that follows every token in plain Python."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sidecar.tap.rows import Batch, Plan, RowMap
from sidecar.wire.signals import NUM_FIRST_POSITIONS, POPULATIONS, Phase, Position

PREFILL_FIRST, PREFILL_REST, DECODE_FIRST, DECODE_REST = range(4)


def batch(*rows: tuple[str, int, int, int]) -> Batch:
    """A batch of (request, start, count, prompt) rows."""
    names, *numbers = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Batch(list(names), *(np.array(column, np.int64) for column in numbers))


def labels(plan: Plan) -> list[tuple[int, int] | None]:
    """Slot and population of each row; None for a row not to be counted."""
    return [
        None if group == plan.num_groups else (int(plan.slots[group]), int(plan.populations[group]))
        for group in plan.groups
    ]


def test_the_population_numbers_are_those_of_the_wire() -> None:
    """A plan's population is an index into `POPULATIONS`."""
    assert POPULATIONS[PREFILL_FIRST] == (Phase.PREFILL, Position.FIRST)
    assert POPULATIONS[PREFILL_REST] == (Phase.PREFILL, Position.REST)
    assert POPULATIONS[DECODE_FIRST] == (Phase.DECODE, Position.FIRST)
    assert POPULATIONS[DECODE_REST] == (Phase.DECODE, Position.REST)


def test_rows_are_told_apart_by_request_phase_and_position() -> None:
    """One pass with a whole prompt, a decoding request and a short prompt: six groups."""
    rows = RowMap(4)
    rows.plan(batch(("b", 0, 7, 7)))
    plan = rows.plan(batch(("a", 0, 6, 6), ("b", 7, 1, 7), ("c", 0, 2, 2)))
    a, b, c = plan.batch_slots
    assert labels(plan) == [
        *[(a, PREFILL_FIRST)] * 4,
        *[(a, PREFILL_REST)] * 2,
        (b, DECODE_REST),
        *[(c, PREFILL_FIRST)] * 2,
    ]
    assert plan.sizes.tolist() == [4, 2, 1, 2]
    assert plan.prompts.tolist() == [6, 7, 2]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (1, [PREFILL_FIRST, DECODE_FIRST, DECODE_FIRST, DECODE_FIRST, DECODE_REST]),
        (4, [PREFILL_FIRST] * 4 + [DECODE_REST]),
        (5, [PREFILL_FIRST] * 4 + [PREFILL_REST]),
    ],
)
def test_the_first_positions_stay_apart_in_both_phases(prompt, expected) -> None:
    """The four first tokens are a class of their own, also where they are generated."""
    rows, seen = RowMap(1), []
    seen += labels(rows.plan(batch(("a", 0, prompt, prompt))))
    for position in range(prompt, 5):
        seen += labels(rows.plan(batch(("a", position, 1, prompt))))
    assert seen == [(0, population) for population in expected]


def test_a_steady_batch_reuses_its_plan() -> None:
    """Decoding the same requests in the same order costs no new plan, and still counts the rows."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 8, 8), ("b", 0, 9, 9)))
    first = rows.plan(batch(("a", 8, 1, 8), ("b", 9, 1, 9)))
    for further in (1, 2):
        plan = rows.plan(batch(("a", 8 + further, 1, 8), ("b", 9 + further, 1, 9)))
        assert plan.groups is first.groups
        assert plan.ends.tolist() == [9 + further, 10 + further]
    after = rows.plan(batch(("a", 9, 3, 8)))  # two of the three have been seen
    assert labels(after) == [None, None, (0, DECODE_REST)]
    assert after.recomputed.tolist() == [2]


@pytest.mark.parametrize(
    "change",
    [
        (("b", 10, 1, 9), ("a", 9, 1, 8)),  # another order
        (("a", 9, 1, 8),),  # one less
        (("a", 10, 1, 8), ("b", 10, 1, 9)),  # one further on
        (("a", 8, 1, 8), ("b", 10, 1, 9)),  # one again
        (("a", 9, 2, 8), ("b", 10, 1, 9)),  # two rows of one
    ],
)
def test_a_batch_that_differs_is_planned_anew(change) -> None:
    """Any difference from a steady batch ends the reuse."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 8, 8), ("b", 0, 9, 9)))
    first = rows.plan(batch(("a", 8, 1, 8), ("b", 9, 1, 9)))
    plan = rows.plan(batch(*change))
    assert plan.groups is not first.groups
    assert plan.batch_slots.tolist() == [ord(row[0]) - ord("a") for row in change]


def test_a_request_that_ends_ends_the_reuse() -> None:
    """After a finish the same ids are new requests: nothing of the old plan is used."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 8, 8)))
    rows.plan(batch(("a", 8, 1, 8)))
    assert rows.forget(["a", "unknown"]) == [("a", 0)]
    plan = rows.plan(batch(("a", 9, 1, 8)))
    assert plan.cached.tolist() == [9]
    assert rows.forget(["b"]) == []


def test_an_empty_batch_has_an_empty_plan_and_is_never_steady() -> None:
    """A pass without requests is no special case."""
    rows = RowMap(1)
    plan = rows.plan(batch())
    assert plan.num_groups == 0
    assert plan.groups.tolist() == plan.sizes.tolist() == plan.batch_slots.tolist() == []
    assert not rows.is_steady


def drafted(*rows: tuple[str, int, int, int, int]) -> Batch:
    """A batch of (request, start, count, prompt, drafts) rows."""
    return batch(*[row[:4] for row in rows])._replace(
        drafts=np.array([row[4] for row in rows], np.int64)
    )


def test_each_draft_row_has_a_group_of_its_own() -> None:
    """A group of the certain rows, then one for each draft, told by owner and number."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 5, 5), ("b", 0, 6, 6)))
    plan = rows.plan(drafted(("a", 5, 3, 5, 2), ("b", 6, 1, 6, 0)))
    assert plan.has_drafts
    assert plan.groups.tolist() == [0, 1, 2, 3]
    assert plan.sizes.tolist() == [1, 1, 1, 1]
    assert plan.owners.tolist() == [0, 0, 0, 1]
    assert plan.drafts.tolist() == [0, 1, 2, 0]
    assert plan.num_drafts.tolist() == [2, 0]
    assert plan.ends.tolist() == [6, 7]
    assert plan.accept(np.array([1, 0])).tolist() == [True, True, False, True]
    assert plan.tokens(np.array([1, 0])).tolist() == [2, 1]
    assert plan.populations.tolist() == [DECODE_REST] * 4


@pytest.mark.parametrize("accepted", [0, 1, 2])
def test_a_rejected_draft_is_neither_recomputed_nor_lost(accepted) -> None:
    """Its position is computed again with another token: a row like any other."""
    rows = RowMap(1)
    rows.plan(batch(("a", 0, 5, 5)))
    plan = rows.plan(drafted(("a", 5, 3, 5, 2)))
    assert rows.settle(plan, np.array([accepted])).tolist() == [accepted]
    after = rows.plan(drafted(("a", 6 + accepted, 2, 5, 1)))
    assert after.drafts.tolist() == [0, 1]
    assert not len(after.recomputed)
    assert not len(after.lost)


def test_drafts_that_were_never_settled_are_lost_if_they_came_true() -> None:
    """What nobody vouched for is not observed; the next row shows how many there were."""
    rows = RowMap(1)
    rows.plan(batch(("a", 0, 5, 5)))
    rows.plan(drafted(("a", 5, 3, 5, 2)))
    assert rows.plan(batch(("a", 7, 1, 5))).lost.tolist() == [1]


def test_more_drafts_cannot_be_accepted_than_there_were() -> None:
    """A runner that says otherwise moves no request beyond its rows."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 5, 5), ("b", 0, 5, 5)))
    plan = rows.plan(drafted(("a", 5, 3, 5, 2), ("b", 5, 1, 5, 0)))
    assert rows.settle(plan, np.array([9, 1])).tolist() == [2, 0]
    assert not len(rows.plan(batch(("a", 8, 1, 5), ("b", 6, 1, 5))).lost)


def test_drafts_of_a_resumed_request_do_not_move_it_further_than_it_came() -> None:
    """Computed again with drafts, tokens seen before the preemption are not seen twice."""
    rows = RowMap(1)
    rows.plan(batch(("a", 0, 20, 20)))
    plan = rows.plan(drafted(("a", 15, 4, 20, 3)))  # from 15, of which nothing is new
    assert plan.recomputed.tolist() == [4]
    assert plan.fresh.tolist() == [-4]
    assert plan.tokens(np.array([3])).tolist() == [0]
    rows.settle(plan, np.array([3]))
    after = rows.plan(batch(("a", 19, 3, 20)))
    assert after.recomputed.tolist() == [1]
    assert after.tokens(0).tolist() == [2]


def test_drafts_end_the_reuse_of_a_plan_and_it_comes_back() -> None:
    """With drafts every step is planned; without them the steady path is taken again."""
    rows = RowMap(1)
    rows.plan(batch(("a", 0, 5, 5)))
    first = rows.plan(batch(("a", 5, 1, 5)))
    plan = rows.plan(drafted(("a", 6, 2, 5, 1)))
    assert plan.has_drafts
    rows.settle(plan, np.array([1]))
    second = rows.plan(drafted(("a", 8, 1, 5, 0)))
    assert not second.has_drafts
    assert second.groups is not first.groups
    assert rows.plan(batch(("a", 9, 1, 5))).groups is second.groups


def test_a_muted_request_has_no_group() -> None:
    """Its rows are left out, and are tokens all the same; it never enters."""
    rows = RowMap(2)
    plan = rows.plan(batch(("a", 0, 6, 6), ("b", 0, 2, 2)), {"a"})
    a, b = plan.batch_slots
    assert labels(plan) == [None] * 6 + [(b, PREFILL_FIRST)] * 2
    assert plan.muted.tolist() == [True, False]
    assert plan.tokens(0).tolist() == [6, 2]
    assert plan.entered == ((b, "b"),)
    assert not len(plan.recomputed)
    assert a not in plan.slots


def test_a_muted_request_beside_others_keeps_the_plan_steady() -> None:
    """One client's wish costs the batch no new plan at each step."""
    rows = RowMap(2)
    rows.plan(batch(("a", 0, 8, 8), ("b", 0, 9, 9)), {"a"})
    first = rows.plan(batch(("a", 8, 1, 8), ("b", 9, 1, 9)), {"a"})
    again = rows.plan(batch(("a", 9, 1, 8), ("b", 10, 1, 9)), {"a"})
    assert again.groups is first.groups
    assert again.muted.tolist() == [True, False]
    assert again.tokens(0).tolist() == [1, 1]


def test_drafts_of_a_muted_request_stand_in_no_group() -> None:
    """A batch of nothing but muted drafts still waits for how many of them are tokens."""
    rows = RowMap(1)
    rows.plan(batch(("a", 0, 5, 5)), {"a"})
    plan = rows.plan(drafted(("a", 5, 3, 5, 2)), {"a"})
    assert plan.num_groups == 0
    assert plan.has_drafts
    assert plan.tokens(np.array([1])).tolist() == [2]
    assert plan.accept(np.array([1])).tolist() == []


@dataclass
class Tokens:
    """What became of each token of one request, by position, as the oracle sees it."""

    prompt: int
    position: int  # of the next row that the engine computes
    slot: int | None = None
    observed: set[int] = field(default_factory=set)
    cached: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    num_recomputed: int = 0
    num_computed: int = 0  # rows that plans have seen

    @property
    def accounted(self) -> set[int]:
        return self.observed | self.cached | self.lost

    def gap(self, start: int) -> int:
        """Unseen tokens before a row at `start`: cached ones before the first row, lost later."""
        unseen = set(range(start)) - self.accounted
        (self.lost if self.num_computed else self.cached).update(unseen)
        return len(unseen)

    def see(self, position: int) -> int | None:
        """Population of a row, or None when its token has been accounted for."""
        self.num_computed += 1
        if position in self.accounted:
            self.num_recomputed += 1
            return None
        self.observed.add(position)
        return 2 * (position >= self.prompt) + (position >= NUM_FIRST_POSITIONS)


class Engine(RuleBasedStateMachine):
    """An engine that does to its requests whatever a scheduler may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, Tokens] = {}
        self.num_requests = 0

    @initialize(capacity=st.integers(1, 3))
    def boot(self, capacity: int) -> None:
        self.rows = RowMap(capacity)
        self.slow = RowMap(capacity)  # the same, never steady

    @rule(prompt=st.integers(1, 12), data=st.data())
    def arrive(self, prompt: int, data: st.DataObject) -> None:
        """A request, whose prompt is partly in the prefix cache; ids come again."""
        name = f"r{self.num_requests % 7}"
        if name in self.tokens:
            return
        self.num_requests += 1
        self.tokens[name] = Tokens(prompt, data.draw(st.integers(0, prompt - 1), "prefix"))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Some requests, in any order, each with a chunk of its prompt or one token."""
        names = data.draw(
            st.lists(st.sampled_from(sorted(self.tokens)), min_size=1, unique=True), "batch"
        )
        self._run([(name, data.draw(st.integers(1, self._most(name)), name)) for name in names])

    @precondition(lambda self: self.tokens)
    @rule(num_steps=st.integers(2, 5), data=st.data())
    def decode(self, num_steps: int, data: st.DataObject) -> None:
        """The same requests, over and over, in the same order: the steady path."""
        names = data.draw(st.permutations(sorted(self.tokens)), "batch")
        self._run([(name, self._most(name)) for name in names])
        for _ in range(num_steps):
            self._run([(name, 1) for name in names])

    @precondition(lambda self: any(tokens.num_computed for tokens in self.tokens.values()))
    @rule(data=st.data())
    def step_unseen(self, data: st.DataObject) -> None:
        """The tap looks away while a request moves on."""
        moving = sorted(name for name, tokens in self.tokens.items() if tokens.num_computed)
        self.tokens[data.draw(st.sampled_from(moving))].position += 1

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        """A request starts again, from the beginning or from what the cache still has."""
        tokens = self.tokens[data.draw(st.sampled_from(sorted(self.tokens)), "preempted")]
        tokens.position = data.draw(st.integers(0, tokens.position), "resumed at")

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Requests end or are aborted, wherever they are, some before their first row."""
        names = data.draw(st.lists(st.sampled_from(sorted(self.tokens)), unique=True), "ended")
        ended = [self.tokens.pop(name) for name in names]
        expected = [
            (name, tokens.slot)
            for name, tokens in zip(names, ended, strict=True)
            if tokens.num_computed
        ]
        assert self.rows.forget(["never seen", *names]) == expected
        assert self.slow.forget(names) == expected

    @invariant()
    def every_token_is_in_exactly_one_account(self) -> None:
        """Observed, cached and lost are disjoint, and together all that was passed."""
        for tokens in self.tokens.values():
            parts = (tokens.observed, tokens.cached, tokens.lost)
            assert sum(map(len, parts)) == len(tokens.accounted)
            assert tokens.accounted == set(range(len(tokens.accounted)))
            assert tokens.num_computed == len(tokens.observed) + tokens.num_recomputed

    @invariant()
    def living_requests_share_no_slot(self) -> None:
        """Each request has a slot of its own, within the capacity."""
        slots = [tokens.slot for tokens in self.tokens.values() if tokens.slot is not None]
        assert len(set(slots)) == len(slots)
        assert all(slot < self.rows.capacity for slot in slots)

    def _most(self, name: str) -> int:
        return max(1, self.tokens[name].prompt - self.tokens[name].position)

    def _run(self, counts: list[tuple[str, int]]) -> None:
        made = batch(
            *[
                (name, self.tokens[name].position, count, self.tokens[name].prompt)
                for name, count in counts
            ]
        )
        plan = self.rows.plan(made)
        self.slow._steady = None
        for fast, slow in zip(plan, self.slow.plan(made), strict=True):
            np.testing.assert_array_equal(fast, slow)
        self._check(plan, counts)

    def _check(self, plan: Plan, counts: list[tuple[str, int]]) -> None:
        expected: list[tuple[int, int] | None] = []
        gaps, recomputed = [], []
        for (name, count), slot in zip(counts, plan.batch_slots.tolist(), strict=True):
            tokens = self.tokens[name]
            assert tokens.slot in (None, slot), "a request keeps its slot"
            tokens.slot = slot
            is_new = not tokens.num_computed
            unseen, again = tokens.gap(tokens.position), tokens.num_recomputed
            for _ in range(count):
                population = tokens.see(tokens.position)
                expected.append(None if population is None else (slot, population))
                tokens.position += 1
            gaps.append((unseen, 0) if is_new else (0, unseen))
            recomputed.append(tokens.num_recomputed - again)
        assert labels(plan) == expected
        named = [label for label in expected if label is not None]
        assert plan.sizes.tolist() == [named.count(label) for label in dict.fromkeys(named)]
        nothing = not any(map(any, gaps)) and not any(recomputed)
        assert plan.cached.tolist() == ([] if nothing else [cached for cached, _ in gaps])
        assert plan.lost.tolist() == ([] if nothing else [lost for _, lost in gaps])
        assert plan.recomputed.tolist() == ([] if nothing else recomputed)


# Every scheduling keeps the books: the invariants above, and each plan against the oracle.
TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
