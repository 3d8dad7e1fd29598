"""What an arm has its model do or say: functions that vLLM sends to the process of its worker.

They are pickled by name, so they stand in a module of their own: those of the program that was
started belong to `__main__`, which is another one in a worker.
"""

from collections.abc import Callable
from typing import Any


def hook_every_layer(model: Any) -> int:
    """Copy the output of every decoder layer to the CPU: how peers observe, re-implemented by us.

    It needs eager mode: a compiled graph calls no hooks. Only the latest copies are kept, where
    those keep them all. Returns the number of layers.
    """
    latest: dict[int, list[Any]] = {}

    def keep(number: int) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            latest[number] = [part.detach().to("cpu", copy=True) for part in parts]

        return hook

    layers = [each for each in model.modules() if type(each).__name__.endswith("DecoderLayer")]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(keep(number))
    if not layers:
        raise RuntimeError("no decoder layer was found: the arm would measure nothing")
    return len(layers)


def device_bytes(_model: Any) -> int:
    """What the device holds for this engine; 0 without one."""
    import torch  # noqa: PLC0415 - in the engine's process

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
