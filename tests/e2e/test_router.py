"""Routers of a mixture of experts: what is measured is what the gates of transformers decide."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sidecar.wire.frame import Cells, Request, Signatures
from tests.e2e.architectures import write_model
from tests.e2e.frames import Frames
from tests.e2e.harness import BATCH_TOKENS, Stack, wait_for
from tests.e2e.prompts import Prompts
from tests.e2e.reference import Decisions, decisions_of

pytestmark = pytest.mark.e2e

NUM_LAYERS, NUM_EXPERTS, NUM_CHOSEN = 3, 8, 2
LENGTHS = [1, 2, 5, 600, 40, BATCH_TOKENS, 90, BATCH_TOKENS + 1, 13, 150, 300, 7]


class Served(NamedTuple):
    """One server, and what was sent through it at once: each record with what it must say."""

    frames: Frames
    requests: list[tuple[Request, Decisions]]


@pytest.fixture(scope="module")
def served(folder: Path, prompts: Prompts) -> Iterator[Served]:
    """A compiled float32 server of a tiny mixture of experts, after a dozen requests at once."""
    model = write_model("qwen3_moe", folder / "models" / "router")
    stack = Stack(folder / "router", dtype="float32", model=model)
    with Frames(stack.socket) as frames:
        try:
            stack.start_engine()
            yield Served(frames, _serve(stack, frames, prompts.cut(LENGTHS, seed=11)))
        finally:
            stack.stop()


def _serve(
    stack: Stack, frames: Frames, prompts: list[list[int]]
) -> list[tuple[Request, Decisions]]:
    calls = [
        {"prompt": prompt, "max_tokens": 3 + number, "cache_salt": str(number)}
        for number, prompt in enumerate(prompts)
    ]
    found = []
    for prompt, done in zip(prompts, stack.complete_all(calls), strict=True):
        computed = prompt + done["tokens"][:-1]  # the last token is never fed back
        found.append((frames.request(done["id"]), decisions_of(stack.model, computed)))
    return found


def _cells(request: Request) -> Cells:
    (table,) = (table for table in request.tables if table.group == "router")
    assert table.axes == [["0", "1", "2"], ["prefill", "decode"]]
    return Cells.unpack(table)


def test_gates_are_measured_as_transformers_decides(served: Served) -> None:
    """Entropy and margin of 12 requests at once: mean, least and largest to 1e-3, counts exact."""
    for request, decisions in served.requests:
        cells = _cells(request)
        for phase, rows in enumerate(_phases(request, decisions)):
            assert (cells.count[:, phase] == len(rows)).all()
            want = np.stack([decisions.gate_entropy[rows], decisions.topk_margin[rows]], -1)
            got = cells.sums[:, phase, :, 0] / len(rows)
            np.testing.assert_allclose(got, want.mean(0), rtol=0, atol=1e-3)
            np.testing.assert_allclose(cells.extremes[:, phase, :, 0], want.min(0), atol=1e-3)
            np.testing.assert_allclose(cells.extremes[:, phase, :, 1], want.max(0), atol=1e-3)


def test_gates_of_the_test_disagree(served: Served) -> None:
    """The comparison above means something: requests and layers differ by far more than 1e-3."""
    entropies = np.array([each.gate_entropy.mean(0) for _, each in served.requests])
    assert np.ptp(entropies, 0).min() > 1e-2
    assert np.ptp(entropies, 1).min() > 1e-2


def test_every_row_is_counted_at_the_experts_it_was_sent_to(served: Served) -> None:
    """The load of each expert is exactly the rows that transformers sends there."""
    experts = np.concatenate([each.experts for _, each in served.requests])
    want = np.stack([np.bincount(e.ravel(), minlength=NUM_EXPERTS) for e in experts.swapaxes(0, 1)])

    def load() -> np.ndarray | None:
        table = served.frames.table("expert_load")
        counts = None if table is None else Cells.unpack(table).count
        return counts if counts is not None and counts.sum() >= want.sum() else None

    got = wait_for(lambda: load() is not None, "the load of every row") and load()
    assert got.shape == (NUM_LAYERS, NUM_EXPERTS)
    assert got.sum() == NUM_LAYERS * NUM_CHOSEN * len(experts)
    np.testing.assert_array_equal(got, want)


def test_totals_are_the_sum_of_the_requests(served: Served) -> None:
    """Over all requests the same rows are added up once."""
    table = served.frames.table("router")
    totals = Cells.unpack(table)
    requests = [_cells(request) for request, _ in served.requests]
    np.testing.assert_array_equal(totals.count, sum(each.count for each in requests))
    np.testing.assert_allclose(totals.sums, sum(each.sums for each in requests), rtol=1e-9)


def test_signatures_carry_the_gates(served: Served) -> None:
    """The layout names the layers of the gates, nothing is absent, and nothing went wrong."""
    assert served.frames.all(Signatures)[-1].layout.router_layers == [0, 1, 2]
    status = served.frames.status
    assert not {"router", "expert_load"} & set(status.absent)
    assert not status.errors
    assert status.state == "live"


def _phases(request: Request, decisions: Decisions) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(decisions.gate_entropy))
    return rows[: request.num_prompt_tokens], rows[request.num_prompt_tokens :]
