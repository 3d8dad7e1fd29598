"""Confidence: the numbers against float64, and each generated token counted once, for its own."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap import confidence
from sidecar.tap.confidence import Confidence, LogitRows, Scratch, token_signals
from sidecar.tap.engine import Step
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch, RowMap
from sidecar.tap.scan import Scanner
from sidecar.tap.slab import Slab
from sidecar.wire.frame import Cells
from sidecar.wire.signals import GROUPS

SIGNALS = [signal.id for signal in GROUPS["confidence"].signals]
CPU = torch.device("cpu")
INF = torch.inf


def reference(logits: torch.Tensor, chosen: list[int]) -> np.ndarray:
    """The signals by their formulas, in float64; of finite logits and -inf."""
    rows = []
    for row, token in zip(logits.double().numpy(), chosen, strict=True):
        top = row.max()
        logsumexp = top + np.log(np.exp(row - top).sum())
        p = np.exp(row - logsumexp)
        positive = p[p > 0]
        first, second = np.sort(p)[[-1, -2]]
        entropy = -(positive * np.log(positive)).sum()
        rows.append([entropy, first, first - second, logsumexp - row[token], logsumexp])
    return np.array(rows)


def by_torch(logits: torch.Tensor, chosen: list[int]) -> np.ndarray:
    """The same by the code, [N, S]."""
    return token_signals(logits).values(logits, torch.tensor(chosen)).numpy()


def by_kernels(logits: torch.Tensor, chosen: list[int], num_parts: int = 4) -> np.ndarray:
    """The same by the kernels of a GPU, in Triton's interpreter: chosen at their import."""
    kernels = importlib.import_module("sidecar.tap.confidence_kernel")
    # The interpreter computes with numpy, which warns of numbers that are not finite.
    with np.errstate(all="ignore"):
        signals = kernels.read(logits, block=64, num_parts=num_parts)
        return kernels.choose(signals.unbind(), logits, torch.tensor(chosen)).numpy()


@pytest.fixture(params=[by_torch, by_kernels], ids=["torch", "triton"])
def measured(request):
    """Each form of the operation."""
    return request.param


def drawn(num_rows: int, num_tokens: int, scale: float = 3.0) -> torch.Tensor:
    """Logits of that spread."""
    return scale * torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(7))


def test_the_columns_are_those_of_the_wire() -> None:
    """In the order of the table of signals."""
    assert SIGNALS == ["entropy", "top1_probability", "top1_margin", "surprisal", "logsumexp"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [2, 50, 5000])
def test_signals_are_those_of_their_formulas(measured, dtype, num_tokens) -> None:
    """Of logits of any type, as they stand in it."""
    logits = drawn(9, num_tokens).to(dtype)
    chosen = [number % num_tokens for number in range(9)]
    np.testing.assert_allclose(
        measured(logits, chosen), reference(logits, chosen), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_large_logits_lose_no_digits(measured, offset) -> None:
    """Surprisal and entropy are differences: what all logits have in common is taken off first."""
    logits = drawn(4, 300).double().float() + offset
    expected = reference(logits, [0, 1, 2, 3])
    np.testing.assert_allclose(measured(logits, [0, 1, 2, 3]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "chosen", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 3, [np.log(4), 0.25, 0.0, np.log(4), np.log(4)]),
        ([-INF, 5.0, -INF, -INF], 1, [0.0, 1.0, 1.0, 0.0, 5.0]),
        ([-INF, 1.0, 1.0, -INF], 2, [np.log(2), 0.5, 0.0, np.log(2), 1 + np.log(2)]),
        ([200.0, -200.0, -INF, 0.0], 1, [0.0, 1.0, 1.0, 400.0, 200.0]),
        ([3e38, -3e38, 0.0, 0.0], 0, [0.0, 1.0, 1.0, 0.0, 3e38]),
    ],
    ids=["flat", "one token allowed", "two allowed", "certain", "extreme"],
)
def test_a_grammars_mask_and_certainty_are_numbers(measured, row, chosen, expected) -> None:
    """p log p is 0 at p = 0, whatever the logit."""
    found = measured(torch.tensor([row]), [chosen])[0]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "row",
    [[-INF] * 4, [0.0, torch.nan, 1.0, 2.0], [INF, 0.0, 1.0, 2.0]],
    ids=["all forbidden", "nan", "inf"],
)
def test_a_row_without_a_distribution_is_not_finite(measured, row) -> None:
    """And its neighbours are none the worse."""
    logits = torch.stack([torch.tensor(row), drawn(1, 4)[0]])
    found = measured(logits, [1, 2])
    assert not np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[1], reference(logits[1:], [2])[0], rtol=1e-5)


