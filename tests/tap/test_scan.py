"""Scans: the rows of chosen requests reach the wire, each at its own position, and no others."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap import probes, scan
from sidecar.tap.budget import LEVELS
from sidecar.tap.orders import Wish
from sidecar.tap.ring import NUM_LOANS, Ring
from sidecar.tap.roster import Roster
from sidecar.tap.rows import NO_GAP, Batch, Plan, RowMap
from sidecar.tap.scan import MAX_OPEN, Picked, Scanner
from sidecar.tap.slab import Slab
from sidecar.wire import scan as wire
from sidecar.wire.frame import MAX_BYTES
from sidecar.wire.scan import CONFIDENCE, MAX_SHED_LEVEL, Rows, Scan
from tests.tap.test_steering import ROWS, Engine

LAYERS = [3, 5]
CAPACITY = 64
CPU = torch.device("cpu")
ONE = Wish("w1", 1)


class Part(NamedTuple):
    """Rows of one request in a step."""

    req_id: str
    start: int
    count: int
    prompt: int
    drafts: int = 0


class Play:
    """A scanner beside a slab that is written by hand: each row says whose it is."""

    def __init__(self, wish: Wish | None = ONE) -> None:
        self.slab = Slab(len(LAYERS), CAPACITY, 32, CPU)
        self.scanner = Scanner(LAYERS, self.slab)
        self.roster = Roster()
        self.rows = RowMap(8)
        self.wish = wish
        self.ends: dict[int, int] = {}
        self.waiting: list[tuple[Plan, Picked, np.ndarray | None]] = []

    def step(self, *parts: Part, accepted: tuple[int, ...] = (), padding: int = 0) -> None:
        """One forward pass; its numbers wait for `account`."""
        batch = batch_of(parts, padding)
        self._write(parts, batch)
        plan = self.rows.plan(batch)
        kept = None
        if plan.has_drafts:
            settled = self.rows.settle(plan, np.array(accepted))
            kept = plan.accept(settled)
        for slot, end in zip(plan.batch_slots.tolist(), plan.ends.tolist(), strict=True):
            self.ends[slot] = max(end, self.ends.get(slot, 0))
        if self.scanner.is_busy(self.wish):
            picked = self.scanner.collect(batch, plan, self.wish, self.roster)
            if picked is not None:
                self.waiting.append((plan, picked, kept))

    def account(self) -> None:
        """What the pump does with the steps so far."""
        for _, picked, kept in self.waiting:
            assert picked.is_ready
            self.scanner.account(picked, kept)
        self.waiting.clear()

    def finish(self, *names: str) -> None:
        """The requests are over, and the pump hears of it."""
        for _, slot in self.rows.forget(list(names)):
            self.scanner.leave(slot)
            self.account()
            self.scanner.end(slot, self.ends.pop(slot))

    def told(self) -> list[Scan]:
        """A flush."""
        self.account()
        return self.scanner.bodies(lambda slot: self.ends[slot])

    def _write(self, parts: tuple[Part, ...], batch: Batch) -> None:
        rows = self.slab.rows
        rows[:, : probes.PULSE] = -1.0
        real = np.flatnonzero(batch.real) if len(batch.real) else np.arange(batch.counts.sum())
        at = iter(real.tolist())
        for part in parts:
            for position in range(part.start, part.start + part.count):
                place = next(at)
                for layer in range(len(LAYERS)):
                    columns = columns_of(part.req_id, position, layer)
                    rows[layer, : probes.PULSE, place] = torch.tensor(columns)


def batch_of(parts: tuple[Part, ...], padding: int) -> Batch:
    counts = np.array([part.count for part in parts])
    drafts = np.array([part.drafts for part in parts])
    real = np.zeros(0, bool)
    if padding:
        real = np.concatenate([[False] * padding + [True] * int(n) for n in counts])
    return Batch(
        [part.req_id for part in parts],
        np.array([part.start for part in parts]),
        counts,
        np.array([part.prompt for part in parts]),
        drafts if drafts.any() else NO_GAP,
        real=real,
    )


def peak_of(req_id: str, position: int) -> float:
    """A number that no other row has, within what float32 tells apart."""
    return 1000.0 * (1 + int(req_id[1:])) + position


def columns_of(req_id: str, position: int, layer: int) -> tuple[float, ...]:
    """A row of the slab: RMS 1 + position, the peak above, and half the layer as influence."""
    rms = 1.0 + position
    return rms**2, rms * peak_of(req_id, position), rms * (1.0 - layer / 2), position % 2


def rows_of(scans: list[Scan], req_id: str) -> Rows:
    """All that was told of one request, by position."""
    mine = [Rows.unpack(each) for each in scans if each.id == req_id]
    joined = Rows(*(np.concatenate(arrays) for arrays in zip(*mine, strict=True)))
    order = np.argsort(joined.positions, kind="stable")
    return Rows(joined.positions[order], joined.values[order], joined.nonfinite[order], *joined[3:])


def assert_told(scans: list[Scan], req_id: str, positions: list[int]) -> None:
    """Exactly these rows, with the values that were written for them."""
    rows = rows_of(scans, req_id)
    assert rows.positions.tolist() == positions
    for layer in range(len(LAYERS)):
        np.testing.assert_allclose(
            rows.values[:, layer, 0], 1.0 + np.array(positions, float), rtol=1e-5
        )
        peaks = [peak_of(req_id, p) for p in positions]
        np.testing.assert_allclose(rows.values[:, layer, 1], peaks, rtol=1e-5)
        np.testing.assert_allclose(rows.values[:, layer, 2], layer / 2, atol=1e-5)
        assert rows.nonfinite[:, layer].tolist() == [p % 2 for p in positions]


def test_a_request_is_told_row_by_row() -> None:
    """Prompt and answer, in a batch with others, of which nothing is told."""
    play = Play()
    play.step(Part("r0", 0, 5, 5), Part("r1", 0, 4, 4))
    for position in range(5, 9):
        play.step(Part("r1", position - 1, 1, 4), Part("r0", position, 1, 5))
    play.finish("r0")
    told = play.told()

    assert {each.id for each in told} == {"r0"}
    assert_told(told, "r0", list(range(9)))
    (last,) = told
    assert (last.layers, last.num_prompt_tokens, last.num_rows) == (LAYERS, 5, 9)
    assert last.is_final
    assert play.told() == []


def test_parts_are_told_while_the_request_runs() -> None:
    """Each flush tells what is new; only the last part says that it is the last."""
    play = Play()
    play.step(Part("r0", 0, 5, 5))
    first = play.told()
    play.step(Part("r0", 5, 1, 5))
    second = play.told()
    idle = play.told()
    play.finish("r0")
    last = play.told()

    assert_told(first, "r0", [0, 1, 2, 3, 4])
    assert_told(second, "r0", [5])
    assert [each.is_final for each in (*first, *second, *idle, *last)] == [False] * 3 + [True]
    assert [each.num_rows for each in (*first, *second, *idle, *last)] == [5, 6, 6, 6]
    assert rows_of(idle + last, "r0").positions.tolist() == []


@st.composite
def schedules(draw: st.DrawFn) -> list[list[tuple[Part, int]]]:
    """Steps of three requests: chunks, decodes, drafts with how many were accepted, preemptions."""
    prompts = [draw(st.integers(1, 12)) for _ in range(3)]
    done, reached = [0] * 3, [0] * 3
    steps = []
    for _ in range(draw(st.integers(1, 14))):
        parts = []
        for number in draw(st.permutations(range(3)))[: draw(st.integers(1, 3))]:
            if draw(st.integers(0, 9)) == 0:
                done[number] = 0  # preempted: computed again from its beginning
            start, known = done[number], max(prompts[number], reached[number])
            if start < known:
                drafts, count = 0, draw(st.integers(1, min(known - start, 6)))
            else:
                drafts = draw(st.integers(0, 2))
                count = 1 + drafts
            accepted = draw(st.integers(0, drafts))
            done[number] = start + count - drafts + accepted
            reached[number] = max(reached[number], done[number])
            parts.append((Part(f"r{number}", start, count, prompts[number], drafts), accepted))
        steps.append(parts)
    return steps


@settings(deadline=None, max_examples=200)
@given(schedules(), st.integers(0, 2), st.integers(1, 3), st.lists(st.booleans(), max_size=14))
def test_whatever_a_scheduler_does_each_row_is_told_once(
    steps: list[list[tuple[Part, int]]], padding: int, num: int, flushes: list[bool]
) -> None:
    """The rows of the first requests, within their window, and not those of rejected drafts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PROMPT_ROWS", 7)
        patch.setattr(wire, "ANSWER_ROWS", 5)
        play, told = Play(Wish("w", num)), []
        expected: dict[str, set[int]] = {}
        for k, step in enumerate(steps):
            parts = [part for part, _ in step]
            play.step(*parts, accepted=tuple(n for _, n in step), padding=padding)
            for part, accepted in step:
                if part.req_id in expected or len(expected) < num:
                    end = part.start + part.count - part.drafts + accepted
                    mine = set(range(part.start, end)) & set(wire.window(part.prompt))
                    expected.setdefault(part.req_id, set()).update(mine)
            play.account()
            if k < len(flushes) and flushes[k]:
                told += play.told()
        play.finish(*expected)
        told += play.told()

    assert {each.id for each in told} == set(expected)
    for req_id, positions in expected.items():
        assert_told(told, req_id, sorted(positions))


