"""Wall clocks that jump: an hour ahead, and an hour back."""

import time
from pathlib import Path
from typing import Final

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand, names_of

HOUR: Final = 3600.0
STALE_SECONDS: Final = 3.0


def clock_jumps(folder: Path, size: Size) -> Row:
    """Every process believes one clock, which is set again and again."""
    told = [*options(folder), "--stale-seconds", str(STALE_SECONDS)]
    with Stand(folder, size.num_ranks, told, clock=True) as stand:
        alarms = Alarms(stand)
        recoveries = [_jump(stand, hours * HOUR) for hours in (1.0, 0.0)]
        num_false = sum(state in {"page", "ticket"} for state in stand.states().values())
        alarms.canary()
        alarms.overflow()
        restarts, silences = [], []
        for number in range(size.num_jumps):
            for hours in (1.0, 0.0, -1.0, 0.0):
                recoveries.append(_jump(stand, hours * HOUR))
                alarms.check()
            # Set back by an hour, an engine begins anew, another dies, and a model changes.
            stand.clock.shift(-(number + 1) * HOUR)
            restarts.append(stand.replace_rank(number % size.num_ranks))
            silences.append(_silence(stand, (number + 1) % size.num_ranks))
            for channel, raise_again in (("canary", alarms.canary), ("integrity", alarms.overflow)):
                alarms.acknowledge(channel)
                raise_again()
        alarms.close()
        account = stand.account()
    return Row(
        f"wall clock set by an hour {2 + 5 * size.num_jumps} times, ahead and back",
        account,
        num_false,
        alarms.num_raised,
        alarms.num_lost,
        tuple(recoveries),
        "from the jump to another frame of every engine and every front end, used; the clock is "
        "one that all processes were given in place of `time.time`; failed would be an alarm that "
        "a jump raised; each time it had been set back an engine began anew, a dead one was told "
        f"as silent (--stale-seconds {STALE_SECONDS:g}), and both alarms were raised anew",
        {"new_engine_heard_seconds": restarts, "silence_told_seconds": silences},
    )


def _jump(stand: Stand, seconds: float) -> float:
    """Set the clock; seconds until every source was heard again."""
    stand.clock.shift(seconds)
    began, before = time.monotonic(), stand.heard()

    def is_heard() -> bool:
        now = stand.heard()
        return all(now.get(name, 0) > before.get(name, 0) for name in stand.names())

    stand.wait("all ranks are heard after the jump", is_heard)
    return time.monotonic() - began


def _silence(stand: Stand, rank: int) -> float:
    """Kill a rank for good, a moment long; seconds until it is no longer published."""
    stand.kill_rank(rank)
    began, names = time.monotonic(), set(names_of(rank))
    stand.wait("a dead rank is told as silent", lambda: not names & stand.boots().keys())
    seconds = time.monotonic() - began
    stand.start_rank(rank)
    stand.wait("all ranks are heard again", stand.hears_all)
    return seconds
