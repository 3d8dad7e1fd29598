"""Probes inside a compiled graph, compiled as vLLM does: one graph, its first run's for ever."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from sidecar.tap.guard import Guard
from sidecar.tap.liveness import Liveness
from sidecar.tap.probes import NONFINITE, NUM_COLUMNS, PULSE, record
from sidecar.tap.sites import Site
from sidecar.tap.stream import attach_probe
from tests.tap.toys import Decoder, FusedLayer, PairLayer, tokens

NUM_LAYERS = 3
CAPACITY = 16


def compiled(model: Decoder, backend: str) -> tuple[torch.nn.Module, CompileCounterWithBackend]:
    """`model` as vllm.compilation.wrapper compiles it: whole graph, every guard dropped."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    run = torch.compile(model, fullgraph=True, dynamic=False, backend=counter, options=options)
    return run, counter


def attach(model: Decoder, guard: Guard) -> torch.Tensor:
    """A slab whose views the layers of `model` write from now on."""
    slab = torch.zeros(NUM_LAYERS, NUM_COLUMNS, CAPACITY)
    for index, layer in enumerate(model.layers):
        attach_probe(Site(index, layer), slab[index], guard)
    return slab


def run_first(run, num_rows: int) -> None:
    """The pass that compiles; its number of rows is a symbol, as vLLM marks it.

    Fewer than the capacity: a slice that is the whole buffer would make it a constant.
    """
    positions, hidden = torch.arange(num_rows), tokens(num_rows)
    for argument in (positions, hidden):
        torch._dynamo.mark_dynamic(argument, 0)
    run(positions, hidden)


# torch's own modules, when Inductor is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("backend", "layer"), [("aot_eager", PairLayer), ("inductor", FusedLayer)])
def test_a_compiled_model_gives_the_rows_of_the_eager_one(backend, layer, guard) -> None:
    """One graph without a break serves every batch size, and its rows are those of eager mode."""
    model = Decoder(NUM_LAYERS, layer)
    slab = attach(model, guard)
    run, counter = compiled(model, backend)
    with torch.inference_mode():
        run_first(run, CAPACITY - 1)
        for num_rows in (5, 1, CAPACITY - 1):
            hidden = tokens(num_rows, seed=num_rows)
            hidden[0, 3] = torch.inf if num_rows == 5 else 1000.0
            slab.zero_()
            output = run(torch.arange(num_rows), hidden.clone())
            rows = slab.clone()
            slab.zero_()
            want = model(torch.arange(num_rows), hidden.clone())
            torch.testing.assert_close(output, want, equal_nan=True)
            torch.testing.assert_close(rows, slab, equal_nan=True, atol=1e-5, rtol=1e-5)
            assert (rows[:, PULSE, :num_rows] == 1).all()
            assert rows[:, NONFINITE].any() == (num_rows == 5)
    assert counter.frame_count == 1
    assert not guard.errors


# torch's own modules, when Inductor is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_pass_writes_its_own_rows_alone() -> None:
    """No kernel goes over the whole capacity, as one that cannot write in place would."""
    capacity = 2112
    rows = torch.zeros(NUM_COLUMNS, capacity)
    before, after = tokens(5), tokens(5, seed=1)
    for each in (before, after):
        torch._dynamo.mark_dynamic(each, 0)
    run = torch.compile(record, fullgraph=True)
    with torch.inference_mode():
        _, sources = run_and_get_code(run, rows, before, after)
    assert any(f"{capacity}L*" in source for source in sources)  # the stride of a column
    assert not [source for source in sources if f"<static_cast<int64_t>({capacity}L)" in source]
    assert (rows[:, 5:] == 0).all()


def test_a_tap_attached_after_the_first_run_never_fires_and_is_called_dead(guard) -> None:
    """With its guards dropped the graph of the first run stays: no error, no pulse, no life."""
    model = Decoder(NUM_LAYERS)
    run, counter = compiled(model, "aot_eager")
    with torch.inference_mode():
        run_first(run, 4)
        slab = attach(model, guard)
        run(torch.arange(4), tokens(4))
    assert counter.frame_count == 1
    assert not slab.any()
    assert not guard.errors
    liveness = Liveness([0, 1, 2])
    liveness.update(slab[:, PULSE, 0].numpy())
    assert not liveness.is_live
    assert liveness.dead_layers == [0, 1, 2]


class OddPairLayer(PairLayer):
    """A layer whose second output is a tensor, but no half of the stream."""

    def forward(  # type: ignore[override]
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the stream, and something that cannot be added to it."""
        return hidden_states + self.attention(hidden_states), hidden_states[:, :3]


class ManyStreamLayer(PairLayer):
    """A layer of four residual streams, like those of hyper-connections."""

    def forward(  # type: ignore[override]
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give four streams where one is looked for."""
        streams = self.attention(hidden_states).expand(4, -1, -1)
        return streams, streams


@pytest.mark.parametrize("layer", [OddPairLayer, ManyStreamLayer])
def test_a_layer_of_another_shape_compiles_and_is_called_dead(layer, guard) -> None:
    """No guard can catch an error inside a trace, so what cannot be added is not added."""
    module = layer()
    rows = torch.zeros(NUM_COLUMNS, CAPACITY)
    attach_probe(Site(0, module), rows, guard)
    torch._dynamo.reset()
    run = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        outputs = run(torch.arange(4), tokens(4), None)
    assert len(outputs) == 2
    assert not rows.any()
    assert not guard.errors
