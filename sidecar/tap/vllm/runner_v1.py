"""Rows of model runner V1 (CPU builds, and GPU builds with VLLM_USE_V2_MODEL_RUNNER=0).

Seat: the instance's `_model_forward`. Dummy runs call the model directly and so pass it by, and at
that moment the persistent batch is in the order of the rows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sidecar.tap.rows import Batch, Ints


def matches(runner: Any) -> bool:
    """Whether `runner` has what is read here."""
    return hasattr(runner, "_model_forward") and hasattr(runner, "input_batch")


def wrap(
    runner: Any,
    draft_counts: Callable[[list[str]], Ints],
    observe: Callable[[Callable[[], Batch | None]], None],
) -> None:
    """Call `observe` with a reader of the batch after each real forward pass."""
    forward = runner._model_forward

    def model_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        observe(lambda: read(runner, draft_counts))
        return output

    runner._model_forward = model_forward


def surround(
    runner: Any,
    draft_counts: Callable[[list[str]], Ints],
    before: Callable[[Callable[[], Batch]], None],
    after: Callable[[Callable[[], Mapping[str, Any]]], None],
) -> None:
    """Call `before` and `after` around each real forward pass, outside of `wrap`.

    before: given a reader of the batch. after: given a reader of the attention metadata of each
    layer by its name, whose tensors are valid until the next step.
    """
    from vllm.forward_context import get_forward_context  # noqa: PLC0415 - only when on

    forward = runner._model_forward

    def model_forward(*args: Any, **kwargs: Any) -> Any:
        before(lambda: read(runner, draft_counts))
        output = forward(*args, **kwargs)
        after(lambda: get_forward_context().attn_metadata)
        return output

    runner._model_forward = model_forward


def read(runner: Any, draft_counts: Callable[[list[str]], Ints]) -> Batch:
    """The batch whose forward pass has just been launched, in row order."""
    batch = runner.input_batch
    num_reqs = batch.num_reqs
    ends = runner.query_start_loc.np[: num_reqs + 1].astype(np.int64)
    req_ids = list(batch.req_ids[:num_reqs])
    return Batch(
        req_ids,
        batch.num_computed_tokens_cpu[:num_reqs].astype(np.int64),
        np.diff(ends),
        batch.num_prompt_tokens[:num_reqs].astype(np.int64),
        draft_counts(req_ids),
        runner.discard_request_mask.np[:num_reqs].copy(),
    )
