"""The seat of attention concentration in a plain model: transformers' table of attention functions.

Every attention module of transformers looks its function up by name at each pass, and calls it
with itself, its queries and its keys, both after norm and rotary embedding. The entry of that table
is wrapped, under its own name, so that masks and everything else that is chosen by this name stay.
What is wrapped looks at the modules that were marked, and passes every other one by.

The keys are read where they lie, as a cache with pages of one token. Padding is on the left, and a
sliding window is what the module says; a layer that attends in a way not read here is left out.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.attention import GROUP, Absence, Attention, Layer
from sidecar.tap.concentration import Keys
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.readings import Stream
from sidecar.tap.rows import Batch, Ints
from sidecar.tap.signature import evenly
from sidecar.tap.turns import Choice

LOOK: Final = "_sidecar_look"  # attribute of a marked attention module
_TABLE: Final = "ALL_ATTENTION_FUNCTIONS"  # name by which transformers' modelling files import it
# Arguments that change the weights in a way that `concentration` has no words for.
_UNREAD: Final = ("s_aux", "position_bias", "cache")


class Look:
    """What one attention module shows of the pass under way.

    num_rows: how many sequences are asked for; 0 for none. keys: of the whole batch, once seen.
    """

    def __init__(self, sampler: Attention, index: int, guard: Guard) -> None:
        self.num_rows = 0
        self.keys: Keys | None = None
        self._sampler = sampler
        self._index = index
        self._guard = guard

    def see(self, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any]) -> None:
        """Take the last query row of each sequence asked for, and remember where the keys are.

        query: [B, heads, S, head size]. key: [B, KV heads, T, head size].
        """
        if not self.num_rows:
            return
        try:
            self._see(query.detach(), key.detach(), options)
        except TapRefused as error:
            self._sampler.refuse(self._index, str(error))
        except Exception as error:  # see guard: the guest never hurts the host
            self._guard.count("Attention", error)

    def _see(self, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any]) -> None:
        unread = [name for name in _UNREAD if options.get(name) is not None]
        if unread or query.shape[-1] != key.shape[-1]:
            raise TapRefused(f"attends in a way that has not been read: {unread or 'other sizes'}")
        queries = self._sampler.queries[self._index]
        if query.shape[1] * query.shape[3] != queries.shape[1]:
            raise TapRefused("has other heads than the model's configuration says")
        places = self._sampler.places[: self.num_rows].clamp(0, len(query) - 1)
        queries[: self.num_rows] = query[:, :, -1].index_select(0, places).flatten(1)
        self._sampler.pulses[self._index] += 1
        scale = options.get("scaling")
        self.keys = Keys(
            key,
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            int(options.get("sliding_window") or 0),
            float(options.get("softcap") or 0.0),
        )


def fit(
    config: TapConfig,
    stream: Stream,
    kit: Instruments,
    guard: Guard,
    undo: contextlib.ExitStack,
) -> "Looks | None":
    """Mark the chosen attention modules, and add the sampler to `kit`.

    None when no layer can be measured; the reason then stands among the absent groups.
    """
    absence = Absence(kit.absent)
    readable = {}
    for site in stream.sites:
        try:
            readable[site.layer] = _readable(site.module)
        except TapRefused as error:
            absence.add(site.layer, str(error))
    chosen = evenly(sorted(readable), config.attention_layers)
    if not chosen:
        kit.absent.setdefault(GROUP, "switched off by SIDECAR_ATTENTION_LAYERS=0")
        return None
    modules = [readable[layer] for layer in chosen]
    sampler = Attention(
        [_layer(*each) for each in zip(chosen, modules, strict=True)],
        0,
        min(config.attention_requests, stream.max_requests),
        next(modules[0].parameters()).dtype,
        stream.device,
        absence,
    )
    looks = [Look(sampler, index, guard) for index in range(len(modules))]
    _mark(modules, looks, undo)
    kit.samplers.append(sampler)
    kit.layout = msgspec.structs.replace(kit.layout, attention_layers=chosen)
    return Looks(sampler, looks)


class Looks:
    """The sampler's place around the passes of a model."""

    def __init__(self, sampler: Attention, looks: list[Look]) -> None:
        self._sampler = sampler
        self._looks = looks
        self._choice: Choice | None = None

    def ask(self, tap: EngineTap, batch: Batch) -> None:
        """Choose whom to look at in the pass over `batch` that is about to run. Step path."""
        self._choice = choice = self._sampler.choose(tap, lambda: batch)
        for index, look in enumerate(self._looks):
            is_asked = choice is not None and not self._sampler.is_refused(index)
            look.num_rows = choice.num_rows(index) if choice is not None and is_asked else 0
        if choice is not None:
            self._sampler.ask(choice)

    def sample(self, tap: EngineTap, width: int) -> None:
        """Measure what was seen. Step path.

        width: columns of the batch so far, padding included.
        """
        choice, self._choice = self._choice, None
        try:
            plan = tap.plan
            if choice is None or plan is None or tap.last_step is None:
                return
            for index, look in enumerate(self._looks):
                if look.num_rows and look.keys is None:
                    self._sampler.refuse(index, _UNSEEN)
            batch = tap.last_step.batch
            ends = batch.starts + batch.counts
            slots = plan.batch_slots[choice.places]
            read = functools.partial(self._read, ends, width)
            sample = self._sampler.sample(choice, slots, read)
            if sample is not None:
                tap.submit(self._sampler, sample)
        finally:
            for look in self._looks:
                look.num_rows, look.keys = 0, None  # or the cache would outlive its owner

    def _read(self, ends: Ints, width: int, layer: int) -> tuple[Keys, torch.Tensor]:
        keys = self._looks[layer].keys
        if keys is None:
            raise TapRefused(_UNSEEN)
        return paged(keys, ends, width)


