"""The page of reliability: what stands there is what was measured."""

import json
from pathlib import Path

from bench import reliability
from bench.report import Section

MADE = Section("What broke", ("what", "lost"), [("everything", "0")], {"lost": [0]}, ["A note."])


def test_the_page_is_what_the_files_of_results_say() -> None:
    """docs/reliability.md is generated; `python -m bench.reliability` writes it anew."""
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page()


def test_a_section_that_was_written_stands_on_the_page(tmp_path: Path) -> None:
    """A program writes one file, and its table, notes and command are told."""
    path = reliability.write("wear", MADE, "python -m bench.wear", 12.4, tmp_path)
    text = reliability.page(tmp_path)
    assert json.loads(path.read_text())["figures"] == {"lost": [0]}
    for line in ("## What broke", "| everything | 0 |", "A note.", "`python -m bench.wear`, 12 s"):
        assert line in text


def test_sections_stand_in_order_and_other_results_nowhere(tmp_path: Path) -> None:
    """Chaos before soak before what nobody has heard of; results of speed are not on this page."""
    for name in ("another", "soak", "chaos"):
        reliability.write(name, MADE._replace(title=name), "true", 1, tmp_path)
    (tmp_path / "speed.json").write_text(json.dumps({"machine": {}, "rows": []}))
    headings = [each for each in reliability.page(tmp_path).splitlines() if each.startswith("## ")]
    fuzz, ending = (reliability.PLANNED[each] for each in ("fuzz", "ending"))
    others = [f"## {fuzz[0]}", f"## {ending[0]}"]
    assert headings == ["## chaos", "## soak", *others, "## another"]


def test_what_was_not_measured_is_said_with_the_command_that_would(tmp_path: Path) -> None:
    """Each section that is planned has its place, so that the README may point to it."""
    text = reliability.page(tmp_path)
    assert text.count("Not measured yet") == len(reliability.PLANNED)
    assert "## Things break\n\nNot measured yet: `python -m bench.chaos` would." in text
