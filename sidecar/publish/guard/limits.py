"""Limits on what one client may ask: requests a second, and bytes of a body.

Guarantees: health is never limited; what is held is bounded by `MAX_CLIENTS`, whatever addresses
come; a body that is larger than said, or than allowed, is cut off unread.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.publish.guard.body import read, replay
from sidecar.publish.guard.refusal import HEALTH, SAFE, Refusal, Refusals

MAX_CLIENTS: Final = 1024
MAX_BODY: Final = 64 << 10
_TOO_LARGE: Final = Refusal(
    "size", 413, f"a body has {MAX_BODY} bytes at most", "send a shorter one"
)


class Rate(NamedTuple):
    """A token bucket: requests a second in the long run, and at once."""

    per_second: float
    burst: float


class _Bucket(NamedTuple):
    level: float
    at: float


class Limits:
    """Middleware that bounds what each client address asks.

    clock: seconds that never go back.
    """

    def __init__(
        self,
        app: ASGIApp,
        refusals: Refusals,
        rate: Rate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._refusals = refusals
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refusals.answer(refusal, scope, receive, send)
            return
        if scope["method"] in SAFE:
            await self._app(scope, receive, send)
            return
        body = await read(receive, MAX_BODY)
        if body is None:
            await self._refusals.answer(_TOO_LARGE, scope, receive, send)
            return
        await self._app(scope, replay(body, receive), send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        wait = self._wait((scope.get("client") or ("",))[0])
        if wait > 0:
            return Refusal(
                "rate",
                429,
                f"more than {self._rate.per_second:g} requests a second from one address",
                "ask less often; GET /v1/events tells of news by itself",
                (("Retry-After", str(max(1, round(wait)))),),
            )
        length = Headers(scope=scope).get("content-length", "0")
        return _TOO_LARGE if not length.isdecimal() or int(length) > MAX_BODY else None

    def _wait(self, client: str) -> float:
        """Take one request out of a client's bucket; seconds to wait when it is empty."""
        now = self._clock()
        bucket = self._buckets.pop(client, _Bucket(self._rate.burst, now))
        gained = (now - bucket.at) * self._rate.per_second
        level = min(self._rate.burst, bucket.level + gained)
        wait = (1 - level) / self._rate.per_second
        self._buckets[client] = _Bucket(level if wait > 0 else level - 1, now)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait
