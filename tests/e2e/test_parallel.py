"""Engines of several workers: each measures its part under its own name, and nothing twice.

Each way is served once, in float32; the server is gone when what it told is judged.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.attention_reference import heads_of
from tests.e2e.checks import EVERYTHING, Served, check, observed
from tests.e2e.harness import Stack, get_status, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

NUM_REQUESTS = 16
LAYERS = [0, 1, 2, 3]  # of the bundled model
# Without the binding the second finds no cores.
TWO_WORKERS = EVERYTHING | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
NUM_HEADS = 4  # of the bundled model


@dataclass(frozen=True)
class Told:
    """What one server answered, and what its sidecar told.

    replies: by the request id that the client saw, with the prompt added.
    records: by that id, then by source.
    """

    replies: dict[str, dict[str, Any]]
    records: dict[str, dict[str, dict[str, Any]]]
    status: dict[str, Any]
    samples: dict[str, float]
    ready: bool

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Engine workers that were heard, by name."""
        return {s["source"]: s for s in self.status["sources"] if s["role"] == "engine"}

    def served(self, source: str, **rank: Any) -> Iterator[Served]:
        """Requests that `source` measured; `rank` tells what it has of each."""
        for name, reply in self.replies.items():
            if source in self.records[name]:
                *tokens, final = reply["prompt"] + reply["tokens"]
                record = self.records[name][source]
                yield Served(record, tokens, reply["cached"], final=final, **rank)

    def total(self, metric: str, engine: int) -> float:
        """Sum of all series of a counter of one engine."""
        pattern = re.compile(rf'llm_internals_{metric}_total\{{.*engine="{engine}".*\}}')
        return sum(value for name, value in self.samples.items() if pattern.fullmatch(name))


@contextmanager
def _stopped(stack: Stack) -> Iterator[Stack]:
    try:
        yield stack.start()
    finally:
        stack.stop()


def _told(stack: Stack, prompts: Prompts, num_records: int) -> Told:
    """Serve a crowd at once, and wait for `num_records` records of each of its requests."""
    calls = [
        {"prompt": prompt, "max_tokens": 1 + number % 12, "request_id": f"crowd{number}"}
        for number, prompt in enumerate(prompts.mixed(NUM_REQUESTS, seed=21))
    ]
    with _stopped(stack):
        replies = stack.complete_all(calls)
        wait_for(lambda: len(stack.requests()) == num_records * NUM_REQUESTS, "all records")
        records: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for record in stack.requests():
            records[record["id"].rpartition("-0-")[0]][record["source"]] = record
        return Told(
            {
                reply["id"]: reply | {"prompt": call["prompt"]}
                for call, reply in zip(calls, replies, strict=True)
            },
            dict(records),
            stack.status(),
            stack.samples(),
            get_status(f"{stack.metrics_url}/readyz") == 200,
        )


@pytest.fixture(scope="module")
def tensor(folder: Path, prompts: Prompts) -> Told:
    """Two tensor-parallel workers."""
    args = ("--enforce-eager", "--tensor-parallel-size", "2")
    stack = Stack(folder / "tp2", dtype="float32", args=args, environ=TWO_WORKERS)
    return _told(stack, prompts, num_records=1)


@pytest.fixture(scope="module")
def pipeline(folder: Path, prompts: Prompts) -> Told:
    """Two pipeline stages, compiled: run eagerly on a CPU, the second of vLLM 0.32 crashes."""
    args = ("--pipeline-parallel-size", "2")
    stack = Stack(folder / "pp2", dtype="float32", args=args, environ=TWO_WORKERS)
    return _told(stack, prompts, num_records=2)


@pytest.fixture(scope="module")
def data(folder: Path, prompts: Prompts) -> Told:
    """Two data-parallel engines behind one front end."""
    args = ("--enforce-eager", "--data-parallel-size", "2")
    stack = Stack(folder / "dp2", dtype="float32", args=args, environ=TWO_WORKERS)
    return _told(stack, prompts, num_records=1)


def _computed(told: Told, source: str) -> int:
    return sum(len(served.tokens) - served.cached for served in told.served(source))


def _check_all_live(told: Told, names: list[str]) -> None:
    assert sorted(told.sources) == names
    assert {source["state"] for source in told.sources.values()} == {"live"}
    assert {source["errors"] == {} for source in told.sources.values()} == {True}
    assert told.ready


