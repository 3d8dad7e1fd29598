"""Alive or alarm: a tap that does not run is found, and never shown as a flat line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Stack, get_json, get_status, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

LIVE = 'llm_internals_tap_live{source="engine-dp0-pp0-tp0"}'


def _serve_one(stack: Stack, prompts: Prompts) -> None:
    stack.complete(prompts.cut([30], seed=31)[0], 4)
    wait_for(lambda: stack.source().get("state") not in (None, "starting"), "a verdict")


def test_a_running_tap_is_proven_alive(bfloat16: Stack, prompts: Prompts) -> None:
    """With every layer's pulse moving, the gauge is 1 and /readyz agrees."""
    _serve_one(bfloat16, prompts)

    assert bfloat16.samples()[LIVE] == 1
    assert get_status(f"{bfloat16.metrics_url}/readyz") == 200


def test_a_tap_attached_too_late_is_an_alarm(
    folder: Path, launch: Callable[..., Stack], prompts: Prompts
) -> None:
    """Hooks that came after the compile never fire: gauge 0, /readyz 503 with the reason."""
    late = launch("late", sabotage="late_tap", cache=folder / "late_cache")
    wait_for(lambda: late.source().get("state") == "dead", "dead before any request")
    _serve_one(late, prompts)

    assert late.samples()[LIVE] == 0
    assert get_status(f"{late.metrics_url}/readyz") == 503
    reasons = " ".join(get_json(f"{late.metrics_url}/readyz")["reasons"])
    assert "engine-dp0-pp0-tp0" in reasons
    assert "did not run" in reasons
    assert late.source()["dead_layers"] == list(range(late.source()["num_layers"]))


def test_an_old_compile_cache_kills_the_tap_and_the_fingerprint_saves_it(
    folder: Path, launch: Callable[..., Stack], prompts: Prompts
) -> None:
    """In one cache root: off, then on without fingerprint is dead; on with it is alive."""
    cache = folder / "one_cache"
    launch("cache-off", tap=False, cache=cache, sabotage="force_compile").stop()

    blind = launch("cache-blind", cache=cache, sabotage="force_compile,no_fingerprint")
    assert "Directly load AOT compilation" in (blind.folder / "vllm.log").read_text()
    _serve_one(blind, prompts)
    assert blind.source()["state"] == "dead"
    assert blind.samples()[LIVE] == 0
    blind.stop()

    sound = launch("cache-sound", cache=cache, sabotage="force_compile")
    _serve_one(sound, prompts)
    assert sound.source()["state"] == "live"
    assert sound.samples()[LIVE] == 1


def test_an_unread_release_serves_untapped_and_says_so(tmp_path: Path) -> None:
    """A vLLM outside the read range is not patched; one log line and one refused status."""
    script = Path(__file__).parent / "unread_release.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "ingest.sock")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["state"] == "refused"
    assert found["reason"] == "not_supported"
    assert "0.99.0" in found["detail"]
    assert found["patched"] is False
    assert done.stderr.count("serving untapped") == 1