def paged(keys: Keys, ends: Ints, width: int) -> tuple[Keys, torch.Tensor]:
    """Keys [B, KV heads, T, head size] as pages of one token, and the table of their numbers.

    ends: [B] tokens of each sequence. width: columns of all of them, the padding on the left
    included; a layer with a sliding window may hold the last T of them only.
    """
    key = keys.cache
    between, _, step, _ = key.stride()
    if step == 0 or between % step:
        key = key.contiguous()
        between, _, step, _ = key.stride()
    num_sequences, num_heads, num_columns, size = key.shape
    apart = between // step
    shape = ((num_sequences - 1) * apart + num_columns, num_heads, 1, size)
    cache = key.as_strided(shape, (step, key.stride(1), step, key.stride(3)))
    first: NDArray[np.int64] = width - ends - max(0, width - num_columns)
    columns = first[:, None] + np.arange(int(ends.max()))
    table = apart * np.arange(num_sequences)[:, None] + columns.clip(0, num_columns - 1)
    return keys._replace(cache=cache), torch.from_numpy(table).to(key.device)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is one that attends, by the name of its class."""
    return "attention" in type(module).__name__.lower()


def _readable(layer: nn.Module) -> Any:
    """The attention module of a decoder layer. Raises TapRefused with what stands in the way."""
    for module in layer.modules():
        name = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if not is_attention(module) or name is None:
            continue
        if name not in _functions(module):
            raise TapRefused(
                f"attention is {name!r}; load the model with attn_implementation='sdpa'"
            )
        if not getattr(module, "is_causal", True):
            raise TapRefused("attends to later positions too")
        if getattr(module.config, "attention_chunk_size", None):
            raise TapRefused("attends within chunks")
        return module
    raise TapRefused("holds no attention that uses transformers' attention interface")


def _functions(module: nn.Module) -> Any:
    """The table in which this module looks its attention function up."""
    return getattr(sys.modules[type(module).__module__], _TABLE, {})


def _layer(layer: int, module: Any) -> Layer:
    config = module.config
    num_heads = int(config.num_attention_heads)
    size = getattr(module, "head_dim", None) or config.hidden_size // num_heads
    return Layer(layer, num_heads, int(size))


def _mark(modules: list[Any], looks: list[Look], undo: contextlib.ExitStack) -> None:
    """Give each module its look, and wrap the functions that they call, each of them once."""
    wrapped = set()
    for module, look in zip(modules, looks, strict=True):
        setattr(module, LOOK, look)
        undo.callback(delattr, module, LOOK)
        functions, name = _functions(module), module.config._attn_implementation
        if (id(functions), name) not in wrapped:
            wrapped.add((id(functions), name))
            undo.callback(_wrap(functions, name))


def _wrap(functions: Any, name: str) -> Callable[[], None]:
    """Show marked modules to their look, whenever the function of this name is called."""
    original = functions[name]
    # Given to every function, and heeded by those that name it; scaled dot products do not.
    heeds_cap = "softcap" in inspect.signature(original).parameters

    @functools.wraps(original)
    def seen(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        look = getattr(module, LOOK, None)
        # In a compiled graph the choice of a step would be a constant.
        if look is not None and not torch.compiler.is_compiling():
            look.see(query, key, kwargs if heeds_cap else {**kwargs, "softcap": None})
        return original(module, query, key, *args, **kwargs)

    functions[name] = seen

    def undo() -> None:
        if functions.get(name) is not seen:
            return  # somebody has wrapped it in turn; without a mark it does nothing
        del functions[name]  # the entry of this table; there may be one of all tables beneath it
        if functions.get(name) is not original:
            functions[name] = original

    return undo


_UNSEEN: Final = (
    "its attention function was not called as it stands: the model is compiled, or has another "
    "attention function since the tap was attached"
)
