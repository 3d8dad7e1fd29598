"""Fakes of how vLLM samples: what overwrites the logits in place, and what it calls besides.

Each release's order of calls and arguments, as far as a listener may rely on it; none of the
releases' other attributes.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sidecar.tap.rows import Batch

VOCABULARY = 50


def logits_of(num_rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows of logits."""
    made = 3 * torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)


class SamplerV1:
    """vllm.v1.sample.sampler.Sampler: float32 logits are worked on in place."""

    def __call__(self, logits: torch.Tensor, sampling_metadata: Any) -> SimpleNamespace:
        """Penalties, temperature and top-k in place; the least likely token is chosen."""
        logits = logits.to(torch.float32)
        sampled = logits.argmin(-1)
        logits.div_(0.5).masked_fill_(logits > 0, -torch.inf)
        return SimpleNamespace(sampled_token_ids=sampled.to(torch.int32).unsqueeze(-1))


class RunnerV1:
    """GPUModelRunner of 0.26, 0.32 and 0.33 between `_model_forward` and the end of a step."""

    def __init__(self) -> None:
        self.sampler = SamplerV1()
        self.input_batch = SimpleNamespace(sampling_metadata=None)
        self.speculated: torch.Tensor | None = None

    def _model_forward(self) -> None:
        """There to be recognised by."""

    def _sample(self, logits: torch.Tensor | None, spec_decode_metadata: Any) -> SimpleNamespace:
        if spec_decode_metadata is None:
            return self.sampler(logits=logits, sampling_metadata=self.input_batch.sampling_metadata)
        assert logits is not None
        return SimpleNamespace(sampled_token_ids=self.speculated)

    def _dummy_sampler_run(self, logits: torch.Tensor) -> None:
        self.sampler(logits=logits, sampling_metadata=None)


@dataclass
class Samples:
    """SamplerOutput of V2."""

    sampled_token_ids: torch.Tensor
    num_sampled: int = 0
    num_rejected: int = 0


class SamplerV2:
    """vllm.v1.worker.gpu.sample.sampler.Sampler: a copy is worked on, but for greedy filters."""

    def __init__(self) -> None:
        self.sampling_states = SimpleNamespace(temperature="of the engine's own")
        self.filters_in_place = False

    def __call__(self, logits: torch.Tensor, *state: Any) -> Samples:
        """The greedy token; the arguments after the logits differ between releases."""
        sampled = logits.argmax(-1)
        work = logits if self.filters_in_place else logits.clone()
        work.masked_fill_(work < work.amax(-1, keepdim=True), -torch.inf)
        return Samples(sampled.view(-1, 1))


class RunnerV2:
    """vllm.v1.worker.gpu.model_runner.GPUModelRunner around `sample`; a subclass per release."""

    def __init__(self) -> None:
        self.sampler = SamplerV2()
        self.req_states = SimpleNamespace()
        self.model = SimpleNamespace(compute_logits=lambda hidden: hidden.clone())

    def prepare_inputs(self) -> None:
        """There to be recognised by."""

    def sample(self, hidden_states: torch.Tensor, input_batch: Any, grammar_output: Any) -> Any:
        """Logits, the grammar's mask in place, the sampler."""
        logits = self.model.compute_logits(hidden_states)
        if grammar_output is not None:
            logits[grammar_output] = -torch.inf
        output = self.sampler(logits, *self._state(input_batch))
        return output, output.num_sampled, output.num_rejected

    def prompt_logprobs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`compute_logits` is also called for these, outside `sample`."""
        return self.model.compute_logits(hidden_states)

    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> None:
        self.sampler(self.model.compute_logits(hidden_states), *self._state(None))

    def _state(self, input_batch: Any) -> tuple[Any, ...]:
        return (input_batch,)


class RunnerV2Of26(RunnerV2):
    """0.26 hands its sampler the parts of the batch."""

    def _state(self, input_batch: Any) -> tuple[Any, ...]:
        return (None, None, None, None)


class RunnerV2Of32(RunnerV2):
    """0.32 hands it the batch, and may sample in shards."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_sharder: Any = None


class RunnerV2Of33(RunnerV2Of32):
    """0.33: as 0.32."""


def batch_of(names: str, drafts: tuple[int, ...] = ()) -> Batch:
    """Requests that decode."""
    size = len(names)
    return Batch(
        list(names),
        np.full(size, 9),
        1 + np.array(drafts or [0] * size),
        np.full(size, 5),
        np.array(drafts, np.int64),
    )