def test_the_logits_are_left_as_they_were() -> None:
    """The sampler gets what it would have got."""
    logits = drawn(3, 40)
    before = logits.clone()
    token_signals(logits)
    assert torch.equal(logits, before)


def test_scratch_space_is_bounded(monkeypatch) -> None:
    """A few rows at a time, of which the result is the same."""
    sizes = []
    plain = confidence._signals

    def watched(part: torch.Tensor, scratch: Scratch) -> confidence.TokenSignals:
        sizes.append(part.numel())
        assert scratch.size <= confidence.CHUNK_LOGITS
        return plain(part, scratch)

    monkeypatch.setattr(confidence, "_signals", watched)
    logits = drawn(10, 100)
    whole = token_signals(logits)
    assert sizes == [1000]
    monkeypatch.setattr(confidence, "CHUNK_LOGITS", 350)
    in_parts = token_signals(logits)
    assert sizes[1:] == [300, 300, 300, 100]
    assert all(torch.equal(a, b) for a, b in zip(whole, in_parts, strict=True))


@pytest.mark.parametrize("num_parts", [1, 2, 32])
def test_parts_of_a_vocabulary_are_joined(num_parts) -> None:
    """However many programs share it, some of them without any token; rows may have strides."""
    logits = drawn(5, 700)[:, ::2]
    chosen = [0, 1, 2, 3, 349]
    found = by_kernels(logits, chosen, num_parts)
    np.testing.assert_allclose(found, reference(logits, chosen), rtol=2e-6, atol=2e-6)


def test_a_token_that_is_none_is_clamped(measured) -> None:
    """Whatever a sampler returns of a row that has no distribution."""
    logits = drawn(2, 50)
    np.testing.assert_array_equal(measured(logits, [-1, 50]), measured(logits, [0, 49]))


def test_a_rehearsal_measures_every_type(monkeypatch) -> None:
    """So that kernels are compiled before a request waits for them; nothing is counted."""
    seen = []
    made = Confidence([""], 4, CPU)
    read = made.read
    monkeypatch.setattr(made, "read", lambda logits: seen.append(logits.dtype) or read(logits))
    made.rehearse(100, [torch.bfloat16, torch.float32])
    assert seen == [torch.bfloat16, torch.float32]
    assert Cells.unpack(next(iter(made.totals()))).count.sum() == 0


@pytest.mark.parametrize("width", [100, 250, 1000])
def test_given_scratch_space_is_all_that_is_used(width) -> None:
    """Whatever it held before, and however many rows fit; a row that does not fit takes its own."""
    given = Scratch(width)
    given._memory.fill_(torch.nan)
    for shape in ((7, 250), (3, 250), (7, 90)):
        logits = drawn(*shape)
        found = token_signals(logits, given)
        assert all(torch.equal(a, b) for a, b in zip(found, token_signals(logits), strict=True))


@pytest.mark.parametrize("num_tokens", [129, 256, 257, 300, 1000])
@pytest.mark.parametrize("places", [(0, 1), (0, -1), (-2, -1), (127, 128), (3, 200)])
def test_the_two_largest_are_found_wherever_they_stand(measured, num_tokens, places) -> None:
    """In one block, in two, in what is left over behind the last, and where they are equal."""
    for margin in (0.0, 1.0):
        logits = drawn(1, num_tokens).clamp(-5, 5)
        for place, value in zip(places, (20.0, 20.0 - margin), strict=True):
            logits[0, place if place < num_tokens else -3] = value
        expected = reference(logits, [0])
        np.testing.assert_allclose(measured(logits, [0]), expected, rtol=2e-6, atol=2e-6)


class Tap:
    """As much of a tapped engine as a sampler sees."""

    def __init__(self, **roster: object) -> None:
        self.roster = Roster(["medical"], **roster)
        self.rows = RowMap(8)
        self.scanner = Scanner([0], Slab(1, 8, 8, CPU))
        self.readings: list[confidence.Tokens] = []
        self.sampler = Confidence(self.roster.adapters, 32, CPU)

    def submit(self, sampler: Confidence, pending: confidence.Tokens) -> None:
        """The pump's deque."""
        assert sampler is self.sampler
        self.readings.append(pending)

    def step(self, batch: Batch, values: np.ndarray | None = None) -> Step:
        """One step whose row r has the value r + 1 in each column, or `values`."""
        step = Step(batch, self.rows.plan(batch, self.roster.opted_out), 1)
        rows = LogitRows.of(batch)
        if values is None:
            values = np.arange(1.0, len(rows.owners) + 1)
        columns = torch.tensor(values, dtype=torch.float32).unsqueeze(-1).expand(-1, 5)
        self.sampler.collect(self, step, rows, columns)
        return step

    def account(self) -> None:
        """What the pump does with what is ready."""
        while self.readings and self.readings[0].is_ready:
            self.sampler.account(self.readings.pop(0))

    def slot(self, name: str) -> int:
        return self.rows._slot_of[name]

    def of_request(self, name: str) -> Cells | None:
        tables = list(self.sampler.of_request(self.slot(name)))
        return Cells.unpack(tables[0]) if tables else None

    def totals(self) -> Cells:
        (table,) = self.sampler.totals()
        assert table.axes == [["", "medical", "other"]]
        return Cells.unpack(table)


