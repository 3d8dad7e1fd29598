"""The seat of attention: the right rows of the right requests, of both runners, and no others."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.engine import EngineTap
from sidecar.tap.instrument import Instruments
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.query import QUERIES
from sidecar.tap.rows import NO_GAP
from sidecar.tap.sites import Site
from sidecar.tap.slab import Slab
from sidecar.tap.vllm import attention, runner_v1, runner_v2
from sidecar.tap.vllm.fitting import Workbench, fit, plain
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Cells, Source
from tests.tap.paged import concentration
from tests.tap.vllm.attention_fakes import (
    NUM_HEADS,
    Attention,
    Model,
    PagedV1,
    PagedV2Of26,
    PagedV2Of32,
    PagedV2Of33,
    embedded,
)
from tests.tap.vllm.fakes import Row, SchedulerOutput, vllm_config
from tests.tap.vllm.test_kv_cache import MambaMixer2

RUNNERS = [PagedV1, PagedV2Of26, PagedV2Of32, PagedV2Of33]


class Served:
    """A runner with its tap, as a worker would seat it, and what its requests must be."""

    def __init__(self, runner, guard, path, *, model=None, tp=0, drafts=None, **options) -> None:
        self.model = model or Model(*(Attention(seed) for seed in range(3)))
        self.runner = runner(self.model)
        self.guard = guard
        self.drafts = drafts or {}
        config = TapConfig(**{"attention_every": 1, "attention_requests": 8} | options)
        settings = vllm_config(
            compilation_config={
                "static_forward_context": {
                    f"layers.{i}.attn": each for i, each in enumerate(self.model.attentions)
                }
            },
            model_config={"dtype": torch.float32},
            scheduler_config={"max_num_seqs": 8},
        )
        sites = [Site(i, layer) for i, layer in enumerate(self.model.layers)]
        self.bench = Workbench(
            self.runner, settings, config, guard, Source("engine", tp=tp), sites, 64, 32,
            torch.device("cpu"), contextlib.ExitStack(), plain(config, []), self.draft_counts,
        )  # fmt: skip
        fit(self.bench, {"attention": attention.fit})
        slab = Slab(0, 64, 32, torch.device("cpu"))
        sender = Sender(path, Source("engine", tp=tp))
        self.tap = EngineTap(
            config, Nameplate("toy", "0", "0"), [], slab, sender, guard, 8, self.bench.instruments
        )
        module = runner_v1 if runner is PagedV1 else runner_v2
        module.wrap(self.runner, self.draft_counts, self._observe)
        for seat in self.bench.seats:
            seat(self.tap)
        self.model.bind()

    def draft_counts(self, req_ids):
        return np.array([self.drafts.get(req, 0) for req in req_ids]) if self.drafts else NO_GAP

    def _observe(self, read) -> None:
        self.tap.observe(read())

    def step(self, *rows: Row) -> None:
        """A step of the runner, and what the pump makes of it."""
        self.runner.known.update({row.req_id: row for row in rows})
        self.runner.execute_model(SchedulerOutput({row.req_id: row.scheduled for row in rows}))
        if hasattr(self.runner, "sample_tokens"):
            self.runner.sample_tokens()
        self.tap._drain()

    @property
    def sampler(self):
        return self.bench.instruments.samplers[0]

    def of(self, req_id: str) -> Cells | None:
        """Means of a request that lives."""
        slot = self.tap._rows._slot_of[req_id]
        tables = list(self.sampler.of_request(slot))
        return Cells.unpack(tables[0]) if tables else None

    def totals(self) -> Cells:
        (table,) = self.sampler.totals()
        return Cells.unpack(table)


@pytest.fixture
def served(guard, socket_path, installed_vllm):
    """Makes armed engines."""

    def make(runner=PagedV1, **options) -> Served:
        made = Served(runner, guard, socket_path, **options)
        made.tap.arm(was_warmed_up=False)
        return made

    return make


def expected(model: Model, layer: int, req_id: str, position: int) -> np.ndarray:
    """[heads, 4] of the query at `position`, dense, in float64."""
    module = model.layers[layer].attn
    hidden = torch.stack([embedded(req_id, p) for p in range(position + 1)]) + float(layer)
    query = module.query(hidden[-1:]).view(NUM_HEADS, -1).double()
    keys = module.key(hidden).repeat_interleave(2, 1).double()
    return concentration(module.impl.scale * torch.einsum("hd,nhd->hn", query, keys))


def opaque_model() -> Model:
    """Three layers whose queries are seen by their backends, as on a CPU."""
    return Model(*(Attention(seed, is_opaque=True) for seed in range(3)))


def check(made: Served, req_id: str, phase: int, positions: list[int]) -> None:
    """The means of a request are those of these rows, at every layer."""
    cells = made.of(req_id)
    assert cells.count[:, phase].tolist() == [len(positions)] * len(made.model.layers)
    for layer in range(len(made.model.layers)):
        rows = [expected(made.model, layer, req_id, position).mean(0) for position in positions]
        np.testing.assert_allclose(cells.sums[layer, phase, :, 0], sum(rows), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("is_opaque", [False, True], ids=["in the graph", "beside it"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_each_request_gets_the_numbers_of_its_own_rows(runner, is_opaque, served) -> None:
    """Through arrivals, chunks, decodes and a changing order, at every layer."""
    made = served(runner, model=opaque_model() if is_opaque else None)
    assert hasattr(made.model.attentions[0], QUERIES) is not is_opaque
    made.step(Row("c", 0, 20, 33), Row("a", 0, 5, 5))
    made.step(Row("a", 5, 1, 5), Row("c", 20, 13, 33), Row("b", 0, 3, 3))
    made.step(Row("b", 3, 1, 3), Row("c", 33, 1, 33))
    made.step(Row("c", 34, 1, 33))
    check(made, "a", 0, [4])
    check(made, "a", 1, [5])
    check(made, "b", 0, [2])
    check(made, "b", 1, [3])
    check(made, "c", 0, [32])  # and not the chunk that ended at 19
    check(made, "c", 1, [33, 34])
    totals = made.totals()
    assert totals.count[..., 0].tolist() == [[3, 4]] * 3
    assert made.guard.errors == {}
    assert made.bench.instruments.absent == {}


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_dummy_run_is_not_measured_and_disturbs_nobody(runner, served) -> None:
    """Rows left from a larger batch are clamped, and the next real step is right."""
    made = served(runner)

    def dummy() -> None:
        if runner is PagedV1:
            made.runner.model(torch.arange(2), torch.full((2, 16), torch.nan))
        else:
            made.runner.execute_model(SchedulerOutput(), dummy_run=True)
        made.tap._drain()

    dummy()  # when there is nothing to rehearse with yet
    made.step(Row("a", 0, 30, 30))
    dummy()
    made.step(Row("a", 30, 1, 30))
    check(made, "a", 0, [29])
    check(made, "a", 1, [30])
    assert made.guard.errors == {}


def test_the_row_before_the_drafts_is_sampled(served) -> None:
    """What may yet be rejected is not looked at."""
    made = served(drafts={"b": 2})
    made.step(Row("a", 0, 4, 4), Row("b", 0, 5, 5))
    made.drafts = {"b": 3}
    made.step(Row("a", 4, 1, 4), Row("b", 5, 4, 5))
    made.tap.settle(np.array([0, 1]))
    made.tap._drain()
    check(made, "a", 1, [4])
    check(made, "b", 1, [5])


@pytest.mark.parametrize("is_opaque", [False, True], ids=["in the graph", "beside it"])
def test_layers_take_turns_and_a_forced_request_does_not_wait(is_opaque, served) -> None:
    """Of 3 layers and 4 steps each is sampled once; the forced request at all, always."""
    made = served(attention_every=4, model=opaque_model() if is_opaque else None)
    made.tap.roster.forced.add("f")
    for step in range(4):
        made.step(Row("a", 10 + step, 1, 5), Row("f", 20 + step, 1, 5))
    assert made.of("a").count[:, 1].tolist() == [1, 1, 1]
    assert made.of("f").count[:, 1].tolist() == [4, 4, 4]


def test_turns_are_counted_in_measured_steps(served) -> None:
    """With every second step measured no layer's turn falls through."""
    made = served(attention_every=4)
    governor = made.tap.governor
    governor.orders = governor.orders._replace(steps_every=2)
    for step in range(8):
        made.step(Row("a", 10 + step, 1, 5))
    assert made.of("a").count[:, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "orders",
    [{"is_on": False}, {"attention_every": 0}, {"steps_every": 1000}],
)
def test_nothing_is_sampled_when_orders_say_so(orders, served) -> None:
    """The kill switch, no attention, and a step that is not measured."""
    made = served()
    governor = made.tap.governor
    governor.orders = governor.orders._replace(**orders)
    made.tap.step = 1
    made.tap.roster.forced.add("a")
    made.step(Row("a", 10, 1, 5))
    assert list(made.sampler.totals()) == []
    assert made.sampler.pulses.tolist() == [1, 1, 1]
    assert made.guard.errors == {}


