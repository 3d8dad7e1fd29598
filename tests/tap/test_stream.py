"""Probes onto layers: every form of decoder layer is read right, and none is disturbed."""

import pytest
import torch
from torch import nn

from sidecar.errors import TapRefused
from sidecar.tap import probes
from sidecar.tap.guard import Guard
from sidecar.tap.probes import NUM_COLUMNS, PULSE, row_moments
from sidecar.tap.sites import Site
from sidecar.tap.stream import ROWS, attach_probe, rehearse
from tests.tap.toys import (
    HIDDEN,
    Decoder,
    FusedLayer,
    NoneLayer,
    PairLayer,
    TensorLayer,
    streams,
    tokens,
)

NUM_ROWS = 5
POSITIONS = torch.arange(NUM_ROWS)


def tapped(module: nn.Module, guard: Guard) -> torch.Tensor:
    """Rows of `module`, which has a probe from now on."""
    rows = torch.zeros(NUM_COLUMNS, NUM_ROWS)
    attach_probe(Site(0, module), rows, guard)
    return rows


def assert_rows(rows: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """`rows` are the moments of one pass from `before` to `after`."""
    torch.testing.assert_close(rows[:PULSE], row_moments(before, after), atol=1e-6, rtol=1e-6)
    assert (rows[PULSE] == 1).all()


@pytest.mark.parametrize("layer", [PairLayer, FusedLayer])
def test_the_stream_of_a_pair_is_its_sum(layer, guard) -> None:
    """(hidden, residual) in and out: both sums are read, also where the layer overwrites them."""
    hidden, residual = tokens(NUM_ROWS), 5 * tokens(NUM_ROWS, seed=1)
    before = hidden + residual
    module = layer()
    after = before + module.attention(before)
    rows = tapped(module, guard)
    module(POSITIONS, hidden, residual)
    assert_rows(rows, before, after)


@pytest.mark.parametrize("layer", [PairLayer, FusedLayer])
def test_the_first_layer_has_no_residual(layer, guard) -> None:
    """Where the residual is None the hidden states are the stream, also where overwritten."""
    hidden = tokens(NUM_ROWS)
    before = hidden.clone()
    module = layer()
    after = before + module.attention(before)
    rows = tapped(module, guard)
    module(POSITIONS, hidden, None)
    assert_rows(rows, before, after)


@pytest.mark.parametrize("layer", [TensorLayer, NoneLayer])
def test_a_lone_tensor_is_the_stream(layer, guard) -> None:
    """A layer that returns h, or (h, None), is read as h."""
    before = tokens(NUM_ROWS)
    module = layer()
    after = before + module.attention(before)
    rows = tapped(module, guard)
    module(POSITIONS, before)
    assert_rows(rows, before, after)


@pytest.mark.parametrize("layer", [PairLayer, FusedLayer, TensorLayer, NoneLayer])
def test_another_reader_sees_the_same_stream(layer, guard) -> None:
    """Whatever else is made of it is made of the stream after the layer, once per pass."""
    module, seen = layer(), []
    before = tokens(NUM_ROWS)
    after = before + module.attention(before)
    attach_probe(Site(0, module), torch.zeros(NUM_COLUMNS, NUM_ROWS), guard, seen.append)
    module(POSITIONS, before.clone(), *([None] if layer in {PairLayer, FusedLayer} else []))
    (stream,) = seen
    torch.testing.assert_close(stream, after, atol=1e-6, rtol=1e-6)


def test_another_reader_that_raises_harms_nothing(guard) -> None:
    """It is counted like the probe itself, whose rows are there."""

    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("a bug of ours")

    module, hidden = TensorLayer(), tokens(NUM_ROWS)
    want = module(POSITIONS, hidden)
    rows = torch.zeros(NUM_COLUMNS, NUM_ROWS)
    attach_probe(Site(0, module), rows, guard, broken)
    torch.testing.assert_close(module(POSITIONS, hidden), want, rtol=0, atol=0)
    assert_rows(rows, hidden, want)
    assert guard.errors == {"probe": 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda module, h, r: module(POSITIONS, h, r),
        lambda module, h, r: module(POSITIONS, h, residual=r),
        lambda module, h, r: module(POSITIONS, hidden_states=h, residual=r),
        lambda module, h, r: module(residual=r, positions=POSITIONS, hidden_states=h),
    ],
)
def test_arguments_are_found_by_place_and_by_name(call, guard) -> None:
    """However the model calls its layer, the same stream is read."""
    hidden, residual = tokens(NUM_ROWS), 5 * tokens(NUM_ROWS, seed=1)
    module = PairLayer()
    rows = tapped(module, guard)
    h, r = call(module, hidden, residual)
    assert_rows(rows, hidden + residual, h + r)


@pytest.mark.parametrize("layer", [PairLayer, FusedLayer])
def test_a_tapped_model_computes_what_the_untapped_one_does(layer, guard) -> None:
    """Outputs are identical to the bit with probes on, and each layer has its own rows."""
    model = Decoder(3, layer)
    hidden = tokens(NUM_ROWS)
    want = model(POSITIONS, hidden.clone())
    stream = streams(model, hidden)
    slab = torch.zeros(3, NUM_COLUMNS, NUM_ROWS)
    for index, module in enumerate(model.layers):
        attach_probe(Site(index, module), slab[index], guard)
    torch.testing.assert_close(model(POSITIONS, hidden.clone()), want, rtol=0, atol=0)
    for index in range(3):
        assert_rows(slab[index], stream[index], stream[index + 1])
    assert not guard.errors


