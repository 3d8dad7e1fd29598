"""A tap on any transformers causal LM in this process, without vLLM: `attach(model)`, `detach()`.

    tap = attach(model)          # before torch.compile, or the graph is built without the hooks
    model.generate(**inputs)     # each sequence of each call is one request
    tap.detach()                 # or: with attach(model): ...

The same instruments, accounts and frames as in vLLM, seated with ordinary hooks: the residual
stream, sketches and probes of it, the confidence of generated tokens, and attention. Not measured,
with the reason among the absent groups of the status: routers; attention of a compiled model, and
of one that does not use transformers' attention interface.

Guarantees: what the model returns is untouched; an exception of ours never reaches the caller;
`detach` leaves the model as it was. Beam search and assisted generation are served and not
measured. A forward pass with more rows than `max_rows` is not measured, and its rows are counted as
lost. Rows of padding, which stands on the left, and of sequences that had ended, are not data.
Compiled with `fullgraph=True`, the model's `forward` may be, the model itself not.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import nn

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap import probes, readings
from sidecar.tap.confidence import Confidence
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.kernels import kernels_of
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.plain import attention
from sidecar.tap.plain.calls import Calls
from sidecar.tap.plain.confidence import NextToken
from sidecar.tap.readings import Stream
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch
from sidecar.tap.signature import evenly
from sidecar.tap.sites import find_sites
from sidecar.tap.slab import Slab
from sidecar.tap.stream import ROWS, Reader
from sidecar.wire.channel import Sender
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import Identity, Source
from sidecar.wire.signature import Layout

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
    Raises TapRefused when `model` has no list of decoder layers or no width, and ConfigError for
    bad settings.
    """
    config = config or TapConfig.read(os.environ)
    sites = find_sites(model, attention.is_attention, lambda _module: False)
    device = next(model.parameters()).device
    slab = Slab(len(sites), max_rows, 2 * max_requests + 256, device)
    hidden_size = _hidden_size(model)
    stream = Stream(sites, len(sites), hidden_size, max_rows, slab.max_groups, max_requests, device)
    with contextlib.ExitStack() as undo:
        return _attached(model, config, _nameplate(model, model_name), stream, slab, undo)


def _attached(
    model: nn.Module,
    config: TapConfig,
    engine: Nameplate,
    stream: Stream,
    slab: Slab,
    undo: contextlib.ExitStack,
) -> "ModelTap":
    """Fit every instrument; `undo` is emptied into the tap, or takes all of it back."""
    guard = Guard(config.max_errors)
    kit = Instruments(Layout(evenly(stream.layer_ids, config.signature_layers)))
    kit.absent["router"] = "the gates of a mixture of experts are read in vLLM alone"
    sender = Sender(config.socket, Source("engine"), config.key())
    readers = readings.fit(config, stream, kit, undo)
    for index, site in enumerate(stream.sites):
        also = readers.get(site.layer)
        undo.callback(_measure(site.module, slab.rows[index], guard, also))
    confidence = Confidence(Roster(config.adapters).adapters, slab.max_groups, stream.device)
    kit.samplers.append(confidence)
    looks = attention.fit(config, stream, kit, guard, undo)
    num, layer_ids = stream.max_requests, stream.layer_ids
    tap = EngineTap(config, engine, layer_ids, slab, sender, guard, num, kit)
    next_token = NextToken(confidence, tap, kit.absent, slab.max_groups)
    return ModelTap(model, tap, guard, next_token, looks, undo)


class ModelTap:
    """The hooks on one model and the tap behind them; a context manager that detaches."""

    def __init__(
        self,
        model: nn.Module,
        tap: EngineTap,
        guard: Guard,
        next_token: NextToken,
        looks: attention.Looks | None,
        undo: contextlib.ExitStack,
    ) -> None:
        self._model = model
        self._tap = tap
        self._guard = guard
        self._next_token = next_token
        self._looks = looks
        self._calls = Calls(_end_tokens(model, {}))
        self._batch: Batch | None = None
        self._is_muted = False
        undo.callback(_on_forward(model, self._read, self._observe))
        undo.callback(_on_generate(model, self._generating, self._generated))
        self._undo = undo.pop_all()
        tap.start()
        tap.arm(was_warmed_up=False)

    def detach(self) -> None:
        """Report what is left, and leave the model as it was."""
        self._generated(None)
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
        self._guard.run("Confidence", lambda: self._next_token.learn(self._calls.fed(inputs)))
        self._batch = self._guard.run("read", self._calls.batch, inputs)
        ended, self._calls.ended = self._calls.ended, []
        if ended:
            self._guard.run("finish", self._tap.finish, ended)
        if self._batch is not None and self._looks is not None:
            self._guard.run("Attention", self._looks.ask, self._tap, self._batch)

    def _observe(self, output: Any) -> None:
        if self._batch is None:
            return
        self._guard.run("step", self._tap.observe, self._batch)
        self._guard.run("Confidence", self._next_token.keep, output)
        if self._looks is not None:
            self._guard.run("Attention", self._looks.sample, self._tap, self._calls.width)

    def _generating(self, options: dict[str, Any]) -> None:
        """A call of `generate` begins."""
        self._guard.run("read", self._begin, options)

    def _begin(self, options: dict[str, Any]) -> None:
        # Beams change owners between steps, and guesses are taken back: both are left alone.
        self._is_muted = _has_many_futures(self._model, options)
        self._calls.end_tokens = _end_tokens(self._model, options)
        self._next_token.learn(None)

    def _generated(self, result: Any) -> None:
        """A call of `generate` has returned: its sequences are complete."""
        sequences = getattr(result, "sequences", result)
        self._guard.run(
            "Confidence", lambda: self._next_token.learn(self._calls.returned(sequences))
        )
        self._guard.run("read", self._begin, {})
        self._guard.run("finish", self._tap.finish, self._calls.end())


