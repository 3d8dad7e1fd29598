"""The demo's tampering: one layer in the middle, in place, and nothing else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidecar.demo import tampering
from sidecar.demo.tampering import EXTENSION, METHOD, Tampering, tamper


class Decoder(nn.Module):
    """Layers with a matrix and a norm, and something beside them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 4, bias=False), "norm": nn.RMSNorm(4)})
            for _ in range(num_layers)
        )


@pytest.mark.parametrize(("num_layers", "middle"), [(1, 0), (3, 1), (4, 2)])
def test_every_number_of_the_middle_layer_moves_and_no_other(num_layers, middle) -> None:
    """By a little, in the tensors that graphs were compiled with."""
    model = Decoder(num_layers)
    before = copy.deepcopy(model.state_dict())
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    told = tamper(model, 0.1)
    assert told["layer"] == middle
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == places[name]
        moved = (parameter.detach() - before[name]).abs() / before[name].abs()
        is_tampered = name.startswith(f"layers.{middle}.")
        assert (name in told["tensors"]) is is_tampered
        assert bool((moved[before[name] != 0] > 0).any()) is is_tampered
        assert float(moved.nan_to_num().max()) < 1.0
    assert told["tensors"]


def test_matrices_packed_away_and_integers_are_left() -> None:
    """Empty stand-ins, and what is no number of a layer's own."""
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2, bias=False)])})
    layer = model["layers"][0]
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    layer.norm = nn.Parameter(torch.ones(2), requires_grad=False)
    layer.table = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert tamper(model, 0.1)["tensors"] == ["layers.0.norm"]


def test_the_extension_is_where_the_engine_looks_for_it() -> None:
    """A class that can be mixed into a worker, with the method that the demo calls by name."""
    module, _, name = EXTENSION.rpartition(".")
    assert (module, getattr(tampering, name)) == (tampering.__name__, Tampering)
    worker = Tampering()
    worker.model_runner = SimpleNamespace(get_model=lambda: Decoder(3))
    assert getattr(worker, METHOD)()["layer"] == 1
