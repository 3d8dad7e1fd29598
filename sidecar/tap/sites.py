"""Where it is measured: the decoder layers of a model, found by structure and not by name.

Covers about 105 of vLLM's 118 text-generation architectures (shared trait: one list of layers
that hold the attention). A model without such a list is refused with what was looked for.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import nn

from sidecar.errors import TapRefused

LIST_NAMES: Final = ("layers", "h", "blocks")


class Site(NamedTuple):
    """One decoder layer; `layer` is its index in the whole model, over all pipeline stages."""

    layer: int
    module: nn.Module


def find_sites(
    model: nn.Module,
    has_attention: Callable[[nn.Module], bool],
    is_elsewhere: Callable[[nn.Module], bool],
) -> list[Site]:
    """Decoder layers of `model` on this rank, in order.

    has_attention: whether a module is an attention layer of the served model (not of a vision
    tower). is_elsewhere: whether a list member stands for a layer of another pipeline stage.
    Raises TapRefused when no list of layers holds attention.
    """
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and name.rpartition(".")[2] in LIST_NAMES
        and any(has_attention(inner) for inner in module.modules())
    ]
    if not lists:
        raise TapRefused(
            f"{type(model).__name__} has no list named {', '.join(LIST_NAMES)} whose members "
            "hold attention; this architecture cannot be tapped yet"
        )
    longest = max(lists, key=len)
    return [Site(i, layer) for i, layer in enumerate(longest) if not is_elsewhere(layer)]
