"""What must hold of a request, whatever the way it was served: right numbers, each row once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.compare import absolute, from_reference, relative
from tests.e2e.harness import MODEL
from tests.e2e.reference import rows_of


@dataclass(frozen=True)
class Served:
    """One request that was served, and what one engine rank measured of it.

    tokens: prompt and generated tokens but the last, which is never fed back: one row each.
    cached: of them, those that vLLM took from its prefix cache.
    weights: folder of the weights that it was served with.
    """

    record: dict[str, Any]
    tokens: list[int]
    cached: int = 0
    weights: Path = MODEL


def check(served: Served) -> None:
    """Every group of signals of one request, and its coverage."""
    check_coverage(served)
    check_residual(served)


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


def check_coverage(served: Served) -> None:
    """Each row is observed once, unless it came from the cache."""
    coverage = served.record["coverage"]
    assert coverage["prefix_cached"] == served.cached
    assert coverage["lost"] == 0
    assert observed(served.record) == len(served.tokens) - served.cached


def observed(record: dict[str, Any]) -> int:
    """Rows of a request that were measured."""
    return sum(sum(by_place.values()) for by_place in record["coverage"]["observed"].values())
