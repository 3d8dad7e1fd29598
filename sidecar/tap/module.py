"""A tap on any transformers causal LM in this process, without vLLM: `attach(model)`, `detach()`.

    tap = attach(model)          # before torch.compile, or the graph is built without the hooks
    model.generate(**inputs)     # each sequence of each call is one request
    tap.detach()                 # or: with attach(model): ...

The same probes, accounts and frames as in vLLM, seated with ordinary hooks. Guarantees: what the
model returns is untouched; an exception of ours never reaches the caller; `detach` leaves the model
as it was. Beam search is served and not measured. A forward pass with more rows than `max_rows` is
not measured, and its rows are counted as lost. Rows of padding, and of sequences that had ended,
are not data. Compiled with `fullgraph=True`, the model's `forward` may be, the model itself not.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap import probes
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.rows import Batch
from sidecar.tap.sites import Site, find_sites
from sidecar.tap.slab import Slab
from sidecar.tap.stream import ROWS
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source

_HIDDEN: Final = "hidden_states"


def attach(
    model: nn.Module,
    *,
    config: TapConfig | None = None,
    model_name: str = "",
    max_rows: int = 16384,
    max_requests: int = 64,
) -> "ModelTap":
    """Measure every forward pass of `model` from now on, and send frames to the sidecar.

    config: where the sidecar listens and what is measured; read from the environment by default.
    model_name: label of the metrics; the model's own path by default.
    max_rows, max_requests: token rows and sequences of one forward pass at most.
    Raises TapRefused when `model` has no list of decoder layers, and ConfigError for bad settings.
    """
    config = config or TapConfig.read(os.environ)
    sites = find_sites(model, _is_attention, lambda _module: False)
    device = next(model.parameters()).device
    slab = Slab(len(sites), max_rows, 2 * max_requests + 256, device)
    guard = Guard(config.max_errors)
    engine = _nameplate(model, model_name)
    sender = Sender(config.socket, Source("engine"), config.key())
    layer_ids = [site.layer for site in sites]
    tap = EngineTap(config, engine, layer_ids, slab, sender, guard, max_requests)
    return ModelTap(model, sites, slab, tap, guard)


class ModelTap:
    """The hooks on one model and the tap behind them; a context manager that detaches."""

    def __init__(
        self, model: nn.Module, sites: list[Site], slab: Slab, tap: EngineTap, guard: Guard
    ) -> None:
        self._model = model
        self._tap = tap
        self._guard = guard
        self._calls = Calls(_end_tokens(model))
        self._batch: Batch | None = None
        self._is_muted = False
        with contextlib.ExitStack() as undo:
            for index, site in enumerate(sites):
                undo.callback(_measure(site.module, slab.rows[index], guard))
            undo.callback(_on_forward(model, self._read, self._observe))
            undo.callback(_on_generate(model, self._generating, self._generated))
            self._undo = undo.pop_all()
        tap.start()
        tap.arm(was_warmed_up=False)

    def detach(self) -> None:
        """Report what is left, and leave the model as it was."""
        self._generated()
        self._undo.close()
        self._tap.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _read(self, inputs: dict[str, Any]) -> None:
        # Before the pass, which lengthens the cache by which new requests are told.
        self._batch = None
        if self._is_muted:
            return
        self._batch = self._guard.run("read", self._calls.batch, inputs)
        ended, self._calls.ended = self._calls.ended, []
        if ended:
            self._guard.run("finish", self._tap.finish, ended)

    def _observe(self) -> None:
        if self._batch is not None:
            self._guard.run("step", self._tap.observe, self._batch)

    def _generating(self, options: dict[str, Any]) -> None:
        """A call of `generate` begins. Beams change owners between steps: they are left alone."""
        self._is_muted = bool(_num_beams(self._model, options) > 1)

    def _generated(self) -> None:
        """A call of `generate` has returned: its sequences are complete."""
        self._is_muted = False
        self._guard.run("finish", self._tap.finish, self._calls.end())


class Calls:
    """Tells the sequences of successive forward passes apart: which request each row belongs to.

    A pass without past begins a new request per sequence; one with past continues those before.
    end_tokens: ids that end a sequence; transformers goes on feeding it while others run.
    """

    def __init__(self, end_tokens: tuple[int, ...]) -> None:
        self.ended: list[str] = []
        self._end_tokens = end_tokens
        self._num_requests = 0
        self._req_ids: list[str] = []
        self._prompts = np.zeros(0, np.int64)
        self._lengths = np.zeros(0, np.int64)
        self._is_over = np.zeros(0, bool)

    def batch(self, inputs: dict[str, Any]) -> Batch | None:
        """The batch of one forward pass from its arguments; None when it holds no token."""
        tokens = _tokens(inputs)
        if tokens is None:
            return None
        num_sequences, width = tokens.shape[:2]
        real = _real(inputs.get("attention_mask"), num_sequences, width)
        if _num_past(inputs) == 0:
            self._begin(real)
        elif num_sequences != len(self._req_ids):
            raise TapRefused("the batch changed within a generation; pass whole batches")
        else:
            real &= ~self._over(tokens)[:, None]
        counts = real.sum(1)
        starts, self._lengths = self._lengths, self._lengths + counts
        return Batch(list(self._req_ids), starts, counts, self._prompts, real=real.ravel())

    def end(self) -> list[str]:
        """The sequences under way are complete; their ids."""
        ended, self._req_ids = [*self.ended, *self._req_ids], []
        self.ended = []
        return ended

    def _begin(self, real: NDArray[np.bool_]) -> None:
        self.ended.extend(self._req_ids)
        first = self._num_requests
        self._num_requests += len(real)
        self._req_ids = [f"generation-{first + i}" for i in range(len(real))]
        self._prompts = real.sum(1)
        self._lengths = np.zeros(len(real), np.int64)
        self._is_over = np.zeros(len(real), bool)

    def _over(self, tokens: torch.Tensor) -> NDArray[np.bool_]:
        """Which sequences had ended: fed their end token, a row that served alone has not."""
        if self._end_tokens and tokens.dim() == 2:
            fed = tokens[:, -1].cpu().numpy()
            self._is_over |= np.isin(fed, self._end_tokens)
        return self._is_over


def _tokens(inputs: dict[str, Any]) -> torch.Tensor | None:
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(found := inputs.get(name), torch.Tensor):
            return found
    return None


def _real(mask: Any, num_sequences: int, width: int) -> NDArray[np.bool_]:
    """[B, S] which positions of this pass hold a token and not padding."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return np.ones((num_sequences, width), bool)
    real: NDArray[np.bool_] = mask[:, -width:].cpu().numpy() > 0
    return real


