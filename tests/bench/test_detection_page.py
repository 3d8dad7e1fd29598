"""docs/detection.md and the stored results say the same."""

from bench.detection import page
from bench.detection.__main__ import SECTIONS
from bench.report import RESULTS

RESULT = {
    "command": "python -m bench.detection --only merge",
    "seconds": 61.4,
    "machine": {"cpu": "a processor"},
    "table": ["### Merge law", "", "| a |", "|---|", "| 1e-15 |", "", "Limit: kept.", "Second."],
}


def test_a_table_goes_between_its_marks_and_nothing_else_moves() -> None:
    """Title, command and notes with it; what stood there before is gone."""
    before = "# Page\n\n<!-- merge -->\nold\n<!-- end -->\n\nText.\n"
    after = page.filled(before, {"merge": RESULT})
    assert after == (
        "# Page\n\n<!-- merge -->\n### Merge law\n\n"
        "`python -m bench.detection --only merge`, 61 s, a processor.\n\n"
        "| a |\n|---|\n| 1e-15 |\n\n- Limit: kept.\n- Second.\n<!-- end -->\n\nText.\n"
    )
    assert page.filled(after, {"merge": RESULT}) == after


def test_a_section_without_a_result_says_so() -> None:
    """Rather than keeping a table that no result stands behind."""
    after = page.filled("<!-- delay -->\n| 3 |\n<!-- end -->", {"merge": RESULT})
    assert "Not measured yet: `python -m bench.detection --only delay`" in after
    assert "| 3 |" not in after


def test_the_page_holds_the_tables_of_the_stored_results() -> None:
    """All are of full runs, and none was edited by hand."""
    text = page.PAGE.read_text(encoding="utf-8")
    results = page.stored(RESULTS)
    assert set(results) <= set(SECTIONS)
    assert all("--quick" not in each["command"] for each in results.values())
    for name in SECTIONS:
        assert f"<!-- {name} -->" in text
    assert page.filled(text, results) == text
