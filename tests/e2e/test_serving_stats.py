"""Ordinary stats stand beside the internals, and agree with what the client saw."""

import pytest

from tests.e2e.harness import Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

LABELS = 'model_name="tiny",engine="0"'


def test_tokens_and_latencies_of_served_requests_are_published(
    bfloat16: Stack, prompts: Prompts
) -> None:
    """Prompt, generated and finished counts grow by what was served; each latency is observed."""
    before = bfloat16.samples()
    served = [bfloat16.complete(p, 7) for p in prompts.cut([30, 60, 90], seed=21)]
    counters = {
        f"llm_internals_prompt_tokens_total{{{LABELS}}}": sum(r["prompt_tokens"] for r in served),
        f"llm_internals_generated_tokens_total{{{LABELS}}}": 21,
        f'llm_internals_finished_requests_total{{{LABELS},reason="length"}}': 3,
        f"llm_internals_time_to_first_token_seconds_count{{{LABELS}}}": 3,
        f"llm_internals_time_per_output_token_seconds_count{{{LABELS}}}": 3,
        f"llm_internals_e2e_request_latency_seconds_count{{{LABELS}}}": 3,
        f"llm_internals_request_queue_time_seconds_count{{{LABELS}}}": 3,
    }

    def grown() -> dict[str, float]:
        now = bfloat16.samples()
        return {name: now.get(name, 0) - before.get(name, 0) for name in counters}

    wait_for(lambda: grown() == counters, f"{grown()} becomes {counters}")


def test_a_request_that_was_hung_up_on_is_measured(bfloat16: Stack, prompts: Prompts) -> None:
    """A client that hangs up leaves a record without stats: vLLM reports no finish of it."""
    name = f'llm_internals_observed_requests_total{{{LABELS},adapter=""}}'
    before = bfloat16.samples().get(name, 0)
    bfloat16.abort(prompts.cut([20], seed=22)[0], 900, 3, "hangs-up")
    # More, when one that ended before is told only now.
    wait_for(lambda: bfloat16.samples().get(name, 0) > before, "the end is noticed")
    record = bfloat16.record("cmpl-hangs-up")

    assert record["coverage"]["observed"]["prefill"] == {"first": 4, "rest": 16}
    assert 0 < record["coverage"]["observed"]["decode"]["rest"] < 900
    assert record["serving"] is None


def test_a_request_is_joined_with_its_stats(bfloat16: Stack, prompts: Prompts) -> None:
    """The record of a request carries its finish reason and latency from the front end."""
    done = bfloat16.complete(prompts.cut([33], seed=23)[0], 5, "joined")
    stats = wait_for(lambda: bfloat16.record(done["id"])["serving"], "the stats arrive")

    assert stats["reason"] == "length"
    assert stats["generated_tokens"] == 5
    assert 0 < stats["e2e"] < 600
