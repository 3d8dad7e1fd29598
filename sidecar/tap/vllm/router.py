"""Gates of vLLM's mixture-of-experts layers: found by structure, refused by name.

Seen where the router has just chosen (`BaseRouter._compute_routing`): the logits, and the logical
ids of the experts whatever chose them. A monolithic kernel routes by itself, and another release
may have no such router; then the logits are the output of the gate's linear layer, and the chosen
experts are its largest scores, or unknown when groups or a bias have a say.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from torch import nn

from sidecar.errors import TapRefused
from sidecar.tap.router import SCORINGS, Decision, Gate, Router, Shape, attach_gate
from sidecar.tap.signature import evenly
from sidecar.tap.sites import Site
from sidecar.tap.vllm.fitting import Workbench
from sidecar.wire.frame import MAX_CELLS

MAX_SIGNED: Final = 10  # router layers in a signature

_ROUTING: Final = "_compute_routing"
_GATE_NAMES: Final = ("gate", "router")
# Attributes of a router by which more than the scores decides who is chosen.
_BIASES: Final = (
    "num_expert_group",
    "e_score_correction_bias",
    "hash_indices_table",
    "_hash_indices_table",
)
_EXPERT_COUNTS: Final = ("num_experts", "n_routed_experts", "num_local_experts")


class Found(NamedTuple):
    """A gate, its shape, and whether the experts it chose are known."""

    gate: Gate
    shape: Shape
    knows_chosen: bool


def fit(bench: Workbench) -> None:
    """Measure every gate of this rank's layers; nothing is missing where there is none.

    Raises TapRefused when there are gates that cannot be read.
    """
    # Gates are the same on every rank of a tensor-parallel group: one speaks.
    if not bench.config.router or bench.source.tp:
        return
    found = list(_find(bench.sites, bench.vllm_config))
    if not found:
        _check_dense(bench.vllm_config)
        return
    shape = _common_shape(found)
    if why := _without_load(found, shape, bench.vllm_config):
        bench.instruments.absent["expert_load"] = why
    layers = [each.gate.layer for each in found]
    router = Router(layers, shape, bench.capacity, bench.max_groups, bench.device, has_load=not why)
    for index, each in enumerate(found):
        views = router.values[index], router.experts[index]
        bench.undo.callback(attach_gate(each.gate, shape, *views, bench.guard))
    kit = bench.instruments
    kit.rows.append(router)
    kit.layout = msgspec.structs.replace(kit.layout, router_layers=evenly(layers, MAX_SIGNED))


def _find(sites: list[Site], vllm_config: Any) -> Iterator[Found]:
    configured = _configured(vllm_config)
    for site in sites:
        for module in site.module.modules():
            router = getattr(module, "router", None)
            if hasattr(router, "top_k"):
                _check_rows(module, vllm_config)
                yield _routed(site, module, router)
                break
        else:
            if configured is not None and (linear := _linear(site, configured.num_experts)):
                _check_rows(site.module, vllm_config)
                yield Found(_by_linear(site.layer, linear), configured, knows_chosen=False)


def _routed(site: Site, module: nn.Module, router: Any) -> Found:
    """The gate of a layer whose router was found."""
    shape = _shape(module, router)
    if hasattr(router, _ROUTING) and not _is_monolithic(module):
        gate = Gate(site.layer, module, router, _ROUTING, _read_routing)
        return Found(gate, shape, knows_chosen=True)
    linear = _linear(site, shape.num_experts)
    if linear is None or getattr(module, "_fse_fuse_gate", False):
        raise TapRefused(
            f"the {type(router).__name__} of layer {site.layer} is run inside a kernel, and its "
            "gate is no linear layer of its own; choose another MoE backend to measure it"
        )
    is_plain = all(getattr(router, name, None) is None for name in _BIASES)
    return Found(_by_linear(site.layer, linear), shape, knows_chosen=is_plain)


def _shape(module: nn.Module, router: Any) -> Shape:
    scoring = getattr(router, "scoring_func", None)
    if scoring not in SCORINGS or getattr(router, "custom_routing_function", None) is not None:
        raise TapRefused(
            f"{type(router).__name__} scores experts by a function of its own; "
            f"{' and '.join(SCORINGS)} gates can be measured"
        )
    # The ids of redundant experts (EPLB) are physical: a gate knows the logical ones alone.
    config = getattr(module, "moe_config", None)
    num_experts = getattr(config, "num_logical_experts", router.global_num_experts)
    return Shape(int(num_experts), int(router.top_k), scoring)


def _configured(vllm_config: Any) -> Shape | None:
    """The shape of the gates by the model's configuration; None when it does not tell."""
    text = getattr(vllm_config.model_config, "hf_text_config", None)
    num_experts = _num_configured(text)
    num_chosen = getattr(text, "num_experts_per_tok", None)
    scoring = getattr(text, "scoring_func", SCORINGS[0])
    if num_experts < 2 or not num_chosen or scoring not in SCORINGS:
        return None
    return Shape(num_experts, int(num_chosen), scoring)


