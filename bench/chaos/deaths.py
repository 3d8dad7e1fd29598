"""Processes that die: the sidecar, again and again, and engines beside one that lives."""

import time
from pathlib import Path

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand


def sidecar_killed(folder: Path, size: Size) -> Row:
    """`kill -9` of the sidecar, and another in its place at once."""
    with Stand(folder, size.num_ranks, options(folder)) as stand:
        alarms = Alarms(stand)
        alarms.canary()
        recoveries = []
        for number in range(size.num_sidecar_kills):
            if number % 2:  # an alarm that was told a moment ago, and one that was long ago
                alarms.acknowledge("integrity")
            if number % 2 or not number:
                alarms.overflow()
            began = time.monotonic()
            stand.kill_sidecar()
            stand.start_sidecar()
            stand.wait("all ranks are heard again", stand.hears_all)
            recoveries.append(time.monotonic() - began)
            alarms.check()
        alarms.close()
        account = stand.account()
    return Row(
        f"sidecar killed {size.num_sidecar_kills} times under {size.num_ranks} ranks",
        account,
        0,
        alarms.num_raised,
        alarms.num_lost,
        tuple(recoveries),
        "from `kill -9` to a frame of every engine and every front end, read by the new process, "
        "which was started at once; a restart policy may add a pause of its own",
        {},
    )


def engine_killed(folder: Path, size: Size) -> Row:
    """`kill -9` of one rank after another, and another process in its place."""
    with Stand(folder, size.num_ranks, options(folder)) as stand:
        alarms = Alarms(stand)
        alarms.canary()
        alarms.overflow()
        recoveries = []
        for number in range(size.num_engine_kills):
            recoveries.append(stand.replace_rank(number % size.num_ranks))
            alarms.check()
        alarms.close()
        account = stand.account()
    return Row(
        f"engine killed {size.num_engine_kills} times, of {size.num_ranks} ranks",
        account,
        0,
        alarms.num_raised,
        alarms.num_lost,
        tuple(recoveries),
        "from the first frame that the new process sent to one of its engine and one of its front "
        "end, read; the process is a sender without a model, vLLM is killed in tests/e2e",
        {},
    )
