"""The live page at /ui: static files, read into memory once, served beside the API it reads.

Guarantees: nothing is fetched from another host (the policy forbids it, and no file asks for it);
only files that were in the package at start can be had, whatever path is asked for; no route reads
a disk, so none of them waits.
"""

import functools
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from sidecar.publish.api.problems import Unanswerable

INDEX: Final = "index.html"
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again at every load, answered 304: an update is seen
}
ui = APIRouter(include_in_schema=False)


class Asset(NamedTuple):
    """One file of the page; `tag` changes with its bytes."""

    body: bytes
    media_type: str
    tag: str


@functools.cache
def assets() -> dict[str, Asset]:
    """Every file of the page by its path below /ui/."""
    return _below(files("sidecar.publish.ui") / "static", "")


@ui.get("/")
@ui.get("/ui")
async def bare() -> Response:
    """Lead to the page; relative, so that a proxy may put all of it under another path."""
    return RedirectResponse("ui/")


@ui.get("/ui/{path:path}")
async def page(request: Request, path: str) -> Response:
    """One file of the page; the page itself where none is named."""
    found = assets().get(path or INDEX)
    if found is None:
        raise Unanswerable(404, f"no file {path[:64]!r} of the live page", "open /ui/")
    headers = {**HEADERS, "ETag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type=found.media_type)


def _below(folder: Traversable, prefix: str) -> dict[str, Asset]:
    found: dict[str, Asset] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _below(entry, f"{prefix}{entry.name}/")
        elif (media_type := MEDIA_TYPES.get(_suffix(entry.name))) is not None:
            found[f"{prefix}{entry.name}"] = _asset(entry.read_bytes(), media_type)
    return found


def _asset(body: bytes, media_type: str) -> Asset:
    return Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
