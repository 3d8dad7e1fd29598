"""The canary runner against a server over real HTTP."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError
from sidecar.publish.canary import runner as rooms
from sidecar.publish.canary.runner import OUTCOMES, CanaryRunner, Pace, Target, create_runner
from sidecar.publish.canary.suite import Suite, read_suite
from sidecar.wire.canary import XARG, parse, proven
from tests.fakes import FakeClock
from tests.publish.canary.openai_server import OpenAiServer

SECRET = b"an operator's secret of 32 bytes"
QUICK = Pace(seconds=3600.0, learn_seconds=0.01, rate=1000.0)


@pytest.fixture
def server() -> Iterator[OpenAiServer]:
    with OpenAiServer() as running:
        yield running


def runner(server: OpenAiServer, pace: Pace = QUICK, **options: object) -> CanaryRunner:
    """A runner against this server; options are of its target."""
    target = Target(server.url, SECRET, "tiny")._replace(**options)  # type: ignore[arg-type]
    return CanaryRunner(read_suite(), target, pace)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Until it holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_a_round_sends_every_prompt_once_prefill_only(server: OpenAiServer) -> None:
    """One greedy token each, and the outcome is counted."""
    running = runner(server)
    outcome = running.run_round()

    assert (outcome.name, outcome.num_answered, outcome.num_asked) == ("complete", 32, 32)
    assert running.outcomes()["complete"] == 1
    sent = sorted(body["prompt"] for body in server.bodies)
    assert sent == sorted(prompt.prompt for prompt in read_suite().prompts)
    for body in server.bodies:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 1, 0.0)


def test_every_request_proves_the_secret_and_names_its_round(server: OpenAiServer) -> None:
    """All requests of a round name the same one, and of the next a later one."""
    running = runner(server)
    before_ms = time.time_ns() // 1_000_000
    running.run_round()
    running.run_round()

    names = [
        proven(body["vllm_xargs"][XARG], SECRET, time.time_ns() // 1_000_000)
        for body in server.bodies
    ]
    canaries = [found for found in map(parse, names) if found is not None]
    assert len(canaries) == 64
    first, second = ({each.round_ms for each in part} for part in (canaries[:32], canaries[32:]))
    assert len(first) == len(second) == 1
    assert before_ms <= first.pop() < second.pop()
    assert {each.prompt for each in canaries[:32]} == set(read_suite().names)


def test_every_request_has_a_cache_salt_of_its_own(server: OpenAiServer) -> None:
    """So no prompt is hidden by the prefix cache, not even by another with the same beginning."""
    running = runner(server)
    running.run_round()
    running.run_round()

    assert len({body["cache_salt"] for body in server.bodies}) == 64


def test_rounds_take_turns_in_their_order(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts come in another order each time, so that none is always the first."""
    monkeypatch.setattr(rooms, "BATCHES", (1,))
    running = runner(server)
    orders = []
    for _ in range(4):
        server.bodies.clear()
        running.run_round()
        orders.append([body["prompt"] for body in server.bodies])

    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("size", [1, 8, 32])
