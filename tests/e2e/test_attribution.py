"""Right request: in a crowd, every request is measured as if it were served alone."""

import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sidecar.wire import canary
from sidecar.wire.canary import Canary
from tests.e2e.compare import between_records
from tests.e2e.harness import CANARY_SECRET, MODEL, Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

NUM_REQUESTS = 64
ABORTED = range(3, NUM_REQUESTS, 8)
SHARED = 256  # tokens that the prompts of a family have in common: two KV blocks on a CPU


def _crowd(prompts: Prompts) -> list[dict[str, Any]]:
    """64 requests of different lengths; every fourth one shares its beginning with family."""
    rng = random.Random(5)
    lengths = [rng.randrange(2, 300) for _ in range(NUM_REQUESTS)]
    assert len(set(lengths)) > NUM_REQUESTS // 2
    plain = prompts.cut(lengths, seed=5)
    trunk = prompts.cut([SHARED], seed=6)[0]
    return [
        {
            "prompt": trunk + prompt[:60] if number % 4 == 0 else prompt,
            "max_tokens": 4 + number % 29,
            "request_id": f"crowd{number}",
            "cache_salt": "family" if number % 4 == 0 else f"own{number}",
        }
        for number, prompt in enumerate(plain)
    ]


def _serve_together(stack: Stack, calls: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Serve `calls` at once, some of them hung up on midway; returns the survivors."""

    def serve(number: int) -> dict[str, Any] | None:
        call = calls[number]
        if number in ABORTED:
            stack.abort(call["prompt"], 500, 3, call["request_id"])
            return None
        return stack.complete(**call)

    # The trunk goes first, so that its family finds it in the cache.
    trunk = calls[0]["prompt"][:SHARED]
    stack.complete([*trunk, 1], 1, "trunk", cache_salt="family")
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        replies = list(pool.map(serve, range(NUM_REQUESTS)))
    return {number: reply for number, reply in enumerate(replies) if reply is not None}


def _serve_alone(stack: Stack, call: dict[str, Any], number: int) -> dict[str, Any]:
    """Serve one call of the crowd with nobody else there, and the same part of it cached."""
    salt = f"alone{number}"
    if call["cache_salt"] == "family":
        stack.complete([*call["prompt"][:SHARED], 1], 1, f"trunk{number}", cache_salt=salt)
    return stack.complete(**call | {"request_id": f"alone{number}", "cache_salt": salt})


def _settled(stack: Stack) -> dict[str, Any]:
    """Coverage of the engine, once nothing runs any more."""

    def counts() -> list[Any]:
        status = stack.status()
        return [status["coverage"], [s["requests_running"] for s in status["serving"]]]

    def is_still() -> bool:
        before = counts()
        time.sleep(1)
        return sum(before[1]) == 0 and before == counts()

    wait_for(is_still, "the engine is idle", every=0.7)
    return stack.status()["coverage"][0]


def test_a_crowd_is_measured_like_each_request_alone(float32: Stack, prompts: Prompts) -> None:
    """Of 64 concurrent requests, chunked, cached and aborted, each survivor keeps its numbers."""
    calls = _crowd(prompts)
    together = _serve_together(float32, calls)
    worst = 0.0
    for number, reply in together.items():
        alone = _serve_alone(float32, calls[number], number)
        assert alone["tokens"] == reply["tokens"]
        crowd_record, alone_record = float32.record(reply["id"]), float32.record(alone["id"])
        assert crowd_record["coverage"] == alone_record["coverage"]
        worst = max(worst, between_records(crowd_record, alone_record))

    assert len(together) == NUM_REQUESTS - len(ABORTED)
    assert worst < 1e-5


def test_every_token_is_counted_once(float32: Stack, prompts: Prompts) -> None:
    """Observed and cached tokens of a request are its tokens; totals are the sum of requests."""
    before = _settled(float32)
    known = {record["id"] for record in float32.requests()}
    calls = [call | {"cache_salt": call["cache_salt"] + "2"} for call in _crowd(prompts)]
    together = _serve_together(float32, calls)
    after = _settled(float32)

    for reply in together.values():
        coverage = float32.record(reply["id"])["coverage"]
        computed = reply["prompt_tokens"] + len(reply["tokens"]) - 1
        assert coverage["prefix_cached"] == reply["cached"]
        assert _observed(coverage) == computed - reply["cached"]
        assert coverage["lost"] == 0
    new = [r["coverage"] for r in float32.requests() if r["id"] not in known]
    assert any(c["prefix_cached"] for c in new)
    for field in ("prefix_cached", "lost", "recomputed"):
        assert sum(c[field] for c in new) == after[field] - before[field]
    assert sum(map(_observed, new)) == _observed(after) - _observed(before)
    assert len(new) == after["requests"] - before["requests"]


def test_rows_given_to_a_neighbour_are_caught(
    launch: Callable[..., Stack], prompts: Prompts
) -> None:
    """The comparison above fails when rows are attributed in another order than the batch's."""
    wrong = launch("swapped", dtype="float32", args=("--enforce-eager",), sabotage="swapped_rows")
    calls = [
        {"prompt": prompt, "max_tokens": 12, "request_id": f"swap{number}"}
        for number, prompt in enumerate(prompts.cut([40, 80, 120, 160], seed=8))
    ]
    together = wrong.complete_all([call | {"cache_salt": "together"} for call in calls])
    alone = [_serve_alone(wrong, call | {"cache_salt": ""}, n) for n, call in enumerate(calls)]

    coverage = [wrong.record(reply["id"])["coverage"] for reply in together]
    expected = [wrong.record(reply["id"])["coverage"] for reply in alone]
    assert coverage != expected


def _observed(coverage: dict[str, Any]) -> int:
    return sum(sum(by_place.values()) for by_place in coverage["observed"].values())


def test_a_request_is_known_by_its_route_and_a_canary_by_its_proof(
    float32: Stack, prompts: Prompts
) -> None:
    """What the client says arrives, within the operator's list; a wrong mac proves nothing."""
    prompt = prompts.cut([20], seed=8)[0]
    round_ms = time.time_ns() // 1_000_000
    good = canary.tag(Canary("greeting-1", round_ms), CANARY_SECRET)
    forged = canary.tag(Canary("greeting-1", round_ms), b"a stranger's idea of the secret!")
    told = {}
    for name, said in {
        "silent": None,
        "listed": {"llm_internals_route": "chat"},
        "unlisted": {"llm_internals_route": "shop"},
        "proven": {"llm_internals_route": "chat", "llm_internals_canary": good},
        "forged": {"llm_internals_canary": forged},
    }.items():
        reply = float32.complete(prompt, 2, f"said-{name}", cache_salt=name, vllm_xargs=said)
        told[name] = float32.signature(reply["id"])
    assert {name: (each["route"], each["canary"]) for name, each in told.items()} == {
        "silent": ("", ""),
        "listed": ("chat", ""),
        "unlisted": ("other", ""),
        "proven": ("chat", f"greeting-1@{round_ms}"),
        "forged": ("", ""),
    }
    residual = slice(4 * 2 * 4)  # of 4 layers, 2 phases; attention is sampled, and so may differ
    assert told["proven"]["values"][residual] == told["silent"]["values"][residual]


def test_the_manifest_is_that_of_the_files_served(float32: Stack) -> None:
    """Each file's digest is what this test computes, and the whole what `sha256sum` gives."""
    manifest = wait_for(
        lambda: (found := float32.source()["manifest"]) and found["state"] == "complete" and found,
        "the files are hashed",
    )
    assert manifest["reason"] == ""
    told = {file["name"]: file["sha256"] for file in manifest["files"]}
    on_disk = {path.name: path for path in MODEL.iterdir() if path.name in told}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(told)
    assert told == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in on_disk.items()
    }
    weights = sorted(name for name in told if not name.startswith("tokenizer"))
    lines = subprocess.run(
        ["sha256sum", *weights], cwd=MODEL, capture_output=True, check=True
    ).stdout
    assert manifest["weights_digest"] == hashlib.sha256(lines).hexdigest()
    identity = float32.source()["identity"]
    assert identity["weights_digest"] == manifest["weights_digest"]
    assert (identity["engine"], identity["dtype"]) == ("vllm", "float32")
    assert identity["num_layers"] == float32.source()["num_layers"] == 4
    for field in ("kernels", "attention_backend", "kv_cache_dtype", "engine_version"):
        assert identity[field], field
    assert (identity["tensor_parallel"], identity["pipeline_parallel"]) == (1, 1)