def test_the_next_requests_are_chosen_and_no_more() -> None:
    """Those that begin after the wish, as many as it names; the same wish is obeyed once."""
    play = Play(wish=None)
    play.step(Part("r0", 0, 2, 2))
    play.wish = Wish("w1", 2)
    for number in range(1, 5):
        play.step(Part(f"r{number}", 0, 2, 2))
    assert {each.id for each in play.told()} == {"r1", "r2"}

    play.wish = Wish("w2", 1)
    play.step(Part("r5", 0, 2, 2))
    play.step(Part("r6", 0, 2, 2))
    assert {each.id for each in play.told()} == {"r1", "r2", "r5"}

    play.wish = Wish("w3", 0)
    play.step(Part("r7", 0, 2, 2))
    assert "r7" not in {each.id for each in play.told()}


def test_a_wish_withheld_for_a_while_is_not_obeyed_twice() -> None:
    """The budget takes it away and gives it back: those that were left are chosen then."""
    play = Play(Wish("w1", 2))
    play.step(Part("r0", 0, 2, 2))
    play.wish = None
    play.step(Part("r1", 0, 2, 2))
    play.wish = Wish("w1", 2)
    play.step(Part("r2", 0, 2, 2))
    play.step(Part("r3", 0, 2, 2))

    assert {each.id for each in play.told()} == {"r0", "r2"}


