"""A caller's place in a trace, on real vLLM whose own tracing is off: right request, any route."""

import hashlib
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.harness import Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

NUM_CALLS = 24
ROUTES = ("chat", "completion")


def trace_id(name: str) -> str:
    """A trace id of its own for each name."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def post(
    stack: Stack, route: str, name: str, *, hang_up: bool = False, **options: Any
) -> list[bytes]:
    """One call by a client that names its trace; the lines of the answer, or the first few."""
    path = "/v1/chat/completions" if route == "chat" else "/v1/completions"
    asked: dict[str, Any] = {"prompt": "The quick brown fox"}
    if route == "chat":
        asked = {"messages": [{"role": "user", "content": "The quick brown fox"}]}
    body = {"model": "tiny", "max_tokens": 4, "ignore_eos": True, "temperature": 0.5, **asked}
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": name,
        "traceparent": f"00-{trace_id(name)}-{'5a' * 8}-01",
    }
    request = urllib.request.Request(stack.url + path, json.dumps(body | options).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        return [reply.readline() for _ in range(6)] if hang_up else reply.readlines()


def told(stack: Stack, name: str, num: int = 1) -> list[dict[str, Any]]:
    """The records of a client's request, once so many are joined with what the front end said."""

    def find() -> Any:
        mine = [r for r in stack.requests() if f"-{name}-" in r["id"]]
        known = [r for r in mine if r["serving"] or r["aborted"]]
        return known if len(known) == num else None

    return wait_for(find, f"{num} records of {name}")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_trace_reaches_the_record_of_its_request(
    float32: Stack, route: str, stream: bool
) -> None:
    """With the arrival, the first token and the sampling that the client asked for."""
    name = f"trace-{route}-{stream}".lower()
    before = time.time_ns()
    post(float32, route, name, stream=stream, top_p=0.75)
    (record,) = told(float32, name)
    serving = record["serving"]
    assert record["trace_id"] == trace_id(name)
    assert serving["traceparent"] == f"00-{trace_id(name)}-{'5a' * 8}-01"
    assert before <= serving["start_ns"] <= record["end_ns"]
    assert abs(serving["end_ns"] - serving["start_ns"] - 1e9 * serving["e2e"]) < 60e9
    assert 0 < serving["time_to_first_token"] <= serving["e2e"]
    assert (serving["max_tokens"], serving["temperature"], serving["top_p"]) == (4, 0.5, 0.75)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_every_answer_of_several_belongs_to_the_trace(float32: Stack, stream: bool) -> None:
    """vLLM makes a request of each."""
    name = f"several-{stream}".lower()
    post(float32, "completion", name, stream=stream, n=3)
    assert [r["trace_id"] for r in told(float32, name, 3)] == [trace_id(name)] * 3


def test_every_prompt_of_a_batch_belongs_to_the_trace(float32: Stack) -> None:
    """vLLM serves each in a task of its own."""
    post(float32, "completion", "batch", prompt=["The quick", "brown fox", "jumps over"])
    assert [r["trace_id"] for r in told(float32, "batch", 3)] == [trace_id("batch")] * 3


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_given_up_belongs_to_its_trace(float32: Stack, route: str) -> None:
    """vLLM has no stats of it, and yet its caller has a trace with a hole in it."""
    name = f"given-up-{route}"
    post(float32, route, name, hang_up=True, stream=True, max_tokens=900)
    (record,) = told(float32, name)
    assert record["aborted"]
    assert record["trace_id"] == trace_id(name)


def test_a_crowd_keeps_its_traces_apart(float32: Stack) -> None:
    """Callers at the same time, some without a trace, over the same few connections."""
    names = [f"together-{k:02}" for k in range(NUM_CALLS)]

    def call(number: int) -> None:
        if number % 4 == 3:
            float32.complete("The quick brown fox", 6, names[number])
        else:
            post(float32, ROUTES[number % 2], names[number], stream=number % 3 == 0)

    with ThreadPoolExecutor(NUM_CALLS) as pool:
        list(pool.map(call, range(NUM_CALLS)))
    found = {name: told(float32, name)[0]["trace_id"] for name in names}
    assert found == {
        name: "" if number % 4 == 3 else trace_id(name) for number, name in enumerate(names)
    }


def test_the_header_changes_no_answer(float32: Stack, prompts: Prompts) -> None:
    """Greedy tokens with a trace are those without; a broken header is no error of the client."""
    prompt = prompts.cut([40], seed=71)[0]
    plain = float32.complete(prompt, 16, "no-trace", cache_salt="a")["tokens"]
    for salt, header in {"b": f"00-{'ab' * 16}-{'cd' * 8}-01", "c": "not a trace"}.items():
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0.0}
        body |= {"ignore_eos": True, "return_token_ids": True, "cache_salt": salt}
        request = urllib.request.Request(
            f"{float32.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "traceparent": header},
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            assert json.load(reply)["choices"][0]["token_ids"] == plain
    assert not any("callers" in site for site in errors(float32))


def errors(stack: Stack) -> dict[str, int]:
    """Exceptions of ours that the front end has swallowed, by site."""
    return stack.source("frontend")["errors"]
