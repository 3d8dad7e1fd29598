"""The sidecar's end of the socket inside the test's own process: the frames as they arrive."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import (
    Arrays,
    Cells,
    Coverage,
    Layers,
    Request,
    Requests,
    Serving,
    Status,
    Totals,
    unpack,
)
from tests.e2e.harness import Stack, wait_for


class Tables:
    """What the frames of one engine said last, and every request that they told of."""

    def __init__(self, path: Path) -> None:
        self.requests: dict[str, Request] = {}
        self.aborted: list[str] = []
        self.layers: Layers | None = None
        self.status: Status | None = None
        self._totals: dict[str, Cells] = {}
        self._receiver = Receiver(path)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def request(self, completion_id: str, child: int | None = None) -> Request:
        """The request that its client knows by this id; one of its children where it had some."""
        prefix = f"{completion_id}-0-" if child is None else f"{child}_{completion_id}-0-"

        def find() -> Request | None:
            return next((r for i, r in list(self.requests.items()) if i.startswith(prefix)), None)

        return wait_for(find, f"a request {prefix}", 10)

    def total(self, group: str) -> Cells:
        """Running totals of a group of signals."""
        return self._totals[group]

    def coverage(self) -> Coverage:
        """What became of all rows since boot."""
        assert self.layers is not None
        return self.layers.coverage

    def stop(self) -> None:
        """Give the socket up."""
        self._is_over.set()
        self._thread.join()
        self._receiver.close()

    def _run(self) -> None:
        while not self._is_over.is_set():
            data = self._receiver.receive(0.1)
            if data is not None:
                self._take(unpack(data).body)

    def _take(self, body: object) -> None:
        match body:
            case Requests():
                self.requests |= {request.id: request for request in body.requests}
            case Totals():
                self._totals |= {table.group: Cells.unpack(table) for table in body.tables}
            case Layers():
                self.layers = body
            case Serving():
                self.aborted += body.aborted
            case Status() if body.runner:  # that of the engine
                self.status = body


@contextmanager
def tabled(stack: Stack) -> Iterator[Tables]:
    """Start the engine of `stack` with this end in the sidecar's place, and end both."""
    stack.socket.parent.mkdir(parents=True, exist_ok=True)
    tables = Tables(stack.socket)
    try:
        stack.start_engine()
        yield tables
    finally:
        stack.stop()
        tables.stop()


def group_of(request: Request, group: str) -> Cells:
    """One group of signals of a request."""
    (table,) = (table for table in request.tables if table.group == group)
    return Cells.unpack(table)


def moments_of(request: Request, num_layers: int) -> Arrays:
    """The residual stream's statistics of a request."""
    return Arrays.unpack(request.moments, num_layers)
