"""The canary runner: replays the suite against the served model, in a thread of its own.

One round sends every prompt once (to every data-parallel rank), in an order of its own, prefill
only: one greedy token. Batches of 1, 8 and 32 take turns by chance, so that what is learnt covers
the kernels that batch sizes choose. Each request has a `cache_salt` of its own, or prefix caching
would hide the prompts from the second round on, and a tag that proves the operator's secret.

Guarantees: at most `rate` requests a second and rank on average over a round, at most
`MOST_AT_ONCE` at a time; a request ends within `REQUEST_SECONDS` and a round within
`ROUND_SECONDS`; a round is given up after `MAX_FAILURES` requests in a row without an answer;
nothing that the server does raises, costs more than `MAX_ANSWER` bytes a request, or delays `stop`
by more than a second; each round is counted by what became of it.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import httpx

from sidecar.config import PREFIX, ExporterConfig
from sidecar.errors import ConfigError
from sidecar.publish.canary.suite import Prompt, Suite
from sidecar.wire.canary import MAX_AHEAD_MS, XARG, Canary, tag

BATCHES: Final = (1, 8, 32)
MOST_AT_ONCE: Final = max(BATCHES)
REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
ROUND_SECONDS: Final = 120.0
MAX_FAILURES: Final = 3
MAX_ANSWER: Final = 1 << 16
STOP_SECONDS: Final = 0.75
CAUSES: Final = ("connect", "timeout", "rejected", "server_error", "protocol", "internal")
OUTCOMES: Final = ("complete", "partial", *(f"failed_{cause}" for cause in CAUSES))

_log = logging.getLogger(__name__)


class Target(NamedTuple):
    """Where canaries go.

    url: root of the server's API. model: its name there; "" for the first that the server names.
    secret: what proves a canary. api_key: for servers that ask for one.
    num_ranks: data-parallel ranks behind the address, each of which gets every round.
    """

    url: str
    secret: bytes
    model: str = ""
    api_key: str = ""
    num_ranks: int = 1


class Pace(NamedTuple):
    """Seconds from the start of one round to the next, and most requests a second and rank."""

    seconds: float = 300.0
    learn_seconds: float = 15.0
    rate: float = 8.0


class Outcome(NamedTuple):
    """What became of a round. name: out of `OUTCOMES`. detail: the first failure, in words."""

    name: str
    num_answered: int
    num_asked: int
    detail: str = ""


class _Job(NamedTuple):
    prompt: Prompt
    rank: int


class _Failure(Exception):
    """One request got no answer; `cause` is out of `CAUSES`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class CanaryRunner:
    """Replays `suite` against `target` until stopped.

    is_learning: whether rounds are wanted at the learning pace; asked before each pause.
    transport: what httpx sends with; a test's own, or the default.
    """

    def __init__(
        self,
        suite: Suite,
        target: Target,
        pace: Pace | None = None,
        is_learning: Callable[[], bool] = lambda: False,
        clock_ns: Callable[[], int] = time.time_ns,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.suite = suite
        self._target = target
        self._pace = pace or Pace()
        self._is_learning = is_learning
        self._clock_ns = clock_ns
        self._transport = transport
        self._model = target.model
        self._round_ms = 0
        self._outcomes: Counter[str] = Counter()
        self._told = ""
        self._draw = random.Random()  # noqa: S311 - an order, not a secret
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Outcome] | None = None
        self._thread = threading.Thread(target=self._run, name="sidecar-canary", daemon=True)

    def start(self) -> None:
        """Begin to replay."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, in the middle of a round too."""
        self._stopping.set()
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            # The loop may have closed since: then there is nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def outcomes(self) -> dict[str, int]:
        """Rounds so far by what became of them; every name is there."""
        return {name: self._outcomes[name] for name in OUTCOMES}

    def run_round(self) -> Outcome:
        """Replay the suite once; never raises."""
        try:
            outcome = asyncio.run(self._bounded())
        except Exception as error:  # a bug of ours must not end the canary for good
            outcome = Outcome("failed_internal", 0, self._num_jobs, repr(error))
        self._outcomes[outcome.name] += 1
        self._tell(outcome)
        return outcome

    @property
    def _num_jobs(self) -> int:
        return len(self.suite.prompts) * self._target.num_ranks

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            self.run_round()
            try:
                is_learning = self._is_learning()
            except Exception:  # whoever is asked: the slower pace is always right
                is_learning = False
            pause = self._pace.learn_seconds if is_learning else self._pace.seconds
            self._stopping.wait(max(0.0, began + pause - time.monotonic()))

    async def _bounded(self) -> Outcome:
        results = _Results(self._num_jobs)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._round(results))
        if self._stopping.is_set():
            self._task.cancel()
        try:
            return await self._task
        except asyncio.CancelledError:
            results.fail(_Failure("internal", "stopped in the middle of the round"))
            return results.get()
        finally:
            self._loop = self._task = None

    async def _round(self, results: "_Results") -> Outcome:
        # Rounds are told apart by when they began, also when a clock stands still; when it was set
        # back, the engine would take none of what comes from so far ahead.
        now_ms = self._clock_ns() // 1_000_000
        is_ahead = self._round_ms + 1 - now_ms > MAX_AHEAD_MS
        self._round_ms = now_ms if is_ahead else max(self._round_ms + 1, now_ms)
        try:
            async with asyncio.timeout(ROUND_SECONDS), self._client() as client:
                await self._find_model(client)
                await self._replay(client, results)
        except TimeoutError:
            results.fail(_Failure("timeout", f"the round took more than {ROUND_SECONDS:g} s"))
        except _Failure as failure:
            results.fail(failure)
        return results.get()

    async def _replay(self, client: httpx.AsyncClient, results: "_Results") -> None:
        size = self._draw.choice(BATCHES)
        seconds = size / (self._pace.rate * self._target.num_ranks)
        num_in_vain = 0
        for batch in self._batches(size):
            began = time.monotonic()
            num_answered = results.num_answered
            await asyncio.gather(*(self._ask(client, job, results) for job in batch))
            num_in_vain = 0 if results.num_answered > num_answered else num_in_vain + len(batch)
            if num_in_vain >= MAX_FAILURES:
                return
            if not results.is_over:
                await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))

    def _batches(self, size: int) -> Iterator[Sequence[_Job]]:
        ranks = range(self._target.num_ranks)
        jobs = [_Job(prompt, rank) for prompt in self.suite.prompts for rank in ranks]
        self._draw.shuffle(jobs)
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]

    async def _ask(self, client: httpx.AsyncClient, job: _Job, results: "_Results") -> None:
        ranks = self._target.num_ranks
        headers = {"X-data-parallel-rank": str(job.rank)} if ranks > 1 else {}
        try:
            await _send(client, "POST", "/v1/completions", headers, self._body(job.prompt))
        except _Failure as failure:
            results.fail(failure)
        else:
            results.answer()

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": prompt.prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "cache_salt": secrets.token_hex(16),
            "vllm_xargs": {XARG: tag(Canary(prompt.id, self._round_ms), self._target.secret)},
        }

    async def _find_model(self, client: httpx.AsyncClient) -> None:
        if self._model:
            return
        answer = await _send(client, "GET", "/v1/models", {}, None)
        try:
            self._model = str(httpx.Response(200, content=answer).json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise _Failure("protocol", f"/v1/models names no model: {error!r}") from error

    def _client(self) -> httpx.AsyncClient:
        key = self._target.api_key
        return httpx.AsyncClient(
            base_url=self._target.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=MOST_AT_ONCE),
            transport=self._transport,
            trust_env=False,  # a proxy would be another server than the one that is judged
        )

    def _tell(self, outcome: Outcome) -> None:
        """Log what is new, not every round that fails alike."""
        if self._stopping.is_set():
            return
        told = "" if outcome.name == "complete" else outcome.name
        if told and told != self._told:
            _log.warning(
                "canary round %s: %d of %d prompts answered; %s",
                outcome.name,
                outcome.num_answered,
                outcome.num_asked,
                outcome.detail,
            )
        self._told = told


