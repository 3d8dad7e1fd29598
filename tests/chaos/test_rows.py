"""Things break, at a small size: docs/reliability.md has the same rows at full size."""

from pathlib import Path

import pytest

from bench.chaos.row import Row
from bench.chaos.rows import ROWS, SMALL

MOST_SECONDS = 60.0  # of a recovery that takes less than 2 on a machine of one's own


@pytest.mark.parametrize("name", ROWS)
def test_nothing_is_lost_without_a_name_and_no_alarm_at_all(name: str, tmp_path: Path) -> None:
    """Every frame is accounted for, no call of the tap fails, every alarm is told again."""
    row: Row = ROWS[name](tmp_path, SMALL)

    assert row.is_as_promised, row
    assert row.account.frames.received > 0
    assert row.num_alarms >= 2
    assert max(row.recoveries, default=0.0) < MOST_SECONDS, row
