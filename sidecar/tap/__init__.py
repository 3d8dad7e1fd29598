"""The tap: inside the engine, from a tensor in the graph to a frame on the wire.

probes > stream > slab > rows > ledger > pump for the residual stream; instruments beside them for
the other groups of signals. `engine` puts them together, `vllm` seats them, `module` taps a plain
torch model: `sidecar.tap.attach(model)`. The only home of torch; no web or metrics stack is loaded.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.tap.module import ModelTap, attach

__all__ = ["ModelTap", "attach"]


def __getattr__(name: str) -> Any:
    # Late: vLLM loads this package in every process, and most of them need no torch.
    if name in __all__:
        from sidecar.tap import module  # noqa: PLC0415

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
