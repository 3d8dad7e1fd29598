"""Server-sent events of a feed, over HTTP.

https://html.spec.whatwg.org/multipage/server-sent-events.html

Guarantees: runs on the event loop and never blocks it; a client that takes nothing for
`STALLED_SECONDS` is hung up on; a line goes out at least every `BEAT_SECONDS`, so that a dead
connection shows; one that comes back with Last-Event-ID misses nothing that is still held.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.publish.live.feed import Event, Feed

POLL_SECONDS: Final = 0.1
BEAT_SECONDS: Final = 10.0
STALLED_SECONDS: Final = 30.0
RETRY_MS: Final = 2000  # after which a browser comes back
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """The events of a feed, until the client or the feed goes.

    last_event_id: what the client heard last; "" begins with the latest status.
    """

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, last_event_id: str = "") -> None:
        super().__init__(b"", headers=_HEADERS)
        del self.headers["content-length"]
        self._feed = feed
        self._last_event_id = last_event_id

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Serve one client."""
        self._feed.num_clients += 1
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._feed.num_clients -= 1
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await self._follow(send)
        except TimeoutError:
            self._feed.drop("stalled")

    async def _follow(self, send: Send) -> None:
        text, number = self._greeting()
        quiet = 0.0
        while not self._feed.is_closed:
            if text or quiet >= BEAT_SECONDS:
                body = (text or ": beat\n\n").encode()
                message = {"type": "http.response.body", "body": body, "more_body": True}
                await asyncio.wait_for(send(message), STALLED_SECONDS)
                quiet = 0.0
            await asyncio.sleep(POLL_SECONDS)
            quiet += POLL_SECONDS
            text, number = self._news(number)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _greeting(self) -> tuple[str, int]:
        feed, retry = self._feed, f"retry: {RETRY_MS}\n\n"
        number = feed.number_of(self._last_event_id)
        if number is not None and feed.after(number) is not None:
            return retry, number
        status = feed.latest("status")
        events = [] if status is None else [status]
        reset = _RESET if self._last_event_id else ""
        return retry + reset + _text(feed, events), feed.last

    def _news(self, number: int) -> tuple[str, int]:
        events = self._feed.after(number)
        if events is None:
            self._feed.drop("behind")
            return _RESET, self._feed.last
        return _text(self._feed, events), events[-1].number if events else number


# What was held between is gone: read everything anew.
_RESET: Final = "event: reset\ndata: {}\n\n"


def _text(feed: Feed, events: Sequence[Event]) -> str:
    return "".join(
        f"id: {feed.id_of(each)}\nevent: {each.kind}\ndata: {each.data}\n\n" for each in events
    )


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
