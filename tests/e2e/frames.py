"""What the engine sends, frame by frame: stands where the sidecar would."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import (
    Body,
    Cells,
    Request,
    Requests,
    Signature,
    Signatures,
    Status,
    Table,
    Totals,
    unpack,
)
from sidecar.wire.signature import Layout
from tests.e2e.harness import wait_for

Found = TypeVar("Found")


class Frames:
    """Receives at `path` from now on, and keeps every body of an engine's, until closed."""

    def __init__(self, path: Path) -> None:
        self._receiver = Receiver(path)
        self._bodies: list[Body] = []
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def request(self, completion_id: str) -> Request:
        """The record of a finished request by the id that its client saw."""
        return self._wait(lambda: self._requests(completion_id), f"record of {completion_id}")

    def signature(self, completion_id: str) -> tuple[Layout, Signature]:
        """Its final signature, with the layout."""
        return self._wait(lambda: self._signed(completion_id), f"signature of {completion_id}")

    def status(self, is_wanted: Callable[[Status], bool]) -> Status:
        """The first status that is wanted."""

        def find() -> list[Status]:
            return [body for body in self._all(Status) if is_wanted(body)]

        return self._wait(find, "status")

    def totals(self, group: str, is_wanted: Callable[[Cells], bool]) -> tuple[Table, Cells]:
        """The first totals of `group` that are wanted."""

        def find() -> list[tuple[Table, Cells]]:
            tables = [t for body in self._all(Totals) for t in body.tables if t.group == group]
            cells = [(table, Cells.unpack(table)) for table in tables]
            return [each for each in cells if is_wanted(each[1])]

        return self._wait(find, f"totals of {group}")

    def close(self) -> None:
        """Stop listening."""
        self._is_closed.set()
        self._thread.join()
        self._receiver.close()

    def _requests(self, completion_id: str) -> list[Request]:
        known = [request for body in self._all(Requests) for request in body.requests]
        return [each for each in known if each.id.startswith(f"{completion_id}-0-")]

    def _signed(self, completion_id: str) -> list[tuple[Layout, Signature]]:
        known = [(body.layout, each) for body in self._all(Signatures) for each in body.signatures]
        return [
            (layout, each)
            for layout, each in known
            if each.is_final and each.id.startswith(f"{completion_id}-0-")
        ]

    def _all(self, kind: type[Found]) -> list[Found]:
        return [body for body in list(self._bodies) if isinstance(body, kind)]

    def _wait(self, find: Callable[[], list[Found]], what: str) -> Found:
        found: Any = wait_for(find, what)
        return found[0]

    def _receive(self) -> None:
        while not self._is_closed.is_set():
            data = self._receiver.receive(0.1)
            frame = None if data is None else unpack(data)
            if frame is not None and frame.header.source.role == "engine":
                self._bodies.append(frame.body)