def test_canaries_are_not_chosen() -> None:
    """The operator asks about the traffic, and a canary comes every few seconds."""
    play = Play()
    play.roster.enter("r0", None, {"llm_internals_canary": "v1:greeting-1"})
    play.roster.enter("r1", None, None)
    play.step(Part("r0", 0, 2, 2), Part("r1", 0, 3, 3))

    assert {each.id for each in play.told()} == {"r1"}


def test_so_many_requests_are_scanned_at_once_and_no_more() -> None:
    """Others begin when there is room again."""
    play = Play(Wish("w", 20))
    play.rows = RowMap(32)
    play.step(*(Part(f"r{k}", 0, 1, 1) for k in range(MAX_OPEN + 3)))
    assert len({each.id for each in play.told()}) == MAX_OPEN

    play.finish("r0")
    play.step(Part("r20", 0, 1, 1), Part("r21", 0, 1, 1))
    assert {each.id for each in play.told()} == {f"r{k}" for k in range(MAX_OPEN)} | {"r20"}


def test_an_idle_scanner_looks_at_nothing() -> None:
    """Without a wish, with one that was obeyed, and when it is switched off."""
    play = Play(wish=None)
    assert not play.scanner.is_busy(None)
    assert not play.scanner.is_busy(Wish("w0", 0))
    play.wish = ONE
    play.step(Part("r0", 0, 2, 2))
    play.finish("r0")
    assert not play.scanner.is_busy(ONE)
    assert play.scanner.is_busy(Wish("w2", 1))

    off = Scanner(LAYERS, play.slab, is_on=False)
    assert not off.is_busy(ONE)
    assert off.bodies(lambda _: 0) == []


