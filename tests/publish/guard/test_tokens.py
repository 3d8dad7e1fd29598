"""Tokens, one-time addresses and sessions."""

import pytest

from sidecar.publish.guard.tokens import (
    MAX_SESSIONS,
    SESSION_SECONDS,
    TICKET_SECONDS,
    Tokens,
)

SECRET = b"the operator's token, of 32 byte"


class Clock:
    """Seconds that a test turns forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(SECRET, clock)


@pytest.mark.parametrize("given", [b"", b"x", SECRET[:-1], SECRET + b" ", SECRET.upper()])
def test_only_the_token_is_the_token(tokens: Tokens, given: bytes) -> None:
    """Neither a part of it nor another spelling is a right."""
    assert tokens.is_token(SECRET)
    assert not tokens.is_token(given)


def test_a_ticket_opens_one_session(tokens: Tokens) -> None:
    """The second who comes with the same address is not let in."""
    ticket = tokens.ticket()
    cookie = tokens.redeem(ticket)

    assert cookie is not None
    assert tokens.is_session(cookie)
    assert tokens.redeem(ticket) is None
    assert not tokens.is_session(ticket)


def test_tickets_and_sessions_end(tokens: Tokens, clock: Clock) -> None:
    """Both are of no use after their time."""
    late, ticket = tokens.ticket(), tokens.ticket()
    cookie = tokens.redeem(ticket)
    clock.now += TICKET_SECONDS
    assert tokens.redeem(late) is None
    assert cookie is not None
    assert tokens.is_session(cookie)
    clock.now += SESSION_SECONDS
    assert not tokens.is_session(cookie)


def test_what_is_held_is_bounded(tokens: Tokens) -> None:
    """Of too many sessions the oldest end."""
    cookies = [tokens.redeem(tokens.ticket()) for _ in range(MAX_SESSIONS + 1)]

    held = [cookie for cookie in cookies if cookie and tokens.is_session(cookie)]
    assert held == cookies[1:]


def test_words_are_not_guessable(tokens: Tokens) -> None:
    """No two are alike, and each has 256 bits."""
    words = {tokens.ticket() for _ in range(50)}

    assert len(words) == 50
    assert all(len(word) >= 43 for word in words)
