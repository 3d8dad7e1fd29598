"""Gates: their signals against float64, and which rows are added up for whom."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.tap import router as room
from sidecar.tap.aside import Place
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.router import (
    EXPERTS,
    VALUES,
    Decision,
    Gate,
    Router,
    Shape,
    attach_gate,
    gate_signals,
)
from sidecar.tap.rows import Batch, Plan, RowMap
from sidecar.wire.frame import Cells, Table

NUM_EXPERTS, NUM_CHOSEN, CAPACITY, MAX_GROUPS = 8, 2, 32, 12
LAYERS = [1, 4, 5]
SHAPE = Shape(NUM_EXPERTS, NUM_CHOSEN, "softmax")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Logits of a gate with a preference."""
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gates_of(logits: torch.Tensor, scoring: str) -> np.ndarray:
    """The gate's distribution in float64, by its definition."""
    scores = logits.double()
    powers = scores.exp() if scoring == "softmax" else 1 / (1 + (-scores).exp())
    return (powers / powers.sum(-1, keepdim=True)).numpy()


def signals_of(logits: torch.Tensor, k: int, scoring: str) -> np.ndarray:
    """Entropy and margin, [T, 2] in float64, by their definitions."""
    gates = gates_of(logits, scoring)
    entropy = -(gates * np.log(gates)).sum(-1) / np.log(gates.shape[-1])
    ranked = np.sort(gates)[..., ::-1]
    return np.stack([entropy, ranked[..., k - 1] - ranked[..., k]], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_signals_are_those_of_float64(scoring, k, dtype) -> None:
    """Entropy and margin of any k and either scoring, and the ids of the k largest scores."""
    logits = draw(50, NUM_EXPERTS).to(dtype)
    signals, ids = gate_signals(logits, k, scoring)
    assert signals.dtype == torch.float32
    np.testing.assert_allclose(signals.T, signals_of(logits, k, scoring), atol=1e-6)
    ranked = np.sort(logits.float().numpy())[:, ::-1]
    np.testing.assert_array_equal(logits.float().gather(-1, ids), ranked[:, :k])


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_extreme_gates_have_finite_signals(scoring) -> None:
    """A gate that is sure has entropy 0, one that cannot tell has 1, whatever the scale."""
    sure = torch.full((1, NUM_EXPERTS), -300.0)
    sure[0, 3] = 0.0
    masked = torch.full((1, NUM_EXPERTS), -torch.inf)
    masked[0, 3] = 0.0
    even = torch.full((1, NUM_EXPERTS), -500.0)
    signals, _ = gate_signals(torch.cat([sure, masked, even]), 1, scoring)
    np.testing.assert_allclose(signals, [[0, 0, 1], [1, 1, 0]], atol=1e-6)


def test_the_margin_of_a_gate_that_chooses_everyone_is_its_least_share() -> None:
    """With k = E there is no next expert, and 0 stands for its share."""
    logits = draw(9, NUM_EXPERTS)
    signals, ids = gate_signals(logits, NUM_EXPERTS, "softmax")
    np.testing.assert_allclose(signals[1], gates_of(logits, "softmax").min(-1), atol=1e-6)
    assert ids.shape == (9, NUM_EXPERTS)


class Chooser:
    """A router as the room sees one: logits in, weights and ids out, by a rule of its own."""

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The worst experts, so that nobody takes its choice for the largest scores."""
        weights, ids = (-logits).topk(NUM_CHOSEN, -1)
        return weights, ids.to(torch.int32)


def gate(owner: Chooser, *, tells: bool = True) -> Gate:
    def read(args, kwargs, result):
        return Decision(args[0], result[1] if tells else None)

    return Gate(0, nn.Module(), owner, "choose", read)


def buffers() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.full((2, CAPACITY), torch.nan)
    return values, torch.full((NUM_CHOSEN, CAPACITY), -1, dtype=torch.int32)


@pytest.mark.parametrize("tells", [True, False])
def test_an_attached_gate_writes_its_rows(tells, guard) -> None:
    """The first rows of the buffers are those of the pass; the result is what it was."""
    values, experts = buffers()
    chooser = Chooser()
    logits = draw(5, NUM_EXPERTS)
    want = chooser.choose(logits)
    attach_gate(gate(chooser, tells=tells), SHAPE, values, experts, guard)
    weights, ids = chooser.choose(logits)
    assert torch.equal(weights, want[0])
    assert torch.equal(ids, want[1])
    np.testing.assert_allclose(
        values[:, :5].T, signals_of(logits, NUM_CHOSEN, "softmax"), atol=1e-6
    )
    chosen = ids if tells else logits.topk(NUM_CHOSEN).indices
    assert torch.equal(experts[:, :5].T, chosen.int())
    assert values[:, 5:].isnan().all()
    assert (experts[:, 5:] == -1).all()
    assert not guard.errors


def test_a_detached_gate_is_as_it_was(guard) -> None:
    """The undo puts the method back and takes the buffers away."""
    values, experts = buffers()
    chooser = Chooser()
    made = gate(chooser)
    undo = attach_gate(made, SHAPE, values, experts, guard)
    assert {VALUES, EXPERTS} <= dict(made.holder.named_buffers()).keys()
    assert not made.holder.state_dict()
    undo()
    chooser.choose(draw(5, NUM_EXPERTS))
    assert values.isnan().all()
    assert not dict(made.holder.named_buffers())


@pytest.mark.parametrize(
    "decision",
    [
        None,
        Decision(None),
        Decision(draw(5, NUM_EXPERTS + 1)),
        Decision(draw(1, 5, NUM_EXPERTS)),
        Decision(draw(5, NUM_EXPERTS), draw(5, NUM_CHOSEN + 1).int()),
        Decision(draw(5, NUM_EXPERTS), "ids"),
    ],
)
def test_a_decision_of_another_shape_is_left_alone(decision, guard) -> None:
    """What does not fit is not written, and raises nothing: it may stand inside a trace."""
    values, experts = buffers()
    chooser = Chooser()
    made = gate(chooser)._replace(read=lambda args, kwargs, result: decision)
    attach_gate(made, SHAPE, values, experts, guard)
    chooser.choose(draw(5, NUM_EXPERTS))
    assert values.isnan().all()
    assert not guard.errors


def test_a_gate_that_fails_is_counted_and_the_host_goes_on(guard) -> None:
    """An exception of ours ends in the guard; the host has its result."""

    def read(args, kwargs, result):
        raise RuntimeError("broken")

    chooser = Chooser()
    attach_gate(gate(chooser)._replace(read=read), SHAPE, *buffers(), guard)
    assert len(chooser.choose(draw(5, NUM_EXPERTS))) == 2
    assert guard.errors == {"router": 1}


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """The kernel in Triton's interpreter, which is chosen when it is decorated."""
    return importlib.import_module("sidecar.tap.router_kernel")


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("num_experts", "k", "dtype"),
    [(8, 2, torch.float32), (5, 1, torch.bfloat16), (60, 4, torch.float32), (3, 3, torch.float32)],
)
def test_the_kernel_is_the_same(num_experts, k, dtype, scoring, kernel) -> None:
    """Signals and ids of the Triton kernel are those of the plain form, in rows of any stride."""
    logits = draw(7, 2 * num_experts).to(dtype)[:, ::2]
    values = torch.full((2, CAPACITY), torch.nan)
    experts = torch.full((k, CAPACITY), -1, dtype=torch.int32)
    signals, ids = gate_signals(logits, k, scoring)
    kernel.record(values, experts, logits, None, scoring)
    torch.testing.assert_close(values[:, :7], signals, atol=1e-6, rtol=1e-5)
    if dtype == torch.float32:  # without ties, that is
        assert torch.equal(experts[:, :7].T, ids.int())
    kernel.record(values, experts, logits, ids.flip(-1), scoring)
    assert torch.equal(experts[:, :7].T, ids.flip(-1).int())
    assert values[:, 7:].isnan().all()
    assert (experts[:, 7:] == -1).all()