def _num_past(inputs: dict[str, Any]) -> int:
    past = inputs.get("past_key_values")
    return 0 if past is None else int(past.get_seq_length())


def _measure(module: nn.Module, rows: torch.Tensor, guard: Guard) -> Callable[[], None]:
    """Record the residual stream of one decoder layer at each forward; returns the undo."""
    forward = module.forward
    own = vars(module).get("forward")  # somebody else may have replaced it already
    module.register_buffer(ROWS, rows, persistent=False)

    def measured(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        try:
            _record(rows, args[0] if args else kwargs.get(_HIDDEN), outputs)
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("probe", error)
        return outputs

    module.forward = measured

    def undo() -> None:
        _restore(module, "forward", own)
        delattr(module, ROWS)

    return undo


def _record(rows: torch.Tensor, before: Any, outputs: Any) -> None:
    """Signals of a pass over [B, S, H], rows being B x S; too many rows are not written."""
    after = outputs[0] if isinstance(outputs, tuple) else outputs
    # Shapes are compared before any arithmetic: what raises inside a trace cannot be caught.
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return
    if before.shape == after.shape and after.shape[:-1].numel() <= rows.shape[1]:
        # Detached: measured in training too, and no graph of autograd grows through the rows.
        probes.record(rows, before.detach().flatten(0, -2), after.detach().flatten(0, -2))


def _on_forward(
    model: nn.Module, read: Callable[[dict[str, Any]], None], observe: Callable[[], None]
) -> Callable[[], None]:
    """Call `read` with the named arguments of each pass of the model, and `observe` after it."""

    def before(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read({"input_ids": args[0], **kwargs} if args else kwargs)

    def after(_model: nn.Module, _args: Any, _output: Any) -> None:
        observe()

    handles = [
        # Host work: a compiled model breaks its graph before and after itself, and not within.
        model.register_forward_pre_hook(_untraced(before), with_kwargs=True),
        model.register_forward_hook(_untraced(after)),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    untraced: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return untraced


def _on_generate(
    model: Any, begin: Callable[[dict[str, Any]], None], end: Callable[[], None]
) -> Callable[[], None]:
    """Call `begin` with the named arguments before each call of `generate`, and `end` after."""
    generate = getattr(model, "generate", None)
    own = vars(model).get("generate")
    if generate is None:
        return lambda: None

    @functools.wraps(generate)
    def generating(*args: Any, **kwargs: Any) -> Any:
        begin(kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            end()

    model.generate = generating

    return functools.partial(_restore, model, "generate", own)


def _restore(owner: Any, name: str, own: Any) -> None:
    """Give `owner` back its attribute, or the one of its class when it had none of its own."""
    if own is None:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _num_beams(model: Any, options: dict[str, Any]) -> int:
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    return int(options.get("num_beams") or getattr(config, "num_beams", None) or 1)


def _end_tokens(model: Any) -> tuple[int, ...]:
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def _nameplate(model: Any, model_name: str) -> Nameplate:
    config = getattr(model, "config", None)
    return Nameplate(
        model_name or str(getattr(config, "name_or_path", "") or type(model).__name__),
        tap_version=__version__,
        runner="torch",
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
