"""Fakes of what is read of vLLM, release by release (shared/facts/vllm.md, sections 3 and 10).

Each class has the attributes of its release that stand near those we read, and no others, so a
reader that relies on more fails here. What the real one of 0.32 has is checked in test_releases.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.tap.toys import HIDDEN, Attention, Decoder, tokens

NOTHING = 10**6  # what stale memory beyond the batch holds


class Row(NamedTuple):
    """What a runner knows of one request of a batch."""

    req_id: str
    computed: int
    scheduled: int
    prompt: int
    known: int = 0  # tokens so far, when more than the prompt: a preempted request's own answer

    @property
    def is_partial(self) -> bool:
        """Whether this step leaves a part of its prefill to the next."""
        return self.computed + self.scheduled < max(self.known, self.prompt)


class Buffer:
    """A buffer with a numpy side, such as CpuGpuBuffer or UvaBackedTensor."""

    def __init__(self, size: int, dtype: type = np.int32) -> None:
        self.np = np.full(size, NOTHING, dtype)


@dataclass
class LoRARequest:
    """vllm.lora.request.LoRARequest, as far as it names its adapter."""

    lora_name: str
    lora_int_id: int = 1


@dataclass
class NewRequestData:
    """vllm.v1.core.sched.output.NewRequestData; a pooling request has no sampling parameters."""

    req_id: str
    sampling_params: Any = field(default_factory=lambda: SimpleNamespace(extra_args=None))
    lora_request: LoRARequest | None = None


@dataclass
class SchedulerOutput:
    """The scheduler's word for a step: its own order, who is new, and who has finished."""

    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    finished_req_ids: set[str] = field(default_factory=set)
    scheduled_new_reqs: list[NewRequestData] = field(default_factory=list)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    preempted_req_ids: set[str] | None = None

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Rows of the step."""
        return sum(self.num_scheduled_tokens.values())


class RunnerV1:
    """GPUModelRunner and CPUModelRunner; what is read is the same in 0.26, 0.32 and 0.33."""

    def __init__(self, model: torch.nn.Module, max_reqs: int = 8) -> None:
        self.model = model
        self.query_start_loc = Buffer(max_reqs + 1)
        self.discard_request_mask = Buffer(max_reqs, bool)
        self.input_batch = SimpleNamespace(
            num_reqs=0,
            req_ids=[None] * max_reqs,
            num_computed_tokens_cpu=np.full(max_reqs, NOTHING, np.int32),
            num_prompt_tokens=np.full(max_reqs, NOTHING, np.int32),
        )
        self.known: dict[str, Row] = {}

    def get_model(self) -> torch.nn.Module:
        """The model, out of whatever wraps it."""
        return self.model

    def _model_forward(self, input_ids: Any = None, positions: Any = None, **_: Any) -> Any:
        return self.model(positions, input_ids)

    def sample_tokens(self, grammar_output: Any = None) -> Any:
        """The second half of a step; here no token comes of it."""

    def execute_model(self, output: SchedulerOutput, intermediate_tensors: Any = None) -> Any:
        """A step: prepare the persistent batch in its own order, and run the model."""
        if not output.total_num_scheduled_tokens:
            return "empty output"
        rows = [self.known[req] for req in sorted(output.num_scheduled_tokens)]
        batch = self.input_batch
        batch.num_reqs = len(rows)
        batch.req_ids[: len(rows)] = [row.req_id for row in rows]  # the list is a lasting one
        batch.num_computed_tokens_cpu[: len(rows)] = [row.computed for row in rows]
        batch.num_prompt_tokens[: len(rows)] = [row.prompt for row in rows]
        self.discard_request_mask.np[: len(rows)] = [row.is_partial for row in rows]
        ends = np.cumsum([row.scheduled for row in rows])
        self.query_start_loc.np[0] = 0
        self.query_start_loc.np[1 : len(rows) + 1] = ends
        self.query_start_loc.np[len(rows) + 1 :] = ends[-1]
        return self._model_forward(tokens(int(ends[-1])), torch.arange(int(ends[-1])))

    def _dummy_run(self, num_tokens: int) -> None:
        self.model(torch.arange(num_tokens), torch.full((num_tokens, 16), torch.nan))


@dataclass
class InputBatch26:
    """vllm.v1.worker.gpu.input_batch.InputBatch of 0.26: no has_prefill yet."""

    req_ids: list[str]
    num_reqs: int
    idx_mapping_np: np.ndarray
    num_scheduled_tokens: np.ndarray
    num_tokens: int
    num_tokens_after_padding: int
    query_start_loc_np: np.ndarray
    num_computed_tokens_np: np.ndarray


@dataclass
class InputBatch32(InputBatch26):
    """Of 0.32: knows which rows are prefill."""

    has_prefill: bool = False


@dataclass
class InputBatch33(InputBatch32):
    """Of 0.33: as of 0.32."""


class State26(NamedTuple):
    """ExecuteModelState of 0.26: fewer fields, in another order."""

    input_batch: InputBatch26
    attn_metadata: Any
    hidden_states: Any


class State32(NamedTuple):
    """ExecuteModelState of 0.32 and 0.33."""

    input_batch: InputBatch32
    attn_metadata: Any
    slot_mappings_by_layer: Any
    hidden_states: Any
    finished_req_ids: set[str]


class RunnerV2:
    """vllm.v1.worker.gpu.model_runner.GPUModelRunner; a subclass for each release."""

    input_batch: type[InputBatch26]
    state: Callable[[InputBatch26], Any]

    def __init__(self, model: torch.nn.Module, max_reqs: int = 8) -> None:
        self.model = model
        self.req_states = SimpleNamespace(prompt_len=Buffer(max_reqs), prefill_len=Buffer(max_reqs))
        self.execute_model_state: Any = None
        self.known: dict[str, Row] = {}
        self.slots: dict[str, int] = {}

    def get_model(self) -> torch.nn.Module:
        """The model, out of whatever wraps it."""
        return self.model

    def prepare_inputs(self, rows: Iterable[Row]) -> InputBatch26:
        """The batch, sorted: decodes first, then the shortest prefill."""
        rows = sorted(rows, key=lambda row: (row.scheduled, row.req_id))
        counts = np.array([row.scheduled for row in rows], np.int32)
        return self.input_batch(
            req_ids=[row.req_id for row in rows],
            num_reqs=len(rows),
            idx_mapping_np=np.array([self._slot(row) for row in rows], np.int32),
            num_scheduled_tokens=counts,
            num_tokens=int(counts.sum()),
            num_tokens_after_padding=-(-int(counts.sum()) // 8) * 8,
            query_start_loc_np=np.r_[0, np.cumsum(counts)],
            num_computed_tokens_np=np.array([row.computed for row in rows], np.int32),
        )

    def execute_model(
        self,
        scheduler_output: SchedulerOutput,
        intermediate_tensors: Any = None,
        dummy_run: bool = False,  # noqa: FBT002 - vLLM's signature
        *_: Any,
    ) -> Any:
        """A step, a dummy step, or a step without tokens; leaves its state behind."""
        if not dummy_run and not scheduler_output.total_num_scheduled_tokens:
            return "empty output"
        if dummy_run:
            rows = [Row(f"_dummy_req_{i}", 0, 2, 2) for i in range(3)]
        else:
            rows = [self.known[req] for req in scheduler_output.num_scheduled_tokens]
        batch = self.prepare_inputs(rows)
        padded = batch.num_tokens_after_padding
        self.model(torch.arange(padded), tokens(padded))
        self.execute_model_state = type(self).state(batch)
        return None

    def sample_tokens(self, grammar_output: Any = None) -> str:
        """The second half of a step: takes the state away."""
        self.execute_model_state = None
        return "sampled"

    def _slot(self, row: Row) -> int:
        # From the end, so that slots and places in the batch differ.
        slot = self.slots.setdefault(row.req_id, 7 - len(self.slots))
        self.req_states.prompt_len.np[slot] = row.prompt
        self.req_states.prefill_len.np[slot] = max(row.known, row.prompt)
        return slot


class RunnerV2Of26(RunnerV2):
    """0.26."""

    input_batch = InputBatch26
    state = staticmethod(lambda batch: State26(batch, None, None))


class RunnerV2Of32(RunnerV2):
    """0.32."""

    input_batch = InputBatch32
    state = staticmethod(lambda batch: State32(batch, None, None, None, set()))


class RunnerV2Of33(RunnerV2Of32):
    """0.33."""

    input_batch = InputBatch33


class Worker:
    """Worker and CPUWorker, as far as a seat wraps them."""

    def __init__(self, runner: Any) -> None:
        self.model_runner = runner
        self.device = torch.device("cpu")
        self.calls: list[str] = []
        self.fails = False

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load; the runner of this fake holds its model already."""
        self.calls.append("load_model")

    def compile_or_warm_up_model(self) -> str:
        """Warm up with rows that are not data, and with requests that look real."""
        self.calls.append("compile_or_warm_up_model")
        self.model_runner.model(torch.arange(16), torch.full((16, 16), torch.nan))
        warm = Row("_warmup_0_", 0, 2, 2)
        self.model_runner.known[warm.req_id] = warm
        self.execute_model(SchedulerOutput({warm.req_id: 2}))
        return "compilation times"

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run a step."""
        self.calls.append("execute_model")
        output = self.model_runner.execute_model(scheduler_output, None)
        if isinstance(self.model_runner, RunnerV2):
            return output or self.model_runner.sample_tokens()
        return output

    def shutdown(self) -> None:
        """End."""
        self.calls.append("shutdown")


def vllm_config(model: Decoder | None = None, **parts: dict[str, Any]) -> SimpleNamespace:
    """The parts of a VllmConfig that are read, for a plain dense model; `parts` overrides."""
    attention = [m for m in (model or Decoder()).modules() if isinstance(m, Attention)]
    made = SimpleNamespace(
        additional_config={},
        model_config=SimpleNamespace(
            model="toy/toy",
            served_model_name=["toy", "alias"],
            dtype=torch.bfloat16,
            runner_type="generate",
            is_encoder_decoder=False,
            get_hidden_size=lambda: HIDDEN,
            get_total_num_hidden_layers=lambda: len((model or Decoder()).layers),
        ),
        parallel_config=SimpleNamespace(
            data_parallel_rank=0, use_ubatching=False, prefill_context_parallel_size=1
        ),
        scheduler_config=SimpleNamespace(
            max_num_seqs=4, max_num_batched_tokens=32, async_scheduling=False
        ),
        compilation_config=SimpleNamespace(
            mode=3,
            cudagraph_capture_sizes=[],
            static_forward_context={f"layers.{i}.attn": m for i, m in enumerate(attention)},
        ),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        load_config=SimpleNamespace(load_format="dummy", download_dir=None),
        speculative_config=None,
    )
    for part, changes in parts.items():
        if isinstance(changes, dict) and part != "additional_config":
            vars(getattr(made, part)).update(changes)
        else:
            setattr(made, part, changes)
    return made
