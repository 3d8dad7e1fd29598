"""An emulated GPU: the order in which a matrix product is summed up changes from call to call.

A CPU gives the same bits for the same input, and would flatter every detector of changes. A GPU
splits the K dimension of a product among blocks, by the shape of the batch, and adds the parts up
as they come. Here every linear layer does so: at each call K is cut into 1 to 8 parts at random
places (multiples of 16), each part is summed in float32, and the parts are added in random order,
either in float32 or rounded to bfloat16 each time, as the reductions of real kernels do. The
output is bfloat16 in both cases. Nothing else of the model is noisy; a real GPU's attention is.
"""

import types
from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

Sum = Literal["float32", "bfloat16"]

MOST_PARTS: Final = 8
TILE: Final = 16


def split(model: nn.Module, seed: int, accumulator: Sum) -> Any:
    """`model` with noise in each `nn.Linear`, in place; the seed draws all splits to come."""
    draw = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, accumulator)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = types.MethodType(_forward(draw, dtype), module)
    return model


def product(x: Tensor, weight: Tensor, draw: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Multiply x [..., K] with weight [N, K], transposed; the parts of K added up in `dtype`."""
    wide, rows = x.float(), weight.float()
    total: Tensor | None = None
    for start, end in parts(x.shape[-1], draw):
        part = (wide[..., start:end] @ rows[:, start:end].T).to(dtype)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a product of width 0; give a matrix with columns")
    return total.to(x.dtype)


def parts(width: int, draw: torch.Generator) -> list[tuple[int, int]]:
    """Where K is cut, in the order of the sum; together all of `width`."""
    most = min(MOST_PARTS, max(1, width // TILE))
    num = int(torch.randint(1, most + 1, (1,), generator=draw))
    places = torch.randperm(width // TILE - 1, generator=draw)[: num - 1] if num > 1 else []
    cuts = [0, *sorted(TILE * (int(place) + 1) for place in places), width]
    spans = [(cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]
    return [spans[int(i)] for i in torch.randperm(len(spans), generator=draw)]


def _forward(draw: torch.Generator, dtype: torch.dtype) -> Callable[[nn.Linear, Tensor], Tensor]:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        found = product(x, self.weight, draw, dtype)
        return found if self.bias is None else found + self.bias

    return forward
