"""What a tap sends, read without the sidecar: every frame, as it was unpacked."""

import threading
from typing import Self, TypeVar

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Body, Request, Requests, Status, Table, Totals, unpack
from tests.e2e.harness import Stack, wait_for

_Body = TypeVar("_Body", bound=Body)


class Frames:
    """Stands in for the exporter of a stack; a context that reads on a thread of its own."""

    def __init__(self, stack: Stack) -> None:
        self._receiver = Receiver(stack.socket)
        self._bodies: list[Body] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._receiver.close()

    def of(self, kind: type[_Body]) -> list[_Body]:
        """Bodies of one kind so far, in order."""
        return [body for body in list(self._bodies) if isinstance(body, kind)]

    def status(self) -> Status:
        """What the tap said of itself last."""
        return self.of(Status)[-1]

    def request(self, completion_id: str) -> Request:
        """The record of a request by the id that its client saw."""
        prefix = f"{completion_id}-0-"

        def find() -> Request | None:
            records = (each for body in self.of(Requests) for each in body.requests)
            return next((each for each in records if each.id.startswith(prefix)), None)

        return wait_for(find, f"a record of {completion_id}", 10)

    def totals(self, group: str) -> Table | None:
        """The running totals of one group of signals; None when there were none yet."""
        tables = (table for body in reversed(self.of(Totals)) for table in body.tables)
        return next((table for table in tables if table.group == group), None)

    def _read(self) -> None:
        while not self._is_over.is_set():
            data = self._receiver.receive(0.1)
            if data is not None:
                self._bodies.append(unpack(data).body)