# The interpreter computes with numpy, which warns of what is no number.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_the_kernel_is_as_calm_at_the_extremes(kernel) -> None:
    """Masked experts and scores of any size give finite signals; a NaN stays one."""
    logits = torch.full((4, NUM_EXPERTS), -torch.inf)
    logits[0, 3] = 0.0
    logits[1] = -500.0
    logits[2] = torch.tensor([-300.0, 0.0] + [-300.0] * (NUM_EXPERTS - 2))
    logits[3] = torch.nan
    values, experts = buffers()
    experts = experts[:1]
    with np.errstate(invalid="ignore"):
        kernel.record(values, experts, logits, None, "softmax")
    np.testing.assert_allclose(values[:, :3], [[0, 1, 0], [1, 0, 1]], atol=1e-6)
    assert values[0, 3].isnan()
    assert ((experts[:, :4] >= 0) & (experts[:, :4] < NUM_EXPERTS)).all()


def test_the_kernel_writes_no_row_beyond_its_buffers(kernel) -> None:
    """More rows than there is room for end at the last place, and harm nothing behind it."""
    behind = torch.zeros(2, CAPACITY + 4)
    experts = torch.zeros(NUM_CHOSEN, CAPACITY, dtype=torch.int32)
    logits = draw(CAPACITY + 4, NUM_EXPERTS)
    kernel.record(behind[:, :CAPACITY], experts, logits, None, "softmax")
    assert behind[:, :CAPACITY].all()
    assert not behind[:, CAPACITY:].any()


