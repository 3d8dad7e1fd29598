"""The meter: what the tap itself has taken so far, in seconds.

On a CPU two parts, added up although they overlap, so that the sum is never too small: host time
of our calls in the engine (see guard), and CPU time of the pump. On a GPU the device time of the
kernels that those calls launched, waits for the launches included. What is inside the compiled
graph cannot be told from outside.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

from sidecar.tap.guard import Guard

SAMPLED: Final = 13  # one call in so many is timed on the device; a prime keeps no step with them
NUM_PAIRS: Final = 64  # under way between two readings


class Cost(NamedTuple):
    """Seconds since the beginning; pump: of the calling thread, which is the pump's."""

    host: float
    pump: float
    device: float


class Meter:
    """Reads what has been taken; on a GPU, has the guard time a sample of its calls there."""

    def __init__(self, guard: Guard, device: torch.device) -> None:
        self._guard = guard
        self._device = DeviceTime(_new_event) if device.type == "cuda" else None

    def start(self) -> None:
        """Begin to time the device; not before its graphs are captured, which a query ends."""
        if self._device is not None:
            self._guard.watch(self._device)

    def read(self) -> Cost:
        """What has been taken so far. Called on the pump's thread alone."""
        if self._device is None:
            return Cost(self._guard.host_ns / 1e9, time.thread_time_ns() / 1e9, 0.0)
        # Our host work is done while the device computes; where it is not, the device waits for
        # our launches, and that wait is in its time.
        return Cost(0.0, 0.0, self._device.read())


class DeviceTime:
    """Device time of our calls, from events around a sample of them; nothing waits for it.

    From the last kernel before a call to the last of the call, on the stream of the call: a device
    that waits for our launches counts, as it should.
    new_event: makes an event that has a time.
    """

    def __init__(self, new_event: Callable[[], Any]) -> None:
        self._free = deque(_Pair(new_event(), new_event()) for _ in range(NUM_PAIRS))
        self._open: _Pair | None = None
        self._under_way: deque[_Pair] = deque()
        self._num_calls = 0  # written by the engine's thread
        self._num_read = 0  # of them accounted for; this and the next by the pump's
        self._seconds = 0.0

    def start(self) -> None:
        """A call begins. Step path."""
        self._num_calls += 1
        if self._num_calls % SAMPLED == 0 and self._open is None and self._free:
            pair = self._free.popleft()
            pair.begin.record()
            self._open = pair

    def stop(self) -> None:
        """It is over, but for the kernels it launched. Step path."""
        pair, self._open = self._open, None
        if pair is not None:
            pair.end.record()
            self._under_way.append(pair)

    def read(self) -> float:
        """Seconds so far, as far as they are known: the sample's mean times the calls."""
        sample = []
        while self._under_way and self._under_way[0].end.query():
            pair = self._under_way.popleft()
            sample.append(pair.begin.elapsed_time(pair.end) / 1e3)
            self._free.append(pair)
        if sample:
            num_calls = self._num_calls
            self._seconds += sum(sample) / len(sample) * (num_calls - self._num_read)
            self._num_read = num_calls
        return self._seconds


class _Pair(NamedTuple):
    begin: Any
    end: Any


def _new_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