def test_the_first_tensor_parallel_worker_measures_the_whole_stream(tensor: Told) -> None:
    """Every request of a crowd has all layers, right numbers and each row once."""
    half = slice(0, NUM_HEADS // 2)
    served = list(tensor.served("engine-dp0-pp0-tp0", heads=half))

    assert len(served) == NUM_REQUESTS
    for each in served:
        assert each.record["layers"] == LAYERS
        check(each)


def test_the_second_tensor_parallel_worker_repeats_nothing(tensor: Told) -> None:
    """It is live and has no layer of its own; tokens are counted once."""
    _check_all_live(tensor, ["engine-dp0-pp0-tp0", "engine-dp0-pp0-tp1"])
    assert [s["num_layers"] for s in tensor.sources.values()] == [len(LAYERS), 0]
    assert [c["source"] for c in tensor.status["coverage"]] == ["engine-dp0-pp0-tp0"]
    assert tensor.total("observed_tokens", 0) == _computed(tensor, "engine-dp0-pp0-tp0")
    assert tensor.total("observed_requests", 0) == NUM_REQUESTS


def test_each_tensor_parallel_worker_measures_its_heads(tensor: Told) -> None:
    """Together they have every head of every layer, each under its global number and once."""
    rows: dict[tuple[str, str], float] = defaultdict(float)
    entropy: dict[str, float] = defaultdict(float)
    pattern = re.compile(
        r'llm_internals_attention_entropy_ratio_(count|sum)\{.*layer="(\d)".*head="(\d)"\}'
    )
    for name, value in tensor.samples.items():
        if found := pattern.fullmatch(name):
            kind, layer, head = found.groups()
            if kind == "count":
                rows[layer, head] += value
            else:
                entropy[head] += value
    served = list(tensor.served("engine-dp0-pp0-tp0"))
    expected = np.zeros(NUM_HEADS)
    for each in served:
        first = each.record["num_prompt_tokens"] - 1
        expected += heads_of(each.weights, each.tokens)[first:, :, :, 0].sum((0, 1))

    computed = sum(len(s.tokens) - s.record["num_prompt_tokens"] + 1 for s in served)
    assert set(rows) == {(str(k), str(h)) for k in LAYERS for h in range(NUM_HEADS)}
    assert set(rows.values()) == {computed}
    measured = [entropy[str(head)] for head in range(NUM_HEADS)]
    np.testing.assert_allclose(measured, expected, rtol=1e-3)


def test_each_pipeline_stage_measures_its_layers_by_their_global_ids(pipeline: Told) -> None:
    """Together the stages have every layer of every request once, with the right numbers."""
    _check_all_live(pipeline, ["engine-dp0-pp0-tp0", "engine-dp0-pp1-tp0"])
    for source, layers in (("engine-dp0-pp0-tp0", LAYERS[:2]), ("engine-dp0-pp1-tp0", LAYERS[2:])):
        served = list(pipeline.served(source, is_last=layers == LAYERS[2:]))
        assert len(served) == NUM_REQUESTS
        for each in served:
            assert each.record["layers"] == layers
            check(each)


def test_tokens_of_two_pipeline_stages_are_counted_once(pipeline: Told) -> None:
    """Both stages see every row; the totals of their engine do not add them up."""
    computed = _computed(pipeline, "engine-dp0-pp0-tp0")

    assert computed == _computed(pipeline, "engine-dp0-pp1-tp0")
    assert pipeline.total("observed_tokens", 0) == computed
    assert pipeline.total("observed_requests", 0) == NUM_REQUESTS
    name = 'llm_internals_residual_rms_count{model_name="tiny",engine="0",layer="%d"'
    for layer in LAYERS:
        rows = sum(v for k, v in pipeline.samples.items() if k.startswith(name % layer))
        assert rows == computed


def test_each_data_parallel_engine_speaks_for_itself(data: Told) -> None:
    """Both engines measure their own requests completely, each under its own engine label."""
    _check_all_live(data, ["engine-dp0-pp0-tp0", "engine-dp1-pp0-tp0"])
    shares = [list(data.served(f"engine-dp{dp}-pp0-tp0")) for dp in (0, 1)]

    assert sum(map(len, shares)) == NUM_REQUESTS
    for engine, served in enumerate(shares):
        assert served, f"engine {engine} was given no request"
        for each in served:
            assert each.record["layers"] == LAYERS
            check(each)
        assert data.total("observed_tokens", engine) == sum(observed(s.record) for s in served)
        assert data.total("observed_requests", engine) == len(served)
        # The front end's own count of the same engine: its label means the same engine.
        prompt_tokens = sum(s.record["num_prompt_tokens"] for s in served)
        assert data.total("prompt_tokens", engine) == prompt_tokens
