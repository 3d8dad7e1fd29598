"""The table of what is supported says what the tests prove and what the code refuses."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.tap.vllm import features

ROOT = Path(__file__).parents[1]
STATES = {"tested here", "tested with fakes", "refused"}


class Line(NamedTuple):
    """One line of a table of docs/support.md."""

    feature: str
    signals: str
    state: str
    proof: str
    reason: str

    @property
    def tests(self) -> list[str]:
        """What proves it, as `path::name`."""
        return re.findall(r"`(tests/[^`]+)`", self.proof)


def _lines() -> list[Line]:
    text = (ROOT / "docs" / "support.md").read_text()
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [Line(*row) for row in cells if row[0] != "feature" and set(row[0]) != {"-"}]


LINES = _lines()


@cache
def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.feature[:40])
def test_every_line_has_a_state_and_signals(line: Line) -> None:
    """One of three states; nothing is left pending."""
    assert line.state in STATES
    assert line.signals
    assert bool(line.reason) == (line.state == "refused")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.feature[:40])
def test_every_line_is_proven_by_tests_that_exist(line: Line) -> None:
    """Each test named is a function of its file; what was tested here ran on a real server."""
    assert line.tests
    for test in line.tests:
        path, _, name = test.partition("::")
        assert name in _functions(ROOT / path), test
    is_real = any(test.startswith("tests/e2e/") for test in line.tests)
    assert line.state == "refused" or is_real == (line.state == "tested here")


def test_every_feature_that_the_code_refuses_is_in_the_table() -> None:
    """Under its name, with the word that the metric shows; and no other word is promised."""
    refused = {
        line.reason.strip("`"): line.feature
        for line in LINES
        if line.state == "refused" and line.signals == "all"
    }
    for feature in features.REFUSED:
        assert refused.pop(feature.reason) == feature.name
    assert set(refused) == {"not_supported"}
