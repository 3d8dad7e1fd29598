"""A request that is refused before any route sees it, and the count of those.

Guarantees: a refusal is a problem with a remedy like every other error, and is counted by cause;
its text tells nothing of what would have been right.
"""

import threading
from collections import Counter
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.publish.api.problems import Problem

CAUSES: Final = ("token", "password", "host", "origin", "rate", "size", "audit")
HEALTH: Final = ("/healthz", "/readyz")  # open to everybody, always
SAFE: Final = ("GET", "HEAD", "OPTIONS")  # methods that change nothing (RFC 9110, 9.2.1)
_TITLES: Final = {
    401: "Unauthorized",
    403: "Forbidden",
    413: "Too large",
    421: "Misdirected request",
    429: "Too many requests",
    503: "Unavailable",
}


class Refusal(NamedTuple):
    """Why a request is refused. `cause` is one of `CAUSES`."""

    cause: str
    status: int
    detail: str
    remedy: str
    headers: tuple[tuple[str, str], ...] = ()


class Refusals:
    """Counts refusals by cause, and answers with them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def answer(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the problem instead of what was asked for."""
        self.count(refusal.cause)
        title = _TITLES[refusal.status]
        problem = Problem(
            title=title, status=refusal.status, detail=refusal.detail, remedy=refusal.remedy
        )
        answer = Response(
            problem.model_dump_json(),
            refusal.status,
            dict(refusal.headers),
            "application/problem+json",
        )
        await answer(scope, receive, send)

    def count(self, cause: str) -> None:
        """One more of this cause."""
        with self._lock:
            self._counts[cause] += 1

    def get(self) -> dict[str, int]:
        """Refusals so far; every cause is named."""
        with self._lock:
            return {cause: self._counts[cause] for cause in CAUSES}
