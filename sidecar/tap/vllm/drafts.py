"""Draft tokens of model runner V1: how many were accepted, told when the runner itself knows.

Seat: the instance's `sample_tokens`, whose output holds the generated tokens on the host, brought
there by the runner for its own ends: nothing is waited for here. A request may end in the middle
of them; then the scheduler drops the rest, and so do we, by vLLM's own rule.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from sidecar.tap.rows import Ints


def wrap(runner: Any, settle: Callable[[Callable[[], Ints]], None]) -> None:
    """Call `settle` with a reader of the accepted drafts, [n] in batch order, after each step."""
    sample = runner.sample_tokens

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        output = sample(*args, **kwargs)
        if getattr(output, "req_ids", None):  # else no step was there to sample for
            settle(lambda: accepted(runner, output))
        return output

    runner.sample_tokens = sample_tokens


def accepted(runner: Any, output: Any) -> Ints:
    """[n] draft tokens that each request of `output` (a ModelRunnerOutput) keeps.

    Of k generated tokens k - 1 were drafts; none of a request whose prefill is unfinished.
    """
    counts = [
        _num_kept(runner, req_id, tokens) - 1 if len(tokens) > 1 else 0
        for req_id, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True)
    ]
    return np.array(counts, np.int64)


def _num_kept(runner: Any, req_id: str, tokens: list[int]) -> int:
    """How many of `tokens`, which the runner has already appended, the scheduler will keep."""
    from vllm.v1.core.sched.utils import check_stop  # noqa: PLC0415 - only with speculation

    state = runner.requests[req_id]
    num_before = len(state.output_token_ids) - len(tokens)
    for num_kept in range(1, len(tokens)):
        so_far = state.output_token_ids[: num_before + num_kept]
        if check_stop(_as_scheduled(state, so_far), runner.max_model_len):
            return num_kept
    return len(tokens)


def _as_scheduled(state: Any, output_token_ids: list[int]) -> Any:
    """The scheduler's view of a request, as far as its check of an end reads it."""
    params = state.sampling_params
    return SimpleNamespace(
        pooling_params=None,
        sampling_params=params,
        eos_token_id=getattr(params, "eos_token_id", None),
        max_tokens=params.max_tokens,
        output_token_ids=output_token_ids,
        num_output_tokens=len(output_token_ids),
        num_tokens=state.num_prompt_tokens + len(output_token_ids),
    )
