"""Attention concentration is what dense attention is, of the right rows of the right requests."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sidecar.wire.frame import Cells, Request
from tests.e2e.attention_reference import heads_of
from tests.e2e.frames import Frames
from tests.e2e.harness import MODEL, Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

EVERYTHING = {
    "SIDECAR_ATTENTION_EVERY": "1",
    "SIDECAR_ATTENTION_REQUESTS": "64",
    "SIDECAR_ATTENTION_LAYERS": "64",
    "SIDECAR_BUDGET_SHARE": "0",
    "VLLM_SERVER_DEV_MODE": "1",
}
SHARED = 256  # tokens that a family of prompts has in common: two KV blocks on a CPU
NUM_REQUESTS = 24


class Served(NamedTuple):
    """A completion, its record, and the signals [T, L, heads, 4] of each row that it computed."""

    reply: dict[str, Any]
    request: Request
    expected: np.ndarray


class Engine:
    """A server whose frames this test reads itself."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.frames = Frames(stack.socket)

    def serve(self, calls: list[dict[str, Any]]) -> list[Served]:
        """Serve `calls` at once; each with its record and its reference."""
        with ThreadPoolExecutor(len(calls)) as pool:
            replies = list(pool.map(lambda call: self.stack.complete(**call), calls))
        served = []
        for call, reply in zip(calls, replies, strict=True):
            request = self.frames.request(reply["id"])
            tokens = call["prompt"] + reply["tokens"][:-1]  # the last one is never fed back
            served.append(Served(reply, request, heads_of(MODEL, tokens)))
        return served

    def dummy_batch(self) -> None:
        """Have the worker run the batch of one token with which idle ranks keep step."""
        body = json.dumps({"method": "execute_dummy_batch"}).encode()
        call = urllib.request.Request(
            f"{self.stack.url}/collective_rpc", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=300) as reply:
            assert reply.status == 200


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """A compiled float32 server that samples every request at every layer of every step."""
    yield from _started(Stack(folder / "attention", dtype="float32", environ=EVERYTHING))


def _started(stack: Stack) -> Iterator[Engine]:
    made = Engine(stack)
    try:
        stack.start_engine()
        yield made
    finally:
        stack.stop()
        made.frames.close()


def _crowd(prompts: Prompts, salt: str) -> list[dict[str, Any]]:
    """Requests of one token to several chunks, of many lengths, a third of one family."""
    trunk = prompts.cut([SHARED], seed=21)[0]
    return [
        {
            "prompt": trunk + prompt[:40] if number % 3 == 0 else prompt,
            "max_tokens": 1 + (7 * number) % 23,
            "request_id": f"{salt}{number}",
            "cache_salt": f"{salt}-family" if number % 3 == 0 else f"{salt}-own{number}",
        }
        for number, prompt in enumerate(prompts.mixed(NUM_REQUESTS, seed=22))
    ]


def _rows(served: Served) -> dict[int, np.ndarray]:
    """Query rows that are sampled, by phase: the last of the prompt, and all after it."""
    last = served.reply["prompt_tokens"] - 1
    return {0: np.array([last]), 1: np.arange(last + 1, len(served.expected))}


def _errors(served: Served) -> np.ndarray:
    """[n, 4] errors of the means over heads and rows of a request; the entropy's in nats."""
    (table,) = [table for table in served.request.tables if table.group == "attention_mean"]
    cells = Cells.unpack(table)
    assert table.axes == [["0", "1", "2", "3"], ["prefill", "decode"]]
    found = []
    for phase, rows in _rows(served).items():
        assert cells.count[:, phase].tolist() == [len(rows)] * 4
        if not len(rows):
            continue
        expected = served.expected[rows].mean((0, 2))
        errors = np.abs(cells.sums[:, phase, :, 0] / len(rows) - expected)
        errors[:, 0] *= np.log(max(2, rows[-1] + 1))
        errors[:, 2] /= expected[:, 2]
        found.append(errors)
    return np.concatenate(found)


def test_a_crowd_is_measured_as_dense_attention_is(engine: Engine, prompts: Prompts) -> None:
    """Of 24 concurrent requests, chunked and cached, each mean and each head's total is right."""
    before = engine.frames.cells("attention")
    calls = _crowd(prompts, "crowd")
    # The trunk goes first, so that its family finds it in the cache.
    trunk = {"prompt": [*calls[0]["prompt"][:SHARED], 1], "max_tokens": 1}
    served = engine.serve([trunk | {"request_id": "trunk", "cache_salt": "crowd-family"}])
    served += engine.serve(calls)

    assert sum(each.reply["cached"] > 0 for each in served) == NUM_REQUESTS // 3
    assert np.max([_errors(each).max(0) for each in served], 0).max() < 1e-3

    num_rows = [sum(len(_rows(each)[phase]) for each in served) for phase in (0, 1)]

    def totals() -> Cells | None:
        cells = engine.frames.cells("attention")
        if cells is None:
            return None
        counted = cells.count - (0 if before is None else before.count)
        return cells if (counted == np.array(num_rows)[None, :, None]).all() else None

    sums = wait_for(totals, "the totals of every head").sums[..., 0]
    sums = sums - (0 if before is None else before.sums[..., 0])
    for phase in (0, 1):
        rows = np.concatenate([each.expected[_rows(each)[phase]] for each in served])
        np.testing.assert_allclose(
            sums[:, phase] / num_rows[phase], rows.mean(0), rtol=1e-3, atol=1e-4
        )


def test_a_dummy_batch_after_a_large_one_harms_nobody(engine: Engine, prompts: Prompts) -> None:
    """With the rows of a long prompt still asked for, one token is computed; serving goes on."""
    (long, short) = prompts.cut([200, 20], seed=23)
    engine.serve([{"prompt": long, "max_tokens": 1, "request_id": "long"}])
    engine.dummy_batch()
    (after,) = engine.serve([{"prompt": short, "max_tokens": 6, "request_id": "after"}])

    assert _errors(after).max() < 1e-3
    assert engine.frames.status.state == "live"
    assert engine.frames.status.errors == {}
    assert "attention" not in engine.frames.status.absent


def test_the_rows_of_the_step_before_are_caught(folder: Path, prompts: Prompts) -> None:
    """The comparison above fails when the rows were chosen a step too early."""
    stack = Stack(
        folder / "early",
        dtype="float32",
        args=("--enforce-eager",),
        sabotage="early_picks",
        environ=EVERYTHING,
    )
    for engine in _started(stack):
        served = engine.serve(_crowd(prompts, "early"))
        errors = [_errors(each).max() for each in served]

        assert max(errors) > 0.1
