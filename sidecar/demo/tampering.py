"""A worker extension of the demo's vLLM: changes the weights of the model that is being served.

For a demonstration alone: nothing of the tap, or of any other server, can do this. The noise is
multiplied into every number of one decoder layer that the layer still computes with (some builds
for CPU have packed the matrices away, and leave the norms), in place, so that compiled graphs go on
with it. The files on disk stay as they are. Knows torch by its methods only.
"""

import re
from collections import defaultdict
from typing import Any, Final

EXTENSION: Final = "sidecar.demo.tampering.Tampering"
METHOD: Final = "tamper_with_layer"
STRENGTH: Final = 0.2

_LAYER: Final = re.compile(r"\.(\d+)\.")


class Tampering:
    """What is mixed into the worker's class; `model_runner` is the worker's."""

    model_runner: Any

    def tamper_with_layer(self, strength: str = str(STRENGTH)) -> dict[str, Any]:
        """Change the layer in the middle, by noise of this relative size; tells which, and what."""
        return tamper(self.model_runner.get_model(), float(strength))


def tamper(model: Any, strength: float) -> dict[str, Any]:
    """Multiply every number of the middle layer of `model` by 1 + `strength` times a normal one."""
    layers = defaultdict(list)
    for name, parameter in model.named_parameters():
        if (found := _LAYER.search(name)) and parameter.is_floating_point() and parameter.numel():
            layers[int(found[1])].append((name, parameter))
    layer = sorted(layers)[len(layers) // 2]
    for _, parameter in layers[layer]:
        noise = parameter.data.new_empty(parameter.shape).normal_()
        parameter.data.mul_(noise.mul_(strength).add_(1.0))
    return {"layer": layer, "tensors": [name for name, _ in layers[layer]]}
