"""The sidecar's end of a stack's socket, read by the test itself: the newest word of a source."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Arrays, Coverage, Layers, Requests, Status, unpack
from tests.e2e.harness import wait_for

POLL_SECONDS = 0.05


class Mailbox:
    """Takes in every frame of one engine, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.status: Status | None = None
        self.layers: Layers | None = None
        self.req_ids: list[str] = []
        self._receiver = Receiver(path)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="mailbox")
        self._thread.start()

    def close(self) -> None:
        """Stop reading and release the socket."""
        self._stopping.set()
        self._thread.join()
        self._receiver.close()

    def wait_for_revision(self, revision: str) -> None:
        """Return once the tap obeys it."""
        wait_for(lambda: self.status and self.status.control == revision, f"control {revision!r}")

    def wait_for_rows(self, num_rows: int) -> None:
        """Return once so many rows are accounted for, measured or not."""
        wait_for(lambda: self.layers and _num_rows(self.layers.coverage) >= num_rows, "all rows")
        assert self.layers is not None
        assert _num_rows(self.layers.coverage) == num_rows

    def counts(self) -> dict[int, int]:
        """Rows added up so far, by layer."""
        if self.layers is None:
            return {}
        ids = self.layers.layers
        count = Arrays.unpack(self.layers.moments, len(ids)).count.sum(0, dtype=np.int64)
        return dict(zip(ids, count.tolist(), strict=True))

    def coverage(self) -> Coverage:
        """What became of every row so far."""
        return Coverage([0] * 4) if self.layers is None else self.layers.coverage

    def has_record(self, completion_id: str) -> bool:
        """Whether a record of the request came whose client saw this id."""
        return any(req_id.startswith(f"{completion_id}-0-") for req_id in self.req_ids)

    def _read(self) -> None:
        while not self._stopping.is_set():
            data = self._receiver.receive(POLL_SECONDS)
            if data is None:
                continue
            frame = unpack(data)
            if frame.header.source.role != "engine":
                continue
            match frame.body:
                case Status() as status:
                    self.status = status
                case Layers() as layers:
                    self.layers = layers
                case Requests() as told:
                    self.req_ids += [request.id for request in told.requests]


@contextmanager
def reading(path: Path) -> Iterator[Mailbox]:
    """Own the socket at `path` in the sidecar's place."""
    mailbox = Mailbox(path)
    try:
        yield mailbox
    finally:
        mailbox.close()


def _num_rows(coverage: Coverage) -> int:
    unseen = coverage.prefix_cached + coverage.lost + coverage.shed + coverage.opted_out
    return sum(coverage.observed) + unseen
