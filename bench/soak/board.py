"""What the processes of a run share: one clock, and how far each rank is.

A small file mapped by all; each number has one writer. Guarantee: reading costs no system call, so
that the clock can stand in for the machine's.
"""

import mmap
import struct
from pathlib import Path
from typing import Final

START_NS: Final = 1_790_000_000 * 10**9
SECOND: Final = 10**9
_CLOCK, _END, _HEAD = 0, 1, 2
_DONE, _SENT, _DROPPED, _SLOT = 0, 1, 2, 3


class Board:
    """`path` is made for so many ranks by the conductor, and opened by all others."""

    def __init__(self, path: Path, num_ranks: int = 0) -> None:
        if num_ranks:
            numbers = [START_NS, 0] + [0] * (_SLOT * num_ranks)
            path.write_bytes(struct.pack(f"={len(numbers)}q", *numbers))
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    def now_ns(self) -> int:
        """Unix time of this run, nanoseconds."""
        return self._numbers[_CLOCK]

    @property
    def second(self) -> int:
        """Whole seconds since the start of the run."""
        return (self._numbers[_CLOCK] - START_NS) // SECOND

    def advance(self) -> None:
        """Let a second pass; only the conductor does."""
        self._numbers[_CLOCK] += SECOND

    @property
    def is_over(self) -> bool:
        """Whether no second will follow."""
        return bool(self._numbers[_END])

    def end(self) -> None:
        """Say so."""
        self._numbers[_END] = 1

    def tell(self, rank: int, second: int, num_sent: int, num_dropped: int) -> None:
        """A rank has said what it had to say of `second`; its frames so far, by its own count."""
        at = _HEAD + _SLOT * rank
        self._numbers[at + _SENT], self._numbers[at + _DROPPED] = num_sent, num_dropped
        self._numbers[at + _DONE] = second

    def is_done(self, second: int) -> bool:
        """Whether all ranks have come as far as `second`."""
        return all(done >= second for done in self._numbers[_HEAD + _DONE :: _SLOT])

    @property
    def num_sent(self) -> int:
        """Frames of all ranks, those that found no room included."""
        return sum(self._numbers[_HEAD + _SENT :: _SLOT])

    @property
    def num_dropped(self) -> int:
        """Of them, those that found no room."""
        return sum(self._numbers[_HEAD + _DROPPED :: _SLOT])
