"""A wall clock that can be set, for the processes that read it: the time of day plus a shift.

    python -m bench.chaos.clock FILE serve ...     # `sidecar serve ...` under the clock of FILE

The shift stands in a file of 8 bytes that every process maps. Set are `time.time` and
`time.time_ns`, which is what this package asks; monotonic time goes on, as it does when a real
clock is set.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path


class Clock:
    """Unix time in nanoseconds, as FILE has it; the file is made when it is not there."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            os.ftruncate(descriptor, 8)
            self._map = mmap.mmap(descriptor, 8)
        finally:
            os.close(descriptor)
        self._read = time.time_ns  # the true one, whatever is put in its place later

    def __call__(self) -> int:
        """The time now."""
        return self._read() + int(struct.unpack("<q", self._map[:8])[0])

    def shift(self, seconds: float) -> None:
        """Set it so far from the true time, for everybody at once."""
        self._map[:8] = struct.pack("<q", round(seconds * 1e9))


def _under(path: Path) -> None:
    """Have this process believe the clock; before anything of ours is imported."""
    clock = Clock(path)
    time.time_ns = clock
    time.time = lambda: clock() / 1e9


if __name__ == "__main__":
    _under(Path(sys.argv[1]))
    from sidecar.cli import main

    sys.exit(main(sys.argv[2:]))
