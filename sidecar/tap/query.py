"""Query rows of one attention layer: at each forward pass those asked for are copied.

On a GPU in the graph (`attach_query`). A pre-hook on the attention module sees the query after its
norm and its rotary embedding, before any quantisation. It is traced by torch.compile like the
layer's own code and runs inside CUDA graphs; attached after the first run it would silently never
fire, which the pulse shows.

The rows asked for are numbers in a buffer that the host fills before the pass. They are clamped
in the graph: a number left from a larger batch would end in Inductor's bounds check, and that ends
the engine's process.

On a CPU outside of it (`attach_aside`). The backend's `forward` is an opaque operation there, run
by Python at every pass, so that a pass nobody asks costs nothing. In the graph the compiler puts
the copies last, and so keeps the queries of all layers alive and out of the cache
(docs/decisions/0019-what-a-step-costs.md).
"""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from sidecar.tap.guard import Guard

PICKS: Final = "_sidecar_picks"  # buffers of a tapped attention module
QUERIES: Final = "_sidecar_queries"
PULSE: Final = "_sidecar_query_pulse"


def attach_query(
    module: nn.Module,
    picks: torch.Tensor,
    queries: torch.Tensor,
    pulse: torch.Tensor,
    guard: Guard,
) -> Callable[[], None]:
    """Copy rows of the query into `queries` at each forward of `module`; returns the undo.

    picks: [R] int64, numbers of the rows, shared by all modules. queries: [R, heads * head size].
    pulse: int64 without dimensions, counts the forward passes that were seen.
    """
    # Buffers, so that the graph fetches them by attribute and CUDA graphs keep their addresses.
    for name, buffer in ((PICKS, picks), (QUERIES, queries), (PULSE, pulse)):
        module.register_buffer(name, buffer, persistent=False)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            copy_rows(module, args[0] if args else kwargs.get("query"))
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("query", error)

    hook = module.register_forward_pre_hook(before, with_kwargs=True)

    def detach() -> None:
        hook.remove()
        for name in (PICKS, QUERIES, PULSE):
            delattr(module, name)

    return detach


def attach_aside(
    backend: Any,
    is_asked: Callable[[], bool],
    picks: torch.Tensor,
    queries: torch.Tensor,
    pulse: torch.Tensor,
    guard: Guard,
) -> Callable[[], None]:
    """Copy rows of the query that `backend.forward(layer, query, ...)` is given; returns the undo.

    is_asked: whether the pass under way is one to copy of. The pulse counts those that were.
    """
    forward = backend.forward

    def attend(layer: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if is_asked():
                _copy(query, picks, queries, pulse)
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("query", error)
        return forward(layer, query, *args, **kwargs)

    backend.forward = attend

    def detach() -> None:
        backend.forward = forward

    return detach


def copy_rows(module: nn.Module, query: Any) -> None:
    """Copy the rows of `query`, [T, heads * head size] or [T, heads, head size], picked by now."""
    _copy(query, *(getattr(module, name) for name in (PICKS, QUERIES, PULSE)))


def _copy(query: Any, picks: torch.Tensor, queries: torch.Tensor, pulse: torch.Tensor) -> None:
    # Shapes are compared before any arithmetic: what raises inside a trace is the compiler's own
    # error, which no guard of ours can catch. A query of another shape leaves the pulse still.
    if not isinstance(query, torch.Tensor) or math.prod(query.shape[1:]) != queries.shape[1]:
        return
    rows = picks.clamp(0, query.shape[0] - 1)
    queries.copy_(query.index_select(0, rows).flatten(1))
    pulse.add_(1)
