"""The seat of attention concentration: which modules, and when in a step.

Before a forward pass, once the runner has put the batch in order, the rows are chosen; after it,
when the keys of the step are in the cache and its metadata is still valid, they are measured. The
rows of the step before would be right for most requests of a steady batch, and silently wrong for
the rest: the seat has to be this one.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import torch

from sidecar.errors import TapRefused
from sidecar.tap.attention import GROUP, Absence, Attention, Layer
from sidecar.tap.concentration import Keys
from sidecar.tap.engine import EngineTap
from sidecar.tap.query import attach_aside, attach_query
from sidecar.tap.rows import Batch
from sidecar.tap.signature import evenly
from sidecar.tap.turns import Choice
from sidecar.tap.vllm import kv_cache, runner_v1, runner_v2
from sidecar.tap.vllm.fitting import Workbench

_REFUSED: Final = "no attention layer can be measured: "


class Found(NamedTuple):
    """An attention module of a decoder layer: the layer's global id, and vLLM's name for it."""

    layer: int
    name: str
    module: Any


def fit(bench: Workbench) -> None:
    """Tap the queries of the chosen attention layers, and add the sampler.

    Raises TapRefused with the reasons when no layer can be measured.
    """
    _check_parallelism(bench.vllm_config.parallel_config)
    absence = Absence(bench.instruments.absent)
    readable = []
    for found in _attention(bench):
        try:
            kv_cache.check(found.module)
        except TapRefused as error:
            absence.add(found.layer, str(error))
        else:
            readable.append(found)
    chosen = _chosen(bench, readable)
    if not chosen:
        raise TapRefused(_why_none(bench, readable))
    sampler = Attention(
        [Layer(f.layer, f.module.num_heads, f.module.head_size) for f in chosen],
        bench.source.tp,
        min(bench.config.attention_requests, bench.max_requests),
        bench.vllm_config.model_config.dtype,
        bench.device,
        absence,
    )
    for index, found in enumerate(chosen):
        bench.undo.callback(_attach(found.module, sampler, index, bench))
    instruments = bench.instruments
    instruments.samplers.append(sampler)
    ids = [found.layer for found in chosen]
    instruments.layout = msgspec.structs.replace(instruments.layout, attention_layers=ids)
    bench.seats.append(Seat(bench, sampler, chosen).take)


class Seat:
    """The sampler's place in the steps of a runner."""

    def __init__(self, bench: Workbench, sampler: Attention, chosen: list[Found]) -> None:
        self._runner = bench.runner
        self._guard = bench.guard
        self._draft_counts = bench.draft_counts
        self._sampler = sampler
        self._names = [found.name for found in chosen]
        self._readers = [kv_cache.Reader(found.module) for found in chosen]
        self._choice: Choice | None = None
        self._is_rehearsed = False

    def take(self, tap: EngineTap) -> None:
        """Wrap the runner, outside of what is wrapped already."""
        module = runner_v1 if runner_v1.matches(self._runner) else runner_v2
        module.surround(
            self._runner,
            self._draft_counts,
            lambda read: self._guard.run(GROUP, self._before, tap, read),
            lambda read: self._guard.run(GROUP, self._after, tap, read),
        )

    def _before(self, tap: EngineTap, read: Callable[[], Batch | None]) -> None:
        """Choose the rows of the forward pass that is about to be launched. Step path."""
        self._choice = self._sampler.choose(tap, read)
        if self._choice is not None:
            self._sampler.ask(self._choice)

    def _after(self, tap: EngineTap, metadata: Callable[[], Mapping[str, Any]]) -> None:
        """Measure what was chosen, from the keys as the forward pass left them. Step path."""
        if not self._is_rehearsed:
            self._is_rehearsed = True
            self._rehearse(metadata())
        choice, self._choice = self._choice, None
        plan = tap.plan
        if choice is None or plan is None or len(plan.batch_slots) != choice.num_requests:
            return
        read = functools.partial(self._read, metadata())
        sample = self._sampler.sample(choice, plan.batch_slots[choice.places], read)
        if sample is not None:
            tap.submit(self._sampler, sample)

    def _read(self, metadata: Mapping[str, Any], layer: int) -> tuple[Keys, torch.Tensor]:
        return self._readers[layer].keys(), metadata[self._names[layer]].block_table

    def _rehearse(self, metadata: Mapping[str, Any]) -> None:
        """Measure each layer once, and leave out those that cannot be: caches are bound by now.

        On a GPU this is a step of the warm-up, and compiles the kernels.
        """
        for layer in range(len(self._names)):
            try:
                keys, table = self._read(metadata, layer)
                self._sampler.measure([layer], 1, [keys], table)
            except TapRefused as error:
                self._sampler.refuse(layer, str(error))
            except Exception as error:  # the other layers may do
                self._guard.count(f"{GROUP}_rehearsal", error)
                self._sampler.refuse(layer, f"failed its rehearsal: {error!r}; see the log")


def _attach(module: Any, sampler: Attention, index: int, bench: Workbench) -> Callable[[], None]:
    """Have the queries of `module` leave their rows; returns the undo."""
    wanted = (sampler.picks, sampler.queries[index], sampler.pulses[index], bench.guard)
    if bench.device.type == "cpu" and callable(getattr(module.impl, "forward", None)):
        return attach_aside(module.impl, functools.partial(sampler.is_asked, index), *wanted)
    return attach_query(module, *wanted)


def _check_parallelism(parallel: Any) -> None:
    for name, words in (
        ("decode_context_parallel_size", "decode"),
        ("prefill_context_parallel_size", "prefill"),
    ):
        if getattr(parallel, name, 1) > 1:
            raise TapRefused(
                f"{words} context parallelism: keys of a request are spread over ranks; serve "
                "without it to measure attention"
            )


def _attention(bench: Workbench) -> list[Found]:
    """What vLLM holds a KV cache for, one of each decoder layer of this rank."""
    context = bench.vllm_config.compilation_config.static_forward_context
    names = {id(module): name for name, module in context.items()}
    found = []
    for site in bench.sites:
        inner = [module for module in site.module.modules() if id(module) in names]
        # Experts and other modules stand in the context too.
        keeping = [module for module in inner if hasattr(module, "kv_cache")]
        if keeping:
            found.append(Found(site.layer, names[id(keeping[0])], keeping[0]))
    return found


def _chosen(bench: Workbench, readable: list[Found]) -> list[Found]:
    """Those to sample: evenly spaced over the layers of the whole model, if on this rank."""
    here = {found.layer for found in readable}
    parallel, model = bench.vllm_config.parallel_config, bench.vllm_config.model_config
    everywhere = set(here)
    if getattr(parallel, "pipeline_parallel_size", 1) > 1:
        # What the layers of other stages hold cannot be seen from here: taken for attention.
        total = int(model.hf_text_config.num_hidden_layers)
        everywhere |= set(range(total)) - set(bench.layer_ids)
    chosen = evenly(sorted(everywhere), bench.config.attention_layers)
    return [found for found in readable if found.layer in chosen]


def _why_none(bench: Workbench, readable: list[Found]) -> str:
    if not bench.config.attention_layers:
        return "switched off by SIDECAR_ATTENTION_LAYERS=0"
    if readable:
        return "none of the chosen layers is on this pipeline stage; raise SIDECAR_ATTENTION_LAYERS"
    return _REFUSED + (bench.instruments.absent.get(GROUP) or "none holds a KV cache")
