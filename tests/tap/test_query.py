"""The query tap: rows that were asked for leave the graph, whatever is asked for."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidecar.tap.query import PICKS, PULSE, QUERIES, attach_aside, attach_query

SIZE = 6


class AttentionModule(nn.Module):
    """Takes a query and two others, as vLLM's does."""

    def forward(self, query, key=None, value=None):
        """Something that the compiler can see."""
        return query * 2


class Model(nn.Module):
    """Two layers of it, so that a compiled graph holds both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AttentionModule(), AttentionModule()])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden + 1, hidden, value=hidden)
        return hidden


class Tapped:
    """A model with query taps of three rows."""

    def __init__(self, guard, size: int = SIZE) -> None:
        self.model = Model()
        self.picks = torch.zeros(3, dtype=torch.int64)
        self.queries = [torch.zeros(3, size) for _ in self.model.layers]
        self.pulses = torch.zeros(2, dtype=torch.int64)
        self.detach = [
            attach_query(layer, self.picks, self.queries[k], self.pulses[k], guard)
            for k, layer in enumerate(self.model.layers)
        ]


def running(tapped: Tapped, backend: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as vLLM compiles it: whole graph, any number of rows, every guard dropped."""
    if not backend:
        return tapped.model
    torch._dynamo.reset()
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    run = torch.compile(tapped.model, fullgraph=True, backend=backend, options=options)
    rows = hidden(7)
    torch._dynamo.mark_dynamic(rows, 0)
    run(rows)
    tapped.pulses.zero_()
    return run


def hidden(num_rows: int, *shape: int) -> torch.Tensor:
    return torch.randn(num_rows, *(shape or (SIZE,)))


# torch's own modules, when Inductor is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["", "aot_eager", "inductor"])
def test_the_rows_asked_for_are_copied(backend: str, guard) -> None:
    """Each layer's own query rows, at every pass, in a graph without a break."""
    tapped = Tapped(guard)
    run = running(tapped, backend)
    for passes, picked in enumerate(([0, 2, 4], [5, 5, 1]), 1):
        tapped.picks.copy_(torch.tensor(picked))
        rows = hidden(6)
        run(rows)
        torch.testing.assert_close(tapped.queries[0], (rows + 1)[picked])
        torch.testing.assert_close(tapped.queries[1], (2 * (rows + 1) + 1)[picked])
        assert tapped.pulses.tolist() == [passes, passes]


# torch's own modules, when Inductor is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["", "aot_eager", "inductor"])
def test_a_stale_number_of_a_larger_batch_is_clamped(backend: str, guard) -> None:
    """Rows that are not there any more read the last one; nothing leaves the memory."""
    tapped = Tapped(guard)
    run = running(tapped, backend)
    run(hidden(40))
    tapped.picks.copy_(torch.tensor([39, 2**40, -3]))
    rows = hidden(2)
    run(rows)
    torch.testing.assert_close(tapped.queries[0], (rows + 1)[[1, 1, 0]])


def test_a_query_with_a_dimension_of_heads_is_the_same_rows(guard) -> None:
    """[T, heads, head size] is copied as [T, heads * head size], strided or not."""
    tapped = Tapped(guard)
    tapped.picks.copy_(torch.tensor([1, 0, 2]))
    rows = torch.randn(3, 2, 8)[..., :3]
    tapped.model.layers[0](query=rows)
    torch.testing.assert_close(tapped.queries[0], rows[[1, 0, 2]].reshape(3, 6))


@pytest.mark.parametrize("query", [torch.ones(4, 5), None, "query"])
def test_a_query_of_another_shape_leaves_the_pulse_still(query, guard) -> None:
    """What is not understood is not copied, and nothing raises."""
    tapped = Tapped(guard)
    module = tapped.model.layers[0]
    module.forward = lambda *_, **__: "served"
    assert module(query) == "served"
    assert module(query=query) == "served"
    assert tapped.pulses.tolist() == [0, 0]
    assert guard.errors == {}


def test_what_raises_is_counted_and_the_layer_runs(guard) -> None:
    """A buffer that is gone costs the sample, not the step."""
    tapped = Tapped(guard)
    module = tapped.model.layers[0]
    delattr(module, PICKS)
    module.register_buffer(PICKS, None)
    assert module(hidden(3)).shape == (3, SIZE)
    assert guard.errors == {"query": 1}


def test_detaching_leaves_the_module_as_it_was(guard) -> None:
    """No hook and no buffer stays; while attached, none is part of the weights."""
    tapped = Tapped(guard)
    assert tapped.model.state_dict() == {}
    for detach in tapped.detach:
        detach()
    for layer in tapped.model.layers:
        assert not any(hasattr(layer, name) for name in (PICKS, QUERIES, PULSE))
        assert not layer._forward_pre_hooks


class Backend:
    """What runs in an opaque operation of vLLM's on a CPU."""

    def forward(self, layer, query, key, *, output):
        """Says what it was given."""
        return layer, query, key, output


@pytest.fixture
def aside(guard):
    """A backend with its tap, and what it leaves."""
    made = SimpleNamespace(backend=Backend(), is_asked=True, guard=guard)
    made.picks, made.queries = torch.tensor([2, 9, 0]), torch.zeros(3, SIZE)
    made.pulse = torch.zeros((), dtype=torch.int64)
    wanted = (lambda: made.is_asked, made.picks, made.queries, made.pulse)
    made.detach = attach_aside(made.backend, *wanted, guard)
    return made


def test_beside_the_graph_only_what_is_asked_for_is_copied(aside) -> None:
    """The same rows, clamped; the pulse counts the passes that were asked."""
    rows = torch.randn(4, 2, 3)
    assert aside.backend.forward("layer", rows, "key", output="out") == (
        "layer",
        rows,
        "key",
        "out",
    )
    torch.testing.assert_close(aside.queries, rows[[2, 3, 0]].flatten(1))
    aside.is_asked = False
    aside.backend.forward("layer", torch.zeros(4, 2, 3), "key", output="out")
    torch.testing.assert_close(aside.queries, rows[[2, 3, 0]].flatten(1))
    assert int(aside.pulse) == 1


def test_beside_the_graph_the_backend_runs_whatever_happens_to_us(aside) -> None:
    """A query of another shape is left alone; what raises of ours is counted, theirs passes."""
    aside.backend.forward("layer", torch.ones(4, 5), "key", output=None)
    assert int(aside.pulse) == 0
    aside.queries.resize_(3, 0)
    assert aside.backend.forward("layer", torch.ones(4, 0, 3), "key", output=1)[3] == 1
    with pytest.raises(TypeError, match="output"):
        aside.backend.forward("layer", torch.ones(4, 2, 3), "key")
    aside.detach()
    assert aside.backend.forward.__func__ is Backend.forward
