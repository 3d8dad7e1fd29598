"""The budget: cuts an overload quickly, comes back slowly, and never swings."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.budget import LEVELS, MINUTE, Budget, BusyTime, Level

DOCS = Path(__file__).parents[2] / "docs" / "control.md"
LIMIT = 0.01
SECOND = 10**9
TOP = len(LEVELS) - 1


class Engine:
    """An engine that is busy all the time, with a tap whose cost depends on the level."""

    def __init__(self, budget: Budget, shares: list[float]) -> None:
        self.budget = budget
        self.shares = shares  # by level; the last for all above
        self.now = 1000.0
        self.changes: list[tuple[float, int]] = []

    def run(self, seconds: float) -> None:
        """Serve for so long, and note every change of the level."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            before = self.budget.level
            share = self.shares[min(before, len(self.shares) - 1)]
            self.budget.update(self.now, 1.0, share)
            if self.budget.level != before:
                self.changes.append((self.now, self.budget.level - before))


def test_levels_leave_out_ever_more() -> None:
    """Nothing at first; then attention, then layers, then steps, each until it is done."""

    def left(level: Level) -> tuple[float, float, float]:
        return (1 / level.attention if level.attention else 0.0, 1 / level.layers, 1 / level.steps)

    assert LEVELS[0] == Level(1, 1, 1)
    for less, more in pairwise(LEVELS):
        (place,) = [i for i in range(3) if less[i] != more[i]]
        assert left(more)[place] < left(less)[place]
        assert place == 0 or more.attention == 0
        assert place < 2 or more.layers == LEVELS[-1].layers


def test_the_documented_table_is_the_table() -> None:
    """docs/control.md lists every level as it is."""
    rows = re.findall(r"^\| (\d) \| (.+?) \| (.+?) \| (.+?) \|$", DOCS.read_text(), re.MULTILINE)
    words = {1: "as asked", 0: "off"}
    want = [
        (
            str(number),
            words.get(level.attention, f"{level.attention} times as rarely"),
            "all" if level.layers == 1 else f"one in {level.layers}",
            "every" if level.steps == 1 else f"one in {level.steps}",
        )
        for number, level in enumerate(LEVELS)
    ]
    assert rows == want


def test_an_overload_is_cut_by_a_level_every_ten_seconds() -> None:
    """Twice the limit, whatever is left out: all of it is, in a minute and a half."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT])
    engine.run(200)
    assert engine.changes == [(1010.0 + 10 * i, 1) for i in range(TOP)]
    assert engine.budget.level == TOP
    assert engine.budget.share == pytest.approx(2 * LIMIT)


def test_one_dear_moment_after_a_quiet_minute_changes_nothing() -> None:
    """It is the minute that counts."""
    engine = Engine(Budget(LIMIT), [0.0])
    engine.run(60)
    engine.shares = [5 * LIMIT]
    engine.run(10)
    engine.shares = [0.0]
    engine.run(60)
    assert engine.changes == []


def test_between_half_the_limit_and_the_limit_all_stays() -> None:
    """Neither too much nor little enough to measure more."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT, 0.75 * LIMIT])
    engine.run(3600)
    assert [step for _, step in engine.changes] == [1]


def test_a_calm_minute_gives_one_level_back() -> None:
    """And the next minute the next one."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT])
    engine.run(20)
    engine.shares = [0.1 * LIMIT]
    engine.run(200)
    assert engine.changes == [(1010.0, 1), (1020.0, 1), (1080.0, -1), (1140.0, -1)]


def test_a_calm_minute_is_calm_throughout() -> None:
    """One ten seconds of more than half the limit, and the minute begins anew."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT])
    engine.run(10)
    engine.shares = [0.1 * LIMIT]
    engine.run(50)
    engine.shares = [0.6 * LIMIT]
    engine.run(10)
    engine.shares = [0.1 * LIMIT]
    engine.run(59)
    assert engine.budget.level == 1
    engine.run(1)
    assert engine.budget.level == 0


def test_a_level_that_is_too_dear_again_is_tried_ever_more_rarely() -> None:
    """After 1 calm minute, then 2, 4, 8, 16 and never more; a day of it is not a day of swings."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT, 0.1 * LIMIT])
    engine.run(8 * 3600)
    falls = [at for at, step in engine.changes if step < 0]
    rises = [at for at, step in engine.changes if step > 0]
    waits = [fall - rise for rise, fall in zip(rises, falls, strict=False)]
    minutes = [round(wait / MINUTE) for wait in waits]
    assert minutes[:5] == [1, 2, 4, 8, 16]
    assert set(minutes[5:]) == {16}


def test_what_was_too_dear_is_forgotten() -> None:
    """Two falls in a row, or half an hour at the lower level: one calm minute is enough again."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT, 0.1 * LIMIT])
    engine.run(600)
    engine.shares = [0.1 * LIMIT]
    engine.run(3600)
    assert engine.budget.level == 0
    rises, engine.changes = engine.changes, []
    assert len(rises) > 4
    engine.shares = [2 * LIMIT, 0.1 * LIMIT]
    engine.run(120)
    (up, _), (down, _) = engine.changes[:2]
    assert down - up == MINUTE


