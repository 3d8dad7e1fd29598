"""A gate before the demo's vLLM: what is for development needs a key, which only the demo holds.

vLLM's development endpoints call any method of a worker. Without the gate, any page in a browser
on this machine could post to them while the demo runs.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

MIDDLEWARE: Final = "sidecar.demo.gate.Gate"
HEADER: Final = "x-llm-internals-demo"
KEY_FILE: Final = "LLM_INTERNALS_DEMO_KEY_FILE"
_OPEN: Final = ("/v1/", "/health", "/metrics", "/version", "/ping")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware; without a key file in the environment nothing closed ever opens."""

    def __init__(self, app: App) -> None:
        file = os.environ.get(KEY_FILE)
        self._app = app
        self._key = Path(file).read_bytes() if file else b""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "lifespan" or self._admits(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only the demo may ask this\n"})

    def _admits(self, scope: Message) -> bool:
        if str(scope["path"]).startswith(_OPEN):
            return True
        given = dict(scope["headers"]).get(HEADER.encode(), b"")
        return bool(self._key) and hmac.compare_digest(given, self._key)
