"""What is going on now, as a real vLLM under the demo's traffic tells it, second by second."""

import json
import math
import urllib.request
from typing import Any

import pytest

from tests.e2e.harness import get_json, wait_for
from tests.e2e.observatory import Observatory

pytestmark = pytest.mark.e2e
WANTED = {"status", "column", "request"}


def timeline(observatory: Observatory, **asked: str) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    told: dict[str, Any] = get_json(f"{observatory.stack.api_url}/v1/timeline?{query}")
    return told


def busy(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns in which something was measured."""
    return [column for column in told["columns"] if column["values"] is not None]


@pytest.mark.parametrize(
    ("phase", "position"), [("prefill", "first"), ("prefill", "rest"), ("decode", "rest")]
)
def test_columns_are_what_the_layers_did(
    observatory: Observatory, phase: str, position: str
) -> None:
    """Every layer has a value in a busy second, within the extremes since the engine's start."""
    asked = {"signal": "residual_rms", "phase": phase, "position": position}
    wait_for(lambda: len(busy(timeline(observatory, **asked))) >= 3, "three busy seconds", 300)
    told = timeline(observatory, **asked)
    rows = get_json(f"{observatory.stack.api_url}/v1/layers")["rows"]
    mine = [row for row in rows if (row["phase"], row["position"]) == (phase, position)]
    means = {row["layer"]: row["signals"]["residual_rms"]["mean"] for row in mine}
    measured = sum(column["rows"] for column in busy(told))

    assert told["layers"] == sorted(means)
    assert 0 < measured <= max(row["rows"] for row in mine)
    assert all(None not in column["values"] for column in busy(told))
    for at, layer in enumerate(told["layers"]):
        values = [column["values"][at] for column in busy(told)]
        # The mean of seconds is not that of all rows, but it is the same model.
        assert math.log(sum(values) / len(values)) == pytest.approx(math.log(means[layer]), abs=0.3)


def test_lines_move_with_the_traffic(observatory: Observatory) -> None:
    """Tokens, first tokens, attention and confidence of a server at work, each within its range."""

    def lines() -> dict[str, list[float]]:
        told = get_json(f"{observatory.stack.api_url}/v1/timeline/lines")["lines"]
        return {name: [v for v in line["values"] if v is not None] for name, line in told.items()}

    wait_for(lambda: all(len(values) >= 3 for values in lines().values()), "all lines", 300)
    told = lines()

    assert max(told["tokens"]) > 0
    assert all(0 < value < 60 for value in told["first_token_p50"])
    assert all(0 <= value <= 1 for value in told["attention_entropy"])
    assert all(value >= 0.99 for value in told["attention_effective_tokens"])
    assert all(0 < value <= 1 for value in told["token_top1_probability"])


def test_events_tell_of_requests_as_they_finish(observatory: Observatory) -> None:
    """Each with an id under which the API has the whole."""
    found: dict[str, dict[str, Any]] = {}
    with urllib.request.urlopen(f"{observatory.stack.api_url}/v1/events", timeout=120) as stream:
        kind = ""
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found[kind] = json.loads(value)
            if found.keys() >= WANTED:
                break
    whole = get_json(f"{observatory.stack.api_url}/v1/requests/{found['request']['id']}")

    assert whole["requests"][0]["end_ns"] == found["request"]["end_ns"]
    assert found["status"]["num_sources"] >= 2
    assert found["status"]["summary"]["sentence"]
