"""The seat of confidence in a runner: the logits that its sampler gets, the tokens it returns.

V1: the instance's `_sample`, which dummy runs and prompt log-probabilities pass by. V2: the
instance's `sample`, and within it the call of the sampler; outside it (dummy runs) the sampler is
not listened to. Nothing here asks vLLM for log-probabilities, and nothing waits for the device.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

from sidecar.errors import TapRefused
from sidecar.tap.confidence import Confidence, LogitRows, TokenSignals
from sidecar.tap.engine import EngineTap, Step
from sidecar.tap.roster import Roster
from sidecar.tap.vllm import runner_v2
from sidecar.tap.vllm.fitting import Workbench

_GROUP: Final = "confidence"


def fit(bench: Workbench) -> None:
    """Listen to the sampler of `bench.runner`, where this rank has the logits and speaks.

    They are on the last pipeline stage, the same on every rank of a tensor-parallel group.
    Raises TapRefused when this rank samples for some of the requests only, or in a way unread.
    """
    stages = getattr(bench.vllm_config.parallel_config, "pipeline_parallel_size", 1)
    if bench.source.tp or bench.source.pp + 1 != stages:
        return
    is_v2 = runner_v2.matches(bench.runner)
    seats = ("sample", "sampler") if is_v2 else ("_sample",)
    if any(getattr(bench.runner, name, None) is None for name in seats):
        raise TapRefused(
            f"{type(bench.runner).__name__} samples in a way that has not been read; install one "
            "of the releases that have"
        )
    if is_v2 and getattr(bench.runner, "batch_sharder", None) is not None:
        raise TapRefused(
            "batch-sharded sampling: each rank has the logits of some requests only; serve "
            "without --enable-batch-sharded-sampling to measure it"
        )
    speculative = bench.vllm_config.speculative_config
    num_drafts = 0 if speculative is None else speculative.num_speculative_tokens
    max_rows = bench.max_requests * (1 + num_drafts)
    sampler = Confidence(Roster(bench.config.adapters).adapters, max_rows, bench.device)
    if bench.device.type == "cuda":
        # In the model's own type or in float32, as the runner hands them over.
        types = {bench.vllm_config.model_config.dtype, torch.float32}
        sampler.rehearse(bench.vllm_config.model_config.get_vocab_size(), types)
    bench.instruments.samplers.append(sampler)
    wrap = _wrap_v2 if is_v2 else _wrap_v1
    bench.seats.append(lambda tap: wrap(bench.runner, _Listener(bench, sampler, tap)))


class _Begun(NamedTuple):
    """What was read before the sampler ran; `logits` still hold what each token had."""

    step: Step
    rows: LogitRows
    logits: torch.Tensor
    signals: TokenSignals


class _Listener:
    """Stands around one call of a sampler: reads before it what it may overwrite, then its choice.

    The call is the host's own: its result and its exceptions pass as they are.
    """

    def __init__(self, bench: Workbench, sampler: Confidence, tap: EngineTap) -> None:
        self._guard = bench.guard
        self._absent = bench.instruments.absent
        self._sampler = sampler
        self._tap = tap
        self._heard: Step | None = None

    def around(
        self, logits: torch.Tensor, call: Callable[[], Any], *, overwrites_float32: bool = False
    ) -> Any:
        """Result of `call`, which samples from `logits`, [N, V], and may overwrite them."""
        begun = self._guard.run(_GROUP, self._begin, logits, overwrites_float32)
        output = call()
        if begun is not None:
            self._guard.run(_GROUP, self._end, begun, output)
        return output

    def _begin(self, logits: torch.Tensor, overwrites_float32: bool) -> _Begun | None:
        tap, step = self._tap, self._tap.last_step
        if step is None or step is self._heard:  # no step was observed that this call could end
            return None
        self._heard = step
        if _GROUP in self._absent or not tap.orders.samples_confidence(tap.step):
            return None
        rows = LogitRows.of(step.batch)
        if len(rows.owners) != len(logits):
            self._absent[_GROUP] = (
                f"{len(logits)} rows of logits for {len(rows.owners)} tokens: this engine samples "
                "in a way that has not been read; serve with an option less, or report it"
            )
            return None
        is_overwritten = overwrites_float32 and logits.dtype == torch.float32
        kept = logits.clone() if is_overwritten else logits
        return _Begun(step, rows, kept, self._sampler.read(logits))

    def _end(self, begun: _Begun, output: Any) -> None:
        tokens = self._sampler.chosen(begun.rows, output.sampled_token_ids)
        values = begun.signals.values(begun.logits, tokens)
        self._sampler.collect(self._tap, begun.step, begun.rows, values)


def _wrap_v1(runner: Any, listener: _Listener) -> None:
    original = runner._sample

    def sample(logits: Any, spec_decode_metadata: Any) -> Any:
        # V1 works on a float32 copy of the logits, which is no copy when they are float32; its
        # rejection sampler takes copies by index.
        return listener.around(
            logits,
            lambda: original(logits, spec_decode_metadata),
            overwrites_float32=spec_decode_metadata is None,
        )

    runner._sample = sample


def _wrap_v2(runner: Any, listener: _Listener) -> None:
    """Listen to the sampler while the runner samples for a real step.

    V2 samples from a copy, but for rows that are greedy and yet ask for top-k or top-p: those are
    filtered in place, and the token that they choose is the one that any filter keeps.
    """
    original, is_sampling = runner.sample, False

    def sample(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_sampling
        is_sampling = True
        try:
            return original(*args, **kwargs)
        finally:
            is_sampling = False

    class Heard(type(runner.sampler)):  # type: ignore[misc]  # vLLM's, known at run time
        """The sampler's own class with one ear more: vLLM asks what class it has."""

        def __call__(self, logits: Any, *args: Any, **kwargs: Any) -> Any:
            call = super().__call__
            if not is_sampling:
                return call(logits, *args, **kwargs)
            return listener.around(logits, lambda: call(logits, *args, **kwargs))

    Heard.__name__ = Heard.__qualname__ = type(runner.sampler).__name__
    runner.sampler.__class__ = Heard
    runner.sample = sample
