"""What proves a right: a bearer token, or the cookie that a one-time address gave to a browser.

Guarantees: secrets are compared in constant time; an address works once, within `TICKET_SECONDS`;
at most `MAX_SESSIONS` browsers are known, for `SESSION_SECONDS` each, and none outlives the
process; only digests of cookies and addresses are held. Time is a clock given.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

TICKET_SECONDS: Final = 600.0
SESSION_SECONDS: Final = 12 * 3600.0
MAX_SESSIONS: Final = 64
_BYTES: Final = 32


class Tokens:
    """The rights of one API: the operator's token, and sessions of browsers.

    token: what `Authorization: Bearer` must carry; at least 16 bytes.
    clock: seconds that never go back.
    """

    def __init__(self, token: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = _digest(token)
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: dict[bytes, float] = {}
        self._sessions: dict[bytes, float] = {}

    def is_token(self, given: bytes) -> bool:
        """Whether this is the operator's token."""
        return hmac.compare_digest(_digest(given), self._token)

    def ticket(self) -> str:
        """A word that opens one session, once."""
        word = secrets.token_urlsafe(_BYTES)
        with self._lock:
            _admit(self._tickets, _digest(word.encode()), self._clock() + TICKET_SECONDS)
        return word

    def redeem(self, word: str) -> str | None:
        """The cookie of a new session; None when the word opens nothing (any more)."""
        with self._lock:
            until = self._tickets.pop(_digest(word.encode()), 0.0)
            if until <= self._clock():
                return None
            cookie = secrets.token_urlsafe(_BYTES)
            _admit(self._sessions, _digest(cookie.encode()), self._clock() + SESSION_SECONDS)
        return cookie

    def is_session(self, cookie: str) -> bool:
        """Whether a browser with this cookie was let in."""
        # A look-up by SHA-256 of the secret tells an attacker's clock nothing about the secret.
        with self._lock:
            return self._sessions.get(_digest(cookie.encode()), 0.0) > self._clock()


def _admit(known: dict[bytes, float], digest: bytes, until: float) -> None:
    known[digest] = until
    while len(known) > MAX_SESSIONS:
        del known[next(iter(known))]


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
