"""What one row found, and the table of all."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from bench.chaos.stand import Account
from bench.report import Section

COLUMNS: Final = (
    "what broke",
    "frames sent",
    "received",
    "lost, and counted",
    "with what was killed",
    "unaccounted",
    "failed by us",
    "alarms lost",
    "recovered after, s",
)
_NOTE: Final = """\
*Frames sent* is what the senders wrote down before and after each call, so that it survives
`kill -9`; *received* and *lost* is what the sidecar says: dropped by a sender that nobody listened
to or whose queue was full, too old when read, or missing. *With what was killed*: handed over, and
in the hands of a process when it was killed: what a sidecar had in its queue or read since it was
last asked, or a dead engine's queue. *Unaccounted* is what all these do not add up to.
*Failed by us*: calls of the tap's sender that raised, and what a row says beside that.
*Alarms lost*: pages that the API had told of and later did not, of how many. *Recovered*: median
and longest, of each row's own measure:
"""


class Size(NamedTuple):
    """How large the rows are; seconds are those of one phase."""

    num_ranks: int = 8
    num_sidecar_kills: int = 50
    num_engine_kills: int = 10
    num_full_disks: int = 5
    num_jumps: int = 5
    seconds: float = 20.0
    num_clients: int = 200


class Row(NamedTuple):
    """One thing that was broken, at one size.

    broken: in words. failed: requests failed by us, beside sends that raised. num_alarms, num_lost:
    pages raised, and those of them that were forgotten. recoveries: seconds, one each time.
    measure: from when to when a recovery is. figures: whatever else a reader may ask for.
    """

    broken: str
    account: Account
    failed: int
    num_alarms: int
    num_lost: int
    recoveries: tuple[float, ...]
    measure: str
    figures: dict[str, Any]

    @property
    def is_as_promised(self) -> bool:
        """Nothing unaccounted, nothing failed, no alarm lost. Says nothing of time."""
        frames = self.account.frames
        return not (frames.unaccounted or frames.raised or self.failed or self.num_lost)


def section(rows: Sequence[Row]) -> Section:
    """The table."""
    return Section(
        "Things break",
        COLUMNS,
        [_line(row) for row in rows],
        {"rows": [_plain(row) for row in rows]},
        [_NOTE, *(f"- {row.broken}: {row.measure}." for row in rows)],
    )


def _line(row: Row) -> list[str]:
    frames = row.account.frames
    lost = [(frames.dropped, "dropped"), (frames.stale, "too old"), (frames.missing, "missing")]
    told = ", ".join(f"{number:,} {cause}" for number, cause in lost if number)
    return [
        row.broken,
        f"{frames.sent:,}",
        f"{frames.received:,}",
        told or "0",
        f"{frames.in_hands:,}",
        f"{frames.unaccounted:,}",
        f"{row.failed + frames.raised:,}",
        f"{row.num_lost} of {row.num_alarms}",
        _seconds(row.recoveries),
    ]


def _seconds(found: Sequence[float]) -> str:
    if not found:
        return "never away"
    return f"{np.median(found):.2f} / {max(found):.2f}"


def _plain(row: Row) -> dict[str, Any]:
    p50, p99, longest = row.account.microseconds
    return {
        "broken": row.broken,
        "frames": row.account.frames._asdict(),
        "send_microseconds": {"p50": p50, "p99": p99, "max": longest},
        "failed": row.failed,
        "alarms": {"raised": row.num_alarms, "lost": row.num_lost},
        "recovery_seconds": [round(each, 3) for each in row.recoveries],
        "measure": row.measure,
        **row.figures,
    }