class Gated(nn.Module):
    """A layer whose gate picks columns of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, NUM_EXPERTS, bias=False)
        self.chooser = Chooser()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weights, ids = self.chooser.choose(self.gate(hidden))
        return weights.sum(-1, keepdim=True) + ids.sum(-1, keepdim=True) + hidden


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_gate_is_measured_like_an_eager_one(backend, guard) -> None:
    """One graph without a break, for every number of rows, and the same numbers."""
    torch._dynamo.reset()
    layer = Gated()
    values, experts = buffers()
    attach_gate(gate(layer.chooser)._replace(holder=layer), SHAPE, values, experts, guard)
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    run = torch.compile(
        layer,
        fullgraph=True,
        dynamic=False,
        backend=backend,
        **({"options": options} if backend == "inductor" else {}),
    )
    with torch.inference_mode():
        for num_rows in (7, 3, CAPACITY - 1):
            hidden = draw(num_rows, 4, seed=num_rows)
            if num_rows == 7:
                torch._dynamo.mark_dynamic(hidden, 0)
            values.fill_(torch.nan)
            run(hidden)
            measured, chosen = values.clone(), experts.clone()
            layer(hidden)
            torch.testing.assert_close(measured, values, equal_nan=True)
            assert torch.equal(chosen[:, :num_rows], experts[:, :num_rows])
            assert measured[:, :num_rows].isfinite().all()
    assert not guard.errors


# Adding up: a pass is whatever is in the buffers when the plan of its step is collected.


def instrument(*, has_load: bool = True) -> Router:
    device = torch.device("cpu")
    return Router(LAYERS, SHAPE, CAPACITY, MAX_GROUPS, device, has_load=has_load)


class Pass:
    """What a forward pass leaves behind: random decisions, of padding rows too."""

    def __init__(self, made: Router, num_rows: int = CAPACITY, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.values = rng.random((len(LAYERS), 2, num_rows), np.float32)
        scores = rng.random((len(LAYERS), num_rows, NUM_EXPERTS))
        self.experts = np.argsort(scores)[..., :NUM_CHOSEN].swapaxes(1, 2)
        made.values[..., :num_rows] = torch.from_numpy(self.values)
        made.experts[..., :num_rows] = torch.from_numpy(self.experts).int()

    def load(self, rows: np.ndarray) -> np.ndarray:
        """[L, E] rows sent to each expert."""
        return np.stack(
            [np.bincount(e[:, rows].ravel(), minlength=NUM_EXPERTS) for e in self.experts]
        )


def batch(*requests: tuple[str, int, int, int], drafts: tuple[int, ...] = ()) -> Batch:
    """Requests as (id, first position, rows, prompt)."""
    numbers = np.array([request[1:] for request in requests], np.int64).reshape(-1, 3)
    ids = [request[0] for request in requests]
    return Batch(ids, *numbers.T.copy(), drafts=np.array(drafts, np.int64))


def step(made: Router, plan: Plan, kept: np.ndarray | None = None) -> None:
    pending = made.collect(plan)
    assert pending is not None
    assert pending.is_ready
    made.account(pending, plan, kept)


def tables(made: Router) -> dict[str, Table]:
    return {table.group: table for table in made.totals()}


def check(table: Table, phase: int, values: np.ndarray) -> None:
    """That one phase of `table` is of exactly the rows `values`, [L, 2, n]."""
    cells = Cells.unpack(table)
    v = values.astype(np.float64)
    phi = np.stack([v[:, 0], np.log(v[:, 1])], 1)
    want = np.stack([v, phi, phi**2], -1).sum(2)
    assert cells.count[:, phase].tolist() == [v.shape[-1]] * len(LAYERS)
    np.testing.assert_allclose(cells.sums[:, phase], want, rtol=1e-5)
    np.testing.assert_array_equal(cells.extremes[:, phase, :, 0], values.min(-1))
    np.testing.assert_array_equal(cells.extremes[:, phase, :, 1], values.max(-1))


def test_a_run_of_steps_is_added_up_as_its_steps_are() -> None:
    """Two requests decode for three steps whose rows are put aside; then one step alone."""
    made, rows = (
        Router(LAYERS, SHAPE, CAPACITY, MAX_GROUPS, torch.device("cpu"), has_load=True),
        RowMap(4),
    )
    load, values = 0, []
    for number in range(4):
        plan = rows.plan(batch(("a", 10 + number, 1, 5), ("b", 20 + number, 1, 5)))
        seen = Pass(made, 2, seed=number)
        load = load + seen.load(np.arange(2))
        values.append(seen.values)
        if number < 3:
            place = Place(2, 4, number + 1)
            assert made.keep(place)
            assert made.values[..., :2].isnan().all()
    kept = plan.repeated(3)
    made.account(made.collect(kept, place), kept, None)
    step(made, plan)
    found = tables(made)
    check(found["router"], 1, np.concatenate(values, -1))
    counts = Cells.unpack(found["expert_load"]).count.reshape(len(LAYERS), NUM_EXPERTS)
    np.testing.assert_array_equal(counts, load)


def test_rows_are_added_up_per_request_and_phase() -> None:
    """A prefill of two populations and a decode row, with padding behind them that is nobody's."""
    made, rows = instrument(), RowMap(4)
    one = Pass(made)
    plan = rows.plan(batch(("a", 0, 9, 9), ("b", 0, 4, 6)))
    step(made, plan)
    two = Pass(made, seed=1)
    plan = rows.plan(batch(("b", 4, 3, 6), ("a", 9, 1, 9)))
    step(made, plan)

    slots = dict(zip("ba", plan.batch_slots.tolist(), strict=True))
    (a,), (b,) = made.of_request(slots["a"]), made.of_request(slots["b"])
    assert a.axes == [["1", "4", "5"], ["prefill", "decode"]]
    check(a, 0, one.values[..., :9])
    check(a, 1, two.values[..., 3:4])
    check(b, 0, np.concatenate([one.values[..., 9:13], two.values[..., :2]], -1))
    check(b, 1, two.values[..., 2:3])
    found = tables(made)
    check(found["router"], 0, np.concatenate([one.values[..., :13], two.values[..., :2]], -1))
    check(found["router"], 1, two.values[..., 2:4])


