"""Projections: the products of the graph, reduced on the device, are those of each request."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from sidecar.tap import projection as room
from sidecar.tap.aside import Place
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import RowInstrument
from sidecar.tap.pooling import Part, Pooling, Rows
from sidecar.tap.probe_file import Probe
from sidecar.tap.probes import NUM_COLUMNS
from sidecar.tap.projection import DIRECTIONS, PROJECTED, Projection, detach
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.rows import RowMap
from sidecar.tap.sites import Site
from sidecar.tap.sketch import Sketching, directions
from sidecar.tap.stream import attach_probe
from sidecar.wire.frame import Cells
from tests.tap.pooled import chosen, defined, parts_of, steps
from tests.tap.toys import HIDDEN, Decoder, FusedLayer, PairLayer, streams, tokens

CAPACITY, MAX_GROUPS, SKETCH = 32, 16, 3
LAYERS = [10, 11, 12]  # a stage of a pipeline
SKETCHING = Sketching([10, 12], SKETCH, 5)
ALPHA = 0.3


def probes() -> list[Probe]:
    """One of every pooling and choice of rows, at every layer."""
    generator = np.random.default_rng(0)
    return [
        Probe(
            f"{pooling}-{rows}-{layer}",
            layer,
            generator.normal(size=HIDDEN).astype(np.float32),
            float(number),
            pooling,
            ALPHA if pooling is Pooling.EMA else 0.0,
            rows,
            {},
        )
        for number, (pooling, rows, layer) in enumerate(itertools.product(Pooling, Rows, LAYERS))
    ]


def projection(**changes: object) -> Projection:
    made = {
        "sketching": SKETCHING,
        "probes": probes(),
        "hidden_size": HIDDEN,
        "capacity": CAPACITY,
        "max_groups": MAX_GROUPS,
        "num_slots": 2,
        "device": torch.device("cpu"),
    }
    return Projection(**{**made, **changes})


def tapped(made: Projection, guard: Guard, layer: type = PairLayer) -> Decoder:
    """A model whose layers are read by `made`."""
    model = Decoder(len(LAYERS), layer)
    for number, module in zip(LAYERS, model.layers, strict=True):
        site = Site(number, module)
        rows = torch.zeros(NUM_COLUMNS, CAPACITY)
        attach_probe(site, rows, guard, made.attach(site))
    return model


def served(made: Projection, model: Decoder, requests: list, cuts: list) -> dict[str, int]:
    """Run the steps of `requests` ([N, HIDDEN] each); returns their slots."""
    slots = {}
    for plan, hidden in steps(RowMap(8), requests, cuts):
        slots |= {name: slot for slot, name in plan.entered}
        model(torch.arange(len(hidden)), torch.from_numpy(hidden))
        loan = made.collect(plan)
        assert loan is not None
        made.account(loan, plan, None)
    return slots


def assert_scores(made: Projection, model: Decoder, requests: list, slots: dict[str, int]) -> None:
    """Scores and sketches of every request are those of its rows, by the definitions."""
    for name, prompt, hidden in requests:
        stream = dict(zip(LAYERS, streams(model, torch.from_numpy(hidden))[1:], strict=True))
        after = {layer: rows.double().numpy() for layer, rows in stream.items()}
        for probe, score in zip(probes(), made.scores.of(slots[name]), strict=True):
            rows = chosen(after[probe.layer], prompt, probe.rows) @ probe.direction[:, None]
            want = defined(rows, probe.pooling, ALPHA)[0] + probe.bias
            np.testing.assert_allclose(score, want, rtol=1e-4, atol=1e-4)
        for layer, sketches in zip(SKETCHING.layers, made.sketches.of(slots[name]), strict=True):
            rows = after[layer] @ directions(5, layer, SKETCH, HIDDEN).T
            generated = defined(rows[prompt:], Pooling.MEAN)
            np.testing.assert_allclose(
                sketches, [rows[prompt - 1], generated], rtol=1e-4, atol=1e-4
            )


shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4)


def generated_requests(drawn: list[tuple[int, int]]) -> list:
    return [
        (f"r{number}", prompt, tokens(prompt + generated, number).numpy())
        for number, (prompt, generated) in enumerate(drawn)
    ]


@given(shapes, st.data())
@settings(max_examples=20, deadline=None)
def test_scores_and_sketches_are_those_of_the_rows(drawn, data) -> None:
    """Whatever the model is served, and however it is batched, by every pooling at every layer."""
    requests = generated_requests(drawn)
    one_step = st.lists(st.integers(0, 5), min_size=len(drawn), max_size=len(drawn))
    cuts = [*data.draw(st.lists(one_step, max_size=5)), [7] * len(drawn), [7] * len(drawn)]
    made = projection()
    guard = Guard(3)
    model = tapped(made, guard)
    assert_scores(made, model, requests, served(made, model, requests, cuts))
    assert not guard.errors


def test_a_run_of_steps_is_scored_as_its_steps_are() -> None:
    """Rows that were put aside step by step, by every pooling: their order counts for two."""
    made, guard = projection(), Guard(3)
    model = tapped(made, guard)
    requests = [(name, 5, tokens(5 + 6, seed).numpy()) for seed, name in enumerate("ab")]
    slots: dict[str, int] = {}
    for number, (plan, hidden) in enumerate(steps(RowMap(8), requests, [[5, 5], *[[1, 1]] * 6])):
        slots |= {name: slot for slot, name in plan.entered}
        model(torch.arange(len(hidden)), torch.from_numpy(hidden))
        if not number:
            made.account(made.collect(plan), plan, None)
            continue
        place = Place(2, 8, number)
        assert made.keep(place)
    whole = plan.repeated(place.num_steps)
    made.account(made.collect(whole, place), whole, None)
    assert_scores(made, model, requests, slots)


@pytest.mark.parametrize("has_ema", [True, False])
@pytest.mark.parametrize("cells", [1, 5, 1 << 20])
def test_a_few_columns_at_a_time_are_reduced_as_all_at_once(cells, has_ema, monkeypatch) -> None:
    """Parts of groups are those of a loop over their rows, whatever the scratch space."""
    monkeypatch.setattr(room, "_CHUNK_CELLS", cells)
    made = projection(probes=probes() if has_ema else [])
    rows = np.random.default_rng(1).normal(size=(12, len(made.rows))).astype(np.float32)
    plan, some = next(steps(RowMap(4), [("a", 6, rows[:8]), ("b", 2, rows[8:])], [[8, 4]]))
    made.rows[:, :12] = torch.from_numpy(some).T
    loan = made.collect(plan)
    assert loan is not None
    alphas = np.zeros(len(made.rows)) if made._alphas is None else made._alphas.numpy()
    assert alphas.any() == has_ema
    want = parts_of(plan, some, alphas)
    np.testing.assert_allclose(loan.read("parts", plan.num_groups), want, rtol=1e-5, atol=1e-6)
    assert plan.num_groups == 5
    assert len(Part) == want.shape[1]


def test_rows_that_are_not_to_be_counted_are_in_no_group() -> None:
    """Rows of a request that opted out, or were seen before, touch no other group."""
    made = projection()
    made.rows[:] = torch.nan
    row_map = RowMap(4)
    plan, _ = next(steps(row_map, [("a", 4, np.zeros((4, 1)))], [[4]]))
    made.rows[:, 4:6] = 1.0
    batch = [("a", 4, np.zeros((4, 1))), ("b", 2, np.zeros((2, 1)))]  # `a` computed again
    plan, _ = next(steps(row_map, batch, [[4, 2]]))
    assert plan.groups.tolist() == [1, 1, 1, 1, 0, 0]
    loan = made.collect(plan)
    assert loan is not None
    parts = loan.read("parts", 1)
    np.testing.assert_array_equal(parts[0, [Part.MAX, Part.FIRST, Part.LAST]], 1.0)
    assert np.isfinite(parts).all()


# torch's own modules, when Inductor is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("backend", "layer"), [("aot_eager", PairLayer), ("inductor", FusedLayer)])
def test_a_compiled_model_is_read_as_the_eager_one(backend, layer, guard) -> None:
    """One graph without a break serves every batch size, compiled as vLLM does."""
    made = projection()
    model = tapped(made, guard, layer)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    run = torch.compile(model, fullgraph=True, dynamic=False, backend=counter, options=options)
    with torch.inference_mode():
        first = torch.arange(CAPACITY - 1), tokens(CAPACITY - 1)
        for argument in first:
            torch._dynamo.mark_dynamic(argument, 0)
        run(*first)
        for num_rows in (5, 1, CAPACITY - 1):
            hidden = tokens(num_rows, seed=num_rows)
            made.rows.zero_()
            run(torch.arange(num_rows), hidden.clone())
            rows = made.rows.clone()
            made.rows.zero_()
            model(torch.arange(num_rows), hidden.clone())
            assert made.rows[:, :num_rows].abs().min() > 0
            torch.testing.assert_close(rows, made.rows, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    assert not guard.errors


def test_a_stream_of_another_width_is_left_alone(guard) -> None:
    """It is compared before any arithmetic: in a trace nothing may raise."""
    made = projection(hidden_size=HIDDEN // 2, probes=[])
    model = tapped(made, guard)
    model(torch.arange(3), tokens(3))
    assert not made.rows.any()
    assert not guard.errors


def test_the_buffers_keep_their_address_and_leave_with_the_undo(guard) -> None:
    """Views of one static memory, no part of the checkpoint, and gone once detached."""
    made = projection()
    model = tapped(made, guard)
    views = [getattr(layer, PROJECTED) for layer in model.layers]
    assert views[0].data_ptr() == made.rows.data_ptr()
    assert [len(view) for view in views] == [12 + SKETCH, 12, 12 + SKETCH]
    assert all(view.is_contiguous() for view in views)
    assert not model.state_dict()
    address = made._parts.data_ptr()
    served(made, model, generated_requests([(3, 2)]), [[3], [1], [1]])
    assert made._parts.data_ptr() == address
    for layer in model.layers:
        detach(Site(0, layer))
        assert not hasattr(layer, PROJECTED)
        assert not hasattr(layer, DIRECTIONS)


def test_steps_beyond_the_limits_are_refused_and_loans_come_back() -> None:
    """More rows or groups than there is memory for are not collected; nothing leaks."""
    made: RowInstrument = projection()
    big, _ = next(steps(RowMap(2), [("a", 40, np.zeros((40, 1)))], [[40]]))
    many = [(f"r{n}", 1, np.zeros((1, 1))) for n in range(MAX_GROUPS + 1)]
    wide, _ = next(steps(RowMap(32), many, [[1] * len(many)]))
    one, _ = next(steps(RowMap(2), [("a", 1, np.zeros((1, 1)))], [[1]]))
    assert made.collect(big) is None
    assert made.collect(wide) is None
    loans = [made.collect(one) for _ in range(NUM_LOANS + 1)]  # one more than the slab lends
    assert all(loans)
    assert made.collect(one) is None
    made.account(loans[0], one, None)
    assert made.collect(one) is not None


def test_a_step_that_cannot_be_reduced_gives_its_loan_back(monkeypatch) -> None:
    """However often reducing raises, the ring keeps all its loans."""
    made = projection()
    plan, _ = next(steps(RowMap(2), [("a", 1, np.zeros((1, 1)))], [[1]]))

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(room, "reduce_rows", broken)
    for _ in range(2 * NUM_LOANS):
        with pytest.raises(RuntimeError, match="broken"):
            made.collect(plan)
    monkeypatch.undo()
    assert made.collect(plan) is not None


def test_a_result_keeps_its_step_while_the_next_ones_run() -> None:
    """Later passes do not touch a result that the pump has not read yet."""
    made = projection()
    plan, _ = next(steps(RowMap(2), [("a", 2, np.zeros((2, 1)))], [[2]]))
    made.rows[:] = 1.0
    first = made.collect(plan)
    made.rows[:] = 2.0
    second = made.collect(plan)
    assert first is not None
    assert second is not None
    assert (first.read("parts", 1)[0, Part.LAST] == 1.0).all()
    assert (second.read("parts", 1)[0, Part.LAST] == 2.0).all()


def test_requests_that_end_are_counted_and_forgotten(guard) -> None:
    """Their slots begin anew, and the totals have one score of each probe."""
    made = projection()
    model = tapped(made, guard)
    requests = generated_requests([(3, 2)])
    slots = served(made, model, requests, [[3], [1], [1]])
    (table,) = made.of_request(slots["r0"])
    assert table.axes == [[probe.name for probe in probes()]]
    made.clear(slots["r0"])
    (total,) = made.totals()
    np.testing.assert_array_equal(Cells.unpack(total).count, 1)
    np.testing.assert_array_equal(Cells.unpack(total).sums, Cells.unpack(table).sums)
    assert list(made.of_request(slots["r0"])) == []
    assert np.isnan(made.sketches.of(slots["r0"])).all()


def test_probes_or_sketches_alone_are_enough(guard) -> None:
    """Each is nothing without the other, and then costs nothing."""
    alone = projection(probes=[])
    assert alone.layers == SKETCHING.layers
    assert list(alone.totals()) == []
    alone = projection(sketching=Sketching([], 0, 0))
    assert alone.layers == LAYERS
    assert alone.sketches.of(0).shape == (0, 2, 0)
