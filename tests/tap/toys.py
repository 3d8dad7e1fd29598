"""Toy decoder models: the forms of layers that real architectures have, at a few floats each."""

import torch
from torch import nn

HIDDEN = 16


class Attention(nn.Module):
    """Stands for an attention layer, by which a decoder layer is known."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Mix nothing, move something."""
        return torch.tanh(hidden_states.roll(1, -1))


class TensorLayer(nn.Module):
    """A layer that takes and returns one tensor, like GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Add a block to the stream."""
        return hidden_states + self.attention(hidden_states)


class PairLayer(nn.Module):
    """A layer that carries the residual beside the hidden states, like Llama's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream is the sum of both, before and after."""
        residual = hidden_states if residual is None else hidden_states + residual
        return self.attention(residual), residual


class FusedLayer(PairLayer):
    """The same layer with a fused norm that overwrites both of its inputs in place."""

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What fused_add_rms_norm does: residual += hidden; hidden = f(residual)."""
        residual = hidden_states.clone() if residual is None else residual.add_(hidden_states)
        hidden_states.copy_(self.attention(residual))
        return hidden_states, residual


class NoneLayer(TensorLayer):
    """A layer whose second output is always None, like Gemma 4's."""

    def forward(  # type: ignore[override]
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: None = None
    ) -> tuple[torch.Tensor, None]:
        """Add a block to the stream."""
        return super().forward(positions, hidden_states), None


class Decoder(nn.Module):
    """Layers of the pair form in a list named `layers`; the sum leaves at the end."""

    def __init__(self, num_layers: int = 3, layer: type[nn.Module] = PairLayer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run every layer."""
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return hidden_states + residual


def streams(model: Decoder, hidden_states: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream before the first layer and after each, by the definition of `PairLayer`.

    Knows no probe: what the tap reads is compared with this.
    """
    stream = [hidden_states.clone()]
    for layer in model.layers:
        stream.append(layer.attention(stream[-1]) + stream[-1])
    return stream


def tokens(num_rows: int, seed: int = 0) -> torch.Tensor:
    """Embedded tokens, [num_rows, HIDDEN]."""
    return torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
