"""A model whose attention layers have what is read of vLLM's, and runners that serve it.

The keys are written by the layers themselves, as a backend writes them, so that what is sampled
can be compared with dense attention over the same numbers.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.tap.vllm.fakes import Buffer, Row, RunnerV1, RunnerV2Of26, RunnerV2Of32, RunnerV2Of33

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 8, 16
MAX_BLOCKS, NUM_BLOCKS, HIDDEN = 4, 40, 16


class Attention(nn.Module):
    """vllm.model_executor.layers.attention.Attention: the attributes that are read."""

    def __init__(
        self, seed: int = 0, backend: str = "FLASH_ATTN", *, is_opaque: bool = False, **changes: Any
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(2, HIDDEN, NUM_HEADS * HEAD_SIZE, generator=generator)
        self.num_heads, self.num_kv_heads = NUM_HEADS, NUM_KV_HEADS
        self.head_size = self.head_size_v = HEAD_SIZE
        self.kv_cache_dtype, self.attn_type, self.sliding_window = "auto", "decoder", None
        self.attn_backend = SimpleNamespace(get_name=lambda: backend)
        self.impl = SimpleNamespace(
            scale=0.5, sinks=None, alibi_slopes=None, logits_soft_cap=0, num_heads=NUM_HEADS
        )
        if is_opaque:
            self.impl.forward = lambda _layer, query, *_args, **_kwargs: query
        self.kv_cache = torch.tensor([])
        self._k_scale = torch.tensor(1.0)
        for name, value in changes.items():
            setattr(self.impl if hasattr(self.impl, name) else self, name, value)

    def bind(self) -> None:
        """What bind_kv_cache does, in the default layout."""
        shape = (NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE)
        self.kv_cache = torch.zeros(shape).transpose(1, 2)

    def query(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, heads * head size]."""
        return hidden @ self.weight[0]

    def key(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, KV heads, head size]."""
        key = hidden @ self.weight[1]
        return key[:, : NUM_KV_HEADS * HEAD_SIZE].reshape(-1, NUM_KV_HEADS, HEAD_SIZE)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: Any = None) -> torch.Tensor:
        """Nothing is attended to; the layer above adds what it likes."""
        if hasattr(self.impl, "forward"):  # vLLM always has one, in an operation of its own
            return self.impl.forward(self, query.view(-1, NUM_HEADS, HEAD_SIZE), key, value)
        return query


class DecoderLayer(nn.Module):
    """A layer that holds attention and adds to the stream."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn = attention

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Give attention its query."""
        if isinstance(self.attn, Attention):
            self.attn(self.attn.query(hidden_states), self.attn.key(hidden_states))
        return hidden_states + 1.0


class Model(nn.Module):
    """A list of such layers."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(each) for each in attentions)

    @property
    def attentions(self) -> list[nn.Module]:
        """What vLLM has in its static forward context."""
        return [layer.attn for layer in self.layers]

    def bind(self) -> None:
        """Give every attention layer its cache."""
        for each in self.attentions:
            if isinstance(each, Attention):
                each.bind()

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run every layer."""
        for layer in self.layers:
            hidden_states = layer(positions, hidden_states)
        return hidden_states


def embedded(req_id: str, position: int) -> torch.Tensor:
    """The hidden state of a token, by whose it is and where it stands."""
    seed = 1000 * ord(req_id[0]) + position
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))


class Paging:
    """Part of every runner here: blocks of its requests, keys written, metadata made."""

    model: Model

    def page(self, rows: list[Row]) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Hidden states of the rows of a step, and its attention metadata; keys are written."""
        tables = vars(self).setdefault("tables", {})
        for row in rows:
            if row.req_id not in tables:
                start = 1 + MAX_BLOCKS * len(tables)
                tables[row.req_id] = torch.arange(start, start + MAX_BLOCKS, dtype=torch.int32)
            self._write(row, tables[row.req_id])
        hidden = torch.stack([h for row in rows for h in _hidden(row)])
        table = torch.stack([tables[row.req_id] for row in rows])
        metadata = {
            f"layers.{i}.attn": SimpleNamespace(block_table=table)
            for i in range(len(self.model.layers))
        }
        return hidden, metadata

    def _write(self, row: Row, blocks: torch.Tensor) -> None:
        positions = range(row.computed, row.computed + row.scheduled)
        for depth, attention in enumerate(self.model.attentions):
            if not isinstance(attention, Attention) or attention.kv_cache.dim() != 4:
                continue
            for position, hidden in zip(positions, _hidden(row), strict=True):
                key = attention.key(hidden[None] + depth)[0]
                block, offset = blocks[position // BLOCK_SIZE], position % BLOCK_SIZE
                attention.kv_cache[block, :, offset, :HEAD_SIZE] = key


def _hidden(row: Row) -> list[torch.Tensor]:
    return [embedded(row.req_id, row.computed + i) for i in range(row.scheduled)]


class PagedV1(Paging, RunnerV1):
    """V1, with a forward context around the forward pass."""

    def __init__(self, model: nn.Module, max_reqs: int = 8) -> None:
        super().__init__(model, max_reqs)
        self.discard_request_mask = SimpleNamespace(np=np.ones(max_reqs, bool))

    def execute_model(self, output: Any, intermediate_tensors: Any = None) -> Any:
        """A step, whose context is gone when it returns."""
        from vllm.forward_context import override_forward_context

        rows = [self.known[req] for req in sorted(output.num_scheduled_tokens)]
        unfinished = [row.computed + row.scheduled < row.prompt for row in rows]
        self.discard_request_mask.np[: len(rows)] = unfinished
        self.hidden, metadata = self.page(rows) if rows else (None, {})
        with override_forward_context(SimpleNamespace(attn_metadata=metadata)):
            return super().execute_model(output, intermediate_tensors)

    def _model_forward(self, input_ids: Any = None, positions: Any = None, **_: Any) -> Any:
        return self.model(positions, self.hidden)


class _PagedV2(Paging):
    """V2: metadata in the state that a step leaves behind."""

    def __init__(self, model: nn.Module, max_reqs: int = 8) -> None:
        super().__init__(model, max_reqs)  # type: ignore[call-arg]
        self.req_states.prefill_len = Buffer(max_reqs)

    def execute_model(
        self,
        scheduler_output: Any,
        intermediate_tensors: Any = None,
        dummy_run: bool = False,  # noqa: FBT002 - vLLM's signature
        *_: Any,
    ) -> Any:
        """A step, or a dummy step, which prepares no inputs."""
        if dummy_run:
            self.model(torch.arange(2), torch.full((2, HIDDEN), torch.nan))
            return None
        if not scheduler_output.total_num_scheduled_tokens:
            return "empty output"
        rows = [self.known[req] for req in scheduler_output.num_scheduled_tokens]
        batch = self.prepare_inputs(rows)
        hidden, metadata = self.page([self.known[req] for req in batch.req_ids])
        padded = torch.zeros(batch.num_tokens_after_padding, HIDDEN)
        padded[: len(hidden)] = hidden
        self.model(torch.arange(len(padded)), padded)
        state = type(self).state(batch)
        self.execute_model_state = state._replace(attn_metadata=metadata)
        return None

    def _slot(self, row: Row) -> int:
        slot = super()._slot(row)
        self.req_states.prefill_len.np[slot] = row.prompt
        return slot


class PagedV2Of26(_PagedV2, RunnerV2Of26):
    """0.26."""


class PagedV2Of32(_PagedV2, RunnerV2Of32):
    """0.32."""


class PagedV2Of33(_PagedV2, RunnerV2Of33):
    """0.33."""
