"""The seat at the gates: found in either release, read where experts are chosen, or refused."""

import contextlib
import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.rows import Batch, RowMap
from sidecar.tap.sites import Site
from sidecar.tap.vllm import router as seat
from sidecar.tap.vllm.fitting import Workbench, fit, plain
from sidecar.wire.frame import Cells, Source
from tests.tap.toys import HIDDEN, Attention, Decoder, tokens
from tests.tap.vllm.fakes import vllm_config

NUM_EXPERTS, TOP_K, CAPACITY = 8, 2, 32


class BaseRouter:
    """vllm.model_executor.layers.fused_moe.router.base_router.BaseRouter of 0.26 to 0.33.

    Chooses the experts of the least scores, which no reading of the logits would find.
    """

    def __init__(self, **attributes: Any) -> None:
        self.top_k = TOP_K
        self.global_num_experts = NUM_EXPERTS
        self.capture_fn = None
        self.scoring_func = "softmax"
        vars(self).update(attributes)

    def select_experts(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose, and give physical ids."""
        weights, ids = self._compute_routing(hidden_states, router_logits, None)
        return weights, ids + 100

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: Any,
        *,
        input_ids: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (-router_logits).topk(self.top_k)


class GateLinear(nn.Module):
    """A replicated linear layer: its output, and a bias that is not added yet."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN, generator=draws))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Logits of every expert."""
        return hidden_states @ self.weight.t(), None


class MoERunner(nn.Module):
    """MoERunner of 0.32, and FusedMoE of 0.26 as far as both are read."""

    def __init__(self, gate: GateLinear, router: Any, *, is_monolithic: bool = False) -> None:
        super().__init__()
        self.gate = gate
        if router is not None:
            self.router = router
        self.routed_experts = nn.Module()
        self.routed_experts.quant_method = SimpleNamespace(is_monolithic=is_monolithic)
        self.seen: list[torch.Tensor] = []

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Route, and leave the experts out."""
        logits, _ = self.gate(hidden_states)
        self.seen.append(logits)
        if not self.routed_experts.quant_method.is_monolithic and hasattr(self, "router"):
            self.router.select_experts(hidden_states=hidden_states, router_logits=logits)
        return hidden_states


class MoELayer(nn.Module):
    """A decoder layer of the tensor form whose MLP holds the gate and the runner."""

    def __init__(self, router: Any, **options: Any) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Module()
        self.mlp.gate = GateLinear()
        self.mlp.experts = MoERunner(self.mlp.gate, router, **options)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Add a block to the stream."""
        return hidden_states + self.mlp.experts(hidden_states)


class DenseLayer(nn.Module):
    """A decoder layer without experts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()


def bench(
    layers: list[nn.Module], guard: Any, *, tp: int = 0, router: bool = True, **parts: Any
) -> Workbench:
    """A worker's bench, of a model with these layers, the second of three stages."""
    sites = [Site(10 + index, layer) for index, layer in enumerate(layers)]
    config = TapConfig(router=router)
    return Workbench(
        SimpleNamespace(),
        vllm_config(Decoder(), **parts),
        config,
        guard,
        Source("engine", tp=tp),
        sites,
        CAPACITY,
        8,
        torch.device("cpu"),
        contextlib.ExitStack(),
        plain(config, [site.layer for site in sites]),
    )


@torch.inference_mode()
def serve(made: Workbench, layer: MoELayer, num_rows: int = 6) -> tuple[Cells, Cells | None]:
    """One prefill of `num_rows`; tables of router and expert load."""
    hidden = tokens(num_rows)
    for site in made.sites:
        if isinstance(site.module, MoELayer):
            site.module(torch.arange(num_rows), hidden)
    (instrument,) = made.instruments.rows
    batch = Batch(["a"], *np.array([[0], [num_rows], [num_rows]], np.int64))
    plan = RowMap(4).plan(batch)
    pending = instrument.collect(plan)
    assert pending is not None
    instrument.account(pending, plan, None)
    tables = {table.group: Cells.unpack(table) for table in instrument.totals()}
    return tables["router"], tables.get("expert_load")


def entropy_of(logits: torch.Tensor) -> float:
    """Sum over rows, in float64."""
    gates = logits.double().softmax(-1)
    return float(-(gates * gates.log()).sum() / np.log(NUM_EXPERTS))


def load_of(ids: torch.Tensor) -> list[int]:
    return torch.bincount(ids.flatten(), minlength=NUM_EXPERTS).tolist()


def test_the_choice_is_read_where_it_is_made(guard) -> None:
    """Logits and logical ids of a router come from its own routing, whatever rule it has."""
    layer = MoELayer(BaseRouter(e_score_correction_bias=torch.zeros(NUM_EXPERTS)))
    made = bench([DenseLayer(), layer, MoELayer(BaseRouter())], guard)
    seat.fit(made)
    router, load = serve(made, layer)
    (logits,) = layer.mlp.experts.seen
    assert router.count[:, 0].tolist() == [6, 6]
    assert router.sums[0, 0, 0, 0] == pytest.approx(entropy_of(logits), rel=1e-5)
    assert load is not None
    assert load.count[0].tolist() == load_of((-logits).topk(TOP_K).indices)
    assert made.instruments.layout.router_layers == [11, 12]
    assert not made.instruments.absent
    assert not guard.errors


def test_a_signature_has_ten_gates_at_most(guard) -> None:
    """They are spaced evenly, the first and the last included."""
    made = bench([MoELayer(BaseRouter()) for _ in range(13)], guard)
    seat.fit(made)
    assert made.instruments.layout.router_layers == [10, 11, 13, 14, 15, 17, 18, 19, 21, 22]


@pytest.mark.parametrize("layers", [[DenseLayer()], []])
def test_a_dense_model_misses_nothing(layers, guard) -> None:
    """No gate, no instrument, and no complaint."""
    made = bench(layers, guard)
    fit(made, {"router": seat.fit})
    assert not made.instruments.rows
    assert not made.instruments.absent
    assert not made.instruments.layout.router_layers


@pytest.mark.parametrize("options", [{"tp": 1}, {"router": False}])
def test_other_ranks_and_operators_who_want_none_have_none(options, guard) -> None:
    """One rank of a tensor-parallel group speaks of gates, and none that was told not to."""
    layer = MoELayer(BaseRouter())
    made = bench([layer], guard, **options)
    fit(made, {"router": seat.fit})
    assert not made.instruments.rows
    assert not made.instruments.absent
    assert "_compute_routing" not in vars(layer.mlp.experts.router)


def test_a_kernel_that_routes_by_itself_is_read_at_the_gate(guard) -> None:
    """Its router is never asked; the output of the linear layer has the logits and the choice."""
    layer = MoELayer(BaseRouter(), is_monolithic=True)
    made = bench([layer], guard)
    seat.fit(made)
    router, load = serve(made, layer)
    (logits,) = layer.mlp.experts.seen
    assert router.sums[0, 0, 0, 0] == pytest.approx(entropy_of(logits), rel=1e-5)
    assert load is not None
    assert load.count[0].tolist() == load_of(logits.topk(TOP_K).indices)


@pytest.mark.parametrize(
    "bias",
    [
        {"e_score_correction_bias": torch.zeros(NUM_EXPERTS)},
        {"num_expert_group": 2},
        {"hash_indices_table": torch.zeros(4)},
        {"_hash_indices_table": torch.zeros(4)},
    ],
)
def test_a_choice_inside_a_kernel_is_not_guessed(bias, guard) -> None:
    """Where groups or a bias have a say the load is absent by name, and the entropy is not."""
    layer = MoELayer(BaseRouter(**bias), is_monolithic=True)
    made = bench([layer], guard)
    seat.fit(made)
    router, load = serve(made, layer)
    assert router.count[0, 0] == 6
    assert load is None
    assert "modular MoE backend" in made.instruments.absent["expert_load"]
    assert "router" not in made.instruments.absent


def test_a_release_without_routers_is_read_at_the_gate(guard) -> None:
    """The model's configuration gives the shape; who was chosen remains unknown."""
    layer = MoELayer(None)
    text = SimpleNamespace(num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K)
    made = bench([DenseLayer(), layer], guard, model_config={"hf_text_config": text})
    seat.fit(made)
    router, load = serve(made, layer)
    (logits,) = layer.mlp.experts.seen
    assert router.sums[0, 0, 0, 0] == pytest.approx(entropy_of(logits), rel=1e-5)
    assert load is None
    assert made.instruments.absent.keys() == {"expert_load"}
    assert made.instruments.layout.router_layers == [11]


def sharing_data(made: MoELayer) -> MoELayer:
    made.mlp.experts.do_naive_dispatch_combine = True
    return made


def fusing_gates(made: MoELayer) -> MoELayer:
    made.mlp.experts._fse_fuse_gate = True
    return made


def of_experts(number: int) -> MoELayer:
    made = MoELayer(BaseRouter(global_num_experts=number))
    made.mlp.gate.weight = nn.Parameter(torch.zeros(number, HIDDEN))
    return made


@pytest.mark.parametrize(
    ("layers", "parts", "reason"),
    [
        ([MoELayer(BaseRouter(scoring_func="sqrtsoftplus"))], {}, "a function of its own"),
        ([MoELayer(BaseRouter(custom_routing_function=min))], {}, "a function of its own"),
        ([MoELayer(BaseRouter(scoring_func=None))], {}, "a function of its own"),
        ([sharing_data(MoELayer(BaseRouter()))], {}, "data-parallel experts"),
        ([MoELayer(BaseRouter())], {"data_parallel_size": 2}, "data-parallel experts"),
        ([MoELayer(BaseRouter())], {"use_sequence_parallel_moe": True}, "sequence-parallel"),
        ([MoELayer(BaseRouter()), of_experts(4)], {}, "gates of 2 shapes"),
        ([fusing_gates(MoELayer(BaseRouter(), is_monolithic=True))], {}, "inside a kernel"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(layers, parts, reason, guard) -> None:
    """The reason says what is in the way; no gate is wrapped, and nothing is measured."""
    made = bench(layers, guard, parallel_config=parts)
    fit(made, {"router": seat.fit})
    assert reason in made.instruments.absent["router"]
    assert not made.instruments.rows
    assert not made.instruments.layout.router_layers
    assert "_compute_routing" not in vars(layers[0].mlp.experts.router)


def test_experts_without_a_gate_are_refused(guard) -> None:
    """A mixture of experts that is built in an unknown way is told from a dense model."""
    text = SimpleNamespace(n_routed_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K)
    made = bench([DenseLayer()], guard, model_config={"hf_text_config": text})
    with pytest.raises(TapRefused, match="8 experts, but no decoder layer holds a router"):
        seat.fit(made)


def test_ranks_that_compute_their_own_rows_are_measured(guard) -> None:
    """With data parallelism, but kernels that exchange rows by themselves, the rows are ours."""
    layer = MoELayer(BaseRouter())
    layer.mlp.experts.do_naive_dispatch_combine = False
    made = bench([layer], guard, parallel_config={"data_parallel_size": 2})
    seat.fit(made)
    assert len(made.instruments.rows) == 1


def test_speculative_decoding_counts_no_experts(guard) -> None:
    """Rows of rejected drafts would be among them; the gates' own numbers leave those out."""
    made = bench([MoELayer(BaseRouter())], guard, speculative_config=SimpleNamespace())
    seat.fit(made)
    assert "speculative decoding" in made.instruments.absent["expert_load"]
    assert len(made.instruments.rows) == 1


def test_more_experts_than_a_frame_holds_are_not_counted(guard, monkeypatch) -> None:
    """A table that the other side would refuse is never made."""
    monkeypatch.setattr(seat, "MAX_CELLS", 2 * NUM_EXPERTS - 1)
    made = bench([MoELayer(BaseRouter()), MoELayer(BaseRouter())], guard)
    seat.fit(made)
    assert "more than 15 experts" in made.instruments.absent["expert_load"]


def test_redundant_experts_are_not_experts_of_the_gate(guard) -> None:
    """With copies for load balancing the gate still tells the logical experts apart."""
    layer = MoELayer(BaseRouter(global_num_experts=NUM_EXPERTS + 4))
    layer.mlp.experts.moe_config = SimpleNamespace(num_logical_experts=NUM_EXPERTS)
    made = bench([layer], guard)
    seat.fit(made)
    router, load = serve(made, layer)
    assert router.count[0, 0] == 6
    assert load is not None
    assert load.count.sum() == 6 * TOP_K


def test_a_tap_that_is_not_attached_leaves_the_gates_alone(guard) -> None:
    """The undo of the bench takes every wrapper away again."""
    layer = MoELayer(BaseRouter())
    made = bench([layer], guard)
    seat.fit(made)
    made.undo.close()
    with torch.inference_mode():
        layer(torch.arange(3), tokens(3))
    (instrument,) = made.instruments.rows
    assert instrument.values.isnan().all()


@pytest.fixture
def routers(installed_vllm) -> Any:
    """The routers of the installed vLLM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.model_executor.layers.fused_moe.router import base_router, cpu_router
        from vllm.model_executor.layers.fused_moe.runner import moe_runner
    return SimpleNamespace(
        base=base_router.BaseRouter, cpu=cpu_router.CPURouter, runner=moe_runner.MoERunner
    )


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {
            "use_grouped_topk": True,
            "num_expert_group": 4,
            "topk_group": 2,
            "scoring_func": "sigmoid",
            "e_score_correction_bias": torch.linspace(0, 1, NUM_EXPERTS),
        },
    ],
)
def test_the_installed_routers_tell_whom_they_chose(rule, routers, guard) -> None:
    """A plain and a grouped, biased router of vLLM itself: the load is that of their own answer."""
    router = routers.cpu(TOP_K, NUM_EXPERTS, **rule)
    layer = MoELayer(router)
    made = bench([layer], guard)
    seat.fit(made)
    table, load = serve(made, layer)
    (logits,) = layer.mlp.experts.seen
    _, ids = router.select_experts(tokens(6), logits)
    assert table.count[0, 0] == 6
    assert load is not None
    assert load.count[0].tolist() == load_of(ids.long())
    assert not guard.errors


def test_the_installed_vllm_has_what_is_read(routers) -> None:
    """Routing takes hidden states and logits first, before ids become physical ones."""
    routing = list(inspect.signature(routers.base._compute_routing).parameters)
    assert routing[:3] == ["self", "hidden_states", "router_logits"]
    template = inspect.getsource(routers.base._select_experts)
    assert template.index("self._compute_routing(") < template.index("self._apply_eplb_mapping(")
    assert isinstance(routers.runner.do_naive_dispatch_combine, property)
    made = inspect.getsource(routers.runner.__init__)
    for attribute in ("router", "routed_experts", "moe_config", "gate", "_fse_fuse_gate"):
        assert f"self.{attribute} = " in made
