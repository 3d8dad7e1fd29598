"""The last finished requests, each as the engine measured it and as its front end saw it.

Guarantees: at most `MAX_REQUESTS` requests and `MAX_BYTES` bytes of statistics, whatever comes;
the two halves find each other in either order of arrival, and late or never is no error.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from sidecar.fold.tables import table_bytes
from sidecar.wire.frame import Aborted, Finished, Request, Requests

MAX_REQUESTS: Final = 2048
MAX_BYTES: Final = 64 << 20


class Measured(NamedTuple):
    """One finished request as one engine rank measured it.

    layers: global ids of the layers, as ordered in the arrays of `request`.
    serving: the front end's half, or None while it is not known.
    aborted: when its client hung up, the little that the front end then says; else None.
        Such a request has no `serving`.
    """

    source: str
    layers: tuple[int, ...]
    request: Request
    serving: Finished | None = None
    aborted: Aborted | None = None

    @property
    def traceparent(self) -> str:
        """The caller's place in a trace, finished or not; "" when there is none or not known."""
        told = self.serving or self.aborted
        return told.traceparent if told else ""


class RecentRequests:
    """Two bounded queues, joined by request id when they are read."""

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._measured: deque[Measured] = deque()
        self._num_bytes = 0
        self._finished: dict[str, deque[Finished]] = {}
        self._arrivals: deque[str] = deque()
        self._aborted: dict[str, Aborted] = {}  # in order of arrival

    def measure(self, source: str, body: Requests) -> None:
        """Take the engine's halves."""
        layers = tuple(body.layers)
        for request in body.requests:
            self._measured.append(Measured(source, layers, request))
            self._num_bytes += request_bytes(request)
        while len(self._measured) > self._max_requests or self._num_bytes > self._max_bytes:
            self._num_bytes -= request_bytes(self._measured.popleft().request)

    def finish(self, finished: list[Finished]) -> None:
        """Take the front end's halves."""
        for done in finished:
            self._finished.setdefault(done.id, deque()).append(done)
            self._arrivals.append(done.id)
        while len(self._arrivals) > self._max_requests:
            oldest = self._arrivals.popleft()
            same_id = self._finished[oldest]
            same_id.popleft()
            if not same_id:
                del self._finished[oldest]

    def abort(self, aborted: list[Aborted]) -> None:
        """Take requests whose client hung up."""
        self._aborted.update((gone.id, gone) for gone in aborted)
        while len(self._aborted) > self._max_requests:
            del self._aborted[next(iter(self._aborted))]

    def get(self, limit: int) -> list[Measured]:
        """The latest `limit` requests, latest first."""
        latest = (self._measured[-1 - index] for index in range(len(self._measured)))
        return [self._joined(each) for each, _ in zip(latest, range(limit), strict=False)]

    def find(self, request_id: str) -> list[Measured]:
        """Requests with this engine id or client id (several: ranks, or children of one)."""
        return [
            self._joined(each)
            for each in self._measured
            if request_id in (each.request.id, *client_ids(each.request.id))
        ]

    def _joined(self, measured: Measured) -> Measured:
        request = measured.request
        if gone := self._aborted.get(request.id):
            return measured._replace(aborted=gone)
        for client_id in client_ids(request.id):
            if same_id := self._finished.get(client_id):
                # Clients reuse ids, and the children of one request share it: the nearest end.
                nearest = min(same_id, key=lambda done: abs(done.end_ns - request.end_ns))
                return measured._replace(serving=nearest)
        return measured


def client_ids(internal_id: str) -> Iterator[str]:
    """Ids that the client may know `internal_id` by, most likely first.

    vLLM appends `-<8 hex>` to the client's id, and puts `<k>_` before it for the k-th completion
    of one request (`vllm/v1/engine/parallel_sampling.py`). Either may be missing, and a client's
    own id may look like either.

    >>> list(client_ids("1_cmpl-7-0123abcd"))
    ['1_cmpl-7', 'cmpl-7', '1_cmpl-7-0123abcd', 'cmpl-7-0123abcd']
    """
    for candidate in (_SUFFIX.sub("", internal_id), internal_id):
        yield candidate
        yield _CHILD.sub("", candidate)


_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}\Z")
_CHILD: Final = re.compile(r"\A\d+_")


def request_bytes(request: Request) -> int:
    """About what the statistics of one request take in memory, in bytes."""
    moments = request.moments
    parts = (moments.count, moments.nonfinite, moments.sums, moments.extremes)
    return sum(len(part) for part in parts) + sum(map(table_bytes, request.tables))
