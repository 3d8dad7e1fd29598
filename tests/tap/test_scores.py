"""Scores: what a request is told of, and what is counted of it when it is over."""

import numpy as np
import pytest

from sidecar.tap.pooling import Pooling, Rows
from sidecar.tap.probe_file import Probe
from sidecar.tap.rows import RowMap
from sidecar.tap.scores import Scores
from sidecar.wire.frame import Cells
from tests.tap.pooled import parts_of, steps

LIMITS = {"0.5": 1.0, "0.9": 2.0}


def probe(name: str, pooling: Pooling = Pooling.MEAN, **changes: object) -> Probe:
    made = Probe(name, 0, np.zeros(1, np.float32), 0.0, pooling, 0.0, Rows.ALL, LIMITS)
    return made._replace(**changes)


def serve(scores: Scores, row_map: RowMap, rows: list[list[float]]) -> int:
    """Pool a request of these rows of products; returns its slot."""
    products = np.array(rows, np.float32)
    plan, some = next(steps(row_map, [(f"r{rows}", 1, products)], [[len(rows)]]))
    scores.add(plan, parts_of(plan, some, np.zeros(products.shape[1])), None)
    return int(plan.slots[0])


def totals(scores: Scores) -> dict[str, Cells]:
    return {table.group: Cells.unpack(table) for table in scores.totals()}


def test_a_request_tells_each_score_once() -> None:
    """One row per probe, bias added, each read at its own place of the product."""
    probes = [probe("a", bias=10.0), probe("b", Pooling.MAX, bias=-1.0), probe("c")]
    scores = Scores(probes, np.array([2, 0, 1]), 2)
    slot = serve(scores, RowMap(2), [[1.0, 2.0, 3.0], [5.0, 4.0, 4.0]])
    (table,) = scores.of_request(slot)
    assert table.axes == [["a", "b", "c"]]
    cells = Cells.unpack(table)
    assert cells.count.tolist() == [1, 1, 1]
    assert cells.sums[:, 0, 0].tolist() == [13.5, 4.0, 3.0]
    assert cells.last[:, 0].tolist() == [13.5, 4.0, 3.0]
    assert scores.of(slot).tolist() == [13.5, 4.0, 3.0]


def test_a_request_is_counted_when_it_is_over_and_once() -> None:
    """Nothing of it is in the totals before; its slot is empty after."""
    scores = Scores([probe("a")], np.array([0]), 2)
    slot = serve(scores, RowMap(2), [[4.0]])
    assert totals(scores)["probe"].count.tolist() == [0]
    scores.clear(slot)
    assert totals(scores)["probe"].count.tolist() == [1]
    assert totals(scores)["probe"].sums[0, 0].tolist() == [4.0, 4.0, 16.0]
    assert list(scores.of_request(slot)) == []
    scores.clear(slot)
    assert totals(scores)["probe"].count.tolist() == [1]


def test_a_score_exceeds_the_quantiles_below_it() -> None:
    """Strictly: a score that equals the quantile does not exceed it."""
    scores = Scores([probe("a"), probe("b", quantiles={"0.5": -5.0, "0.9": 9.0})], np.arange(2), 2)
    row_map = RowMap(8)
    for a in (0.0, 1.0, 1.5, 2.0, 2.5, 7.0):
        scores.clear(serve(scores, row_map, [[a, -4.0]]))
    (_, table) = scores.totals()
    assert table.axes == [["a", "b"], ["0.5", "0.9"]]
    assert Cells.unpack(table).count.tolist() == [[4, 2], [6, 0]]


def test_extremes_of_the_totals_cover_one_frame() -> None:
    """They begin anew with each call; the sums go on."""
    scores, row_map = Scores([probe("a")], np.array([0]), 2), RowMap(8)
    for value in (3.0, -2.0):
        scores.clear(serve(scores, row_map, [[value]]))
    assert totals(scores)["probe"].extremes[0, 0].tolist() == [-2.0, 3.0]
    scores.clear(serve(scores, row_map, [[1.0]]))
    assert totals(scores)["probe"].extremes[0, 0].tolist() == [1.0, 1.0]
    assert totals(scores)["probe"].count.tolist() == [3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_not_counted(value) -> None:
    """Neither as a score nor as one that exceeds; the request's other probes are."""
    scores = Scores([probe("a"), probe("b")], np.arange(2), 2)
    slot = serve(scores, RowMap(2), [[value, 3.0]])
    (table,) = scores.of_request(slot)
    assert Cells.unpack(table).count.tolist() == [0, 1]
    scores.clear(slot)
    assert totals(scores)["probe"].count.tolist() == [0, 1]
    assert totals(scores)["probe_exceedance"].count.tolist() == [[0, 0], [1, 1]]


def test_without_quantiles_nothing_can_be_exceeded() -> None:
    """Then there is no such table; and without probes there is none at all."""
    scores = Scores([probe("a", quantiles={})], np.array([0]), 2)
    scores.clear(serve(scores, RowMap(2), [[1.0]]))
    assert list(totals(scores)) == ["probe"]
    nothing = Scores([], np.zeros(0, np.int64), 2)
    nothing.clear(serve(nothing, RowMap(2), [[1.0]]))
    assert list(nothing.totals()) == []
    assert list(nothing.of_request(0)) == []