def test_the_rate_is_bounded(
    server: OpenAiServer, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of 32 at 64 a second takes its time, whatever the batches are."""
    monkeypatch.setattr(rooms, "BATCHES", (size,))
    running = runner(server, QUICK._replace(rate=64.0))
    began = time.monotonic()
    running.run_round()

    assert server.most_at_once <= size
    assert time.monotonic() - began >= (32 - size) / 64.0


def test_each_data_parallel_rank_gets_every_prompt(server: OpenAiServer) -> None:
    """By the header that vLLM routes by; with one rank there is none."""
    runner(server, num_ranks=3).run_round()

    asked = sorted(
        (headers["x-data-parallel-rank"], body["prompt"])
        for headers, body in zip(map(_lower, server.headers), server.bodies, strict=True)
    )
    prompts = [prompt.prompt for prompt in read_suite().prompts]
    assert asked == sorted((str(rank), prompt) for rank in range(3) for prompt in prompts)
    runner(server).run_round()
    assert "x-data-parallel-rank" not in _lower(server.headers[-1])


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_the_model_is_the_first_that_the_server_names(server: OpenAiServer) -> None:
    """Unless the operator names one."""
    runner(server, model="").run_round()

    assert {body["model"] for body in server.bodies} == {"tiny"}


@pytest.mark.parametrize("models", [{}, [], {"data": []}, {"data": [{}]}, "x"])
def test_a_server_without_models_fails_the_round(server: OpenAiServer, models: object) -> None:
    """By cause, not with an exception."""
    server.models = models

    assert runner(server, model="").run_round().name == "failed_protocol"


@pytest.mark.parametrize(
    ("status", "name", "words"),
    [
        (401, "failed_rejected", "SIDECAR_CANARY_API_KEY_FILE"),
        (404, "failed_rejected", "SIDECAR_CANARY_MODEL"),
        (400, "failed_rejected", "HTTP 400: sorry"),
        (307, "failed_rejected", "HTTP 307"),
        (503, "failed_server_error", "HTTP 503"),
    ],
)
def test_a_refusal_is_a_failed_round_with_its_remedy(
    server: OpenAiServer, status: int, name: str, words: str
) -> None:
    """And the round is given up after a batch, not after 32 refusals."""
    server.fails = (status, b"sorry")
    running = runner(server)
    outcome = running.run_round()

    assert outcome.name == name
    assert words in outcome.detail
    assert running.outcomes()[name] == 1


def test_a_round_that_is_hopeless_is_given_up(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in trouble is not asked 32 times."""
    monkeypatch.setattr(rooms, "BATCHES", (1,))
    server.fails = (503, b"")
    runner(server).run_round()

    assert len(server.bodies) == 3


def test_some_failures_make_a_round_partial(server: OpenAiServer) -> None:
    """The others count, and the round goes on to its end."""
    server.fails, server.fails_every = (503, b""), 4
    outcome = runner(server).run_round()

    assert (outcome.name, outcome.num_answered, len(server.bodies)) == ("partial", 24, 32)


def test_the_key_of_the_server_is_brought(server: OpenAiServer) -> None:
    """As vLLM's --api-key asks for it."""
    server.key = "sesame"

    assert runner(server).run_round().name == "failed_rejected"
    assert runner(server, api_key="sesame").run_round().name == "complete"


def test_nobody_listening_is_a_failed_round(server: OpenAiServer) -> None:
    """The server has not started yet, or is gone."""
    running = runner(server, url="http://127.0.0.1:9")

    assert running.run_round().name == "failed_connect"


def test_bytes_that_are_no_http_are_a_failed_round(server: OpenAiServer) -> None:
    """Something else listens there."""
    server.garbage = b"SSH-2.0-OpenSSH_9.2\r\n"

    assert runner(server).run_round().name == "failed_protocol"


def test_a_huge_answer_is_not_read_to_its_end(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the sidecar is not the server's to fill."""
    monkeypatch.setattr(rooms, "MAX_ANSWER", 1000)
    server.fails = (200, b"x" * 5000)

    outcome = runner(server).run_round()
    assert outcome.name == "failed_protocol"
    assert "more than 1000 bytes" in outcome.detail


def test_a_slow_server_is_left_after_a_while(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that takes too long is a timeout."""
    monkeypatch.setattr(rooms, "REQUEST_SECONDS", 0.3)
    server.delay = 600.0

    assert runner(server).run_round().name == "failed_timeout"


def test_a_round_ends_in_bounded_time(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when every single request is just quick enough."""
    monkeypatch.setattr(rooms, "ROUND_SECONDS", 0.5)
    server.delay = 600.0

    assert runner(server).run_round().name == "failed_timeout"


def test_the_thread_learns_quickly_and_then_slows_down(server: OpenAiServer) -> None:
    """It asks before each pause whether there is still something to learn."""
    asked = []
    running = CanaryRunner(
        read_suite(),
        Target(server.url, SECRET, "tiny"),
        QUICK,
        lambda: len(asked) < 3 and asked.append(0) is None,
    )
    running.start()
    try:
        wait_for(lambda: running.outcomes()["complete"] >= 4)
        time.sleep(0.3)
        assert running.outcomes()["complete"] == 4
    finally:
        running.stop()


def test_a_question_that_fails_slows_down(server: OpenAiServer) -> None:
    """Whoever is asked may be broken; the canary goes on."""
    running = CanaryRunner(read_suite(), Target(server.url, SECRET, "tiny"), QUICK, lambda: 1 // 0)
    running.start()
    wait_for(lambda: running.outcomes()["complete"] == 1)
    running.stop()

    assert not running._thread.is_alive()


def test_it_stops_in_the_middle_of_a_round(server: OpenAiServer) -> None:
    """At once, though the server would take ten minutes."""
    server.delay = 600.0
    running = runner(server)
    running.start()
    wait_for(lambda: server.bodies)
    began = time.monotonic()
    running.stop()

    assert not running._thread.is_alive()
    assert time.monotonic() - began < 60


def test_a_runner_that_never_began_can_be_stopped(server: OpenAiServer) -> None:
    """As when the sidecar fails to start."""
    runner(server).stop()


def test_a_failing_round_is_told_once(
    server: OpenAiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is down for a day does not fill the log."""
    server.fails = (503, b"")
    running = runner(server)
    for _ in range(5):
        running.run_round()

    assert len(caplog.records) == 1
    assert "failed_server_error" in caplog.text


def test_a_bug_of_ours_is_a_failed_round(server: OpenAiServer) -> None:
    """A prompt whose name cannot be signed ends no thread."""
    broken = Suite((read_suite().prompts[0].__class__("a b", "r", "short", "x" * 60),), "")
    outcome = CanaryRunner(broken, Target(server.url, SECRET, "tiny"), QUICK).run_round()

    assert outcome.name == "failed_internal"
    assert set(OUTCOMES) >= {outcome.name}


def test_configuration_makes_a_runner(tmp_path: Path) -> None:
    """With every key that it has."""
    secret, key = tmp_path / "secret", tmp_path / "key"
    secret.write_bytes(SECRET + b"\n")
    key.write_text("sesame\n")
    environ = {
        "SIDECAR_CANARY_URL": "http://127.0.0.1:8000",
        "SIDECAR_CANARY_KEY_FILE": str(secret),
        "SIDECAR_CANARY_MODEL": "tiny",
        "SIDECAR_CANARY_API_KEY_FILE": str(key),
        "SIDECAR_CANARY_RANKS": "4",
        "SIDECAR_CANARY_SECONDS": "60",
        "SIDECAR_CANARY_LEARN_SECONDS": "2",
        "SIDECAR_CANARY_RATE": "3",
    }
    made = create_runner(ExporterConfig.read(environ), read_suite())

    assert made._target == Target("http://127.0.0.1:8000", SECRET, "tiny", "sesame", 4)
    assert made._pace == Pace(60, 2, 3)


@pytest.mark.parametrize("missing", ["SIDECAR_CANARY_URL", "SIDECAR_CANARY_KEY_FILE"])
def test_without_its_secret_there_is_no_runner(tmp_path: Path, missing: str) -> None:
    """Its requests would be traffic."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    environ = {"SIDECAR_CANARY_URL": "http://x", "SIDECAR_CANARY_KEY_FILE": str(secret)}
    del environ[missing]

    with pytest.raises(ConfigError, match="SIDECAR_CANARY_KEY_FILE belong together"):
        create_runner(ExporterConfig.read(environ), read_suite())


def test_an_address_that_is_none_is_refused() -> None:
    """When the sidecar starts, not when the first round fails."""
    with pytest.raises(ConfigError, match="SIDECAR_CANARY_URL"):
        ExporterConfig.read({"SIDECAR_CANARY_URL": "localhost:8000"})


def test_a_key_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With the key's name."""
    config = ExporterConfig.read({"SIDECAR_CANARY_API_KEY_FILE": str(tmp_path / "absent")})

    with pytest.raises(ConfigError, match="SIDECAR_CANARY_API_KEY_FILE"):
        config.canary_api_key()


def test_a_clock_that_is_set_back_sets_rounds_back(server: OpenAiServer) -> None:
    """Or the engine would refuse the tags, which would come from ahead of its time, for an hour."""
    clock = FakeClock()
    running = CanaryRunner(read_suite(), Target(server.url, SECRET, "tiny"), QUICK, clock_ns=clock)
    running.run_round()
    clock.advance(-3600)
    running.run_round()

    now_ms = clock() // 1_000_000
    tags = [body["vllm_xargs"][XARG] for body in server.bodies[32:]]
    assert len(tags) == 32
    assert all(proven(each, SECRET, now_ms) for each in tags)