def test_a_pass_that_nobody_asks_copies_nothing_beside_the_graph(served) -> None:
    """Not even after one that was asked: most passes sample no layer."""
    made = served(model=opaque_model(), attention_every=1000)
    for step in range(4):
        made.step(Row("a", 10 + step, 1, 5))
    made.runner.model(torch.arange(2), torch.full((2, 16), torch.nan))
    assert made.sampler.pulses.tolist() == [1, 0, 0]
    assert made.guard.errors == {}


def test_orders_limit_the_requests_of_a_step(served) -> None:
    """At most so many, and never more than the buffers hold; each in its turn."""
    made = served(attention_requests=2)
    governor = made.tap.governor
    governor.orders = governor.orders._replace(attention_requests=50)
    rows = [Row(name, 10, 1, 5) for name in "abcd"]
    for step in range(2):
        made.step(*(row._replace(computed=10 + step) for row in rows))
    assert [made.of(name).count[0, 1] for name in "abcd"] == [1, 1, 1, 1]


def test_nothing_is_sampled_before_the_tap_is_armed(guard, socket_path, installed_vllm) -> None:
    """Warm-up requests look real; the first rehearses the measurement and leaves no number."""
    made = Served(PagedV2Of32, guard, socket_path)
    made.step(Row("w", 0, 4, 4))
    made.tap.arm(was_warmed_up=False)
    made.step(Row("a", 0, 4, 4))
    assert made.totals().count[..., 0].tolist() == [[1, 0]] * 3
    check(made, "a", 0, [3])


