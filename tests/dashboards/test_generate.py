"""The committed JSON is what the code makes, and is what Grafana's own schema knows."""

import json

import pytest

from dashboards import generate
from dashboards.sdk import JSONEncoder, dashboard_model
from tests.dashboards.committed import FOLDER, NAMES, board

REMEDY = "`make dashboards` writes dashboards/json anew; look at the diff, and commit it"


def test_the_committed_files_are_what_the_code_makes() -> None:
    """Not a byte more or less, and no file that is of no dashboard."""
    made = generate.files()

    assert {path.name for path in FOLDER.iterdir()} == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name}: {REMEDY}"


def test_the_command_writes_where_it_is_told(tmp_path) -> None:
    """`python -m dashboards.generate FOLDER` makes the folder and fills it."""
    assert generate.main([str(tmp_path / "new")]) == 0

    written = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert written == generate.files()


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_schema_knows_every_key(name: str) -> None:
    """Read by the SDK's models and written again, nothing is lost and nothing changes."""
    plain = board(name)
    read = dashboard_model.Dashboard.from_json(plain)

    again = json.loads(json.dumps(read, cls=JSONEncoder))
    assert generate.without_placement(again) == plain
    assert generate.without_placement(plain) == plain


def test_a_key_that_the_schema_does_not_know_is_noticed() -> None:
    """The round trip loses a misspelt key, so the test above can fail."""
    plain = {**board("overview"), "titel": "x"}
    read = dashboard_model.Dashboard.from_json(plain)

    assert "titel" not in json.loads(json.dumps(read, cls=JSONEncoder))
