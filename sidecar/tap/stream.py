"""Probes onto layers: wraps the forward of each decoder layer, before the model is compiled.

The wrapped forward is traced by torch.compile like the layer's own, so it costs no graph break
and runs inside CUDA graphs. Attached after the first run it would silently never fire: that is
what the pulse column and `engine.EngineTap` watch for.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

from sidecar.errors import TapRefused
from sidecar.tap import probes
from sidecar.tap.guard import Guard
from sidecar.tap.sites import Site

ROWS: Final = "_sidecar_rows"  # buffer of a tapped layer: its view of the slab

# Whatever else is made of the stream after a layer, [T, H]; traced, so it may not raise.
Reader = Callable[[torch.Tensor], None]

_HIDDEN_NAMES: Final = ("hidden_states", "hidden", "x", "h", "inputs")
_RESIDUAL_NAMES: Final = ("residual", "residuals")
_NUM_DIMS: Final = 2  # token rows by hidden size


def attach_probe(
    site: Site, rows: torch.Tensor, guard: Guard, also: Reader | None = None
) -> Callable[[], None]:
    """Measure `site` into `rows` ([NUM_COLUMNS, capacity]) at each forward; returns the undo.

    also: reads the same stream after the layer, which is formed once.
    Raises TapRefused when the layer's forward has no parameter that looks like the stream.
    """
    module = site.module
    forward = module.forward
    read = _reader(forward, type(module).__name__)
    # A buffer, so that the graph fetches it by attribute and CUDA graphs keep its address.
    module.register_buffer(ROWS, rows, persistent=False)

    def tapped(*args: Any, **kwargs: Any) -> Any:
        before = None
        try:
            # Read before the layer runs: fused norms overwrite their inputs in place.
            before = read(args, kwargs)
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("probe", error)
        outputs = forward(*args, **kwargs)
        try:
            after = _stream_out(outputs)
            if before is not None and after is not None and before.shape == after.shape:
                probes.record(getattr(module, ROWS), before, after)
                if also is not None:
                    also(after)
        except Exception as error:  # likewise
            guard.count("probe", error)
        return outputs

    module.forward = tapped

    def detach() -> None:
        module.forward = forward
        delattr(module, ROWS)

    return detach


def rehearse(guard: Guard) -> None:
    """Run the probe once on a small tensor, so that a broken one is found before the trace.

    Raises TapRefused: inside a compiled graph an exception could not be caught any more.
    """
    rows = torch.zeros(probes.NUM_COLUMNS, 4)
    stream = torch.ones(2, 8, dtype=torch.bfloat16)
    try:
        probes.record(rows, stream, stream + stream)
    except Exception as error:
        guard.count("probe", error)
        raise TapRefused(f"the probe failed its rehearsal: {error!r}") from error
    if not float(rows[probes.PULSE, 1]):
        raise TapRefused("the probe wrote nothing in its rehearsal")


class _Parameter(NamedTuple):
    name: str
    place: int


def _reader(
    forward: Callable[..., Any], owner: str
) -> Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor | None]:
    """How to read the residual stream from the arguments of `forward`."""
    names = list(inspect.signature(forward).parameters)
    hidden = _find(names, _HIDDEN_NAMES)
    residual = _find(names, _RESIDUAL_NAMES)
    if hidden is None:
        raise TapRefused(
            f"{owner}.forward takes {names}, none of which is {', '.join(_HIDDEN_NAMES)}"
        )

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        stream = _argument(hidden, args, kwargs)
        if not isinstance(stream, torch.Tensor):
            return None
        carried = None if residual is None else _argument(residual, args, kwargs)
        if carried is not None:
            return _sum(stream, carried)
        # maximum(x, x) is a copy that no compiler pass removes; a clone may be, and the
        # layer overwrites its input.
        return torch.maximum(stream, stream) if stream.dim() == _NUM_DIMS else None

    return read


def _find(names: list[str], wanted: tuple[str, ...]) -> _Parameter | None:
    for name in wanted:
        if name in names:
            return _Parameter(name, names.index(name))
    return None


def _argument(parameter: _Parameter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if parameter.place < len(args):
        return args[parameter.place]
    return kwargs.get(parameter.name)


def _stream_out(outputs: Any) -> torch.Tensor | None:
    """The residual stream in a layer's outputs: h, (h, None), or the sum of (h, residual)."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if not isinstance(outputs, tuple) or not isinstance(outputs[0], torch.Tensor):
        return None
    if len(outputs) > 1 and outputs[1] is not None:
        return _sum(outputs[0], outputs[1])
    return outputs[0]


def _sum(hidden: torch.Tensor, residual: Any) -> torch.Tensor | None:
    """The stream in its two halves; None when they are not rows of the same shape.

    Shapes are compared before any arithmetic: what raises inside a trace is the compiler's own
    error, which no guard of ours can catch. A layer left out is a pulse that stands still.
    """
    if not isinstance(residual, torch.Tensor) or hidden.dim() != _NUM_DIMS:
        return None
    return hidden + residual if hidden.shape == residual.shape else None
