"""Requests that make the demo's server work.

Guarantee: at most `rate` requests a second on average and `MOST_AT_ONCE` at a time; the same seed
draws the same requests; a request that fails is counted by cause and never raises, so the
generator ends only when it is cancelled.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import httpx

from sidecar.demo import corpus

MOST_AT_ONCE: Final = 16
SECONDS_PER_REQUEST: Final = 60.0
LENGTHS: Final = (80, 240, 600, 1200)  # characters
SHARED_LENGTH: Final = 400  # characters that some prompts of a domain begin with
EXCERPTS_PER_LENGTH: Final = 24
MOST_PROMPT_TOKENS: Final = 800
TOKENS: Final = (8, 24, 64, 128)
TEMPERATURES: Final = (0.0, 0.7, 1.0)
END_OF_STREAM: Final = b"data: [DONE]\n\n"


class Request(NamedTuple):
    """One completion to ask for.

    pause: time to wait before it, as a multiple of the mean pause. stream: how it is delivered.
    """

    pause: float
    domain: str
    prompt: str
    max_tokens: int
    temperature: float
    stream: bool

    def body(self, model: str) -> dict[str, Any]:
        """JSON body of POST /v1/completions.

        No seed of sampling: vLLM 0.32 for CPU dies of a seeded request that is prefilled in chunks,
        as a canary's round beside it makes likely.
        """
        return {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
            # Text of another kind than the tokenizer learnt may need a token per character.
            "truncate_prompt_tokens": MOST_PROMPT_TOKENS,
            "vllm_xargs": {"llm_internals_route": self.domain},
        }


class Tally:
    """What became of the requests so far."""

    def __init__(self) -> None:
        self.sent = 0
        self.finished = 0
        self.failures: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """Requests that ended without a completion."""
        return self.failures.total()


class Pool(NamedTuple):
    """Prompts of one domain: a beginning that some share, and excerpts by length."""

    shared: str
    excerpts: tuple[str, ...]


def pools(seed: int) -> dict[str, Pool]:
    """Draw the prompts of every domain; takes some seconds, for the corpus is parsed first."""
    return {domain: _pool(domain, seed) for domain in corpus.DOMAINS}


def requests(drawn: Mapping[str, Pool], seed: int) -> Iterator[Request]:
    """Requests without end: domains, lengths, temperatures and delivery mixed."""
    draw = random.Random(seed)
    while True:
        domain = draw.choice(sorted(drawn))
        pool = drawn[domain]
        beginning = pool.shared if draw.random() < 0.25 else ""
        yield Request(
            pause=draw.expovariate(1.0),
            domain=domain,
            prompt=beginning + draw.choice(pool.excerpts),
            max_tokens=draw.choice(TOKENS),
            temperature=draw.choice(TEMPERATURES),
            stream=draw.random() < 0.5,
        )


async def send(
    client: httpx.AsyncClient, stream: Iterator[Request], model: str, rate: float, tally: Tally
) -> None:
    """Send requests, `rate` a second on average, until cancelled; none at all for rate 0."""
    free = asyncio.Semaphore(MOST_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for request in stream if rate > 0 else ():
            await asyncio.sleep(request.pause / rate)
            await free.acquire()
            task = group.create_task(_ask(client, request, model, tally))
            task.add_done_callback(lambda _task: free.release())


async def _ask(client: httpx.AsyncClient, request: Request, model: str, tally: Tally) -> None:
    tally.sent += 1
    end = b""
    try:
        async with client.stream(
            "POST", "/v1/completions", json=request.body(model), timeout=SECONDS_PER_REQUEST
        ) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                end = (end + part)[-len(END_OF_STREAM) :]
    except httpx.HTTPStatusError as error:
        tally.failures[f"HTTP {error.response.status_code}"] += 1
    except httpx.HTTPError as error:
        tally.failures[type(error).__name__] += 1
    else:
        # An engine that fails half-way can tell so only inside a stream that began with 200.
        if request.stream and end != END_OF_STREAM:
            tally.failures["unfinished stream"] += 1
        else:
            tally.finished += 1


def _pool(domain: str, seed: int) -> Pool:
    drawn = [corpus.excerpts(domain, EXCERPTS_PER_LENGTH, length, seed) for length in LENGTHS]
    shared = corpus.excerpts(domain, 1, SHARED_LENGTH, seed + 1)[0]
    return Pool(shared, tuple(itertools.chain.from_iterable(drawn)))