def test_experts_are_counted_over_counted_rows_alone() -> None:
    """Padding, recomputed rows and those of a request that opted out load no expert."""
    made, rows = instrument(), RowMap(4)
    one = Pass(made)
    step(made, rows.plan(batch(("a", 0, 6, 9), ("quiet", 0, 5, 5)), opted_out={"quiet"}))
    two = Pass(made, seed=1)
    step(made, rows.plan(batch(("a", 4, 5, 9))))  # positions 4 and 5 a second time
    want = one.load(np.arange(6)) + two.load(np.arange(2, 5))
    load = Cells.unpack(tables(made)["expert_load"])
    assert load.count.shape == (len(LAYERS), NUM_EXPERTS)
    np.testing.assert_array_equal(load.count, want)


def test_rows_of_rejected_drafts_are_nobodys() -> None:
    """Of two draft rows the one that was accepted joins the row before it."""
    made, rows = instrument(has_load=False), RowMap(4)
    one = Pass(made)
    plan = rows.plan(batch(("a", 7, 3, 7), drafts=(2,)))
    step(made, plan, plan.accept(np.array([1])))
    (table,) = made.of_request(int(plan.slots[0]))
    check(table, 1, one.values[..., :2])
    check(tables(made)["router"], 1, one.values[..., :2])


def test_a_step_of_no_counted_row_adds_nothing() -> None:
    """A batch of opted-out rows alone leaves every account empty."""
    made, rows = instrument(), RowMap(4)
    Pass(made)
    step(made, rows.plan(batch(("quiet", 0, 5, 5)), opted_out={"quiet"}))
    found = tables(made)
    assert not Cells.unpack(found["router"]).count.any()
    assert not Cells.unpack(found["expert_load"]).count.any()


def test_what_the_next_pass_does_not_write_is_not_counted_again() -> None:
    """A gate that is no longer measured falls silent, and does not repeat its last rows."""
    made, rows = instrument(), RowMap(4)
    one = Pass(made)
    step(made, rows.plan(batch(("a", 0, 5, 5))))
    plan = rows.plan(batch(("a", 5, 1, 5)))
    step(made, plan)
    found = tables(made)
    assert not Cells.unpack(found["router"]).count[:, 1].any()
    np.testing.assert_array_equal(Cells.unpack(found["expert_load"]).count, one.load(np.arange(5)))


