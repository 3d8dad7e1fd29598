"""The sampler: from query rows and paged keys to totals per head and means per request."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidecar.tap import attention
from sidecar.tap.attention import _KEYS_TOGETHER, Absence, Attention, Layer
from sidecar.tap.orders import Orders
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch
from sidecar.tap.turns import choose
from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import MAX_BYTES, Cells, Frame, Header, Source, Totals, pack, unpack
from tests.tap.paged import Case, neighbours

CASE = Case(lengths=(37, 1, 16, 70), places=(0, 1, 2, 3))
PROMPTS = (40, 1, 10, 70)  # of CASE's requests: prefill, prefill, decode, prefill
SLOTS = np.array([5, 2, 9, 0])
COUNTS = np.array([3, 1, 2, 4])  # rows of each request; those before its last are not asked for
BATCH = Batch(list("abcd"), np.array(CASE.lengths) - COUNTS, COUNTS, np.array(PROMPTS))


class Bench:
    """A sampler, and a forward pass that leaves the queries of `CASE` at every layer."""

    def __init__(self, num_layers: int = 2, first_part: int = 0, max_requests: int = 4) -> None:
        self.absent: dict[str, str] = {}
        self.sampler = Attention(
            [Layer(7 + k, CASE.num_heads, CASE.head_size) for k in range(num_layers)],
            first_part,
            max_requests,
            torch.float32,
            torch.device("cpu"),
            Absence(self.absent),
        )

    def forward(self) -> None:
        """What the graph does: copy the rows that are picked, and count the pass."""
        rows = torch.full((COUNTS.sum(), CASE.query[0].numel()), 9.0)
        rows[np.cumsum(COUNTS) - 1] = CASE.query.flatten(1)
        for queries in self.sampler.queries:
            queries.copy_(rows[self.sampler.picks.clamp(0, len(rows) - 1)])
        self.sampler.pulses.add_(1)

    def step(self, is_due=(True, True), limit: int = 4, forced=(), first: int = 0):
        """Choose, run, sample."""
        choice = choose(BATCH, list(is_due), first, limit, forced)
        self.sampler.ask(choice)
        self.forward()
        return self.sampler.sample(choice, SLOTS[choice.places], lambda _: (CASE.keys, CASE.table))

    def totals(self) -> Cells:
        (table,) = self.sampler.totals()
        return Cells.unpack(table)

    def request(self, slot: int) -> Cells | None:
        tables = list(self.sampler.of_request(slot))
        return Cells.unpack(tables[0]) if tables else None


def test_totals_are_per_layer_phase_and_head() -> None:
    """Every head's sums over the sampled rows are those of the definition."""
    bench = Bench()
    bench.sampler.account(bench.step())
    (table,) = bench.sampler.totals()
    assert table.group == "attention"
    assert table.axes == [["7", "8"], ["prefill", "decode"], ["0", "1", "2", "3"]]
    cells, expected = Cells.unpack(table), CASE.expected()
    assert cells.count[:, 0].tolist() == [[3] * 4] * 2
    assert cells.count[:, 1].tolist() == [[1] * 4] * 2
    for layer in (0, 1):
        np.testing.assert_allclose(
            cells.sums[layer, 0, ..., 0], expected[[0, 1, 3]].sum(0), rtol=1e-4
        )
        np.testing.assert_allclose(cells.sums[layer, 1, ..., 0], expected[2], rtol=1e-4, atol=1e-5)


def test_a_request_has_the_mean_over_its_heads() -> None:
    """Per layer and phase; its latest value too, and nothing of its neighbours."""
    bench = Bench()
    bench.sampler.account(bench.step())
    expected = CASE.expected().mean(1)
    for place, slot in enumerate(SLOTS):
        cells = bench.request(slot)
        phase = int(place == 2)
        assert cells.count.tolist() == [[1 - phase, phase]] * 2
        for got in (cells.sums[0, phase, :, 0], cells.last[1, phase]):
            np.testing.assert_allclose(got, expected[place], rtol=1e-4, atol=1e-5)
    assert bench.request(1) is None
    bench.sampler.clear(5)
    assert bench.request(5) is None
    assert bench.request(2) is not None


def test_only_layers_whose_turn_it_is_are_measured() -> None:
    """One layer gets everybody, another only who asked for it; limits hold."""
    bench = Bench()
    bench.sampler.account(bench.step((False, True), limit=3, forced={"c"}))
    assert bench.totals().count[..., 0].tolist() == [[0, 1], [2, 1]]
    assert bench.request(9).count.tolist() == [[0, 1], [0, 1]]
    assert bench.request(5).count.tolist() == [[0, 0], [1, 0]]