def test_a_slot_that_changes_owners_mixes_nothing() -> None:
    """The next request takes it before the pump has heard of the end."""
    play = Play(Wish("w", 2))
    play.step(Part("r0", 0, 3, 3))
    ((_, slot),) = play.rows.forget(["r0"])
    play.scanner.leave(slot)
    first = play.waiting[:]
    play.waiting.clear()
    play.step(Part("r1", 0, 2, 2))
    second = play.waiting[:]
    assert second[0][1].scans[0].slot == slot

    play.scanner.account(first[0][1], None)
    play.scanner.end(slot, 3)
    play.scanner.account(second[0][1], None)
    play.waiting.clear()
    told = play.scanner.bodies(lambda _: 2)
    assert_told(told, "r0", [0, 1, 2])
    assert_told(told, "r1", [0, 1])
    assert [(each.id, each.is_final) for each in told] == [("r0", True), ("r1", False)]


def test_tokens_stand_at_the_rows_they_came_from() -> None:
    """Of scanned requests alone, within the window."""
    play = Play()
    play.step(Part("r0", 0, 5, 5), Part("r1", 0, 4, 4))
    play.account()
    (slot,) = play.scanner._told
    other = next(each for each in play.ends if each != slot)
    slots = np.array([other, slot, slot, slot])
    positions = np.array([4, 4, 5, 5 + wire.ANSWER_ROWS])
    values = np.arange(4)[:, None] + np.arange(len(CONFIDENCE)) / 8
    play.scanner.hear(slots, positions, values)
    rows = rows_of(play.told(), "r0")

    assert rows.token_positions.tolist() == [4, 5]
    np.testing.assert_array_equal(rows.confidence, values[1:3])


def test_without_memory_rows_are_left_out_and_nothing_waits() -> None:
    """The pump has fallen behind: the steps between are not told, their number is."""
    play = Play()
    for position in range(NUM_LOANS + 2):
        play.step(Part("r0", position, 1, 1))
    assert len(play.waiting) == NUM_LOANS
    play.account()
    play.step(Part("r0", NUM_LOANS + 2, 1, 1))
    told = play.told()

    assert_told(told, "r0", [*range(NUM_LOANS), NUM_LOANS + 2])
    assert told[-1].num_rows == NUM_LOANS + 3


def test_rows_that_wait_for_a_flush_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes; a flush makes room."""
    monkeypatch.setattr(scan, "MAX_HELD_BYTES", 3 * len(LAYERS) * 4 * 4)
    play = Play()
    for position in range(6):
        play.step(Part("r0", position, 1, 1))
        play.account()
    assert_told(play.told(), "r0", [0, 1, 2])
    play.step(Part("r0", 6, 1, 1))
    assert_told(play.told(), "r0", [6])


def test_rows_of_one_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are told."""
    monkeypatch.setattr(scan, "ROWS_PER_STEP", 6)
    play = Play(Wish("w", 2))
    play.step(Part("r0", 0, 4, 4), Part("r1", 0, 4, 4))
    told = play.told()

    assert_told(told, "r0", [0, 1, 2, 3])
    assert_told(told, "r1", [0, 1])


def test_no_frame_is_too_large() -> None:
    """Many rows of many layers go in several, and only the last is final."""
    layers = list(range(160))
    slab = Slab(len(layers), 600, 32, CPU)
    scanner, rows = Scanner(layers, slab), RowMap(8)
    batch = batch_of((Part("r0", 0, 512, 512),), 0)
    plan = rows.plan(batch)
    assert scanner.is_busy(ONE)
    picked = scanner.collect(batch, plan, ONE, Roster())
    assert picked is not None
    scanner.account(picked, None)
    scanner.end(int(plan.batch_slots[0]), 512)
    told = scanner.bodies(lambda _: 512)

    assert len(told) > 1
    assert [each.is_final for each in told] == [False] * (len(told) - 1) + [True]
    assert max(len(each.values) + len(each.nonfinite) for each in told) < MAX_BYTES * 3 / 4
    assert rows_of(told, "r0").positions.tolist() == list(range(512))


def test_copies_under_way_are_awaited_and_survive_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: the gather goes to the device's own memory, and from there to the host's."""
    monkeypatch.setattr(Ring, "target", lambda ring, _: ring._examples)
    play = Play()
    play.step(Part("r0", 0, 3, 3))
    play.step(Part("r0", 3, 1, 3))
    play.slab.rows.fill_(-7.0)
    assert_told(play.told(), "r0", [0, 1, 2, 3])


def test_a_copy_that_fails_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often."""
    play = Play()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Ring, "send", broken)
        for position in range(2 * NUM_LOANS):
            with pytest.raises(RuntimeError):
                play.step(Part("r0", position, 1, 1))
    play.step(Part("r0", 2 * NUM_LOANS, 1, 1))
    assert_told(play.told(), "r0", [2 * NUM_LOANS])