def test_a_row_with_a_value_that_is_no_number_is_left_out() -> None:
    """Neither its entropy nor its margin is added, at that layer alone."""
    made, rows = instrument(), RowMap(4)
    one = Pass(made)
    made.values[1, 1, 2] = torch.inf
    plan = rows.plan(batch(("a", 0, 5, 5)))
    step(made, plan)
    (table,) = made.of_request(int(plan.slots[0]))
    cells = Cells.unpack(table)
    assert cells.count[:, 0].tolist() == [5, 4, 5]
    kept = one.values[1][:, [0, 1, 3, 4]]
    np.testing.assert_allclose(cells.sums[1, 0, :, 0], kept.sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(cells.extremes[1, 0, :, 1], kept.max(-1))


def test_ids_that_name_no_expert_load_none() -> None:
    """A kernel marks rows that it skips; an index out of range would end the engine."""
    made, rows = instrument(), RowMap(4)
    Pass(made)
    made.experts[:, 0] = -1
    made.experts[:, 1] = NUM_EXPERTS
    step(made, rows.plan(batch(("a", 0, 5, 5))))
    assert not Cells.unpack(tables(made)["expert_load"]).count.any()


def test_a_few_layers_at_a_time_give_the_same_numbers(monkeypatch) -> None:
    """Scratch space is bounded by chunks, of which the results know nothing."""
    found = []
    for cells in (1 << 17, 1):
        monkeypatch.setattr(room, "CHUNK_CELLS", cells)
        made, rows = instrument(), RowMap(4)
        Pass(made)
        step(made, rows.plan(batch(("a", 0, 9, 9), ("b", 3, 4, 6))))
        found.append(tables(made))
    assert found[0] == found[1]


def test_extremes_of_totals_cover_one_report() -> None:
    """Counts go on; the least and the largest begin anew."""
    made, rows = instrument(), RowMap(4)
    Pass(made)
    step(made, rows.plan(batch(("a", 0, 5, 5))))
    first, second = (Cells.unpack(tables(made)["router"]) for _ in range(2))
    np.testing.assert_array_equal(first.count, second.count)
    assert np.isfinite(first.extremes[:, 0]).all()
    assert np.isnan(second.extremes).all()


def test_a_request_that_is_over_leaves_nothing_to_the_next() -> None:
    """The account of a slot is empty once it was cleared; the totals keep its rows."""
    made, rows = instrument(), RowMap(4)
    Pass(made)
    plan = rows.plan(batch(("a", 0, 5, 5)))
    step(made, plan)
    slot = int(plan.slots[0])
    assert list(made.of_request(slot))
    made.clear(slot)
    assert not list(made.of_request(slot))
    assert Cells.unpack(tables(made)["router"]).count[:, 0].tolist() == [5, 5, 5]


def test_without_loads_no_table_of_them_is_sent() -> None:
    """What cannot be known is absent, and not a table of zeros."""
    assert tables(instrument(has_load=False)).keys() == {"router"}
    assert tables(instrument()).keys() == {"router", "expert_load"}


def test_no_room_is_a_step_without_gates() -> None:
    """With every loan out, or more rows or groups than fit, nothing is collected nor raised."""
    made, rows = instrument(), RowMap(16)
    plan = rows.plan(batch(("a", 0, 5, 5)))
    lent = [made.collect(plan) for _ in range(NUM_LOANS)]
    assert all(loan is not None for loan in lent)
    assert made.collect(plan) is None
    made.account(lent[0], plan, None)
    assert made.collect(plan) is not None
    for loan in lent[1:]:
        made.account(loan, plan, None)
    assert made.collect(RowMap(4).plan(batch(("b", 0, CAPACITY + 1, 99)))) is None
    many = [(f"r{i}", 0, 1, 1) for i in range(MAX_GROUPS + 1)]
    assert made.collect(rows.plan(batch(*many))) is None
    assert made.collect(plan) is not None


def test_a_loan_comes_back_from_a_collection_that_failed(monkeypatch) -> None:
    """An error on the step path costs that step, and no memory for good."""
    made, rows = instrument(), RowMap(4)
    plan = rows.plan(batch(("a", 0, 5, 5)))

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(room, "group_gates", broken)
        for _ in range(NUM_LOANS + 1):
            with pytest.raises(RuntimeError, match="broken"):
                made.collect(plan)
    assert made.collect(plan) is not None