def test_two_falls_in_a_row_restore_the_patience() -> None:
    """The lower level has held, so the way back is open."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT, 2 * LIMIT, 2 * LIMIT, 0.1 * LIMIT])
    engine.run(600)
    engine.changes.clear()
    engine.shares = [0.1 * LIMIT]
    engine.run(2000)
    falls = [at for at, step in engine.changes if step < 0]
    waits = [later - sooner for sooner, later in pairwise(falls)]
    assert engine.budget.level == 0
    assert waits[-2] > MINUTE
    assert waits[-1] == MINUTE


def test_without_a_limit_nothing_is_left_out() -> None:
    """The share is told all the same."""
    engine = Engine(Budget(0.0), [7.0])
    engine.run(600)
    assert engine.budget.level == 0
    assert engine.budget.share == pytest.approx(7.0)


def test_an_idle_engine_changes_nothing() -> None:
    """Hours without work close no minute."""
    budget = Budget(LIMIT)
    for hour in range(100):
        budget.update(3600.0 * hour, 0.0, 0.0)
    assert (budget.level, budget.share) == (0, 0.0)


def test_what_proves_too_dear_at_once_waits_for_its_minute() -> None:
    """A fall that was a mistake is put right a minute later, and no sooner."""
    engine = Engine(Budget(LIMIT), [2 * LIMIT])
    engine.run(10)
    engine.shares = [0.0]
    engine.run(60)
    engine.shares = [9 * LIMIT]
    engine.run(80)
    assert engine.changes == [(1010.0, 1), (1070.0, -1), (1130.0, 1), (1140.0, 1), (1150.0, 1)]


SPELLS = st.tuples(
    st.integers(1, 12),  # flushes
    st.floats(1.0, 20.0),  # seconds between them
    st.floats(0.0, 1.5),  # how busy the engine was: more than 1 when drained late
    st.sampled_from([0.0, 0.004, 0.006, 0.011, 0.5]),  # what we took of it
)


@given(st.lists(SPELLS, min_size=10, max_size=60))
def test_the_direction_changes_once_a_minute_at_most(
    spells: list[tuple[int, float, float, float]],
) -> None:
    """Whatever is measured, between a rise and the next fall, and back, lies a minute."""
    budget, now = Budget(LIMIT), 0.0
    changes: list[tuple[float, int]] = []
    for num_flushes, seconds, busy, share in spells:
        for _ in range(num_flushes):
            now += seconds
            before = budget.level
            budget.update(now, busy * seconds, share * busy * seconds)
            step = budget.level - before
            assert step in (-1, 0, 1)
            assert 0 <= budget.level <= TOP
            if step and changes and changes[-1][1] != step:
                assert now - changes[-1][0] >= MINUTE
            if step:
                changes.append((now, step))


def passes(*gaps: float) -> list[int]:
    times = [SECOND]
    for gap in gaps:
        times.append(times[-1] + int(gap * SECOND))
    return times


def test_gaps_between_forward_passes_are_work() -> None:
    """However they are told: at once, or flush by flush."""
    times = passes(*[0.01] * 100)
    assert BusyTime().add(times) == pytest.approx(1.0)
    busy = BusyTime()
    assert sum(busy.add(times[i : i + 7]) for i in range(0, 101, 7)) == pytest.approx(1.0)


def test_an_idle_hour_counts_as_four_usual_gaps() -> None:
    """The engine did nothing; our cost must not be diluted by that."""
    busy = BusyTime()
    assert busy.add(passes(*[0.01] * 50, 3600.0, *[0.01] * 50)) == pytest.approx(1.04)


def test_the_usual_gap_follows_the_load() -> None:
    """Larger batches take longer, and are work in full soon after."""
    busy = BusyTime()
    busy.add(passes(*[0.001] * 1000))
    slow = [SECOND * 100 + int(0.1 * SECOND) * i for i in range(500)]
    busy.add(slow[:250])
    assert busy.add(slow[250:]) == pytest.approx(25.0)


def test_a_clock_set_back_is_no_work() -> None:
    """Nor an error, nor a negative time."""
    busy = BusyTime()
    times = [3600 * SECOND + time for time in passes(*[0.01] * 100)]
    assert busy.add(times) == pytest.approx(1.0)
    assert busy.add(passes(*[0.01] * 10)) == pytest.approx(0.1)
    assert BusyTime().add([10 * SECOND, 5 * SECOND]) == 0.0
    assert BusyTime().add([]) == 0.0
    assert BusyTime().add([5]) == 0.0
