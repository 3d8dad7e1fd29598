"""How sure the model was, request by request: a distribution, and which trace stands for it.

The confidence of a request is the mean over its generated tokens of the likeliest token's
probability. An engine measures it; its front end alone knows the caller. The two tell in frames of
their own, in either order.

Guarantees: a request counts once, whether its caller ever becomes known or not; at most
`MAX_WAITING` halves wait for the other one.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import numpy as np

from sidecar.fold.exemplars import Exemplar
from sidecar.fold.requests import client_ids
from sidecar.wire.frame import Cells, Finished, Request
from sidecar.wire.signals import GROUPS

MAX_WAITING: Final = 4096
MAX_APART_NS: Final = 60 * 10**9  # between the ends that an engine and its front end saw
_GROUP: Final = "confidence"
_SIGNAL: Final = [signal.id for signal in GROUPS[_GROUP].signals].index("top1_probability")


def confidence(request: Request) -> float:
    """Of one request, between 0 and 1; NaN when no token of it was measured."""
    tables = [Cells.unpack(table) for table in request.tables if table.group == _GROUP]
    num_tokens = sum(int(cells.count.sum()) for cells in tables)
    # Python's floats: a peer's numbers may overflow, which is no reason to warn.
    total = sum(sum(cells.sums[..., _SIGNAL, 0].ravel().tolist()) for cells in tables)
    return float(np.clip(total / num_tokens, 0.0, 1.0)) if num_tokens else math.nan


T = TypeVar("T")


class Pointed(NamedTuple):
    """An exemplar of the confidence of a request that `source` has measured."""

    source: str
    exemplar: Exemplar


class _Half(NamedTuple):
    """An engine's part of one request."""

    source: str
    end_ns: int
    value: float


class CallersOfConfidence:
    """Halves in, exemplars out."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._halves: dict[str, _Half] = {}  # by each id that the client may know the request by
        self._finished: dict[str, Finished] = {}  # of callers whose trace is recorded

    def measure(self, source: str, requests: Iterable[Request]) -> Iterator[Pointed]:
        """Take an engine's halves."""
        for request in requests:
            yield from self._measure(_Half(source, request.end_ns, confidence(request)), request.id)

    def finish(self, finished: Iterable[Finished]) -> Iterator[Pointed]:
        """Take a front end's halves."""
        for done in finished:
            yield from self._finish(done)

    def _measure(self, half: "_Half", internal_id: str) -> Iterator[Pointed]:
        for client_id in dict.fromkeys(client_ids(internal_id)):
            if done := self._finished.get(client_id):
                yield from _pointed(half, done)
                return
            _keep(self._halves, client_id, half, self._max_waiting)

    def _finish(self, done: Finished) -> Iterator[Pointed]:
        # An id that is used again must not stand for its first request.
        self._finished.pop(done.id, None)
        half = self._halves.pop(done.id, None)
        if half is not None:
            yield from _pointed(half, done)
        elif Exemplar.of(0.0, 0, done.traceparent):
            _keep(self._finished, done.id, done, self._max_waiting)


def _pointed(half: _Half, done: Finished) -> Iterator[Pointed]:
    # Clients use ids again: far apart in time it is another request.
    exemplar = Exemplar.of(half.value, done.end_ns, done.traceparent)
    if exemplar and abs(done.end_ns - half.end_ns) <= MAX_APART_NS:
        yield Pointed(half.source, exemplar)


def _keep(waiting: dict[str, T], key: str, item: T, most: int) -> None:
    waiting.pop(key, None)
    waiting[key] = item
    if len(waiting) > most:
        del waiting[next(iter(waiting))]
