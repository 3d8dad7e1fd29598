"""Rows of model runner V2 (GPU default since 0.32; dense models since 0.26).

Seat: the instance's `execute_model`. After a real step it leaves `execute_model_state`, whose
input batch is in the order of the rows (sorted per step, unlike the scheduler's). Dummy runs go
through the same method and are told apart by their argument.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from sidecar.tap.rows import Batch, Ints

_DUMMY_RUN_PLACE: Final = 2  # execute_model(scheduler_output, intermediate_tensors, dummy_run)


def matches(runner: Any) -> bool:
    """Whether `runner` has what is read here."""
    return hasattr(runner, "req_states") and hasattr(runner, "prepare_inputs")


def wrap(
    runner: Any,
    _draft_counts: Callable[[list[str]], Ints],
    observe: Callable[[Callable[[], Batch | None]], None],
) -> None:
    """Call `observe` with a reader of the batch after each real forward pass."""
    execute = runner.execute_model

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        output = execute(*args, **kwargs)
        if not _is_dummy(args, kwargs):
            observe(lambda: read(runner))
        return output

    runner.execute_model = execute_model


def surround(
    runner: Any,
    _draft_counts: Callable[[list[str]], Ints],
    before: Callable[[Callable[[], Batch]], None],
    after: Callable[[Callable[[], Mapping[str, Any]]], None],
) -> None:
    """Call `before` and `after` around each real forward pass, outside of `wrap`.

    before: given a reader of the batch. after: given a reader of the attention metadata of each
    layer by its name, whose tensors are valid until the next step.
    """
    prepare, execute = runner.prepare_inputs, runner.execute_model

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = prepare(*args, **kwargs)
        before(lambda: _batch(runner, batch))
        return batch

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        output = execute(*args, **kwargs)
        if not _is_dummy(args, kwargs) and runner.execute_model_state is not None:
            after(lambda: runner.execute_model_state.attn_metadata)
        return output

    runner.prepare_inputs = prepare_inputs
    runner.execute_model = execute_model


def read(runner: Any) -> Batch | None:
    """The batch whose forward pass has just been launched; None when the step had no tokens."""
    state = runner.execute_model_state
    return None if state is None else _batch(runner, state.input_batch)


def _batch(runner: Any, batch: Any) -> Batch:
    num_reqs = batch.num_reqs
    places = batch.idx_mapping_np[:num_reqs]
    starts = batch.num_computed_tokens_np[:num_reqs].astype(np.int64)
    counts = batch.num_scheduled_tokens[:num_reqs].astype(np.int64)
    return Batch(
        list(batch.req_ids[:num_reqs]),
        starts,
        counts,
        runner.req_states.prompt_len.np[places].astype(np.int64),
        # A preempted request has its generated tokens prefilled again: not its prompt alone.
        partial=starts + counts < runner.req_states.prefill_len.np[places],
    )


def _is_dummy(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    placed = args[_DUMMY_RUN_PLACE] if len(args) > _DUMMY_RUN_PLACE else False
    return bool(kwargs.get("dummy_run", placed))
