"""The harness in the sidecar's place: takes in the frames of an engine itself, and keeps them."""

import threading
from pathlib import Path

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Cells, Frame, Request, Requests, Status, Table, Totals, unpack

_POLL_SECONDS = 0.1


class Inbox:
    """Reads frames on a thread of its own: requests by id, the latest totals, the last status.

    For a `Stack` that is started without an exporter, on its socket.
    """

    def __init__(self, path: Path) -> None:
        self.requests: dict[str, Request] = {}
        self.totals: dict[str, list[Table]] = {}
        self.status: Status | None = None
        self._receiver = Receiver(path)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="e2e-inbox", daemon=True)
        self._thread.start()

    def request(self, completion_id: str) -> Request | None:
        """What arrived of a request, by the id that its client saw."""
        prefix = f"{completion_id}-0-"
        return next((r for i, r in list(self.requests.items()) if i.startswith(prefix)), None)

    def cells(self, group: str) -> Cells | None:
        """The latest totals of a group that fits one table."""
        tables = self.totals.get(group)
        return Cells.unpack(tables[0]) if tables else None

    def close(self) -> None:
        """Stop listening."""
        self._stopping.set()
        self._thread.join()
        self._receiver.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            data = self._receiver.receive(_POLL_SECONDS)
            if data is not None:
                self._take(unpack(data))

    def _take(self, frame: Frame) -> None:
        match frame.body:
            case Totals(tables):
                for table in tables:
                    self.totals[table.group] = [table]
            case Requests() as body:
                self.requests.update({request.id: request for request in body.requests})
            case Status() as status if frame.header.source.role == "engine":
                self.status = status
