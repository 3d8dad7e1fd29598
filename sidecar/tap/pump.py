"""The pump: our thread in a process (the notary's aside); it turns what was collected into frames.

It polls, so the step path needs no lock and wakes nobody; the more seldom the less it finds, as
each poll takes the interpreter lock, and a core, from the engine. Exceptions are counted and the
thread goes on; stopping it takes at most `STOP_SECONDS`, whatever the receiver does.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from sidecar.tap.cores import unbind
from sidecar.tap.guard import Guard
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body

POLL_SECONDS: Final = 0.005
# At two milliseconds a step, the loans of a ring last for as long.
LONGEST_POLL_SECONDS: Final = 0.015
_FEW: Final = 2  # of one step: its rows, and what one sampler read
IDLE_POLL_SECONDS: Final = 0.1  # with nothing to drain, only the flush is waited for
STOP_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 0.1  # before the first flush, or it would find no receiver
LINGER_SECONDS: Final = 0.2  # after the last, for a receiver that is there


class Work(NamedTuple):
    """What a pump does.

    drain: take in what was collected since the last poll, and say how much.
    bodies: what to send at a flush.
    num_steps: steps measured so far, for the frame header.
    poll_seconds: shortest time between two drains.
    """

    drain: Callable[[], int]
    bodies: Callable[[], Iterable[Body]]
    num_steps: Callable[[], int]
    poll_seconds: float = POLL_SECONDS


def idle_work(bodies: Callable[[], Iterable[Body]]) -> Work:
    """Work of a pump that has only something to say, and nothing to drain."""
    return Work(lambda: 0, bodies, lambda: 0, IDLE_POLL_SECONDS)


def paced(wait: float, num_drained: int, shortest: float) -> float:
    """Seconds to the next poll, after a wait of `wait` that found `num_drained` events."""
    if num_drained > _FEW:
        return max(shortest, wait / 2)
    if num_drained == 0:
        return max(shortest, min(LONGEST_POLL_SECONDS, wait * 2))
    return wait


class Pump:
    """Drains every few milliseconds and sends every `flush_seconds`, on a daemon thread."""

    def __init__(self, sender: Sender, work: Work, guard: Guard, flush_seconds: float) -> None:
        self._sender = sender
        self._work = work
        self._guard = guard
        self._flush_seconds = flush_seconds
        self._poll_seconds = min(work.poll_seconds, flush_seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-pump", daemon=True)

    def start(self) -> None:
        """Begin; the socket is opened on the pump's own thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is left and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        self._guard.run_aside("pump", unbind)
        self._guard.run_aside("pump", self._sender.open)
        flush_at = time.monotonic() + min(CONNECT_SECONDS, self._flush_seconds)
        wait = self._poll_seconds
        while not self._stopping.wait(wait):
            num_drained = self._guard.run_aside("pump", self._work.drain) or 0
            # Bounded by the flush too, or one that is due would wait for the next poll.
            wait = min(paced(wait, num_drained, self._poll_seconds), self._flush_seconds)
            if time.monotonic() >= flush_at:
                flush_at = time.monotonic() + self._flush_seconds
                self._guard.run_aside("flush", self._flush)
        self._guard.run_aside("pump", self._work.drain)
        self._guard.run_aside("flush", self._flush)
        self._sender.close(LINGER_SECONDS)

    def _flush(self) -> None:
        step = self._work.num_steps()
        for body in self._work.bodies():
            self._sender.send(body, step)
