"""Asking others over HTTP: how long and how large an answer may be, and what counts as none.

Guarantees: an answer takes `seconds` at most, from the name's resolution to the last byte, however
slowly it drips; not more than `max_bytes` of it are held; neither redirects nor compressed bodies
are followed. Everything that is not an answer is a FleetError with a cause out of `CAUSES`.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx

from sidecar.errors import FleetError

# The first four are of the transport, the others of what was in the answer.
CAUSES: Final = (
    "unreachable",
    "slow",
    "oversized",
    "status",
    "decode",
    "schema",
    "value",
    "time",
    "foreign",
)
MAX_BYTES: Final = 32 << 20
_MAX_QUOTED: Final = 200


class Limits(NamedTuple):
    """What one answer may take."""

    seconds: float
    max_bytes: int = MAX_BYTES


async def fetch(
    client: httpx.AsyncClient,
    url: str,
    params: Mapping[str, str],
    limits: Limits,
    token: bytes | None = None,
) -> bytes:
    """The body of a GET; `token` is sent as a bearer's. Raises FleetError."""
    headers = {} if token is None else {b"Authorization": b"Bearer " + token}
    try:
        request = client.build_request("GET", url, params=dict(params), headers=headers)
        async with asyncio.timeout(limits.seconds):
            return await _fetch(client, request, limits.max_bytes)
    except TimeoutError as error:
        message = f"{shown(url)}: no whole answer within {limits.seconds:g} s"
        raise FleetError("slow", message) from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        said = f"{type(error).__name__} {error}".strip()[:_MAX_QUOTED]
        raise FleetError("unreachable", f"{shown(url)}: {said}") from error


def new_client() -> httpx.AsyncClient:
    """A client that goes to the named host itself, and nowhere else."""
    return httpx.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=None,  # noqa: S113 - `fetch` has a limit on the whole
        headers={"Accept-Encoding": "identity", "User-Agent": "llm-internals-sidecar"},
    )


def shown(url: str) -> str:
    """An address as it may be shown: without a password, a query or a fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


async def _fetch(client: httpx.AsyncClient, request: httpx.Request, max_bytes: int) -> bytes:
    url = str(request.url)
    reply = await client.send(request, stream=True)
    async with contextlib.aclosing(reply):
        if reply.status_code != httpx.codes.OK:
            raise FleetError("status", f"{shown(url)}: answered with status {reply.status_code}")
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise FleetError(
                "decode", f"{shown(url)}: a compressed answer, which was not asked for"
            )
        body = bytearray()
        async for piece in reply.aiter_raw():
            body += piece
            if len(body) > max_bytes:
                raise FleetError("oversized", f"{shown(url)}: more than {max_bytes} bytes")
        return bytes(body)
