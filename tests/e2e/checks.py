"""What must hold of a request, whatever the way it was served: right numbers, each row once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.attention_reference import heads_of
from tests.e2e.compare import absolute, from_reference, relative
from tests.e2e.harness import MODEL
from tests.e2e.reference import logits_of, rows_of

# Every request sampled at every layer of every step.
EVERYTHING = {
    "SIDECAR_ATTENTION_EVERY": "1",
    "SIDECAR_ATTENTION_REQUESTS": "64",
    "SIDECAR_ATTENTION_LAYERS": "64",
}


@dataclass(frozen=True)
class Served:
    """One request that was served, and what one engine rank measured of it.

    tokens: prompt and generated tokens but the last, which is never fed back: one row each.
    cached: of them, those that vLLM took from its prefix cache.
    weights: folder of the weights that it was served with.
    heads: those that this rank has. is_last: whether it is the stage that samples tokens.
    final: the last generated token.
    """

    record: dict[str, Any]
    tokens: list[int]
    cached: int = 0
    weights: Path = MODEL
    heads: slice = field(default_factory=lambda: slice(None))
    is_last: bool = True
    final: int | None = None


def check(served: Served) -> None:
    """Every group of signals of one request, and its coverage.

    The server samples attention at every layer of every step (`EVERYTHING`).
    """
    check_coverage(served)
    check_residual(served)
    check_attention(served)
    check_confidence(served)


def check_residual(served: Served) -> None:
    """Each layer's residual signals are what transformers computes alone, in float32."""
    rows = rows_of(served.weights, served.tokens)
    for signal, distance, limit in (
        ("residual_rms", relative, 1e-4),
        ("residual_peak", relative, 1e-4),
        ("block_influence", absolute, 1e-5),
    ):
        pairs = [
            from_reference(served.record, rows, signal, what) for what in ("mean", "min", "max")
        ]
        assert distance(np.concatenate(pairs)).max() < limit, (served.record["id"], signal)


def check_attention(served: Served) -> None:
    """Means over heads and rows, of the last prompt row and the decode rows, per layer."""
    expected = heads_of(served.weights, served.tokens)[:, :, served.heads].mean(2)
    last = served.record["num_prompt_tokens"] - 1
    rows = {"prefill": np.array([last]), "decode": np.arange(last + 1, len(served.tokens))}
    cells = _cells(served.record, "attention_mean")
    assert set(cells) == {
        (str(layer), phase)
        for layer in served.record["layers"]
        for phase, each in rows.items()
        if len(each)
    }
    for (layer, phase), cell in cells.items():
        assert cell["count"] == len(rows[phase]), (served.record["id"], phase)
        of_layer = expected[rows[phase], int(layer)].mean(0)
        measured = [signal["mean"] for signal in cell["signals"].values()]
        np.testing.assert_allclose(measured, of_layer, rtol=1e-3, atol=1e-4)


def check_confidence(served: Served) -> None:
    """Means over the generated tokens, against the logits that transformers computes."""
    cells = _cells(served.record, "confidence")
    if not served.is_last or served.final is None:
        assert served.is_last or not cells
        return
    first = served.record["num_prompt_tokens"] - 1
    logits = logits_of(served.weights, served.tokens)[first:]
    logs = logits - logsumexp(logits)
    ranked = np.sort(np.exp(logs), -1)
    chosen = [*served.tokens[first + 1 :], served.final]
    expected = {
        "entropy": -(np.exp(logs) * logs).sum(-1),
        "top1_probability": ranked[:, -1],
        "top1_margin": ranked[:, -1] - ranked[:, -2],
        "surprisal": -logs[np.arange(len(chosen)), chosen],
        "logsumexp": logsumexp(logits)[:, 0],
    }
    (cell,) = cells.values()
    assert cell["count"] == len(chosen)
    for name, values in expected.items():
        measured = cell["signals"][name]["mean"]
        np.testing.assert_allclose(measured, values.mean(), rtol=1e-3, atol=1e-4, err_msg=name)


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis, which stays."""
    most = logits.max(-1, keepdims=True)
    total: np.ndarray = most + np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return total


def _cells(record: dict[str, Any], group: str) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(cell["labels"].values()): cell for cell in record["tables"].get(group, [])}


def check_coverage(served: Served) -> None:
    """Each row is observed once, unless it came from the cache."""
    coverage = served.record["coverage"]
    assert coverage["prefix_cached"] == served.cached
    assert coverage["lost"] == 0
    assert observed(served.record) == len(served.tokens) - served.cached


def observed(record: dict[str, Any]) -> int:
    """Rows of a request that were measured."""
    return sum(sum(by_place.values()) for by_place in record["coverage"]["observed"].values())
