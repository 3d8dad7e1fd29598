"""Scans of a real server: each row of a chosen request is what transformers computes for it."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.wire import control
from sidecar.wire.scan import ANSWER_ROWS, CONFIDENCE, PROMPT_ROWS
from tests.e2e.harness import MODEL, Stack, get_json, get_status, wait_for
from tests.e2e.prompts import Prompts
from tests.e2e.reference import SIGNALS, logits_of, rows_of
from tests.tap.test_confidence import reference

pytestmark = pytest.mark.e2e

SECONDS = 300.0


@pytest.fixture(autouse=True)
def _nothing_is_asked_for_afterwards(float32: Stack) -> Iterator[None]:
    """The server is that of many tests."""
    yield
    control.remove(float32.socket.with_name("control.json"))


def ask(stack: Stack, num_requests: int) -> None:
    """Have the next requests scanned; returns once the tap has heard of it."""
    request = urllib.request.Request(
        f"{stack.api_url}/v1/scans",
        json.dumps({"num_requests": num_requests}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        revision = json.load(reply)["revision"]
    wait_for(lambda: stack.source().get("control") == revision, "the wish is heard", SECONDS)


def scans(stack: Stack) -> set[str]:
    """Ids of what was scanned so far."""
    return {each["id"] for each in get_json(f"{stack.api_url}/v1/scans")["scans"]}


def scan_of(stack: Stack, completion_id: str) -> dict[str, Any]:
    """The scan of a request by the id that its client saw; waited for until it is complete."""
    url = f"{stack.api_url}/v1/requests/{completion_id}-0/scan"

    def told() -> Any:
        found = get_json(url)
        return found if found.get("is_complete") else None

    return wait_for(told, f"the scan of {completion_id}", SECONDS)


def assert_equals_transformers(scan: dict[str, Any], prompt: list[int], tokens: list[int]) -> None:
    """Every signal of every layer in each column, and the confidence in each token generated."""
    computed = prompt + tokens[:-1]  # the last token is never fed back
    at = np.array(scan["positions"])
    alone = rows_of(MODEL, computed)
    for name in SIGNALS:
        told = np.array(scan["signals"][name]["values"], float)
        expected = getattr(alone, name)[at]
        if name == "block_influence":
            np.testing.assert_allclose(told, expected, atol=1e-5)
        else:
            np.testing.assert_allclose(told, expected, rtol=1e-4)
    assert scan["phases"] == ["prefill" if p < len(prompt) else "decode" for p in at]
    led = at >= len(prompt) - 1
    logits = torch.from_numpy(logits_of(MODEL, computed)[at[led]])
    chosen = [tokens[p - len(prompt) + 1] for p in at[led]]
    for place, signal in enumerate(CONFIDENCE):
        told = np.array(scan["confidence"][signal.id]["values"], float)
        assert np.isnan(told[~led]).all()
        expected = reference(logits, chosen)[:, place]
        np.testing.assert_allclose(told[led], expected, rtol=1e-4, atol=1e-4, err_msg=signal.id)


def test_each_row_of_a_crowd_is_what_transformers_computes(
    float32: Stack, prompts: Prompts
) -> None:
    """Four of eight concurrent requests, prefilled in chunks: no row is another request's."""
    before = scans(float32)
    ask(float32, 4)
    calls = {
        f"scanned{number}": prompt
        for number, prompt in enumerate(prompts.cut([3, 40, 90, 300, 257, 400, 12, 60], seed=41))
    }
    replies = float32.complete_all(
        [
            {"prompt": prompt, "max_tokens": 12, "request_id": name, "cache_salt": name}
            for name, prompt in calls.items()
        ]
    )
    wait_for(lambda: len(scans(float32) - before) >= 4, "four scans", SECONDS)
    chosen = [
        r for r in replies if any(each.startswith(f"{r['id']}-0-") for each in scans(float32))
    ]
    assert len(chosen) == 4

    for reply in chosen:
        scan = scan_of(float32, reply["id"])
        prompt = calls[reply["id"].removeprefix("cmpl-")]
        assert scan["positions"] == list(range(len(prompt) + 11))
        assert (scan["num_rows_left_out"], scan["nonfinite"]) == (0, None)
        assert_equals_transformers(scan, prompt, reply["tokens"])
    float32.complete(calls["scanned1"], 2, "unscanned")
    float32.record("cmpl-unscanned")
    assert len(scans(float32) - before) == 4


