"""What each part costs: one engine is steered, turn by turn, and compared with itself."""

import json

import pytest

from bench import parts
from bench.parts import NOTHING, PARTS
from bench.ratios import Taken
from sidecar.wire.control import Control

RATES = dict(zip(PARTS, (100.0, 99.0, 98.0, 97.0, 96.0), strict=True))
NAMES = {wishes.revision: part for part, wishes in PARTS.items()}


class FakeEngine:
    """An engine as fast as what it was told to measure allows."""

    def __init__(self, *_: object) -> None:
        self.obeyed: list[str] = []
        self.num_stopped = 0

    def steer(self, wishes: Control) -> None:
        self.obeyed.append(NAMES[wishes.revision])

    def turn(self, _workload: object) -> Taken:
        rate = RATES[self.obeyed[-1]]
        if len(self.obeyed) <= len(PARTS):  # before it is warm
            rate /= 2
        return Taken(rate, 1 / rate, [1 / rate] * 4)

    def stop(self) -> None:
        self.num_stopped += 1


def test_each_part_is_compared_with_nothing_measured_in_the_same_engine(tmp_path, capsys) -> None:
    engine = FakeEngine()
    file = tmp_path / "parts.json"
    parts.main(["--rounds=3", f"--json={file}"], lambda *_: engine)
    there = list(PARTS)
    assert engine.obeyed == [*there, *there[::-1], *there, *there[::-1]]
    assert engine.num_stopped == 1
    figures = json.loads(file.read_text())["figures"]
    assert {part: each["rate"]["ratio"] for part, each in figures.items()} == pytest.approx(
        {part: rate / 100 for part, rate in RATES.items() if part != NOTHING}
    )
    assert "0.960 (0.960 to 0.960)" in capsys.readouterr().out


def test_the_engine_is_ended_when_it_does_not_obey() -> None:
    engine = FakeEngine()
    engine.steer = lambda _wishes: 1 / 0
    with pytest.raises(ZeroDivisionError):
        parts.main([], lambda *_: engine)
    assert engine.num_stopped == 1


def test_all_wishes_can_be_told_apart() -> None:
    """The status tells which is in force by its revision."""
    assert len(NAMES) == len(PARTS)
    assert "" not in NAMES
