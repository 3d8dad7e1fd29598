"""Pooling: what comes out is what the definition gives, however the rows were cut into steps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap.pooling import Columns, Part, Pool, Pooling, Rows
from sidecar.tap.rows import Batch, RowMap
from tests.tap.pooled import chosen, defined, parts_of, steps

ALPHAS = np.array([0.1, 0.5, 1.0])
KINDS = list(itertools.product(Pooling, Rows))


def pool(pooling: Pooling, rows: Rows = Rows.ALL, num_slots: int = 4) -> Pool:
    """A pool of three columns."""
    alphas = ALPHAS if pooling is Pooling.EMA else np.zeros(3)
    return Pool(Columns(pooling, rows, np.arange(3), alphas), num_slots)


def numbers(num_rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-1.0, 3.0, (num_rows, 3)).astype(np.float32)


def expected(rows: np.ndarray, pooling: Pooling) -> np.ndarray:
    return np.array([defined(rows[:, [i]], pooling, alpha)[0] for i, alpha in enumerate(ALPHAS)])


requests = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), min_size=1, max_size=5)


@given(requests, st.data())
@settings(max_examples=60, deadline=None)
def test_the_cut_into_steps_changes_nothing(shapes, data) -> None:
    """Any requests, cut into any chunks and batched in any way, are pooled by the definition."""
    served = [
        (f"r{number}", prompt, numbers(prompt + generated, number))
        for number, (prompt, generated) in enumerate(shapes)
    ]
    cuts = data.draw(
        st.lists(
            st.lists(st.integers(0, 6), min_size=len(shapes), max_size=len(shapes)), max_size=6
        )
    )
    cuts += [[20] * len(shapes)]  # what is left
    row_map = RowMap(8)
    pools = {kind: pool(*kind) for kind in KINDS}
    slots = {}
    for plan, rows in steps(row_map, served, cuts):
        slots |= {name: slot for slot, name in plan.entered}
        for (pooling, _), each in pools.items():
            alphas = ALPHAS if pooling is Pooling.EMA else np.zeros(3)
            each.add(plan, parts_of(plan, rows, alphas), None)
    for name, prompt, rows in served:
        for (pooling, which), each in pools.items():
            want = expected(chosen(rows, prompt, which), pooling)
            np.testing.assert_allclose(each.values(slots[name]), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", Pooling)
def test_a_slot_that_was_cleared_remembers_nothing(pooling) -> None:
    """The next request of a slot is pooled as if it were the first."""
    made = pool(pooling, num_slots=1)
    row_map = RowMap(1)
    for seed, length in ((1, 5), (2, 3)):
        rows = numbers(length, seed)
        for plan, some in steps(row_map, [(f"r{seed}", 2, rows)], [[2], [9]]):
            alphas = ALPHAS if pooling is Pooling.EMA else np.zeros(3)
            made.add(plan, parts_of(plan, some, alphas), None)
        np.testing.assert_allclose(made.values(0), expected(rows, pooling), rtol=1e-5)
        row_map.forget([f"r{seed}"])
        made.clear(0)
        assert np.isnan(made.values(0)).all()


def test_of_draft_rows_those_that_were_accepted_follow_the_certain_one() -> None:
    """The last row is the last accepted draft, and ema takes the accepted drafts in their order."""
    rows = numbers(3 + 4, 0)  # a prompt; then a certain row and three drafts, one of them rejected
    pools = {pooling: pool(pooling) for pooling in Pooling}
    row_map = RowMap(2)
    for start, count, drafts in ((0, 3, 0), (3, 4, 3)):
        batch = Batch(
            ["a"], np.array([start]), np.array([count]), np.array([3]), np.array([drafts])
        )
        plan = row_map.plan(batch)
        kept = plan.accept(np.array([2])) if drafts else None
        for pooling, each in pools.items():
            alphas = ALPHAS if pooling is Pooling.EMA else np.zeros(3)
            each.add(plan, parts_of(plan, rows[start : start + count], alphas), kept)
    slot = plan.batch_slots[0]
    for pooling, each in pools.items():
        np.testing.assert_allclose(
            each.values(slot), expected(rows[:6], pooling), rtol=1e-5, atol=1e-6
        )


def test_the_last_row_of_a_prompt_is_not_known_before_its_last_chunk() -> None:
    """While chunks are still to come there is none, and a lost last chunk leaves it unknown."""
    rows = numbers(6, 0)
    made, row_map = pool(Pooling.LAST, Rows.PROMPT), RowMap(2)
    cut = steps(row_map, [("a", 5, rows)], [[4], [1], [1]])
    plan, some = next(cut)
    made.add(plan, parts_of(plan, some, np.zeros(3)), None)
    assert np.isnan(made.values(plan.slots[0])).all()
    next(cut)  # lost: never added
    plan, some = next(cut)
    made.add(plan, parts_of(plan, some, np.zeros(3)), None)
    assert np.isnan(made.values(plan.slots[0])).all()


def test_a_prompt_that_ends_in_a_batch_ends_there_alone() -> None:
    """Of two prompts in one batch only the one that is whole has a last row."""
    made = pool(Pooling.LAST, Rows.PROMPT)
    rows = numbers(12, 0)
    served = [("part", 8, rows[:8]), ("whole", 4, rows[8:])]
    plan, some = next(steps(RowMap(2), served, [[4, 4]]))
    made.add(plan, parts_of(plan, some, np.zeros(3)), None)
    part, whole = plan.batch_slots
    assert np.isnan(made.values(part)).all()
    np.testing.assert_array_equal(made.values(whole), rows[11])


def test_slots_beyond_the_first_ones_are_made_room_for() -> None:
    """More living requests than expected are pooled all the same, and the others stay."""
    for pooling in Pooling:
        made, row_map = pool(pooling, num_slots=1), RowMap(1)
        served = [(f"r{n}", 1, numbers(2, n)) for n in range(5)]
        slots = {}
        for plan, some in steps(row_map, served, [[1, 0, 0, 0, 0], [1] * 5, [1] * 5]):
            slots |= {name: slot for slot, name in plan.entered}
            alphas = ALPHAS if pooling is Pooling.EMA else np.zeros(3)
            made.add(plan, parts_of(plan, some, alphas), None)
        for name, _, rows in served:
            np.testing.assert_allclose(made.values(slots[name]), expected(rows, pooling), rtol=1e-5)
        assert np.isnan(made.values(1000)).all()
        made.clear(1000)


@pytest.mark.parametrize("pooling", Pooling)
def test_a_stream_that_is_not_finite_gives_no_finite_value(pooling) -> None:
    """What cannot be told is not made up, and warns of nothing."""
    plan, _ = next(steps(RowMap(2), [("a", 2, numbers(2, 0))], [[2]]))
    for value in (np.nan, np.inf, -np.inf):
        made = pool(pooling)
        parts = np.full((plan.num_groups, len(Part), 3), value, np.float32)
        made.add(plan, parts, None)
        assert not np.isfinite(made.values(plan.slots[0])).any()
