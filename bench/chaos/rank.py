"""One rank as a process: a sender of the tap, with the frames of a small model, and its journal.

    python -m bench.chaos.rank SOCKET KEY JOURNALS DP --rate 20 [--clock FILE]

Sends until SIGTERM; then until one more frame of each sender was handed over, so that the sidecar
has heard of all, and ends. The rank is also its own front end: `engine-dp<DP>-pp0-tp0` and
`frontend-<DP>`.
"""

import argparse
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bench.chaos.clock import Clock
from bench.chaos.journal import Journal
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body, Source
from sidecar.wire.synthetic import SyntheticEngine

LAST_SECONDS: Final = 60.0
LINGER_SECONDS: Final = 5.0


class Place(NamedTuple):
    """Where senders speak, what signs their frames, where they write it down, and their clock."""

    socket: Path
    key: bytes
    journals: Path
    clock_ns: Callable[[], int] = time.time_ns


class Spoken:
    """A sender that writes down what it does, in `<source>.<boot>`."""

    def __init__(self, source: Source, place: Place) -> None:
        self.sender = Sender(place.socket, source, place.key, place.clock_ns)
        self._journal = Journal(place.journals / f"{source.name}.{self.sender.boot}")

    def say(self, body: Body) -> bool:
        """Send one frame; whether it was handed over. Never raises: it writes that down too."""
        self._journal.begin()
        began = time.perf_counter()
        try:
            done = self.sender.send(body)
        except Exception:  # the row counts them, and is not passed
            self._journal.fail(time.perf_counter() - began)
            return False
        self._journal.end(is_handed_over=done, seconds=time.perf_counter() - began)
        return done

    def close(self, body: Body) -> None:
        """Hand over one last frame, however long nobody listens."""
        until = time.monotonic() + LAST_SECONDS
        while not self.say(body) and time.monotonic() < until:
            time.sleep(0.05)
        self.sender.close(LINGER_SECONDS)


class Rank:
    """An engine and its front end; `tell` sends the frames of one tick."""

    def __init__(self, place: Place, dp: int) -> None:
        # No two ranks tell of one request: numbers of each begin elsewhere.
        self._model = SyntheticEngine(seed=dp, num_requests=dp * 10_000_000)
        self._clock_ns = place.clock_ns
        self.tap = Spoken(Source("engine", dp), place)
        self.front = Spoken(Source("frontend", dp), place)
        self._due = self._bodies()

    def tell(self) -> None:
        """The next frame: mostly totals, now and then a status, or a request with all its parts."""
        speaker, body = next(self._due)
        speaker.say(body)

    def close(self) -> None:
        """The last frames of both."""
        self.tap.close(self._model.status())
        self.front.close(self._model.serving(self._clock_ns()))

    def _bodies(self) -> Iterator[tuple[Spoken, Body]]:
        model = self._model
        for number in itertools.count():
            if number % 8 == 0:
                yield self.tap, model.status()
            yield self.tap, model.step()
            if number % 4 == 0:
                yield self.tap, model.tables()
            if number % 2 == 0:
                now_ns = self._clock_ns()
                yield self.tap, model.requests(1, now_ns)
                yield self.tap, model.signatures(1, now_ns)
                yield self.front, model.serving(now_ns)


def main() -> None:
    """Send at a steady rate until told to end, or until the parent has gone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("socket", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("journals", type=Path)
    parser.add_argument("dp", type=int)
    parser.add_argument("--rate", type=float, default=20.0, help="frames a second")
    parser.add_argument("--clock", type=Path)
    given = parser.parse_args()
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: over.append(number))
    clock_ns = Clock(given.clock) if given.clock else time.time_ns
    key = given.key.read_bytes()
    rank = Rank(Place(given.socket, key, given.journals, clock_ns), given.dp)
    parent, due = os.getppid(), time.monotonic()
    while not over and os.getppid() == parent:
        rank.tell()
        due = max(
            due + 1 / given.rate, time.monotonic() - 1.0
        )  # what a second missed is not made up
        time.sleep(max(0.0, due - time.monotonic()))
    rank.close()


if __name__ == "__main__":
    main()
