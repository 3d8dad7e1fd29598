"""A short campaign against every door, and every input that ever broke one."""

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from bench.fuzz import __main__ as command
from bench.fuzz.campaign import campaign
from bench.fuzz.doors import Door, doors, slug

NUM_INPUTS = 300
SEED = 1_000_000  # apart from those of the long campaigns, which begin at 0
DOORS = {slug(door): door for door in doors()}
CRASHERS = sorted(path for path in command.CRASHERS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", DOORS)
def test_a_door_holds(name: str) -> None:
    """Bytes of every kind are taken or refused in words, and both happen."""
    tally = campaign(DOORS[name], 600, NUM_INPUTS, SEED)

    assert tally.broken is None, tally.broken
    assert tally.num_inputs == NUM_INPUTS
    assert len(tally.outcomes) > 1


@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_a_door_does_not_any_more(path: Path) -> None:
    """It ends in a word."""
    assert DOORS[path.parent.name].take(path.read_bytes())


def test_there_are_such_inputs() -> None:
    """They are found where they are looked for, of doors that are there."""
    assert len(CRASHERS) >= 10
    assert {path.parent.name for path in CRASHERS} <= set(DOORS)


def fragile(data: bytes) -> str:
    """Breaks at a byte of 7."""
    if 7 in data:
        raise OSError(f"{len(data)} bytes hold a 7")
    return "taken"


def test_a_door_that_breaks_is_told_with_its_shortest_input() -> None:
    """Of all inputs that break it the simplest, what it raised and where, and no more is tried."""
    door = Door("fragile", fragile, st.binary(max_size=50))
    tally = campaign(door, 600, 100_000)

    assert tally.broken is not None
    assert tally.broken.data == b"\x07"
    assert tally.broken.error.startswith("OSError: 1 bytes hold a 7 (")
    assert "test_fuzz.py" in tally.broken.error
    assert 0 < tally.outcomes["taken"] == tally.num_inputs < 100_000


def test_a_seed_draws_the_same_inputs_again() -> None:
    """So that a campaign can be repeated."""
    seen: list[list[bytes]] = []
    for seed in (3, 3, 4):
        drawn: list[bytes] = []
        door = Door("any", lambda data, drawn=drawn: str(drawn.append(data)), st.binary())  # type: ignore[misc]
        campaign(door, 600, 50, seed)
        seen.append(drawn)

    assert seen[0] == seen[1] != seen[2]


def test_what_broke_a_door_is_kept_where_the_tests_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds the bytes, stderr says where it is, and the exit status tells of it."""
    door = Door("two words", fragile, st.binary(max_size=50))
    monkeypatch.setattr(command, "CRASHERS", tmp_path)
    monkeypatch.setattr(command, "doors", lambda: [door])
    monkeypatch.setattr("sys.argv", ["fuzz", "--seconds", "60", "--door", "two words"])

    assert command.main() == 1
    (kept,) = (tmp_path / "two-words").iterdir()
    assert kept.read_bytes() == b"\x07"
    assert str(kept) in capsys.readouterr().err


def test_figures_are_whole() -> None:
    """Every outcome is in the file, and the rarest ones are added up in the table."""
    door = Door("words", lambda data: str(len(data) % 6), st.binary(min_size=6, max_size=60))
    tally = campaign(door, 600, 500)
    found = command.section([tally])
    (figures,) = json.loads(json.dumps(found.figures))["doors"]

    assert sum(figures["outcomes"].values()) == figures["num_inputs"] == 500
    assert found.rows[0][2].count(",") == 4
    assert found.rows[0][3] == "no"