def _num_configured(text: Any) -> int:
    """Experts that the model's configuration names; 0 for none."""
    counts = (getattr(text, name, None) for name in _EXPERT_COUNTS)
    return next((int(count) for count in counts if count), 0)


def _check_dense(vllm_config: Any) -> None:
    """Raise TapRefused when there are experts, although no gate of theirs was found."""
    num_experts = _num_configured(getattr(vllm_config.model_config, "hf_text_config", None))
    if num_experts > 1:
        raise TapRefused(
            f"the model has {num_experts} experts, but no decoder layer holds a router, nor a "
            f"linear layer named {' or '.join(_GATE_NAMES)}; this architecture cannot be read yet"
        )


def _is_monolithic(module: nn.Module) -> bool:
    """Whether one kernel routes and computes: then the router itself is never asked."""
    holder = getattr(module, "routed_experts", module)
    return bool(getattr(getattr(holder, "quant_method", None), "is_monolithic", False))


def _linear(site: Site, num_experts: int) -> nn.Module | None:
    """The linear layer whose outputs are the gate's logits."""
    modules: Iterator[tuple[str, nn.Module]] = site.module.named_modules()
    for name, module in modules:
        shape = getattr(getattr(module, "weight", None), "shape", (0,))
        if name.rpartition(".")[2] in _GATE_NAMES and shape[0] == num_experts:
            return module
    return None


def _by_linear(layer: int, linear: nn.Module) -> Gate:
    return Gate(layer, linear, linear, "forward", _read_linear)


def _read_routing(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Decision | None:
    """`_compute_routing(hidden_states, router_logits, ...)` -> (weights, ids)."""
    logits = kwargs.get("router_logits", args[1] if len(args) > 1 else None)
    return Decision(logits, result[1]) if isinstance(result, tuple) else None


def _read_linear(_args: tuple[Any, ...], _kwargs: dict[str, Any], result: Any) -> Decision:
    """A linear layer returns its output, or (output, bias)."""
    return Decision(result[0] if isinstance(result, tuple) else result)


def _check_rows(module: nn.Module, vllm_config: Any) -> None:
    """Raise TapRefused where the rows of a gate are not the token rows of this rank."""
    parallel = vllm_config.parallel_config
    is_shared = getattr(parallel, "data_parallel_size", 1) > 1
    if getattr(parallel, "use_sequence_parallel_moe", False):
        raise TapRefused(
            "sequence-parallel experts: each rank's gate sees a part of the rows; serve without "
            "expert parallelism to measure it"
        )
    if getattr(module, "do_naive_dispatch_combine", is_shared):
        raise TapRefused(
            "data-parallel experts: a gate sees the rows of every rank; choose another "
            "all2all backend, or serve without data parallelism, to measure it"
        )


def _common_shape(found: list[Found]) -> Shape:
    shapes = {each.shape for each in found}
    if len(shapes) > 1:
        raise TapRefused(f"gates of {len(shapes)} shapes in one model cannot be measured yet")
    return shapes.pop()


def _without_load(found: list[Found], shape: Shape, vllm_config: Any) -> str:
    """Why the load of the experts cannot be counted; "" when it can."""
    if not all(each.knows_chosen for each in found):
        return (
            "a kernel chooses the experts by more than their scores, and does not tell; choose "
            "a modular MoE backend to count them"
        )
    if vllm_config.speculative_config is not None:
        return (
            "which rows of draft tokens were rejected is known too late to leave them out; serve "
            "without speculative decoding to count experts"
        )
    if len(found) * shape.num_experts > MAX_CELLS:
        return f"more than {MAX_CELLS} experts over all layers; fewer per pipeline stage would fit"
    return ""
