"""The answer about groups of signals."""

import math

import pytest

from sidecar.publish.api import signals
from sidecar.publish.api.signals import signals_answer
from sidecar.wire.frame import Cells, Totals
from sidecar.wire.signals import GROUPS, METRICS
from tests import fakes
from tests.fakes import NOW, SECOND, FakeSource, reduced
from tests.publish.plain import plain

SNAPSHOT = fakes.everything().get(NOW + 11 * SECOND)


def test_every_group_says_what_it_is() -> None:
    """Formula, transform, axes and the names in Prometheus, as in the table of signals."""
    answer = signals_answer(SNAPSHOT)
    names = {metric.name for metric in METRICS}

    assert [group.id for group in answer.groups] == list(GROUPS)
    for group in answer.groups:
        assert group.axes == list(GROUPS[group.id].axes)
        assert [each.id for each in group.signals] == [s.id for s in GROUPS[group.id].signals]
        told = {each.metric for each in group.signals} | {group.rows_metric}
        assert told - {None} <= names


def test_a_cell_is_told_with_its_statistics() -> None:
    """Mean, mean and spread of phi, and the last closed window."""
    answer = signals_answer(SNAPSHOT, "attention")
    cell = next(
        each
        for each in answer.cells
        if each.source == "engine-dp0-pp0-tp0"
        and each.labels == {"layer": "2", "phase": "decode", "head": "0"}
    )
    latest, earlier, before = (
        Cells.unpack(fakes.totals(k, 8 * k).tables[0]) for k in (4.0, 2.0, 1.0)
    )
    at = (1, 1, 0, 2)
    mean, phi_mean, phi_square = latest.sums[at] / 32
    stat = cell.signals["effective_tokens"]

    assert (cell.model_name, cell.engine, cell.group) == ("tiny", "0", "attention")
    assert (cell.rows, cell.window_rows) == (32, 8)
    assert (stat.mean, stat.phi_mean) == (mean, phi_mean)
    assert stat.phi_std == math.sqrt(max(0.0, phi_square - phi_mean**2))
    assert stat.window_mean == (earlier.sums[at][0] - before.sums[at][0]) / 8
    assert (stat.window_min, stat.window_max) == (before.extremes[at][0], earlier.extremes[at][1])


def test_only_cells_with_rows_are_told_but_every_count() -> None:
    """An adapter that nobody used has no mean; an expert that nobody used is news."""
    answer = signals_answer(SNAPSHOT)
    first = [each for each in answer.cells if each.source == "engine-dp0-pp0-tp0"]

    assert [c.labels["adapter"] for c in first if c.group == "confidence"] == [""]
    assert [c.rows for c in first if c.group == "expert_load"] == [0, 32, 64, 96, 128, 160]
    assert [c.signals for c in first if c.group == "expert_load"] == [{}] * 6


def test_before_the_first_window_closes_its_numbers_are_null() -> None:
    """What does not exist is null, not 0."""
    body = Totals([fakes.table("probe", ["p"])])
    (cell,) = plain(signals_answer(reduced(FakeSource().frame(body)).get(NOW)))["cells"]
    score = cell["signals"]["score"]

    assert (cell["window_rows"], cell["model_name"]) == (None, "")
    assert (score["window_mean"], score["window_min"], score["window_max"]) == (None, None, None)


def test_one_group_is_told_alone() -> None:
    """A smaller answer for who wants one thing."""
    answer = signals_answer(SNAPSHOT, "router")

    assert [group.id for group in answer.groups] == ["router"]
    assert {cell.group for cell in answer.cells} == {"router"}


def test_an_answer_is_bounded_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end, always the same cells."""
    whole = signals_answer(SNAPSHOT)
    assert whole.num_left_out == 0

    monkeypatch.setattr(signals, "MAX_NUMBERS", 320)
    part = signals_answer(SNAPSHOT)
    assert part.cells == whole.cells[:10]
    assert part.num_left_out == len(whole.cells) - 10