def batch(*names: str, drafts=(), partial=()) -> Batch:
    """Requests in their fifth token or so, with drafts after it."""
    counts = 1 + np.array(drafts or [0] * len(names), np.int64)
    return Batch(
        list(names),
        np.full(len(names), 9, np.int64),
        counts,
        np.full(len(names), 5, np.int64),
        np.array(drafts, np.int64),
        np.array(partial, bool),
    )


def test_each_row_is_added_to_its_request_and_to_the_totals() -> None:
    """One row of logits a request, in batch order; the latest value is kept beside the sums."""
    tap = Tap()
    tap.step(batch("a", "b"))
    tap.step(batch("b", "a")._replace(starts=np.array([10, 10])), np.array([5.0, 7.0]))
    tap.account()
    a, b = tap.of_request("a"), tap.of_request("b")
    assert a.count.tolist() == [2, 0, 0]
    assert a.sums[0, 0, 0] == 1 + 7
    assert a.extremes[0, 0].tolist() == [1, 7]
    assert a.last[0, 0] == 7
    assert b.sums[0, 0, 0] == 2 + 5
    assert b.last[0, 0] == 5
    assert tap.totals().sums[0, 0, 0] == 1 + 7 + 2 + 5


def test_totals_keep_adapters_apart() -> None:
    """A request counts for its adapter; unlisted ones share a label."""
    tap = Tap()
    tap.roster.enter("a", "medical", None)
    tap.roster.enter("b", "unlisted", None)
    tap.roster.enter("c", None, None)
    tap.step(batch("a", "b", "c"))
    tap.account()
    assert tap.totals().sums[:, 0, 0].tolist() == [3, 1, 2]
    assert tap.of_request("a").count.tolist() == [0, 1, 0]


def test_an_adapter_is_that_of_the_request_that_now_has_the_slot() -> None:
    """Adapters of a steady batch are remembered no longer than the batch lasts."""
    tap = Tap()
    tap.roster.enter("a", "medical", None)
    tap.step(batch("a"))
    tap.step(batch("a")._replace(starts=np.array([10])))
    tap.account()
    tap.rows.forget(["a"])
    tap.roster.leave("a")
    tap.roster.enter("b", None, None)
    tap.step(batch("b"))
    tap.account()
    assert tap.totals().count.tolist() == [1, 2, 0]


def test_totals_tell_extremes_of_one_frame() -> None:
    """Sums run on, extremes begin anew."""
    tap = Tap()
    tap.step(batch("a", "b"))
    tap.account()
    assert tap.totals().extremes[0, 0].tolist() == [1, 2]
    again = tap.totals()
    assert np.isnan(again.extremes).all()
    assert again.count[0] == 2


def test_an_unfinished_prefill_leads_to_no_token() -> None:
    """The sampler runs on its last row all the same; that is nobody's token."""
    tap = Tap()
    tap.step(batch("a", "b", "c", partial=[False, True, False]))
    tap.account()
    assert tap.of_request("b") is None
    assert tap.totals().sums[0, 0, 0] == 1 + 3


def test_a_request_that_opted_out_is_not_measured() -> None:
    """Where the operator allows it."""
    tap = Tap(allow_opt_out=True)
    tap.roster.enter("b", None, {"llm_internals": "off"})
    tap.step(batch("a", "b"))
    tap.account()
    assert tap.of_request("b") is None
    assert tap.totals().sums[0, 0, 0] == 1


def test_a_value_that_is_not_finite_is_not_counted() -> None:
    """Sums stay finite."""
    tap = Tap()
    tap.step(batch("a", "b", "c"), np.array([1.0, np.inf, np.nan]))
    tap.account()
    assert tap.totals().count.tolist() == [1, 0, 0]


