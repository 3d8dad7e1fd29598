"""The signature of a request: which number stands at which place of the vector.

A signature is what drift is judged by, so its layout is a contract of its own: two vectors can be
compared when their layouts are equal. Version 1 (`VERSION`) follows the order below.

    per phase and layer    residual, over rows after the first positions: mean log RMS, log of the
                           largest RMS, mean log block influence, mean log peak ratio
    per phase and attention layer    mean entropy ratio, logit sink mass, log effective tokens
    per phase and router layer       mean gate entropy, log top-k margin
    of the generated tokens          mean and last entropy, mean top-1 margin, least log-probability
    per sketched layer               sketch of the last prompt token, and of the mean decode token
    per user probe                   its pooled score
"""

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from sidecar.wire.fields import Count, LayerIds, Rank, Text
from sidecar.wire.signals import Phase

VERSION: Final = 1
RESIDUAL: Final = ("log_rms", "log_rms_max", "log_influence", "log_peak")
ATTENTION: Final = ("entropy", "logit_sink_mass", "log_effective_tokens")
ROUTER: Final = ("gate_entropy", "log_topk_margin")
CONFIDENCE: Final = ("entropy", "last_entropy", "top1_margin", "min_logprob")
SKETCHES: Final = ("last_prompt", "mean_decode")
_MAX_SKETCH: Final = 64


class Layout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the entries of a signature are of; two signatures of one layout can be compared.

    layers, attention_layers, router_layers, sketch_layers: global ids.
    sketch_size, sketch_seed: directions per sketched layer, and what they were drawn from.
    probes: names of the user's probes.
    """

    layers: LayerIds
    attention_layers: LayerIds = msgspec.field(default_factory=list)
    router_layers: LayerIds = msgspec.field(default_factory=list)
    sketch_layers: LayerIds = msgspec.field(default_factory=list)
    sketch_size: Annotated[int, msgspec.Meta(ge=0, le=_MAX_SKETCH)] = 0
    sketch_seed: Count = 0
    probes: Annotated[list[Text], msgspec.Meta(max_length=256)] = msgspec.field(
        default_factory=list
    )
    version: Rank = VERSION


def entries(layout: Layout) -> Iterator[str]:
    """Name of each entry, in order, such as `decode/l3/log_rms` or `sketch/l0/last_prompt/7`."""
    for group, layers in (
        (RESIDUAL, layout.layers),
        (ATTENTION, layout.attention_layers),
        (ROUTER, layout.router_layers),
    ):
        kind = {RESIDUAL: "residual", ATTENTION: "attention", ROUTER: "router"}[group]
        for phase in Phase:
            for layer in layers:
                yield from (f"{kind}/{phase}/l{layer}/{name}" for name in group)
    yield from (f"confidence/{name}" for name in CONFIDENCE)
    for layer in layout.sketch_layers:
        for sketch in SKETCHES:
            yield from (f"sketch/l{layer}/{sketch}/{i}" for i in range(layout.sketch_size))
    yield from (f"probe/{name}" for name in layout.probes)


def size(layout: Layout) -> int:
    """Number of entries."""
    per_phase = (
        len(RESIDUAL) * len(layout.layers)
        + len(ATTENTION) * len(layout.attention_layers)
        + len(ROUTER) * len(layout.router_layers)
    )
    sketched = len(SKETCHES) * layout.sketch_size * len(layout.sketch_layers)
    return len(Phase) * per_phase + len(CONFIDENCE) + sketched + len(layout.probes)
