"""Basic authentication of a port, where its web configuration names users.

Guarantees: health stays open; a password is checked outside the event loop; one that was right is
not hashed again within `KNOWN_SECONDS` of its last use, and only its digest is held; `MAX_CHECKS`
go on at a time, so that guesses cannot take the machine's cores from what it serves.
"""

import base64
import binascii
import hashlib
import secrets
import time
from typing import Final

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.publish.guard.refusal import HEALTH, Refusal, Refusals
from sidecar.publish.guard.webconfig import WebGuard

KNOWN_SECONDS: Final = 60.0
MAX_CHECKS: Final = 1
_MAX_KNOWN: Final = 64
_PREFIX: Final = "basic "
_REFUSAL: Final = Refusal(
    "password",
    401,
    "this needs a name and a password",
    "give those of basic_auth_users in SIDECAR_WEB_CONFIG_FILE; in Prometheus, basic_auth",
    (("WWW-Authenticate", 'Basic realm="llm-internals-sidecar"'),),
)


class Passwords:
    """Middleware that asks for a name and a password."""

    def __init__(self, app: ASGIApp, refusals: Refusals, guard: WebGuard) -> None:
        self._app = app
        self._refusals = refusals
        self._guard = guard
        self._salt = secrets.token_bytes(16)
        self._known: dict[bytes, float] = {}
        self._limiter = anyio.CapacityLimiter(MAX_CHECKS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        is_open = scope["type"] != "http" or scope["path"] in HEALTH
        if is_open or not self._guard.needs_password or await self._is_known(scope):
            await self._app(scope, receive, send)
        else:
            await self._refusals.answer(_REFUSAL, scope, receive, send)

    async def _is_known(self, scope: Scope) -> bool:
        given = _given(Headers(scope=scope).get("authorization", ""))
        if given is None:
            return False
        name, password = given
        told = self._salt + self._guard.digest
        digest = hashlib.sha256(told + name.encode() + b"\0" + password).digest()
        if self._known.get(digest, 0.0) > time.monotonic():
            return True
        if not await to_thread.run_sync(self._guard.is_user, name, password, limiter=self._limiter):
            return False
        self._known[digest] = time.monotonic() + KNOWN_SECONDS
        while len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return True


def _given(header: str) -> tuple[str, bytes] | None:
    if not header.lower().startswith(_PREFIX):
        return None
    try:
        text = base64.b64decode(header[len(_PREFIX) :].strip(), validate=True)
        name, colon, password = text.partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return None
