"""Requests of several recordings as one stream in order of time.

Guarantee: a recording is open only while its span is under way, one row group of it in memory.
"""

import heapq
from collections.abc import Iterator, Sequence

from sidecar.fold.drift.observation import Observation
from sidecar.store.recording import Recording


def in_order(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, Observation]]:
    """Each request with the recording it is in, by time.

    Within one recording the order is as written, which frames of several engines may shift by
    seconds; windows allow for that.
    """
    waiting = sorted(recordings, key=lambda each: (each.header.start_ns, each.path), reverse=True)
    # Time, place in `recordings` to break ties, and where the next one comes from.
    heads: list[tuple[int, int, Observation, Recording, Iterator[Observation]]] = []
    opened = 0
    while waiting or heads:
        while waiting and (not heads or waiting[-1].header.start_ns <= heads[0][0]):
            recording = waiting.pop()
            _push(heads, opened, recording, recording.observations())
            opened += 1
        if heads:
            _, place, observation, recording, rest = heapq.heappop(heads)
            yield recording, observation
            _push(heads, place, recording, rest)


def _push(
    heads: list[tuple[int, int, Observation, Recording, Iterator[Observation]]],
    place: int,
    recording: Recording,
    rest: Iterator[Observation],
) -> None:
    following = next(rest, None)
    if following is not None:
        heapq.heappush(heads, (following.t_ns, place, following, recording, rest))
