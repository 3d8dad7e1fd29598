"""Where it is measured: the decoder layers of a model, whatever stands around them."""

import pytest
from torch import nn

from sidecar.errors import TapRefused
from sidecar.tap.sites import Site, find_sites
from tests.tap.toys import Attention, TensorLayer


class Missing(nn.Module):
    """Stands for a layer of another pipeline stage."""


class Model(nn.Module):
    """A model of named parts; each list becomes a module list."""

    def __init__(self, **parts: nn.Module | list[nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, nn.ModuleList(part) if isinstance(part, list) else part)


def layers(number: int) -> list[nn.Module]:
    return [TensorLayer() for _ in range(number)]


def sites_of(model: nn.Module) -> list[Site]:
    return find_sites(
        model,
        lambda module: isinstance(module, Attention),
        lambda module: isinstance(module, Missing),
    )


@pytest.mark.parametrize("name", ["layers", "h", "blocks"])
def test_the_layers_are_found_by_the_name_of_their_list(name) -> None:
    """Each of the names that architectures use is found, at any depth, in order."""
    expected = layers(3)
    model = Model(language_model=Model(model=Model(**{name: expected})))
    assert sites_of(model) == [Site(i, layer) for i, layer in enumerate(expected)]


def test_a_list_without_served_attention_is_not_tapped() -> None:
    """A vision tower is longer than the decoder, but its attention is not the served model's."""
    decoder = layers(2)
    tower = [nn.Linear(2, 2) for _ in range(9)]
    model = Model(visual=Model(blocks=tower), language_model=Model(layers=decoder))
    assert [site.module for site in sites_of(model)] == decoder


def test_the_longest_list_is_the_decoder() -> None:
    """Of two lists with served attention, such as a draft's, the longer is the model."""
    decoder = layers(4)
    model = Model(draft=Model(layers=layers(1)), model=Model(layers=decoder))
    assert [site.module for site in sites_of(model)] == decoder


def test_layers_of_other_stages_keep_their_numbers() -> None:
    """On a pipeline stage a layer's number counts the placeholders before it."""
    mine = layers(2)
    model = Model(layers=[Missing(), Missing(), *mine, Missing()])
    assert sites_of(model) == [Site(2, mine[0]), Site(3, mine[1])]


@pytest.mark.parametrize(
    "model",
    [
        Model(),
        Model(layers=[nn.Linear(2, 2)]),
        Model(stages=layers(3)),
        Model(layers=Model(inner=TensorLayer())),
    ],
)
def test_a_model_without_such_a_list_is_refused(model) -> None:
    """The refusal names the model, the lists looked for, and what their members lack."""
    with pytest.raises(TapRefused, match=r"Model has no list named layers, h, blocks .*attention"):
        sites_of(model)
