"""The rows, in the order of the table, and the size at which CI runs them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bench.chaos.crowd import crowd
from bench.chaos.deaths import engine_killed, sidecar_killed
from bench.chaos.disk import disk_full
from bench.chaos.receivers import receiver_fails
from bench.chaos.row import Row, Size
from bench.chaos.strangers import malformed_frames
from bench.chaos.times import clock_jumps

ROWS: Final[Mapping[str, Callable[[Path, Size], Row]]] = {
    "sidecar_killed": sidecar_killed,
    "engine_killed": engine_killed,
    "disk_full": disk_full,
    "clock_jumps": clock_jumps,
    "receiver_fails": receiver_fails,
    "crowd": crowd,
    "malformed_frames": malformed_frames,
}
SMALL: Final = Size(
    num_ranks=3,
    num_sidecar_kills=3,
    num_engine_kills=2,
    num_full_disks=1,
    num_jumps=1,
    seconds=3.0,
    num_clients=60,
)