def create_runner(
    config: ExporterConfig, suite: Suite, is_learning: Callable[[], bool] = lambda: False
) -> CanaryRunner:
    """The runner that `config` asks for; its `canary_url` is set.

    Raises ConfigError when no secret is configured, or a key file cannot be read.
    """
    secret = config.canary_key()
    if config.canary_url is None or secret is None:
        raise ConfigError(
            f"{PREFIX}CANARY_URL and {PREFIX}CANARY_KEY_FILE belong together: without the secret "
            "canaries would count as traffic; write 32 random bytes to a file and give it to the "
            "engine as well"
        )
    target = Target(
        config.canary_url,
        secret,
        config.canary_model or "",
        config.canary_api_key(),
        config.canary_ranks,
    )
    pace = Pace(config.canary_seconds, config.canary_learn_seconds, config.canary_rate)
    return CanaryRunner(suite, target, pace, is_learning)


class _Results:
    """What became of the requests of one round."""

    def __init__(self, num_asked: int) -> None:
        self._num_asked = num_asked
        self.num_answered = self._num_failed = 0
        self._first: _Failure | None = None

    def answer(self) -> None:
        self.num_answered += 1

    def fail(self, failure: _Failure) -> None:
        self._num_failed += 1
        self._first = self._first or failure

    @property
    def is_over(self) -> bool:
        return self.num_answered + self._num_failed >= self._num_asked

    def get(self) -> Outcome:
        failure = self._first
        if failure is None:
            return Outcome("complete", self.num_answered, self._num_asked)
        name = "partial" if self.num_answered else f"failed_{failure.cause}"
        return Outcome(name, self.num_answered, self._num_asked, str(failure))


async def _send(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], body: object
) -> bytes:
    """Body of a good answer. Raises _Failure for everything else that can happen."""
    try:
        async with (
            asyncio.timeout(REQUEST_SECONDS),
            client.stream(method, path, headers=headers, json=body) as answer,
        ):
            data = await _read(answer)
    except (TimeoutError, httpx.TimeoutException) as error:
        raise _Failure("timeout", f"no answer within {REQUEST_SECONDS:g} s") from error
    except httpx.NetworkError as error:
        detail = f"{error!r}; set {PREFIX}CANARY_URL to this replica's own address"
        raise _Failure("connect", detail) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Failure("protocol", repr(error)) from error
    if answer.status_code >= 500:
        raise _Failure("server_error", f"HTTP {answer.status_code}")
    if answer.status_code != 200:
        raise _Failure("rejected", _rejection(answer.status_code, data))
    return data


async def _read(answer: httpx.Response) -> bytes:
    data = b""
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > MAX_ANSWER:
            raise _Failure("protocol", f"an answer of more than {MAX_ANSWER} bytes")
    return data


def _rejection(status: int, data: bytes) -> str:
    remedy = {
        401: f"; give the server's key in {PREFIX}CANARY_API_KEY_FILE",
        404: f"; name a served model in {PREFIX}CANARY_MODEL",
    }.get(status, f": {data[:300].decode(errors='replace')}")
    return f"HTTP {status}{remedy}"