@pytest.fixture
def engine(tmp_path, guard) -> Iterator[Engine]:
    with torch.inference_mode():
        yield Engine(tmp_path, guard, is_compiled=False)


def scans_of(engine: Engine) -> list[Scan]:
    return [body for body in engine.flush() if isinstance(body, Scan)]


@pytest.mark.parametrize("is_compiled", [True, False])
@torch.inference_mode()
def test_an_operator_asks_a_running_tap(tmp_path, guard, is_compiled: bool) -> None:
    """Through the control; the compiled graph stays as it is, and its values are those told."""
    engine = Engine(tmp_path, guard, is_compiled=is_compiled)
    engine.step()
    assert scans_of(engine) == []
    engine.ask(scan_requests=1, scan_id="w1")
    engine.step()
    moments = engine.tap._slab.rows[:, : probes.NONFINITE, :ROWS].permute(2, 0, 1).unbind(-1)
    log_rms, peak, influence = probes.row_signals(*moments)
    engine.step()
    (told,) = scans_of(engine)
    rows = Rows.unpack(told)

    assert (told.id, told.num_rows, told.is_final) == ("r2", ROWS, True)
    for signal, expected in enumerate((log_rms.exp(), peak, influence)):
        np.testing.assert_allclose(rows.values[..., signal], expected, rtol=1e-6, atol=1e-6)
    assert not is_compiled or engine.compilations.frame_count == 1
    assert guard.errors == {}


def test_nothing_of_a_scan_runs_while_nothing_is_scanned(engine, monkeypatch) -> None:
    """Its one method on the step path is not called."""
    called = []
    monkeypatch.setattr(engine.tap.scanner, "collect", lambda *_: called.append(1))
    engine.step()
    assert called == []
    engine.ask(scan_requests=1)
    engine.step()
    assert called == [1]


def test_requests_that_may_not_be_measured_are_not_scanned(tmp_path, guard) -> None:
    """One that opted out, and all while the kill switch is thrown."""
    with torch.inference_mode():
        engine = Engine(tmp_path, guard, is_compiled=False, allow_opt_out=True)
        engine.ask(is_on=False, scan_requests=1)
        engine.step()
        engine.ask(scan_requests=1)
        engine.step({"llm_internals": "off"})
        engine.step()

    assert [each.id for each in scans_of(engine)] == ["r3"]


def test_an_operator_may_forbid_scans(tmp_path, guard) -> None:
    """The tap then holds no memory for them, and obeys no wish."""
    with torch.inference_mode():
        engine = Engine(tmp_path, guard, is_compiled=False, scans=False)
        engine.ask(scan_requests=1)
        engine.step()

    assert scans_of(engine) == []
    assert not hasattr(engine.tap.scanner, "_ring")
    assert "SIDECAR_SCANS=1" in engine.status().absent["scan"]


def test_no_scan_begins_while_the_budget_leaves_layers_out(engine) -> None:
    """It would read them all; the wish waits until the tap has calmed down."""
    assert [LEVELS[level].layers for level in (MAX_SHED_LEVEL, MAX_SHED_LEVEL + 1)] == [1, 2]
    engine.tap.governor._budget.level = 4
    engine.ask(scan_requests=1)
    engine.step()
    assert scans_of(engine) == []

    engine.tap.governor._budget.level = 3
    engine.flush()
    engine.step()
    assert [each.id for each in scans_of(engine)] == ["r2"]


def test_a_scanner_that_fails_is_disarmed_alone(engine, guard, monkeypatch) -> None:
    """The requests are measured all the same."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(engine.tap.scanner, "collect", broken)
    engine.ask(scan_requests=9)
    for _ in range(5):
        engine.step()

    assert engine.totals()[0] == [5 * ROWS] * 4
    assert guard.errors == {"Scanner": 3}
    status = engine.status()
    assert (status.state, list(status.absent)) == ("live", ["Scanner"])
