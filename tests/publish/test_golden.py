"""The whole exposition of a fixed state, compared with the committed one line by line."""

import difflib
import os
from pathlib import Path

import pytest

from sidecar.publish.metrics.exposition import Build, Exposition, Scrape
from sidecar.publish.metrics.selection import Selection
from tests import fakes
from tests.fakes import NOW, SECOND, Ticking
from tests.publish import drifting

GOLDEN = Path(__file__).parent / "golden"
FORMATS = {"text.prom": "", "openmetrics.prom": "application/openmetrics-text;version=1.0.0"}
REMEDY = "if the change is meant: REGENERATE_GOLDEN=1 .venv/bin/pytest tests/publish/test_golden.py"


@pytest.mark.parametrize("name", FORMATS)
def test_the_exposition_is_the_committed_one(name: str) -> None:
    """Any change of a name, label, help text, order or number shows as a diff."""
    build = Build("1.2.3", "1", "3.11.0")
    exposition = Exposition(
        10_000,
        Selection.everything(),
        build=build,
        collectors=drifting.collectors(),
        clock=Ticking(),
    )
    snapshot = fakes.everything().get(NOW + 10 * SECOND)
    body = exposition.render(snapshot, Scrape(FORMATS[name]))
    if os.environ.get("REGENERATE_GOLDEN"):
        (GOLDEN / name).write_bytes(body)
    expected, actual = (GOLDEN / name).read_text().splitlines(), body.decode().splitlines()

    assert expected == actual, "\n".join(
        [REMEDY, *difflib.unified_diff(expected, actual, name, "now", lineterm="")]
    )
