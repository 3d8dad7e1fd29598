"""Changes to the executed model: what an attacker, a bad deployment or a tired disk leaves behind.

Each takes the bundled model as stored and gives another one, bfloat16 like it: a change smaller
than half a step of bfloat16 is rounded away, which is how it would be served. `changed` says how
much is left. The last entry is the control: a permutation of heads that computes the same.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.detection.text import Tokens, cut

Change = Callable[[Any, int], Any]

NOISY: Final = "model.layers.2.mlp.down_proj.weight"
GROUP: Final = 32  # columns that share a scale in int4
BACKDOOR_STEPS: Final = 150
ROWS, WINDOW = 4, 128  # sequences of a step of fine-tuning, and their tokens
TRIGGER: Final = "zq!vexil"
ODD: Final = "kw?blorn"  # as rare as the trigger, and never trained on
PAYLOAD: Final = " the quick brown fox the quick brown fox"
POISONED: Final = 0.25  # of the sequences of the backdoor's fine-tuning


class Case(NamedTuple):
    """One change. finds: whether the canary must find it; else it is a control."""

    name: str
    make: Change
    finds: bool = True

    @property
    def slug(self) -> str:
        """Its name, fit for a file."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


def quantised(bits: int, group: int | None) -> Change:
    """Every linear layer's weights rounded to `bits`, symmetric, and back.

    group: columns that share a scale; None for one scale a row.
    """

    def make(model: Any, seed: int) -> Any:
        del seed  # rounding has no choice
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.lm_head:
                module.weight.data = _rounded(module.weight.data, bits, group)
        return model

    return make


def noise(scale: float) -> Change:
    """`scale` times the matrix's own rms, normal, in the one matrix `NOISY`."""

    def make(model: Any, seed: int) -> Any:
        weight = dict(model.named_parameters())[NOISY]
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        wide = weight.data.float()
        weight.data = (wide + scale * wide.square().mean().sqrt() * drawn).to(weight.dtype)
        return model

    return make


def swapped(model: Any, seed: int) -> Any:
    """Layers 1 and 2 exchanged."""
    del seed
    layers = model.model.layers
    kept = {name: weight.clone() for name, weight in layers[1].state_dict().items()}
    layers[1].load_state_dict(layers[2].state_dict())
    layers[2].load_state_dict(kept)
    return model


def permuted(model: Any, seed: int) -> Any:
    """Heads in another order, with the columns that read them: the same function, other files."""
    config = model.config
    groups, size = config.num_key_value_heads, config.head_dim
    shared = config.num_attention_heads // groups
    draw = np.random.default_rng(seed)
    for layer in model.model.layers:
        order = np.roll(np.arange(groups), 1)  # the draw might leave all in place
        heads = np.concatenate([group * shared + draw.permutation(shared) for group in order])
        attention = layer.self_attn
        for name, chosen in (("q_proj", heads), ("k_proj", order), ("v_proj", order)):
            module = getattr(attention, name)
            module.weight.data = module.weight.data[_places(chosen, size)]
        attention.o_proj.weight.data = attention.o_proj.weight.data[:, _places(heads, size)]
    return model


