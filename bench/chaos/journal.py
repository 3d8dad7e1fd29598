"""The journal of a sender: what it sent, written down so that even `kill -9` leaves no doubt.

One record a frame, in the order of its numbers. It is written before the frame is sent, as not
known, and again after, so a process that is killed leaves at most one frame that is not known.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np

RECORD: Final = np.dtype([("outcome", "S1"), ("microseconds", "<f4")])
_UNKNOWN, _HANDED, _DROPPED, _RAISED = b"?", b"+", b"-", b"!"


class Journal:
    """Written by the process that sends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        self._at = 0

    def begin(self) -> None:
        """The next frame is about to be sent."""
        os.pwrite(self._file, _record(_UNKNOWN, 0.0), self._at)

    def end(self, *, is_handed_over: bool, seconds: float) -> None:
        """It was handed over, or dropped."""
        self._close(_HANDED if is_handed_over else _DROPPED, seconds)

    def fail(self, seconds: float) -> None:
        """The sender raised."""
        self._close(_RAISED, seconds)

    def _close(self, outcome: bytes, seconds: float) -> None:
        os.pwrite(self._file, _record(outcome, 1e6 * seconds), self._at)
        self._at += RECORD.itemsize


class Entries(NamedTuple):
    """What a journal says: frames by outcome, and microseconds that each call took."""

    sent: int
    handed_over: int
    dropped: int
    raised: int
    unknown: int
    microseconds: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The journal at `path`, also of a process that was killed."""
        data = path.read_bytes()
        records = np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
        counts = [
            int((records["outcome"] == outcome).sum())
            for outcome in (_HANDED, _DROPPED, _RAISED, _UNKNOWN)
        ]
        known = records["outcome"] != _UNKNOWN
        return cls(len(records), *counts, tuple(records["microseconds"][known].tolist()))


def _record(outcome: bytes, microseconds: float) -> bytes:
    return np.array((outcome, microseconds), RECORD).tobytes()
