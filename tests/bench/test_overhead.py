"""The table of the overhead benchmark, and its command line; no engine."""

import sys

import pytest

from bench import overhead
from bench.overhead import BATCHES, Row, table

SECONDS = {"off": 2.0, "on": 2.5, "everything": 4.0}


class FakeArm:
    """An engine that takes as long as its name says."""

    def __init__(self, name, folder) -> None:
        self.name = name

    def answer(self) -> dict[str, float]:
        return {"load_seconds": 1.0}

    def seconds(self, batch: int, tokens: int) -> float:
        return SECONDS[self.name]

    def stop(self) -> None:
        pass


def test_the_table_names_its_arms_and_what_is_not_resolved() -> None:
    """As the README has it: an interval that contains 1 says nothing, and says so."""
    rows = [Row(1, 6, 13.887, 14.263, 1.0133, 0.978, 1.056), Row(8, 6, 80.0, 72.0, 0.9, 0.85, 0.95)]
    assert list(table(rows, "everything")) == [
        "| batch | off, tok/s | everything, tok/s | everything / off | 95 % interval | |",
        "|---:|---:|---:|---:|---|---|",
        "| 1 | 13.9 | 14.3 | 1.013 | 0.978 to 1.056 | unresolved: the interval contains 1 |",
        "| 8 | 80.0 | 72.0 | 0.900 | 0.850 to 0.950 |  |",
    ]


@pytest.mark.parametrize(
    ("words", "tapped"), [([], "on"), (["--arms", "off,everything"], "everything")]
)
def test_arms_are_chosen_on_the_command_line(words, tapped, monkeypatch) -> None:
    """The default settings unless told otherwise."""
    monkeypatch.setattr(sys, "argv", ["overhead", *words])
    assert overhead._options().tapped == tapped


@pytest.mark.parametrize(("tapped", "ratio"), [("on", 0.8), ("everything", 0.5)])
def test_a_ratio_is_of_the_rates_of_the_chosen_arms(tapped, ratio, monkeypatch) -> None:
    """Twice the seconds are half the rate."""
    monkeypatch.setattr(overhead, "Arm", FakeArm)
    monkeypatch.setattr(sys, "argv", ["overhead", f"--arms=off,{tapped}", "--pairs=3"])
    rows, loads = overhead._measure(None, overhead._options())
    assert [row.batch for row in rows] == list(BATCHES)
    assert {(row.ratio, row.low, row.high) for row in rows} == {(ratio, ratio, ratio)}
    assert rows[0].off_rate == 16 / 2.0
    assert rows[0].tapped_rate == 16 / SECONDS[tapped]
    assert set(loads) == {"off", tapped}


def test_a_run_that_no_tap_saw_is_void(tmp_path, monkeypatch, capsys) -> None:
    """A real sidecar that heard of no engine: no table is printed, and no file written."""
    monkeypatch.setattr(overhead, "Arm", FakeArm)
    monkeypatch.setattr(overhead, "SETTLE_SECONDS", 0.0)
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["overhead", "--quick", f"--json={path}"])
    with pytest.raises(RuntimeError, match=r"void: .*is not live"):
        overhead.main()
    assert "tok/s" not in capsys.readouterr().out
    assert not path.exists()
