"""Every architecture: what its server measures is what transformers computes from its weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest

from tests.e2e import checks
from tests.e2e.architectures import ARCHITECTURES, NUM_LAYERS, write_model
from tests.e2e.compare import absolute, from_reference, relative
from tests.e2e.harness import Stack
from tests.e2e.prompts import Prompts
from tests.e2e.reference import Rows, rows_of

pytestmark = pytest.mark.e2e

LENGTHS: Final = [1, 3, 5, 17, 40, 90, 130, 200]  # two prefill chunks, and more than any window
ARGS: Final = ("--enforce-eager", "--max-num-batched-tokens", "128", "--max-num-seqs", "8")


class Served(NamedTuple):
    """One server, and what it was asked at once: each record with the rows it must tell of."""

    stack: Stack
    requests: list[tuple[dict[str, Any], Rows]]
    checked: list[checks.Served]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def served(request: pytest.FixtureRequest, folder: Path, prompts: Prompts) -> Iterator[Served]:
    """A float32 server of one architecture, after eight requests at once."""
    name = request.param
    model = write_model(name, folder / "models" / name)
    settings = {"dtype": "float32", "args": ARGS, "environ": checks.EVERYTHING}
    stack = Stack(folder / name, model=model, **settings)
    try:
        stack.start()
        yield _serve(stack, prompts.cut(LENGTHS, seed=5))
    finally:
        stack.stop()


def _serve(stack: Stack, prompts: list[list[int]]) -> Served:
    calls = [
        {"prompt": prompt, "max_tokens": 2 + number, "cache_salt": str(number)}
        for number, prompt in enumerate(prompts)
    ]
    answers = stack.complete_all(calls)
    served = Served(stack, [], [])
    for prompt, done in zip(prompts, answers, strict=True):
        *computed, final = prompt + done["tokens"]  # the last token is never fed back
        record = stack.record(done["id"])
        served.requests.append((record, rows_of(stack.model, computed)))
        served.checked.append(checks.Served(record, computed, weights=stack.model, final=final))
    return served


def every_row_is_measured(served: Served) -> None:
    """Each token of each request has its row in every layer."""
    for record, rows in served.requests:
        counts = [each["rows"] for each in record["populations"].values()]
        assert np.sum(counts, 0).tolist() == [len(rows.residual_rms)] * NUM_LAYERS


def rms_is_right(served: Served) -> None:
    """Mean, least and largest RMS of each request, to 1e-4 relative."""
    assert relative(_pairs(served, "residual_rms")).max() < 1e-4


def peak_is_right(served: Served) -> None:
    """Mean, least and largest peak ratio of each request, to 1e-4 relative."""
    assert relative(_pairs(served, "residual_peak")).max() < 1e-4


def influence_is_right(served: Served) -> None:
    """Mean, least and largest block influence of each request, to 1e-5 absolute."""
    assert absolute(_pairs(served, "block_influence")).max() < 1e-5


def attention_is_right(served: Served) -> None:
    """Mean over the heads, of each layer; windows and scales of the architecture in it."""
    for each in served.checked:
        checks.check_attention(each)


def confidence_is_right(served: Served) -> None:
    """Of every generated token, from the logits as the architecture makes them."""
    for each in served.checked:
        checks.check_confidence(each)


CHECKS: Final[tuple[Callable[[Served], None], ...]] = (
    every_row_is_measured,
    rms_is_right,
    peak_is_right,
    influence_is_right,
    attention_is_right,
    confidence_is_right,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_is_measured_is_right(served: Served, check: Callable[[Served], None]) -> None:
    """Each check, of requests that were served together, against transformers in float32."""
    check(served)


def _pairs(served: Served, signal: str) -> np.ndarray:
    return np.concatenate(
        [
            from_reference(record, rows, signal, what)
            for record, rows in served.requests
            for what in ("mean", "min", "max")
        ]
    )
