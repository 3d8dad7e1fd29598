"""Bodies of requests: read whole within a limit, and given on as if they had just come."""

from starlette.types import Message, Receive


async def read(receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body; None as soon as it is longer than `max_bytes`, or its sender has left."""
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts += message.get("body", b"")
        if len(parts) > max_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """What a route receives: the body that was read, then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
