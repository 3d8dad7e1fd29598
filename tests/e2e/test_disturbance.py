"""Does not disturb: what is served does not depend on whether it is measured."""

import pytest

from tests.e2e.harness import Stack
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e


def test_greedy_tokens_are_the_same_with_and_without_the_tap(
    bfloat16: Stack, untapped: Stack, prompts: Prompts
) -> None:
    """50 prompts of mixed length give the same 24 greedy tokens, with everything measured."""
    calls = [{"prompt": prompt, "max_tokens": 24} for prompt in prompts.mixed(50, seed=11)]
    replies = [bfloat16.complete(**call) for call in calls]
    plain = [untapped.complete(**call)["tokens"] for call in calls]

    assert [reply["tokens"] for reply in replies] == plain
    assert all(len(tokens) == 24 for tokens in plain)
    tables = bfloat16.record(replies[-1]["id"])["tables"]
    assert "attention_mean" in tables, bfloat16.status()["sources"]
    assert [cell["count"] for cell in tables["attention_mean"]] == [1, 23] * 4
    assert [cell["count"] for cell in tables["confidence"]] == [24]


def test_a_tap_that_is_off_says_and_sends_nothing(untapped: Stack) -> None:
    """An installed package whose tap is off leaves no line in vLLM's log and no source here."""
    log = (untapped.folder / "vllm.log").read_text()

    assert "sidecar:" not in log
    assert untapped.status()["sources"] == []
    assert [name for name in untapped.samples() if "residual" in name] == []


def test_the_untapped_server_is_otherwise_the_same(bfloat16: Stack, untapped: Stack) -> None:
    """Both servers were compiled: neither fell back to eager mode."""
    for stack in (bfloat16, untapped):
        log = (stack.folder / "vllm.log").read_text()
        assert "torch.compile" in log or "Compil" in log
        assert "enforce_eager=False" in log
