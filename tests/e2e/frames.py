"""What an engine sends, frame by frame, read by the test itself: stands where the sidecar would."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import (
    Arrays,
    Body,
    Cells,
    Coverage,
    Frame,
    Layers,
    Request,
    Requests,
    Serving,
    Signature,
    Signatures,
    Status,
    Table,
    Totals,
    unpack,
)
from sidecar.wire.signature import Layout
from tests.e2e.harness import Stack, wait_for

POLL_SECONDS = 0.05
Kind = TypeVar("Kind", bound=Body)


class Frames:
    """Receives at `path` from now on, and keeps every body of an engine, until closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.aborted: list[str] = []
        self._bodies: list[Body] = []
        self._receiver = Receiver(path)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="e2e-frames", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and give the socket up."""
        self._is_closed.set()
        self._thread.join()
        self._receiver.close()

    @property
    def status(self) -> Status | None:
        """What the tap said of itself last."""
        return self._last(Status)

    @property
    def layers(self) -> Layers | None:
        """The latest totals of the residual stream."""
        return self._last(Layers)

    @property
    def records(self) -> list[Request]:
        """Every finished request so far."""
        return [request for body in self.all(Requests) for request in body.requests]

    def all(self, kind: type[Kind]) -> list[Kind]:
        """Bodies of one kind so far, in order."""
        return [body for body in list(self._bodies) if isinstance(body, kind)]

    def find(self, completion_id: str, child: int | None = None) -> Request | None:
        """The record of a request by the id that its client saw; of one of its children."""
        name = completion_id if child is None else f"{child}_{completion_id}"
        return next((each for each in self.records if each.id.startswith(f"{name}-0-")), None)

    def request(self, completion_id: str, child: int | None = None) -> Request:
        """The same, waited for."""
        found: Request = wait_for(
            lambda: self.find(completion_id, child), f"record of {completion_id}"
        )
        return found

    def signature(self, completion_id: str) -> tuple[Layout, Signature]:
        """The final signature of a request, with its layout; waited for."""

        def find() -> tuple[Layout, Signature] | None:
            known = [(b.layout, each) for b in self.all(Signatures) for each in b.signatures]
            mine = f"{completion_id}-0-"
            return next((e for e in known if e[1].is_final and e[1].id.startswith(mine)), None)

        found: tuple[Layout, Signature] = wait_for(find, f"signature of {completion_id}")
        return found

    def wait_for_status(self, is_wanted: Callable[[Status], bool]) -> Status:
        """The first status that is wanted."""

        def find() -> Status | None:
            return next((body for body in self.all(Status) if is_wanted(body)), None)

        found: Status = wait_for(find, "status")
        return found

    def table(self, group: str) -> Table | None:
        """The latest totals of a group of signals that fits one table."""
        tables = (table for body in reversed(self.all(Totals)) for table in body.tables)
        return next((table for table in tables if table.group == group), None)

    def cells(self, group: str) -> Cells | None:
        """The same, as arrays."""
        table = self.table(group)
        return None if table is None else Cells.unpack(table)

    def totals(self, group: str, is_wanted: Callable[[Cells], bool]) -> tuple[Table, Cells]:
        """The first totals of `group` that are wanted."""

        def find() -> tuple[Table, Cells] | None:
            tables = [t for body in self.all(Totals) for t in body.tables if t.group == group]
            known = [(table, Cells.unpack(table)) for table in tables]
            return next((each for each in known if is_wanted(each[1])), None)

        found: tuple[Table, Cells] = wait_for(find, f"totals of {group}")
        return found

    def coverage(self) -> Coverage:
        """What became of every row so far."""
        return Coverage([0] * 4) if self.layers is None else self.layers.coverage

    def counts(self) -> dict[int, int]:
        """Rows added up so far, by layer."""
        if (layers := self.layers) is None:
            return {}
        ids = layers.layers
        count = Arrays.unpack(layers.moments, len(ids)).count.sum(0, dtype=np.int64)
        return dict(zip(ids, count.tolist(), strict=True))

    def wait_for_revision(self, revision: str) -> None:
        """Return once the tap obeys this control."""
        wait_for(lambda: self.status and self.status.control == revision, f"control {revision!r}")

    def wait_for_rows(self, num_rows: int) -> None:
        """Return once exactly so many rows are accounted for, measured or not."""
        wait_for(lambda: _num_rows(self.coverage()) >= num_rows, "all rows")
        assert _num_rows(self.coverage()) == num_rows

    def _last(self, kind: type[Kind]) -> Kind | None:
        return next((body for body in reversed(self._bodies) if isinstance(body, kind)), None)

    def _receive(self) -> None:
        while not self._is_closed.is_set():
            data = self._receiver.receive(POLL_SECONDS)
            if data is not None:
                self._take(unpack(data))

    def _take(self, frame: Frame) -> None:
        if isinstance(frame.body, Serving):
            self.aborted += [gone.id for gone in frame.body.aborted]
        elif frame.header.source.role == "engine":
            self._bodies.append(frame.body)


@contextmanager
def served(stack: Stack) -> Iterator[Frames]:
    """Start the engine of `stack` with this end in the sidecar's place, and end both."""
    with Frames(stack.socket) as frames:
        try:
            stack.start_engine()
            yield frames
        finally:
            stack.stop()


def group_of(request: Request, group: str) -> Cells:
    """One group of signals of a request."""
    (table,) = (table for table in request.tables if table.group == group)
    return Cells.unpack(table)


def moments_of(request: Request, num_layers: int) -> Arrays:
    """The residual stream's statistics of a request."""
    return Arrays.unpack(request.moments, num_layers)


def _num_rows(coverage: Coverage) -> int:
    unseen = coverage.prefix_cached + coverage.lost + coverage.shed + coverage.opted_out
    return sum(coverage.observed) + unseen
