"""Right numbers: what is published is what the model computed, against transformers in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.e2e.compare import absolute, from_reference, relative
from tests.e2e.harness import MODEL, Stack
from tests.e2e.prompts import Prompts
from tests.e2e.reference import rows_of

pytestmark = pytest.mark.e2e

STATISTICS = ("mean", "min", "max", "log_mean")


def _records(stack: Stack, prompts: list[list[int]]) -> list[tuple[dict[str, Any], list[int]]]:
    """Serve `prompts` one after the other; each record with the tokens that were computed."""
    found = []
    for number, prompt in enumerate(prompts):
        done = stack.complete(prompt, 1 + number % 12, cache_salt=f"numbers-{number}")
        computed = prompt + done["tokens"][:-1]  # the last token is never fed back
        found.append((stack.record(done["id"]), computed))
    return found


def _errors(
    records: list[tuple[dict[str, Any], list[int]]], signal: str, distance: Callable[..., Any]
) -> np.ndarray:
    pairs = [
        from_reference(record, rows_of(MODEL, tokens), signal, what)
        for record, tokens in records
        for what in STATISTICS
        if (signal, what) != ("block_influence", "log_mean")  # logs of values near 0
    ]
    return distance(np.concatenate(pairs))


def _log_rms_errors(records: list[tuple[dict[str, Any], list[int]]]) -> np.ndarray:
    """Absolute error of mean log RMS, which is the relative error of the geometric mean RMS."""
    pairs = [
        from_reference(record, rows_of(MODEL, tokens), "residual_rms", "log_mean")
        for record, tokens in records
    ]
    return absolute(np.concatenate(pairs))


def _rms_errors(records: list[tuple[dict[str, Any], list[int]]]) -> np.ndarray:
    pairs = [
        from_reference(record, rows_of(MODEL, tokens), "residual_rms", what)
        for record, tokens in records
        for what in ("mean", "min", "max")
    ]
    return relative(np.concatenate(pairs))


def test_float32_serving_measures_what_transformers_computes(
    float32: Stack, prompts: Prompts
) -> None:
    """Every layer of 24 requests is right: RMS and peak to 1e-4 relative, influence to 1e-5."""
    records = _records(float32, prompts.mixed(24, seed=1))

    assert _rms_errors(records).max() < 1e-4
    assert _log_rms_errors(records).max() < 1e-4
    assert _errors(records, "residual_peak", relative).max() < 1e-4
    assert _errors(records, "block_influence", absolute).max() < 1e-5


def test_bfloat16_serving_is_as_right_as_bfloat16_allows(bfloat16: Stack, prompts: Prompts) -> None:
    """In bfloat16 the median relative error over 24 requests and all layers is below 3e-2."""
    records = _records(bfloat16, prompts.mixed(24, seed=2))

    assert np.median(_rms_errors(records)) < 3e-2
    assert np.median(_errors(records, "residual_peak", relative)) < 3e-2
    assert np.median(_errors(records, "block_influence", relative)) < 3e-2


def test_a_tap_on_half_of_the_residual_is_caught(
    launch: Callable[..., Stack], prompts: Prompts
) -> None:
    """The comparison above fails by orders of magnitude for the classic bug."""
    wrong = launch("half", dtype="float32", args=("--enforce-eager",), sabotage="half_residual")
    records = _records(wrong, prompts.mixed(8, seed=1))

    assert np.median(_rms_errors(records)) > 1e-2
    assert _errors(records, "block_influence", absolute).max() > 1e-2


def test_metrics_tell_what_the_requests_told(float32: Stack, prompts: Prompts) -> None:
    """Sums and counts on /metrics grow by exactly the sums and counts of the requests served."""
    labels = 'model_name="tiny",engine="0",layer="2",phase="prefill",position="rest"'
    name = f"llm_internals_residual_rms_sum{{{labels}}}"
    count = f"llm_internals_residual_rms_count{{{labels}}}"
    before = float32.samples()
    records = _records(float32, prompts.mixed(6, seed=3))
    after = float32.samples()

    populations = [record["populations"].get("prefill/rest") for record, _ in records]
    expected = sum(p["residual_rms"]["sum"][2] for p in populations if p)
    rows = sum(p["rows"][2] for p in populations if p)
    assert after[count] - before.get(count, 0) == rows
    assert after[name] - before.get(name, 0) == pytest.approx(expected, rel=1e-6)
