"""The traffic generator against a transport that answers as vLLM does, or badly."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from sidecar.demo import corpus
from sidecar.demo.traffic import (
    END_OF_STREAM,
    LENGTHS,
    MOST_AT_ONCE,
    SHARED_LENGTH,
    Pool,
    Request,
    Tally,
    pools,
    requests,
    send,
)

POOLS = {"prose": Pool("Once ", ("upon", "a time")), "code": Pool("def ", ("f", "g"))}
Answer = Callable[[httpx.Request], httpx.Response]


def answer_well(request: httpx.Request) -> httpx.Response:
    stream = json.loads(request.content)["stream"]
    return httpx.Response(200, content=b"data: {}\n\n" + END_OF_STREAM if stream else b"{}")


def run(answer: Answer, count: int) -> Tally:
    """Send `count` requests through a transport, as fast as they are answered."""
    tally = Tally()
    stream = itertools.islice(requests(POOLS, seed=7), count)

    async def sending() -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
            await send(client, stream, "tiny", 1e6, tally)

    asyncio.run(sending())
    return tally


def test_every_request_is_counted_as_served() -> None:
    """Answers with 200, streamed to their end or whole, are counted as finished."""
    tally = run(answer_well, 50)
    assert (tally.sent, tally.finished, tally.failed) == (50, 50, 0)


def test_one_seed_draws_the_same_requests() -> None:
    """The same seed gives the same requests, another seed others."""
    first = list(itertools.islice(requests(POOLS, seed=1), 40))
    assert first == list(itertools.islice(requests(POOLS, seed=1), 40))
    assert first != list(itertools.islice(requests(POOLS, seed=2), 40))


def test_traffic_is_mixed() -> None:
    """Domains, token counts, temperatures, delivery and shared beginnings all vary."""
    drawn = list(itertools.islice(requests(POOLS, seed=3), 400))
    assert {each.domain for each in drawn} == set(POOLS)
    assert len({each.max_tokens for each in drawn}) > 2
    assert {each.temperature for each in drawn} >= {0.0, 1.0}
    assert 100 < sum(each.stream for each in drawn) < 300
    shared = sum(each.prompt.startswith(POOLS[each.domain].shared) for each in drawn)
    assert 50 < shared < 150


def test_the_mean_pause_is_the_reciprocal_of_the_rate() -> None:
    """Pauses are multiples of the mean pause, so their own mean is 1."""
    drawn = itertools.islice(requests(POOLS, seed=4), 4000)
    assert sum(each.pause for each in drawn) / 4000 == pytest.approx(1.0, abs=0.1)


def refuse(request: httpx.Request) -> httpx.Response:
    return httpx.Response(503)


def hang_up(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("gone")


def cut(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b'data: {"error": {}}\n\n')


def test_failures_are_counted_by_cause_and_never_raise() -> None:
    """A refusal, a lost connection and a cut stream are three causes; none ends the traffic."""
    assert run(refuse, 10).failures == Counter({"HTTP 503": 10})
    assert run(hang_up, 10).failures == Counter({"ReadError": 10})
    tally = run(cut, 40)
    assert set(tally.failures) == {"unfinished stream"}
    assert tally.failed + tally.finished == 40


def test_no_more_requests_at_once_than_the_limit() -> None:
    """However slow the server is, at most MOST_AT_ONCE requests wait for it."""
    waiting, most = 0, 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        return answer_well(request)

    assert run(slow, 60).finished == 60  # type: ignore[arg-type]
    assert most == MOST_AT_ONCE


def test_rate_zero_sends_nothing() -> None:
    """With rate 0 the generator ends at once, without a request."""
    tally = Tally()

    async def sending() -> None:
        async with httpx.AsyncClient() as client:
            await send(client, requests(POOLS, seed=0), "tiny", 0.0, tally)

    asyncio.run(sending())
    assert tally.sent == 0


def test_the_body_asks_for_a_bounded_prompt() -> None:
    """A body carries what was drawn, its route, and a bound on prompt tokens below the context."""
    body = Request(1.0, "prose", "text", 8, 0.7, stream=True).body("tiny")
    assert body == {
        "model": "tiny",
        "prompt": "text",
        "max_tokens": 8,
        "temperature": 0.7,
        "stream": True,
        "truncate_prompt_tokens": 800,
        "vllm_xargs": {"llm_internals_route": "prose"},
    }


def test_prompts_of_every_domain_and_length_are_drawn() -> None:
    """Each domain of the corpus has a shared beginning and excerpts of each length."""
    drawn = pools(seed=0)
    assert set(drawn) == set(corpus.DOMAINS)
    for pool in drawn.values():
        assert 0 < len(pool.shared) <= SHARED_LENGTH
        assert {bound for bound in LENGTHS if any(len(t) == bound for t in pool.excerpts)}
        assert max(map(len, pool.excerpts)) <= max(LENGTHS)
