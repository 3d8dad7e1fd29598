"""What operators did, written down before it is done.

Guarantees: a request that changes something reaches its route only once its entry is on the disk;
the outcome is a second entry, which names the first. No body is written down, only its digest.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import StoreError
from sidecar.publish.guard.body import read, replay
from sidecar.publish.guard.door import RIGHT
from sidecar.publish.guard.limits import MAX_BODY
from sidecar.publish.guard.refusal import SAFE, Refusal, Refusals
from sidecar.store.audit import NAME, AuditLog, Entry

UNWRITTEN: Final = "nothing was changed; changes need their entry in the audit log"
_log = logging.getLogger(__name__)


class Log(Protocol):
    """Where entries go: `store.audit.AuditLog`, or a fake."""

    def append(self, t_ns: int, who: str, action: str, detail: dict[str, Any]) -> Entry:
        """Write one entry. Raises StoreError when it cannot be."""


class StderrLog:
    """Where no folder is configured: entries are warnings of this process, in no chain."""

    def append(self, t_ns: int, who: str, action: str, detail: dict[str, Any]) -> Entry:
        """Tell one entry."""
        _log.warning("audit: %s by %s at %d: %s", action, who, t_ns, detail)
        return Entry(0, t_ns, who, action, detail, "", "")


def create_log(folder: Path | None) -> Log:
    """The log in the state folder; where there is none, stderr."""
    return StderrLog() if folder is None else AuditLog(folder / NAME)


class Audited:
    """Middleware that writes down every request which may change something.

    clock_ns: Unix time in nanoseconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        refusals: Refusals,
        log: Log,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._app = app
        self._refusals = refusals
        self._log = log
        self._clock_ns = clock_ns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write, then let the request pass, then write what became of it."""
        if scope["type"] != "http" or scope["method"] in SAFE:
            await self._app(scope, receive, send)
            return
        body = await read(receive, MAX_BODY)
        if body is None:
            return  # its sender left half way: nobody asked for anything
        detail = _told(scope, body)
        try:
            asked = await self._write(scope, "asked", detail)
        except StoreError as error:
            refusal = Refusal(
                "audit",
                503,
                str(error),
                UNWRITTEN,
            )
            await self._refusals.answer(refusal, scope, receive, send)
            return
        status = await self._pass(scope, replay(body, receive), send)
        try:
            await self._write(scope, "done", {"of": asked.number, "status": status})
        except StoreError:
            self._refusals.count("audit")
            _log.exception("what became of audit entry %d was not written", asked.number)

    async def _write(self, scope: Scope, action: str, detail: dict[str, Any]) -> Entry:
        who = str(scope.get(RIGHT, "nobody"))
        return await to_thread.run_sync(self._log.append, self._clock_ns(), who, action, detail)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> int:
        """The status that was answered."""
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, watched)
        return status


def _told(scope: Scope, body: bytes) -> dict[str, Any]:
    client = (scope.get("client") or ("",))[0]
    return {
        "method": scope["method"],
        "path": scope["path"],
        "client": client,
        "body_sha256": hashlib.sha256(body).hexdigest() if body else "",
    }