def test_later_turns_read_later_rows() -> None:
    """The rows, places and lengths are those of the choice, not the first of the batch."""
    bench = Bench()
    bench.sampler.account(bench.step(limit=2, first=2))
    expected = CASE.expected().mean(1)
    np.testing.assert_allclose(bench.request(9).last[0, 1], expected[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bench.request(0).last[0, 0], expected[3], rtol=1e-4, atol=1e-5)
    assert bench.request(5) is None


def test_heads_of_another_rank_have_ids_of_their_own() -> None:
    """The second of a tensor-parallel group begins where the first ends."""
    bench = Bench(first_part=1)
    bench.sampler.account(bench.step())
    (table,) = bench.sampler.totals()
    assert table.axes[2] == ["4", "5", "6", "7"]


def test_a_layer_without_a_pulse_is_left_out_and_named() -> None:
    """Its numbers are those of no row: they are not added, and it is not measured again."""
    bench = Bench()
    sampler = bench.sampler
    sampler.account(bench.step())
    pulse = sampler.pulses[1].clone()
    pending = bench.step()
    sampler.pulses[1] = pulse
    pending.loan.host["pulses"][1] = pulse
    sampler.account(pending)
    assert bench.totals().count[..., 0].tolist() == [[6, 2], [3, 1]]
    assert "layers 8: the query tap did not run" in bench.absent["attention"]
    assert bench.step().layers == [0]
    assert not sampler.is_refused(0)


def test_a_row_that_is_not_finite_is_nobodys(monkeypatch) -> None:
    """A head whose query holds a NaN is left out of its totals, and its row of the mean."""
    bench = Bench()
    query = CASE.query.clone()
    query[0, 2, 1] = torch.nan
    monkeypatch.setattr(CASE, "query", query)
    bench.sampler.account(bench.step())
    assert bench.totals().count[0, 0].tolist() == [3, 3, 2, 3]
    assert bench.request(5) is None


def test_without_a_loan_a_step_is_not_sampled() -> None:
    """Loans come back when a sample is accounted for, also when measuring raised."""
    bench = Bench()
    pending = [bench.step() for _ in range(NUM_LOANS)]
    assert bench.step() is None
    bench.sampler.account(pending[0])
    choice = choose(BATCH, [True, True], 0, 4)

    def broken(_: int) -> None:
        raise RuntimeError("a bug of ours")

    for _ in range(NUM_LOANS):
        with pytest.raises(RuntimeError):
            bench.sampler.sample(choice, SLOTS, broken)
    assert bench.step() is not None


def test_extremes_begin_anew_with_each_report() -> None:
    """Totals grow for ever; extremes cover the time since the last report."""
    bench = Bench()
    bench.sampler.account(bench.step())
    first = bench.totals()
    assert np.isfinite(first.extremes[:, 0]).all()
    again = bench.totals()
    np.testing.assert_array_equal(first.sums, again.sums)
    assert np.isnan(again.extremes).all()


def test_nothing_is_reported_before_anything_was_sampled() -> None:
    """No table says less than an empty one, and costs nothing."""
    assert list(Bench().sampler.totals()) == []


def test_totals_of_many_heads_are_split_into_frames_that_fit() -> None:
    """64 layers of 128 heads leave in several tables, each small enough, each layer once."""
    bench = Bench.__new__(Bench)
    layers = [Layer(k, 128, 2) for k in range(64)]
    sampler = Attention(layers, 0, 1, torch.float32, torch.device("cpu"), Absence({}))
    bench.sampler = sampler
    header = Header("a" * 16, Source("engine"), 1, 1, 1, 0)
    for part in sampler._totals:
        part.tally.count[:] = 1
    tables = list(sampler.totals())
    assert len(tables) > 1
    assert [label for table in tables for label in table.axes[0]] == [str(k) for k in range(64)]
    for table in tables:
        data = pack(Frame(header, Totals([table])))
        assert len(data) < MAX_BYTES
        assert unpack(data).body == Totals([table])


def test_layers_of_other_sizes_have_tables_of_their_own() -> None:
    """Models whose layers differ in their heads are measured with the heads that are there."""
    small = Case(num_heads=2, num_kv_heads=1, lengths=CASE.lengths, seed=5)
    layers = [Layer(0, 4, 16), Layer(1, 2, 16), Layer(2, 4, 16)]
    sampler = Attention(layers, 0, 4, torch.float32, torch.device("cpu"), Absence({}))
    cases = [CASE, small, CASE]
    choice = choose(BATCH, [True] * 3, 0, 4)
    sampler.ask(choice)
    for queries, case in zip(sampler.queries, cases, strict=True):
        queries.copy_(case.query.flatten(1))
    sampler.pulses.add_(1)
    pending = sampler.sample(choice, SLOTS, lambda k: (cases[k].keys, cases[k].table))
    sampler.account(pending)
    tables = list(sampler.totals())
    assert [table.axes[0] for table in tables] == [["0"], ["1"], ["2"]]
    assert [len(table.axes[2]) for table in tables] == [4, 2, 4]
    for table, case in zip(tables, cases, strict=True):
        sums = Cells.unpack(table).sums[0, 1, :, :, 0]
        np.testing.assert_allclose(sums, case.expected()[2], rtol=1e-4, atol=1e-5)


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """How many layers were measured at once, each time."""
    found: list[int] = []
    measure = attention.concentration.measure_layers

    def counted(queries, *others):
        found.append(len(queries))
        measure(queries, *others)

    monkeypatch.setattr(attention.concentration, "measure_layers", counted)
    return found


def test_layers_that_are_alike_are_measured_at_once(measured) -> None:
    """Those of another table, another form or for other requests are not; all numbers are right."""
    alike, windowed = neighbours(CASE, 5), neighbours(replace(CASE, window=9), 7)[5:]
    apart = replace(CASE, seed=9)
    cases = [*alike[:3], apart, *windowed, alike[3], alike[4]]
    layers = [Layer(k, CASE.num_heads, CASE.head_size) for k in range(len(cases))]
    sampler = Attention(layers, 0, 4, torch.float32, torch.device("cpu"), Absence({}))
    choice = choose(BATCH, [True] * 7 + [False], 0, 4, forced={"c"})
    sampler.ask(choice)
    for queries, case in zip(sampler.queries, cases, strict=True):
        queries.copy_(case.query[torch.from_numpy(choice.places)].flatten(1))
    sampler.pulses.add_(1)
    found = [(case.keys, case.table) for case in cases]
    slots = SLOTS[choice.places]
    sampler.account(sampler.sample(choice, slots, lambda k: found[k]))
    assert measured == [3, 1, 2, 1, 1]
    (table,) = sampler.totals()
    sums, counts = Cells.unpack(table).sums[:, 1, ..., 0], Cells.unpack(table).count[:, 0]
    assert counts[:, 0].tolist() == [3] * 7 + [0]
    for layer, case in enumerate(cases):
        np.testing.assert_allclose(sums[layer], case.expected()[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_keys", "shares"), [(9, [4]), (_KEYS_TOGETHER // 2, [2, 2]), (1 << 20, [1, 1, 1, 1])]
)
def test_layers_share_a_step_where_contexts_are_short(num_keys: int, shares: list[int]) -> None:
    """From the second round on, as long as their keys are few; a round is never cut in two."""
    sampler = Bench(num_layers=4).sampler
    batch = Batch(["a"], *(np.array([number]) for number in (num_keys - 1, 1, 1)))
    due = []
    for turn in range(8):
        tap = SimpleNamespace(
            orders=Orders(attention_every=4), measures_next=True, step=turn - 1, roster=Roster()
        )
        choice = sampler.choose(tap, lambda: batch)
        due.append(0 if choice is None else sum(choice.is_due))
    assert due[:4] == [1, 1, 1, 1]
    assert [each for each in due[4:] if each] == shares


def test_reasons_are_told_by_layers_and_fit_their_field() -> None:
    """Layers that share a reason share a sentence; the first reason of a layer stays."""
    absent: dict[str, str] = {}
    absence = Absence(absent)
    absence.add(4, "attention sinks")
    absence.add(2, "attention sinks")
    absence.add(3, "ALiBi")
    absence.add(4, "another")
    assert absent == {"attention": "layers 2, 4: attention sinks; layers 3: ALiBi"}
    absence.add(9, "x" * 5000)
    assert len(absent["attention"]) == MAX_LONG_TEXT


def test_the_size_of_a_cell_is_the_wires() -> None:
    """What a table is split by is what its cells take on the wire."""
    bench = Bench()
    bench.sampler.account(bench.step())
    (table,) = bench.sampler.totals()
    num_cells = 2 * 2 * 4
    size = len(table.count) + len(table.sums) + len(table.extremes)
    assert size == num_cells * attention._BYTES_PER_CELL
