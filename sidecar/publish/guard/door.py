"""The door of the API: which host was asked, by whom, and with which right.

Guarantees: a page of another origin can neither read the API nor post to it, with or without a
token (DNS rebinding and cross-site posts are refused); with a token configured everything but
health needs it; a refused request reaches no route.
"""

from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.publish.guard.refusal import HEALTH, SAFE, Refusal, Refusals
from sidecar.publish.guard.tokens import SESSION_SECONDS, TICKET_SECONDS, Tokens

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
LOGIN: Final = "/login"
COOKIE: Final = "llm_internals_session"
RIGHT: Final = "sidecar.right"  # key of the scope: by which right a request came in
_PREFIX: Final = b"bearer "
_NO_HOST: Final = Refusal(
    "host",
    421,
    "this API is not served under that host name",
    "ask for it as 127.0.0.1 or localhost, or name the host in SIDECAR_API_HOSTS",
)
_NO_ORIGIN: Final = Refusal(
    "origin",
    403,
    "a page of another origin cannot change anything here",
    "use the page at /ui, or a client that is no browser",
)
_NO_TOKEN: Final = Refusal(
    "token",
    401,
    "this needs the operator's token",
    "send Authorization: Bearer with the contents of SIDECAR_API_TOKEN_FILE; for a browser, "
    "sidecar open prints an address that works once",
    (("WWW-Authenticate", 'Bearer realm="llm-internals-sidecar"'),),
)


class Door:
    """Middleware in front of the API.

    tokens: None lets in everybody who reaches the port.
    hosts: names it is served under beside those of loopback; `*` allows every one.
    """

    def __init__(
        self, app: ASGIApp, refusals: Refusals, tokens: Tokens | None, hosts: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._refusals = refusals
        self._tokens = tokens
        self._hosts = {host.lower() for host in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tokens = self._tokens if scope["path"] == LOGIN else None
        if tokens and scope["method"] == "GET" and self._is_host(Headers(scope=scope)):
            await self._enter(tokens, scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refusals.answer(refusal, scope, receive, send)
        elif tokens:
            await self._invite(tokens, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if scope["path"] in HEALTH:
            return None
        headers = Headers(scope=scope)
        if not self._is_host(headers):
            return _NO_HOST
        if scope["method"] not in SAFE and not _is_same_origin(headers):
            return _NO_ORIGIN
        if self._tokens is None:
            scope[RIGHT] = "reached the port"
            return None
        right = _right(self._tokens, headers)
        if right is None:
            return _NO_TOKEN
        scope[RIGHT] = right
        return None

    def _is_host(self, headers: Headers) -> bool:
        if "*" in self._hosts:
            return True
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            return False
        return (name or "").lower() in self._hosts

    async def _invite(self, tokens: Tokens, scope: Scope, receive: Receive, send: Send) -> None:
        """Make an address that lets one browser in."""
        answer = JSONResponse(
            {"path": f"{LOGIN}?ticket={tokens.ticket()}", "seconds": TICKET_SECONDS},
            201,
            {"Cache-Control": "no-store"},
        )
        await answer(scope, receive, send)

    async def _enter(self, tokens: Tokens, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the word out of the address, and give a cookie for it."""
        words = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])
        cookie = tokens.redeem(words[0])
        if cookie is None:
            await self._refusals.answer(_NO_TOKEN, scope, receive, send)
            return
        answer = RedirectResponse("/ui", 303, {"Cache-Control": "no-store"})
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=round(SESSION_SECONDS),
            secure=scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        await answer(scope, receive, send)


def _right(tokens: Tokens, headers: Headers) -> str | None:
    """By which right: `token`, `session`, or None."""
    given = headers.get("authorization", "").encode("latin-1", "replace")
    if given[: len(_PREFIX)].lower() == _PREFIX and tokens.is_token(given[len(_PREFIX) :].strip()):
        return "token"
    try:
        jar = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    if COOKIE in jar and tokens.is_session(jar[COOKIE].value):
        return "session"
    return None


def _is_same_origin(headers: Headers) -> bool:
    """Whether no other page sent it: a browser says `Origin` with every post, others need not."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        return False
