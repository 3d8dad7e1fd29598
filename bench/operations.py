"""The tap's device operations at the shapes of a model, each with the bytes that it has to move.

One decode step: every request has one token row, and is a group of its own. Values are random:
what is measured is time. An operation's bytes are those of each input read once and each output
written once; no implementation can move fewer.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from sidecar.config import TapConfig
from sidecar.tap import concentration, probes, projection, router
from sidecar.tap.concentration import Keys
from sidecar.tap.confidence import token_signals
from sidecar.tap.guard import Guard
from sidecar.tap.pooling import Part
from sidecar.wire.signals import GROUPS

_BLOCK_TOKENS: Final = 16  # as an engine pages its KV cache
_STREAM_DTYPE: Final = torch.bfloat16
_NUM_GATE_SIGNALS: Final = len(GROUPS["router"].signals)
_NUM_GATE_SUMS: Final = 3 * _NUM_GATE_SIGNALS + 1  # see router.group_gates
_NUM_GATE_BOUNDS: Final = 2 * _NUM_GATE_SIGNALS


class Shape(NamedTuple):
    """What of a model the operations see. context: positions each request attends to.

    A dense model has no router: the experts say what a gate of that many would cost.
    """

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    context: int = 4096
    num_experts: int = 128
    num_chosen: int = 8


SHAPES: Final = (
    Shape("8B", 4096, 32, 32, 8, 128, 128256),
    Shape("70B", 8192, 80, 64, 8, 128, 128256),
)


class Operation(NamedTuple):
    """One launch of ours: `function(*arguments)` reads `reads` and writes `writes`.

    is_traced: whether it is compiled into the model's graph; else it is launched eagerly.
    per_step: how often the default settings launch it in one step, on average.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[Any, ...]
    reads: tuple[torch.Tensor, ...]
    writes: tuple[torch.Tensor, ...]
    per_step: float
    is_traced: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes that have to be moved."""
        return sum(each.numel() * each.element_size() for each in (*self.reads, *self.writes))


def operations(shape: Shape, batch: int, device: torch.device) -> Iterator[Operation]:
    """Every operation of one decode step of `batch` requests; each made when it is asked for."""
    for make in (_record, _group, _attention, _confidence, _project, _reduce):
        yield make(shape, batch, device)
    for make in (_gate, _group_gates, _count_experts):
        yield make(shape, batch, device)


def _record(shape: Shape, batch: int, device: torch.device) -> Operation:
    before, after = (_stream(batch, shape.hidden_size, device) for _ in range(2))
    rows = torch.zeros(probes.NUM_COLUMNS, batch + 1, device=device)
    mine = rows[:, :batch]
    return Operation(
        "layer signals",
        probes.record,
        (rows, before, after),
        (before, after, mine[probes.PULSE]),
        (mine,),
        shape.num_layers,
        is_traced=True,
    )


def _group(shape: Shape, batch: int, device: torch.device) -> Operation:
    rows = torch.rand(shape.num_layers, probes.NUM_COLUMNS, batch, device=device)
    groups = torch.arange(batch, device=device)
    cells = (batch + 1, shape.num_layers)
    sums = torch.zeros(*cells, probes.NUM_SUMS, dtype=torch.float64, device=device)
    bounds = torch.zeros(*cells, probes.NUM_BOUNDS, device=device)
    return Operation(
        "layer signals, grouped",
        probes.group_rows,
        (rows, groups, sums, bounds),
        (rows[:, : probes.PULSE], groups),
        (sums, bounds),
        1,
    )


def _attention(shape: Shape, batch: int, device: torch.device) -> Operation:
    """One layer, for the requests that one step samples at most."""
    config = TapConfig()
    num_rows = min(batch, config.attention_requests)
    num_columns = -(-shape.context // _BLOCK_TOKENS)
    num_blocks = num_rows * num_columns
    stored = _stream(num_blocks, _BLOCK_TOKENS, device, shape.num_kv_heads, shape.head_size)
    query = _stream(num_rows, shape.num_heads, device, shape.head_size)
    # Blocks of one request lie anywhere.
    table = torch.randperm(num_blocks, device=device).int().view(num_rows, num_columns)
    places = torch.arange(num_rows, device=device)
    lengths = torch.full_like(places, shape.context)
    out = torch.zeros(num_rows, shape.num_heads, concentration.NUM_SIGNALS, device=device)
    keys = Keys(stored.transpose(1, 2), shape.head_size**-0.5)
    # Of the last block of a context that does not fill it, not everything has to be read.
    read = stored.view(num_rows, -1, *stored.shape[2:])[:, : shape.context]
    return Operation(
        "attention concentration",
        concentration.measure,
        (query, keys, table, places, lengths, out),
        (query, read, table, places, lengths),
        (out,),
        config.attention_layers / config.attention_every,
    )


def _confidence(shape: Shape, batch: int, device: torch.device) -> Operation:
    logits = _stream(batch, shape.vocab_size, device)
    return Operation(
        "confidence",
        token_signals,
        (logits,),
        (logits,),
        tuple(token_signals(logits)),
        1 / TapConfig().confidence_every,
    )


def _project(shape: Shape, batch: int, device: torch.device) -> Operation:
    """The product of one layer that is sketched."""
    config = TapConfig()
    after = _stream(batch, shape.hidden_size, device)
    directions = torch.randn(config.sketch_size, shape.hidden_size, device=device)
    projected = torch.zeros(config.sketch_size, batch + 1, device=device)
    return Operation(
        "projection, product",
        projection.record,
        (projected, directions, after),
        (directions, after),
        (projected[:, :batch],),
        config.sketch_layers,
        is_traced=True,
    )


def _reduce(shape: Shape, batch: int, device: torch.device) -> Operation:  # noqa: ARG001 - one signature
    config = TapConfig()
    num_columns = config.sketch_layers * config.sketch_size
    rows = torch.randn(num_columns, batch, device=device).T
    places = torch.arange(batch, device=device)
    index = projection.Index(places, torch.zeros_like(places), places, places)
    sums = torch.zeros(batch + 1, num_columns, dtype=torch.float64, device=device)
    parts = torch.zeros(batch + 1, len(Part), num_columns, device=device)
    # Sketches weigh nothing, so the distances are not read; the sums are scratch space. Of the
    # group of rows not to be counted nobody asks for the first and the last row.
    written = (parts[:batch], parts[batch, : Part.FIRST])
    return Operation(
        "projection, reduced",
        projection.reduce_rows,
        (rows, index, None, sums, parts),
        (rows, index.groups, index.firsts, index.lasts),
        written,
        1,
    )


def _gate(shape: Shape, batch: int, device: torch.device) -> Operation:
    """One gate, as the engine runs it: eagerly, within the opaque operation of the experts."""
    logits = _stream(batch, shape.num_experts, device)
    values = torch.zeros(_NUM_GATE_SIGNALS, batch + 1, device=device)
    experts = torch.zeros(shape.num_chosen, batch + 1, dtype=torch.int32, device=device)
    owner = SimpleNamespace(route=lambda logits: logits)
    gate = router.Gate(0, nn.Module(), owner, "route", lambda _args, _kw, seen: _decided(seen))
    kind = router.Shape(shape.num_experts, shape.num_chosen, "softmax")
    guard = Guard(1)
    router.attach_gate(gate, kind, values, experts, guard)
    owner.route(logits)
    if guard.errors:  # a gate that fails is fast
        raise RuntimeError("the gate could not be measured; see the warning above")
    return Operation(
        "router gate",
        owner.route,
        (logits,),
        (logits,),
        (values[:, :batch], experts[:, :batch]),
        shape.num_layers,
    )


def _decided(logits: torch.Tensor) -> router.Decision:
    return router.Decision(logits)


def _group_gates(shape: Shape, batch: int, device: torch.device) -> Operation:
    values = torch.rand(shape.num_layers, _NUM_GATE_SIGNALS, batch, device=device)
    groups = torch.arange(batch, device=device)
    cells = (batch + 1, shape.num_layers)
    sums = torch.zeros(*cells, _NUM_GATE_SUMS, dtype=torch.float64, device=device)
    bounds = torch.zeros(*cells, _NUM_GATE_BOUNDS, device=device)
    arguments = (values, groups, sums, bounds)
    return Operation(
        "router gates, grouped",
        router.group_gates,
        arguments,
        (values, groups),
        (sums, bounds),
        1,
    )


def _count_experts(shape: Shape, batch: int, device: torch.device) -> Operation:
    size = (shape.num_layers, shape.num_chosen, batch)
    experts = torch.randint(shape.num_experts, size, dtype=torch.int32, device=device)
    is_counted = torch.ones(batch, dtype=torch.bool, device=device)
    load = torch.zeros(shape.num_layers, shape.num_experts + 1, dtype=torch.int64, device=device)
    return Operation(
        "experts, counted",
        router.count_experts,
        (experts, is_counted, load),
        (experts, is_counted),
        (load,),
        1,
    )


def _stream(num_rows: int, width: int, device: torch.device, *more: int) -> torch.Tensor:
    return torch.randn(num_rows, width, *more, dtype=_STREAM_DTYPE, device=device)