def _measure(
    module: nn.Module, rows: torch.Tensor, guard: Guard, also: Reader | None
) -> Callable[[], None]:
    """Record the residual stream of one decoder layer at each forward; returns the undo.

    also: reads the stream after the layer too.
    """
    forward = module.forward
    own = vars(module).get("forward")  # somebody else may have replaced it already
    module.register_buffer(ROWS, rows, persistent=False)

    def measured(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        try:
            _record(rows, args[0] if args else kwargs.get(_HIDDEN), outputs, also)
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("probe", error)
        return outputs

    module.forward = measured

    def undo() -> None:
        _restore(module, "forward", own)
        delattr(module, ROWS)

    return undo


def _record(rows: torch.Tensor, before: Any, outputs: Any, also: Reader | None) -> None:
    """Signals of a pass over [B, S, H], rows being B x S; too many rows are not written."""
    after = outputs[0] if isinstance(outputs, tuple) else outputs
    # Shapes are compared before any arithmetic: what raises inside a trace cannot be caught.
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return
    if before.shape == after.shape and after.shape[:-1].numel() <= rows.shape[1]:
        # Detached: measured in training too, and no graph of autograd grows through the rows.
        stream = after.detach().flatten(0, -2)
        probes.record(rows, before.detach().flatten(0, -2), stream)
        if also is not None:
            also(stream)


def _on_forward(
    model: nn.Module, read: Callable[[dict[str, Any]], None], observe: Callable[[Any], None]
) -> Callable[[], None]:
    """Call `read` with the named arguments of each pass of the model, `observe` with its output."""

    def before(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read({"input_ids": args[0], **kwargs} if args else kwargs)

    def after(_model: nn.Module, _args: Any, output: Any) -> None:
        observe(output)

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
    model: Any, begin: Callable[[dict[str, Any]], None], end: Callable[[Any], None]
) -> Callable[[], None]:
    """Call `begin` with the named arguments of each call of `generate`, and `end` with its result.

    The result is None when it raised.
    """
    generate = getattr(model, "generate", None)
    own = vars(model).get("generate")
    if generate is None:
        return lambda: None

    @functools.wraps(generate)
    def generating(*args: Any, **kwargs: Any) -> Any:
        begin(kwargs)
        result = None
        try:
            result = generate(*args, **kwargs)
        finally:
            end(result)
        return result

    model.generate = generating

    return functools.partial(_restore, model, "generate", own)


def _restore(owner: Any, name: str, own: Any) -> None:
    """Give `owner` back its attribute, or the one of its class when it had none of its own."""
    if own is None:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


def _setting(model: Any, options: dict[str, Any], name: str) -> Any:
    """A setting of one call of `generate`, as transformers finds it."""
    if options.get(name) is not None:
        return options[name]
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    return getattr(config, name, None)


def _has_many_futures(model: Any, options: dict[str, Any]) -> bool:
    """Whether a sequence is continued in several ways at once, or by guesses that may be undone."""
    is_assisted = any(
        _setting(model, options, name) is not None
        for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
    )
    return is_assisted or (_setting(model, options, "num_beams") or 1) > 1


def _end_tokens(model: Any, options: dict[str, Any]) -> tuple[int, ...]:
    found = _setting(model, options, "eos_token_id")
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def _hidden_size(model: Any) -> int:
    """Width of the residual stream. Raises TapRefused when the model's configuration has none."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "hidden_size", None)
    if found is None:
        raise TapRefused(
            f"{type(model).__name__} has no config.hidden_size; give a causal LM of transformers"
        )
    return int(found)


def _nameplate(model: Any, model_name: str) -> Nameplate:
    config = getattr(model, "config", None)
    name = model_name or str(getattr(config, "name_or_path", "") or type(model).__name__)
    parameter = next(model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    identity = Identity(
        model_name=name[:MAX_TEXT],
        engine="torch",
        engine_version=str(torch.__version__),
        kernels=kernels_of(parameter.device),
        dtype=dtype,
    )
    return Nameplate(name, tap_version=__version__, runner="torch", dtype=dtype, identity=identity)