def test_every_rank_measures_its_own_heads(served) -> None:
    """The second of a tensor-parallel group has the later ids."""
    made = served(tp=1)
    made.step(Row("a", 0, 4, 4))
    (table,) = made.sampler.totals()
    assert table.axes[2] == ["4", "5", "6", "7"]


def test_layers_that_cannot_be_read_are_named_and_the_others_measured(served) -> None:
    """Known at load, or only when the cache is bound: both stand in the reason."""
    made = served(
        model=Model(Attention(0), MambaMixer2(), Attention(2, sinks=1), Attention(3), Attention(4))
    )
    made.model.attentions[3].kv_cache = torch.zeros(2, 2)
    made.step(Row("a", 0, 4, 4))
    absent = made.bench.instruments.absent["attention"]
    assert "layers 1: MambaMixer2" in absent
    assert "layers 2: weights cannot be read under attention sinks" in absent
    assert "layers 3: its KV cache is not" in absent
    assert made.bench.instruments.layout.attention_layers == [0, 3, 4]
    assert made.of("a").count[:, 0].tolist() == [1, 0, 1]
    assert made.guard.errors == {}


def test_a_layer_that_fails_its_rehearsal_is_left_out(served) -> None:
    """Whatever a backend's metadata lacks, the other layers and the residual stream go on."""
    made = served()
    page = made.runner.page

    def paged(rows):
        hidden, metadata = page(rows)
        metadata["layers.1.attn"] = SimpleNamespace()
        return hidden, metadata

    made.runner.page = paged
    for step in range(5):
        made.step(Row("a", 10 + step, 1, 5))
    assert made.of("a").count[:, 1].tolist() == [5, 0, 5]
    assert "layers 1: failed its rehearsal" in made.bench.instruments.absent["attention"]
    assert made.guard.errors == {"attention_rehearsal": 1}


@pytest.mark.parametrize(
    ("parallel", "options", "model", "words"),
    [
        ({"decode_context_parallel_size": 2}, {}, None, "decode context parallelism"),
        ({"prefill_context_parallel_size": 2}, {}, None, "prefill context parallelism"),
        ({}, {"attention_layers": 0}, None, "SIDECAR_ATTENTION_LAYERS=0"),
        ({}, {}, Model(MambaMixer2()), "layers 0: MambaMixer2"),
        ({}, {}, Model(torch.nn.Linear(2, 2)), "none holds a KV cache"),
    ],
)
def test_what_cannot_be_measured_at_all_is_refused(
    parallel, options, model, words, served, installed_vllm
) -> None:
    """Nothing is attached, and the reason is what the status will say."""
    made = served(model=model, **options)
    bench = made.bench
    vars(bench.vllm_config.parallel_config).update(parallel)
    bench.instruments = Instruments(bench.instruments.layout)
    with pytest.raises(TapRefused, match=words):
        attention.fit(bench)
    assert bench.instruments.samplers == []


def test_layers_are_chosen_over_the_whole_model(served) -> None:
    """A pipeline stage takes those of its layers that one stage alone would have taken."""
    made = served(model=Model(*(Attention(k) for k in range(6))), attention_layers=3)
    assert made.bench.instruments.layout.attention_layers == [0, 2, 5]
    bench = made.bench
    bench.vllm_config.parallel_config.pipeline_parallel_size = 2
    bench.vllm_config.model_config.hf_text_config = SimpleNamespace(num_hidden_layers=12)
    bench.sites = [Site(6 + site.layer, site.module) for site in bench.sites]
    bench.undo.close()
    attention.fit(bench)
    assert bench.instruments.layout.attention_layers == [6, 11]  # of 0, 6, 11


def test_what_is_attached_can_be_taken_off(served) -> None:
    """When the tap cannot be attached after all, the graph stays vLLM's own."""
    made = served()
    made.bench.undo.close()
    assert not any(hasattr(module, QUERIES) for module in made.model.attentions)
