"""Turns: which requests and which layers are sampled at a step, and by which rows."""

import numpy as np
import pytest

from sidecar.tap.rows import Batch
from sidecar.tap.turns import choose, due


def batch(*rows: tuple[str, int, int, int], drafts=(), partial=()) -> Batch:
    """Rows of (id, start, count, prompt)."""
    columns = [np.array(column) for column in zip(*[row[1:] for row in rows], strict=True)]
    return Batch(
        [row[0] for row in rows],
        *columns,
        np.array(drafts, np.int64),
        np.array(partial, bool),
    )


DECODES = batch(*((name, 10 + n, 1, 5) for n, name in enumerate("abcdefgh")))
ALL = [True]


def names(choice, of: Batch) -> str:
    return "" if choice is None else "".join(of.req_ids[place] for place in choice.places)


@pytest.mark.parametrize("num_layers", [1, 3, 4, 10, 28])
@pytest.mark.parametrize("every", [1, 2, 7, 16, 100])
def test_each_layer_has_one_turn_in_so_many(num_layers: int, every: int) -> None:
    """Over a round every layer is due once, and no step has more of them than it must."""
    turns = np.array([due(num_layers, every, turn) for turn in range(every)])
    assert turns.sum(0).tolist() == [1] * num_layers
    assert turns.sum(1).max() == -(-num_layers // every)
    assert due(num_layers, every, 3 * every + every // 2) == due(num_layers, every, every // 2)


@pytest.mark.parametrize("num_layers", [1, 3, 10, 28])
@pytest.mark.parametrize("every", [1, 2, 16])
@pytest.mark.parametrize("together", [1, 2, 5, 8, 100])
def test_layers_that_may_share_a_step_do(num_layers: int, every: int, together: int) -> None:
    """Each has its turn, as few steps as can be have any, and those are as alike as can be."""
    turns = np.array([due(num_layers, every, turn, together) for turn in range(every)])
    assert turns.sum(0).tolist() == [1] * num_layers
    busy = turns.sum(1)[turns.any(1)]
    num_bunches = -(-num_layers // together)
    assert len(busy) == min(every, num_bunches)
    if num_bunches <= every:
        assert busy.max() - busy.min() <= 1


def test_turns_are_spread_over_the_round() -> None:
    """Fewer layers than steps leave as many steps free between them as can be."""
    turns = [turn for turn in range(16) if any(due(4, 16, turn))]
    assert turns == [0, 4, 8, 12]


def test_rows_are_the_last_certain_ones() -> None:
    """The row is a request's last before its draft tokens, in the batch's order."""
    mixed = batch(("a", 0, 5, 5), ("b", 7, 3, 4), ("c", 2, 4, 6), drafts=(0, 2, 0))
    choice = choose(mixed, ALL, 0, 8)
    assert choice.rows.tolist() == [4, 5, 11]
    assert choice.lengths.tolist() == [5, 8, 6]
    assert choice.phases.tolist() == [0, 1, 0]
    assert choice.num_requests == 3


def test_an_unfinished_prefill_has_to_wait() -> None:
    """A row that leads to no token is never sampled; the numbers of the others do not shift."""
    chunked = batch(("a", 0, 5, 9), ("b", 7, 1, 4), partial=(True, False))
    choice = choose(chunked, ALL, 0, 8)
    assert names(choice, chunked) == "b"
    assert choice.rows.tolist() == [5]
    assert choice.places.tolist() == [1]
    assert choose(chunked._replace(partial=np.array([True, True])), ALL, 0, 8) is None


@pytest.mark.parametrize("limit", [1, 3, 8, 20])
def test_everyone_has_a_turn_before_anyone_has_two_more(limit: int) -> None:
    """Round by round the places rotate, so that turns differ by one at most."""
    counts = dict.fromkeys(DECODES.req_ids, 0)
    for turn in range(8):
        for name in names(choose(DECODES, ALL, turn * limit, limit), DECODES):
            counts[name] += 1
    assert set(counts.values()) == {min(limit, 8)}


def test_who_asks_for_it_comes_first_and_at_every_layer() -> None:
    """A forced request is sampled whether or not a layer is due, and within the limit."""
    choice = choose(DECODES, [True, False], 0, 3, forced={"g", "d", "x"})
    assert names(choice, DECODES) == "dga"
    assert choice.num_forced == 2
    assert [choice.num_rows(0), choice.num_rows(1)] == [3, 2]
    assert names(choose(DECODES, [False, False], 0, 3, forced={"g"}), DECODES) == "g"
    assert names(choose(DECODES, ALL, 0, 2, forced=set("abcd")), DECODES) == "ab"
    assert names(choose(DECODES, ALL, 2, 2, forced=set("abcd")), DECODES) == "cd"


def test_nobody_is_sampled_when_no_layer_is_due() -> None:
    """Without a layer whose turn it is, and without a wish, there is nothing to do."""
    assert choose(DECODES, [False, False], 0, 8) is None
    assert choose(DECODES, [False, False], 0, 8, forced={"x"}) is None


def test_who_opted_out_is_never_sampled() -> None:
    """Not even when it is also forced, or alone."""
    choice = choose(DECODES, ALL, 0, 8, forced={"c"}, opted_out={"c", "a"})
    assert names(choice, DECODES) == "bdefgh"
    one = batch(("a", 10, 1, 5))
    assert choose(one, ALL, 0, 8, opted_out={"a"}) is None