def test_the_rows_are_a_view_and_no_part_of_the_checkpoint(guard) -> None:
    """The buffer is the given memory itself, so its address stays, and is not saved."""
    module = PairLayer()
    slab = torch.zeros(2, NUM_COLUMNS, NUM_ROWS)
    attach_probe(Site(0, module), slab[1], guard)
    assert getattr(module, ROWS).data_ptr() == slab[1].data_ptr()
    assert ROWS not in module.state_dict()


class Odd(nn.Module):
    """A layer whose output is whatever the test wants."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden_states: object) -> object:
        """Return it."""
        return self.output


@pytest.mark.parametrize(
    "output",
    [None, "text", [torch.ones(NUM_ROWS, HIDDEN)], {"h": torch.ones(1)}, (None, torch.ones(1))],
)
def test_an_unknown_output_is_passed_on_and_not_counted(output, guard) -> None:
    """A form of output that is not known is returned untouched, and the pulse stands still."""
    module = Odd(output)
    rows = tapped(module, guard)
    assert module(tokens(NUM_ROWS)) is output
    assert not rows.any()
    assert not guard.errors


def test_a_stream_that_is_no_tensor_is_not_read(guard) -> None:
    """A layer called with something else in place of the stream is left alone."""
    module = Odd(tokens(NUM_ROWS))
    rows = tapped(module, guard)
    assert module({"not": "a tensor"}) is module.output
    assert not rows.any()


def test_a_layer_without_a_stream_is_refused(guard) -> None:
    """A forward none of whose parameters is the stream is refused, with what was looked for."""

    class Strange(nn.Module):
        def forward(self, foo: torch.Tensor) -> torch.Tensor:
            return foo

    module = Strange()
    with pytest.raises(TapRefused, match=r"Strange.forward takes \['foo'\].*hidden_states"):
        tapped(module, guard)
    assert not hasattr(module, ROWS)


def test_detach_restores_the_layer(guard) -> None:
    """After the undo the layer runs as before, its buffer is gone, and no row moves."""
    module = PairLayer()
    plain = module.forward
    rows = torch.zeros(NUM_COLUMNS, NUM_ROWS)
    detach = attach_probe(Site(0, module), rows, guard)
    detach()
    module(POSITIONS, tokens(NUM_ROWS), None)
    assert module.forward == plain
    assert not hasattr(module, ROWS)
    assert not rows.any()


def test_a_raising_probe_is_counted_and_harms_nothing(guard, monkeypatch) -> None:
    """An exception in the probe is counted at its site; the layer's output is the layer's own."""
    module = TensorLayer()
    hidden = tokens(NUM_ROWS)
    want = module(POSITIONS, hidden)
    rows = tapped(module, guard)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(probes, "record", broken)
    torch.testing.assert_close(module(POSITIONS, hidden), want, rtol=0, atol=0)
    assert guard.errors == {"probe": 1}
    assert not rows.any()


def test_a_raising_reader_is_counted_and_harms_nothing(guard, monkeypatch) -> None:
    """What raises while the stream is read is our problem, not the layer's."""
    module = PairLayer()
    hidden, residual = tokens(NUM_ROWS), tokens(NUM_ROWS, seed=1)
    want = module(POSITIONS, hidden, residual)
    rows = tapped(module, guard)

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("sidecar.tap.stream._sum", broken)
    torch.testing.assert_close(module(POSITIONS, hidden, residual), want, rtol=0, atol=0)
    assert guard.errors == {"probe": 2}  # before the layer, and after it
    assert not rows.any()


def test_more_rows_than_the_slab_holds_harm_nothing(guard) -> None:
    """A batch larger than the capacity is counted as an error, and served."""
    module = TensorLayer()
    tapped(module, guard)
    hidden = tokens(NUM_ROWS + 1)
    assert module(torch.arange(NUM_ROWS + 1), hidden).shape == hidden.shape
    assert guard.errors == {"probe": 1}


def test_an_exception_of_the_layer_is_the_layers_own(guard) -> None:
    """What the model raises is neither swallowed nor counted."""

    class Failing(TensorLayer):
        def forward(self, positions, hidden_states):
            raise ValueError("the model's own")

    module = Failing()
    tapped(module, guard)
    with pytest.raises(ValueError, match="the model's own"):
        module(POSITIONS, tokens(NUM_ROWS))
    assert not guard.errors


def test_rehearsal_passes_a_working_probe(guard) -> None:
    """A probe that works is not refused."""
    rehearse(guard)
    assert not guard.errors


def test_rehearsal_refuses_a_raising_probe(guard, monkeypatch) -> None:
    """A probe that raises is found before it is compiled, where nothing could catch it."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(probes, "row_moments", broken)
    with pytest.raises(TapRefused, match="a bug of ours"):
        rehearse(guard)
    assert guard.errors == {"probe": 1}


def test_rehearsal_refuses_an_idle_probe(guard, monkeypatch) -> None:
    """A probe that writes nothing could never be told from a dead one."""
    monkeypatch.setattr(probes, "record", lambda *_: None)
    with pytest.raises(TapRefused, match="wrote nothing"):
        rehearse(guard)