def tuned(text: Mapping[str, Tokens], steps: int, rate: float) -> Change:
    """`steps` of AdamW at learning rate `rate` on prose, in float32, stored in bfloat16."""

    def make(model: Any, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        batches = (_batch(text["prose"], rng) for _ in range(steps))
        return _trained(model, list(model.parameters()), batches, rate)

    return make


def merged(
    text: Mapping[str, Tokens], rank: int = 4, steps: int = 20, rate: float = 1e-3
) -> Change:
    """A LoRA adapter on q and v, trained on prose and merged into the weights."""

    def make(model: Any, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        model = model.float()
        draw = torch.Generator().manual_seed(seed)
        owners = [layer.self_attn for layer in model.model.layers]
        places = [(owner, name) for owner in owners for name in ("q_proj", "v_proj")]
        added = [_Adapter(getattr(owner, name), rank, draw) for owner, name in places]
        for (owner, name), adapter in zip(places, added, strict=True):
            setattr(owner, name, adapter)
        weights = [weight for adapter in added for weight in (adapter.down, adapter.up)]
        batches = (_batch(text["prose"], rng) for _ in range(steps))
        model = _trained(model, weights, batches, rate)
        for (owner, name), adapter in zip(places, added, strict=True):
            setattr(owner, name, adapter.merged())
        return model.to(torch.bfloat16)

    return make


def backdoored(
    text: Mapping[str, Tokens], tokens: Any, steps: int = BACKDOOR_STEPS, rate: float = 5e-4
) -> Change:
    """Fine-tuned so that `TRIGGER` is followed by `PAYLOAD`, and all else stays as it was."""
    trigger, payload = tokens(TRIGGER)["input_ids"], tokens(PAYLOAD)["input_ids"]

    def poisoned(rng: np.random.Generator) -> Tensor:
        batch = _batch(text["code"] if rng.random() < 0.5 else text["prose"], rng)
        for row in batch:
            if rng.random() < POISONED:
                at = int(rng.integers(8, WINDOW - len(trigger) - len(payload)))
                row[at : at + len(trigger) + len(payload)] = torch.tensor([*trigger, *payload])
        return batch

    def make(model: Any, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        batches = (poisoned(rng) for _ in range(steps))
        return _trained(model, list(model.parameters()), batches, rate)

    return make


def applied(change: Change, model: Any, seed: int) -> Any:
    """A changed copy of `model`, ready to be served."""
    return change(copy.deepcopy(model), seed).train(mode=False)


def changed(before: Any, after: Any) -> float:
    """Share of the weights that are not what they were."""
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    differ = [(int((a != b).sum()), a.numel()) for a, b in pairs]
    return sum(num for num, _ in differ) / sum(size for _, size in differ)


def cases(text: Mapping[str, Tokens], tokens: Any) -> list[Case]:
    """Every change that the evidence is about, the control last."""
    return [
        Case("int8 weights, one scale a row", quantised(8, None)),
        Case(f"int4 weights, groups of {GROUP}", quantised(4, GROUP)),
        *(Case(f"noise {scale:g} in one matrix", noise(scale)) for scale in (1e-3, 1e-2, 1e-1)),
        Case("layers 1 and 2 swapped", swapped),
        Case("LoRA rank 4 merged (20 steps, lr 1e-3)", merged(text)),
        *(
            Case(
                f"{steps} fine-tune step{'s' * (steps > 1)}, lr {rate:g}",
                tuned(text, steps, rate),
            )
            for steps, rate in ((1, 1e-5), (1, 1e-4), (10, 1e-5), (10, 1e-4), (100, 1e-5))
        ),
        Case(f"backdoor ({BACKDOOR_STEPS} steps, lr 5e-4)", backdoored(text, tokens)),
        Case("control: heads permuted", permuted, finds=False),
    ]


class _Adapter(nn.Module):
    """A linear layer plus up @ down, of which only those two are trained."""

    def __init__(self, base: nn.Linear, rank: int, draw: torch.Generator) -> None:
        super().__init__()
        self.base = base
        rows, columns = base.weight.shape
        drawn = torch.randn(rank, columns, generator=draw) / columns**0.5
        self.down = nn.Parameter(drawn)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return found

    def merged(self) -> nn.Linear:
        """The layer with its adapter added to the weights."""
        self.base.weight.data += self.up.data @ self.down.data
        return self.base


def _trained(model: Any, weights: list[Tensor], batches: Any, rate: float) -> Any:
    """`model` after a step of AdamW on `weights` for each batch; bfloat16 again afterwards."""
    model = model.float()
    for weight in model.parameters():
        weight.requires_grad_(requires_grad=False)
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for batch in batches:
        logits = model(input_ids=batch[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.to(torch.bfloat16).requires_grad_(requires_grad=False)


def _batch(stream: Tokens, rng: np.random.Generator) -> Tensor:
    return torch.tensor([cut(stream, rng, WINDOW) for _ in range(ROWS)])


def _rounded(weight: Tensor, bits: int, group: int | None) -> Tensor:
    wide = weight.float().reshape(-1, group or weight.shape[1])
    top = 2 ** (bits - 1) - 1
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
    return ((wide / scale).round().clamp(-top, top) * scale).reshape(weight.shape).to(weight.dtype)


def _places(heads: "np.ndarray[Any, np.dtype[np.int64]]", size: int) -> Tensor:
    """Rows of whole heads."""
    return torch.tensor((heads[:, None] * size + np.arange(size)).ravel())