def test_a_slot_begins_empty() -> None:
    """What one request left is cleared for the next."""
    tap = Tap()
    tap.step(batch("a"))
    tap.account()
    tap.sampler.clear(tap.slot("a"))
    assert tap.of_request("a") is None


def test_with_all_memory_lent_tokens_are_not_counted_and_nothing_waits() -> None:
    """A pump that is behind costs values, not time; afterwards it goes on."""
    tap = Tap()
    for number in range(NUM_LOANS + 3):
        tap.step(batch("a")._replace(starts=np.array([9 + number])))
    assert len(tap.readings) == NUM_LOANS
    tap.account()
    assert tap.totals().count[0] == NUM_LOANS
    tap.step(batch("a")._replace(starts=np.array([50])))
    tap.account()
    assert tap.totals().count[0] == NUM_LOANS + 1


def test_memory_is_given_back_when_a_step_fails() -> None:
    """An exception on the way loses one step and no loan."""
    tap = Tap()
    for _ in range(NUM_LOANS + 2):
        with pytest.raises(RuntimeError):
            tap.step(batch("a"), np.zeros(40))  # more rows than fit
    tap.step(batch("a"))
    tap.account()
    assert tap.totals().count[0] == 1


def test_rows_after_a_rejected_draft_are_not_counted() -> None:
    """Of 1 + k rows those of the accepted drafts count, and the one before them."""
    tap = Tap()
    step = tap.step(batch("a", "b", "c", drafts=[2, 0, 3]))
    tap.account()
    assert len(tap.readings) == 1  # it waits to be told
    step.accepted = np.array([1, 0, 0])
    tap.account()
    assert tap.of_request("a").sums[0, 0, 0] == 1 + 2
    assert tap.of_request("b").sums[0, 0, 0] == 4
    assert tap.of_request("c").sums[0, 0, 0] == 5
    assert tap.of_request("a").last[0, 0] == 2


def test_the_chosen_token_of_each_row_is_found() -> None:
    """Row j of a request leads to its j-th token; rejected rows lead to none that counts."""
    tap = Tap()
    rows = LogitRows.of(batch("a", "b", "c", drafts=[2, 0, 1]))
    assert rows.owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert rows.drafts.tolist() == [0, 1, 2, 0, 0, 1]
    sampled = torch.tensor([[11, 12, 13], [21, -1, -1], [31, -1, -1]], dtype=torch.int32)
    assert tap.sampler.chosen(rows, sampled).tolist() == [11, 12, 13, 21, 31, -1]
    plain = LogitRows.of(batch("a", "b"))
    assert tap.sampler.chosen(plain, sampled[:2, :1]).tolist() == [11, 21]


def test_no_index_leaves_the_sampled_tokens() -> None:
    """An index too large would end a GPU's engine: it is clamped, whatever the runner returned."""
    tap = Tap()
    rows = LogitRows.of(batch("a", "b", drafts=[1, 3]))
    sampled = torch.tensor([[1, 2], [3, 4]])
    assert tap.sampler.chosen(rows, sampled).tolist() == [1, 2, 3, 4, 4, 4]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_request_has_one_row_for_each_generated_token(data) -> None:
    """However many drafts were proposed and accepted, beside whatever neighbours."""
    tap = Tap()
    tokens = {name: [] for name in "abc"}
    position = dict.fromkeys("abc", 9)
    for _ in range(data.draw(st.integers(1, 6))):
        names = data.draw(st.permutations("abc"))[: data.draw(st.integers(1, 3))]
        drafts = [data.draw(st.integers(0, 3)) for _ in names]
        accepted = [data.draw(st.integers(0, k)) for k in drafts]
        made = batch(*names, drafts=drafts)
        made = made._replace(starts=np.array([position[name] for name in names]))
        values = np.arange(1.0, 1 + len(names) + sum(drafts))
        step = tap.step(made, values)
        step.accepted = np.array(accepted) if any(drafts) else None
        if step.plan.has_drafts:
            tap.rows.settle(step.plan, np.array(accepted))
        tap.account()
        begin = 0
        for name, k, a in zip(names, drafts, accepted, strict=True):
            tokens[name] += values[begin : begin + 1 + a].tolist()
            position[name] += 1 + a
            begin += 1 + k
    for name in (name for name in "abc" if tokens[name]):
        cells = tap.of_request(name)
        assert cells.count[0] == len(tokens[name])
        assert cells.sums[0, 0, 0] == sum(tokens[name])
        assert cells.last[0, 0] == tokens[name][-1]
    assert tap.totals().count[0] == sum(map(len, tokens.values()))
    assert tap.readings == []