def test_a_scan_has_the_end_of_a_long_prompt_and_says_what_it_lacks(
    float32: Stack, prompts: Prompts
) -> None:
    """What the cache held was never computed; what lies before the window is not told."""
    (prompt,) = prompts.cut([700], seed=42)
    float32.complete(prompt[:300], 1, "trunk", cache_salt="scan")
    ask(float32, 2)
    cached = float32.complete(prompt[:420], 6, "cached", cache_salt="scan")
    long = float32.complete(prompt, 6, "long", cache_salt="other")

    scan = scan_of(float32, cached["id"])
    assert cached["cached"] > 0
    assert scan["num_rows_left_out"] == cached["cached"]
    assert scan["positions"] == list(range(cached["cached"], 425))
    assert_equals_transformers(scan, prompt[:420], cached["tokens"])

    scan = scan_of(float32, long["id"])
    assert scan["positions"] == list(range(700 - PROMPT_ROWS, 705))
    assert (scan["num_rows"], scan["num_rows_left_out"]) == (705, 700 - PROMPT_ROWS)
    assert_equals_transformers(scan, prompt, long["tokens"])


def test_a_scanned_request_is_answered_like_any_other(float32: Stack, prompts: Prompts) -> None:
    """The same tokens, the same record; one whose client hangs up is complete too."""
    (prompt,) = prompts.cut([120], seed=43)
    plain = float32.complete(prompt, 20, "plain", cache_salt="a")
    ask(float32, 2)
    scanned = float32.complete(prompt, 20, "same", cache_salt="b")
    float32.abort(prompt, 500, 3, "gone")
    assert scanned["tokens"] == plain["tokens"]

    record, scan = float32.record(scanned["id"]), scan_of(float32, scanned["id"])
    rows = np.array(scan["signals"]["residual_rms"]["values"])
    sums = [each["residual_rms"]["sum"] for each in record["populations"].values()]
    np.testing.assert_allclose(rows.sum(0), np.sum(sums, 0), rtol=1e-5)
    gone = scan_of(float32, "cmpl-gone")
    assert 120 <= len(gone["positions"]) <= 120 + ANSWER_ROWS
    assert gone["num_rows_left_out"] == 0


def test_an_operator_asks_and_reads_on_a_shell(float32: Stack, prompts: Prompts) -> None:
    """`sidecar control --scan`, then `sidecar scan`."""
    environ = {**os.environ, "SIDECAR_SOCKET": str(float32.socket)}

    def sidecar(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout

    asked = sidecar("control", "--scan", "1").partition("\n")[0]
    revision = asked.partition(": revision ")[2]
    wait_for(lambda: float32.source().get("control") == revision, "the wish is heard", SECONDS)
    reply = float32.complete(prompts.cut([9], seed=44)[0], 4, "shell")
    scan = scan_of(float32, reply["id"])
    listed = sidecar("scan", "--url", float32.api_url)
    assert scan["id"] in listed
    lines = sidecar("scan", scan["id"], "--csv", "--url", float32.api_url).splitlines()

    assert lines[0].split(",")[:3] == ["position", "phase", "l0"]
    assert len(lines) == 1 + 12
    told = [float(cell) for cell in lines[3].split(",")[2:6]]
    assert told == pytest.approx(scan["signals"]["residual_rms"]["values"][2], rel=1e-5)


def test_no_one_is_scanned_who_was_not_asked_for(float32: Stack, prompts: Prompts) -> None:
    """Nothing of a request is told row by row without a wish."""
    reply = float32.complete(prompts.cut([30], seed=45)[0], 3, "private")
    float32.record(reply["id"])

    assert get_status(f"{float32.api_url}/v1/requests/{reply['id']}-0/scan") == 404
