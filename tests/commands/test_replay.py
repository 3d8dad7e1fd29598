"""`sidecar replay`: what it prints, and the exit status that a script can act on."""

import json
from pathlib import Path

import pytest

from sidecar import cli
from tests.commands.conftest import Week
from tests.jobs.traffic import IDENTITY, MIDNIGHT, SHIFTED, record


def test_nothing_would_have_paged(week: Week, tmp_path: Path, capsys) -> None:
    """Status 0, and every channel with its state."""
    record(tmp_path, 0.25, first_day=9, seed=5)
    status = cli.main(["replay", str(tmp_path), "--baseline", str(week.baseline)])
    printed = capsys.readouterr().out.splitlines()

    assert status == 0
    assert printed[0].startswith("2232 requests, 72 windows (0 with too few requests), 2026-09-30")
    assert [line.split(" in the end: ")[0] for line in printed[1:-1]] == [
        *("traffic", "mix", "tail", "integrity")
    ]
    assert printed[-1] == "would have paged 0 times, and raised 0 tickets"


def test_a_page_is_told_with_when_where_and_why(week: Week, tmp_path: Path, capsys) -> None:
    """Status 3; pages alike are told once, with how many more and until when."""
    record(tmp_path, 0.25, first_day=9, shift=1.0, seed=5)
    status = cli.main(["replay", str(tmp_path), "--baseline", str(week.baseline)])
    printed = capsys.readouterr().out
    (page,) = [line for line in printed.splitlines() if "  page  traffic" in line]

    assert status == 3
    assert page.startswith("2026-09-30 00:")
    assert ", since 2026-09-30 00:00Z: " in page
    assert f"    {SHIFTED} high, 1.0" in printed
    assert "times more until 2026-09-30 05:" in printed


def test_a_machine_reads_every_event(week: Week, tmp_path: Path, capsys) -> None:
    """The same as JSON, to the nanosecond."""
    record(tmp_path, 0.25, first_day=9, shift=1.0, seed=5)
    command = ["replay", str(tmp_path), "--baseline", str(week.baseline), "--json"]
    assert cli.main(command) == 3
    told = json.loads(capsys.readouterr().out)
    pages = [event for event in told["events"] if event["state"] == "page"]

    assert told["num_pages"] == len(pages) > 1
    assert told["start_ns"] == MIDNIGHT + 9 * 86_400 * 10**9
    assert pages[0]["causes"][0]["stream"] == SHIFTED
    assert pages[0]["causes"][0]["layer"] == 0
    assert {each["channel"] for each in told["verdicts"]} == {
        *("traffic", "mix", "tail", "integrity")
    }


def test_a_baseline_that_must_be_signed_is_not_believed(week: Week, tmp_path: Path, capsys):
    """Status 2, before anything is judged."""
    recordings = record(tmp_path / "recordings", 0.01, identity=IDENTITY)
    assert cli.main(["baseline", "keygen", str(tmp_path / "a.key")]) == 0
    command = ["replay", str(recordings[0].path), "--baseline", str(week.baseline)]
    assert cli.main([*command, "--key", str(tmp_path / "a.key.pub")]) == 2
    assert "is not signed" in capsys.readouterr().err


def test_a_baseline_is_not_optional(tmp_path: Path) -> None:
    """Without one there is nothing to judge by."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["replay", str(tmp_path)])
    assert exit_.value.code == 2
