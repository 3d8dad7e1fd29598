"""One tapped engine, end to end: a toy model runs on one side, a real receiver reads the other."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.tap import engine, records
from sidecar.tap.aside import Place
from sidecar.tap.engine import MAX_PENDING, EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.probes import NONFINITE, row_moments, row_signals
from sidecar.tap.records import MAX_RUNNING
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.roster import ROUTE_XARG, XARG
from sidecar.tap.rows import Batch, Plan
from sidecar.tap.sites import Site
from sidecar.tap.slab import Slab
from sidecar.tap.stream import attach_probe
from sidecar.tap.tally import Tally
from sidecar.wire import canary
from sidecar.wire.canary import Canary
from sidecar.wire.channel import Sender
from sidecar.wire.frame import (
    Arrays,
    Cells,
    Coverage,
    Frame,
    Header,
    Layers,
    Requests,
    Signature,
    Signatures,
    Source,
    Status,
    Table,
    Totals,
    pack,
    unpack,
)
from sidecar.wire.signature import Layout, entries
from tests.tap.toys import Decoder, streams, tokens

LAYER_IDS = [6, 7, 8]  # the third stage of a pipeline
CAPACITY = 32


class Served:
    """A toy model with a tap, and the loop of a runner around it."""

    def __init__(
        self,
        path,
        guard: Guard,
        sender: Sender | None = None,
        instruments: Instruments | None = None,
        layer_ids: list[int] = LAYER_IDS,
        most_together: int = 1,
        **options: object,
    ) -> None:
        config = TapConfig(socket=path, flush_seconds=0.05, **options)
        self.model = Decoder(3)
        self.guard = guard
        self.slab = Slab(len(layer_ids), CAPACITY, 8, torch.device("cpu"))
        self.detach = [
            attach_probe(Site(layer, module), rows, guard)
            for layer, module, rows in zip(
                layer_ids, self.model.layers, self.slab.rows, strict=False
            )
        ]
        self.tap = EngineTap(
            config,
            Nameplate("toy", "0.32.0", "0.1", "v1", "float32", "abc"),
            layer_ids,
            self.slab,
            sender or Sender(path, Source("engine", pp=2)),
            guard,
            max_requests=4,
            instruments=instruments,
            most_together=most_together,
        )
        self.position: dict[str, int] = {}
        self.prompt: dict[str, int] = {}

    def warm_up(self) -> None:
        """A dummy run, of rows that are not data."""
        self.forward(torch.full((CAPACITY, 16), torch.nan))

    def forward(self, hidden: torch.Tensor) -> None:
        self.model(torch.arange(len(hidden)), hidden)

    def step(self, *parts: tuple[str, int]) -> None:
        """A forward pass of (request, rows) parts, and what the runner tells the tap of it."""
        starts = [self.position.get(name, 0) for name, _ in parts]
        counts = [count for _, count in parts]
        for name, count in parts:
            self.prompt.setdefault(name, count)
            self.position[name] = self.position.get(name, 0) + count
        self.forward(
            torch.cat([embedded(name, s, c) for (name, c), s in zip(parts, starts, strict=True)])
        )
        self.tap.observe(
            Batch(
                [name for name, _ in parts],
                np.array(starts),
                np.array(counts),
                np.array([self.prompt[name] for name, _ in parts]),
            )
        )

    def draft(self, *parts: tuple[str, int, int]) -> None:
        """A forward pass of (request, position, drafts) parts, each a token and its drafts."""
        counts = [1 + drafts for _, _, drafts in parts]
        self.forward(tokens(sum(counts)))
        self.tap.observe(
            Batch(
                [name for name, _, _ in parts],
                np.array([position for _, position, _ in parts]),
                np.array(counts),
                np.array([self.prompt[name] for name, _, _ in parts]),
                np.array([drafts for _, _, drafts in parts]),
            )
        )

    def flush(self) -> dict[type, list]:
        """What the pump would send now, by the type of the body; for a tap without a pump."""
        self.tap._drain()
        said: dict[type, list] = defaultdict(list)
        for body in self.tap._bodies():
            packed = pack(Frame(Header("boot-one", Source("engine"), 1, 1, 1, 0), body))
            said[type(body)].append(unpack(packed).body)
        return said

    def settle(self) -> None:
        """Wait until the pump has taken in what was measured."""
        deadline = time.monotonic() + 5
        while self.tap._events and time.monotonic() < deadline:
            time.sleep(0.002)


def embedded(name: str, start: int, count: int) -> torch.Tensor:
    """What the toy's requests consist of: a token for each of their positions."""
    return torch.cat([tokens(1, seed=1000 * ord(name[0]) + start + i) for i in range(count)])


@pytest.fixture
def served(socket_path, inbox, guard):
    """A tapped toy that has said its first word to a receiver."""
    made = Served(socket_path, guard)
    made.tap.start()
    inbox.wait_for(is_state("starting"))
    yield made
    made.tap.stop()


def is_state(state: str):
    return lambda frame: isinstance(frame.body, Status) and frame.body.state == state


def is_step(number: int):
    return lambda frame: isinstance(frame.body, Layers) and frame.body.num_steps == number


def is_finished(number: int):
    return lambda frame: isinstance(frame.body, Layers) and frame.body.num_requests == number


def is_requests(frame: Frame) -> bool:
    return isinstance(frame.body, Requests)


def test_the_numbers_of_a_served_request_arrive(served, inbox) -> None:
    """Totals and the request's own record carry the signals of its rows, as the model has them."""
    served.warm_up()
    served.tap.arm(was_warmed_up=True)
    served.step(("a", 6), ("b", 3))
    served.step(("b", 1), ("a", 1))
    served.step(("a", 1))
    served.settle()
    served.tap.finish({"a"})
    request = inbox.wait_for(is_requests)
    assert request.header.source == Source("engine", pp=2)
    assert request.body.layers == LAYER_IDS
    (record,) = request.body.requests
    assert record.id == "a"
    assert record.num_prompt_tokens == 6
    assert record.coverage.observed == [4, 2, 0, 2]

    stream = streams(served.model, embedded("a", 0, 8))
    got = Arrays.unpack(record.moments, 3)
    for layer in range(3):
        moments = row_moments(stream[layer], stream[layer + 1])[:NONFINITE].double()
        log_rms, peak, influence = row_signals(*moments)
        values = torch.stack([log_rms.exp(), peak, influence]).numpy()
        for population, mine in ((0, slice(0, 4)), (1, slice(4, 6)), (3, slice(6, 8))):
            sums = got.sums[population, layer, :, 0]
            np.testing.assert_allclose(sums, values[:, mine].sum(1), rtol=1e-4)
            extremes = got.extremes[population, layer, :, 1]
            np.testing.assert_allclose(extremes, values[:, mine].max(1), rtol=1e-4)

    totals = inbox.wait_for(is_finished(1))
    assert totals.body.coverage.observed == [7, 2, 1, 2]
    assert not Arrays.unpack(totals.body.moments, 3).nonfinite.any()  # warm-up was not data
    assert totals.header.step == totals.body.num_steps == 3


def test_a_status_says_who_and_how(served, inbox) -> None:
    """The engine's description, the number of layers and the errors travel with every flush."""
    served.guard.count("read", RuntimeError("once"))
    status = inbox.wait_for(lambda frame: is_state("starting")(frame) and frame.body.errors).body
    assert status.reason == "no_forward_pass"
    assert (status.model_name, status.runner, status.dtype) == ("toy", "v1", "float32")
    assert (status.vllm_version, status.tap_version, status.fingerprint) == ("0.32.0", "0.1", "abc")
    assert status.num_layers == 3
    assert status.errors == {"read": 1}


def test_the_verdict_follows_the_pulses(served, inbox) -> None:
    """Starting, live, dead when one layer stands still, and live again when it moves."""
    served.tap.arm(was_warmed_up=False)
    inbox.wait_for(is_state("starting"))
    served.step(("a", 4))
    assert inbox.wait_for(is_state("live")).body.dead_layers == []
    served.detach[1]()
    served.step(("a", 1))
    dead = inbox.wait_for(is_state("dead")).body
    assert dead.reason == "no_pulse"
    assert dead.dead_layers == [7]
    assert "1 of 3 taps" in dead.detail
    attach_probe(Site(7, served.model.layers[1]), served.slab.rows[1], served.guard)
    served.step(("a", 1))
    assert inbox.wait_for(is_state("live")).body.dead_layers == []


def test_a_tap_without_a_pulse_after_warm_up_is_dead_at_once(served, inbox) -> None:
    """Where the engine has run the model, a tap that did not is dead before any request."""
    for detach in served.detach:
        detach()
    served.warm_up()
    served.tap.arm(was_warmed_up=True)
    assert inbox.wait_for(is_state("dead")).body.dead_layers == LAYER_IDS


def test_a_warm_up_with_every_pulse_is_life_at_once(served, inbox) -> None:
    """Pulses of the warm-up are proof enough: live before any request."""
    served.warm_up()
    served.tap.arm(was_warmed_up=True)
    assert inbox.wait_for(is_state("live")).body.dead_layers == []


def test_nothing_is_measured_before_the_tap_is_armed(served, inbox) -> None:
    """Requests of a warm-up look real; they are neither rows nor requests."""
    served.step(("warm", 6))
    served.tap.finish(["warm"])
    served.tap.arm(was_warmed_up=True)
    served.step(("a", 4))
    served.settle()
    served.tap.finish(["a"])
    assert [request.id for request in inbox.wait_for(is_requests).body.requests] == ["a"]
    assert inbox.wait_for(is_step(1)).body.coverage.observed == [4, 0, 0, 0]


def test_records_of_requests_can_be_switched_off(socket_path, inbox, guard) -> None:
    """With `requests` off only the totals leave the engine."""
    served = Served(socket_path, guard, requests=False)
    served.tap.start()
    inbox.wait_for(is_state("starting"))
    served.tap.arm(was_warmed_up=False)
    served.step(("a", 4))
    served.settle()
    served.tap.finish(["a"])
    seen: list[Frame] = []
    inbox.wait_for(lambda frame: seen.append(frame) or is_finished(1)(frame))
    seen += inbox.read(0.2)
    assert not any(map(is_requests, seen))


def test_many_records_are_split_over_frames_that_fit(served, inbox, monkeypatch) -> None:
    """Requests that finish together leave in frames below the limit, each of them once."""
    monkeypatch.setattr("sidecar.tap.records.MAX_BYTES", 8 * (4 * 3 * 104 + 1024))
    served.tap.arm(was_warmed_up=False)
    names = [chr(ord("a") + i) for i in range(10)]
    for name in names:
        served.step((name, 4))
        served.settle()
    served.tap.finish(names)
    seen: list[str] = []
    while len(seen) < len(names):
        frame = inbox.wait_for(is_requests)
        assert len(frame.body.requests) <= 4
        seen += [request.id for request in frame.body.requests]
    assert seen == names
    assert not any(map(is_requests, inbox.read(0.2)))


class StuckSender(Sender):
    """A sender whose `send` comes back only when the test lets it: the pump hangs in it."""

    def __init__(self, path) -> None:
        super().__init__(path, Source("engine"))
        self.entered, self.release = threading.Event(), threading.Event()

    def send(self, body: object, step: int = 0) -> bool:
        self.entered.set()
        return self.release.wait(120)


def test_the_step_path_never_waits_for_the_pump(socket_path, guard) -> None:
    """With the pump stuck, steps cost what they did, memory is bounded, and losses are counted."""
    sender = StuckSender(socket_path)
    served = Served(socket_path, guard, sender)
    served.tap.start()
    served.tap.arm(was_warmed_up=False)
    assert sender.entered.wait(60)
    served.forward(tokens(1))
    one = np.array([1])
    took = []
    for position in range(MAX_PENDING + 500):
        began = time.perf_counter()
        served.tap.observe(Batch(["a"], np.array([position]), one, one))
        took.append(time.perf_counter() - began)
    assert not sender.release.is_set()
    assert statistics.median(took) < 0.002
    assert sum(took) < 60.0  # the pump hangs for twice as long
    assert len(served.tap._events) == MAX_PENDING
    sender.release.set()
    served.settle()
    served.forward(tokens(1))
    served.tap.observe(Batch(["a"], np.array([MAX_PENDING + 500]), one, one))
    served.settle()
    served.tap.stop()
    coverage = served.tap._ledger.layers().coverage
    assert sum(coverage.observed) == NUM_LOANS + 1
    assert coverage.lost == MAX_PENDING + 500 - NUM_LOANS
    assert guard.errors == {}


class BrokenSlab:
    """Collects, and then cannot be read."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self.num_released = 0
        self.pulses = slab.pulses

    def collect(self, *_: object) -> "BrokenSlab":
        return self

    is_ready = True

    def read(self, *_: object) -> None:
        raise RuntimeError("a bug of ours")

    def release(self, result: object) -> None:
        self.num_released += 1


def test_a_pump_that_keeps_failing_disarms_the_tap(served, inbox) -> None:
    """After its last exception the pump is not called again, nor is anything collected for it."""
    broken = BrokenSlab(served.slab)
    served.tap._slab = broken
    served.tap.arm(was_warmed_up=False)
    for _ in range(3):
        served.step(("a", 1))
        served.settle()
    status = inbox.wait_for(is_state("disarmed")).body
    assert status.reason == "too_many_errors"
    assert "pump" in status.detail
    assert status.errors == {"pump": 3}
    assert broken.num_released == 3  # what raises is given back too
    served.step(("a", 1))
    assert not served.tap._events


def test_stop_reports_what_is_left_and_ends_the_measuring(socket_path, inbox, guard) -> None:
    """The last request's record arrives although the engine shuts down at once."""
    served = Served(socket_path, guard)
    served.tap.start()
    inbox.wait_for(is_state("starting"))
    served.tap.arm(was_warmed_up=False)
    served.step(("a", 4))
    served.tap.finish(["a"])
    served.tap.stop()
    assert [request.id for request in inbox.wait_for(is_requests).body.requests] == ["a"]
    served.step(("b", 4))
    assert not served.tap._events


def test_what_was_lost_is_lost_for_its_request(served, inbox) -> None:
    """A step that finds no free result is reported as lost, of the total and of its request."""
    served.tap.arm(was_warmed_up=False)
    served.step(("a", 4))
    served.settle()
    taken = [served.slab._ring.take() for _ in range(NUM_LOANS)]
    served.step(("a", 1))
    served.settle()
    for result in taken:
        served.slab.release(result)
    served.step(("a", 1))
    served.settle()
    served.tap.finish(["a"])
    (record,) = inbox.wait_for(is_requests).body.requests
    assert record.coverage.observed == [4, 0, 0, 1]
    assert record.coverage.lost == 1
    assert inbox.wait_for(is_step(2)).body.coverage.lost == 1


class SlowSlab(BrokenSlab):
    """Collects, and has its numbers only later, like a GPU."""

    is_ready = False


def test_numbers_under_way_are_waited_for_without_blocking(served, inbox) -> None:
    """The pump leaves a step that is not ready for a later look, and goes on reporting."""
    slow = SlowSlab(served.slab)
    served.tap._slab = slow
    served.tap.arm(was_warmed_up=False)
    served.step(("a", 1))
    served.settle()
    inbox.wait_for(is_state("starting"))
    assert len(served.tap._events) == 1
    slow.is_ready = True
    inbox.wait_for(lambda frame: getattr(frame.body, "errors", None) == {"pump": 1})
    assert not served.tap._events


@pytest.fixture
def quiet(socket_path, guard):
    """An armed tap whose pump does not run: a test flushes it."""
    made = Served(socket_path, guard, allow_opt_out=True, adapters="legal")
    made.tap.arm(was_warmed_up=False)
    return made


def record_of(said: dict[type, list], name: str):
    (found,) = (each for body in said[Requests] for each in body.requests if each.id == name)
    return found


def signatures(said: dict[type, list]) -> list[Signature]:
    return [each for body in said[Signatures] for each in body.signatures]


def test_drafts_count_once_they_are_accepted(quiet) -> None:
    """A step with drafts waits for the word of the sampler, and then adds what was accepted."""
    quiet.step(("a", 5), ("b", 5))
    quiet.draft(("a", 5, 2), ("b", 5, 0))
    quiet.tap._drain()
    assert len(quiet.tap._events) == 1
    quiet.tap.settle(np.array([1, 0]))
    quiet.draft(("a", 7, 1), ("b", 6, 0))
    quiet.tap.settle(np.array([1, 0]))
    quiet.tap.finish(["a", "b"])
    said = quiet.flush()
    assert record_of(said, "a").coverage == Coverage([4, 1, 0, 4])
    assert record_of(said, "b").coverage == Coverage([4, 1, 0, 2])
    assert said[Layers][0].coverage == Coverage([8, 2, 0, 6], rejected=1)


@pytest.mark.parametrize("after", ["observe", "finish", "stop"])
def test_drafts_that_nobody_vouched_for_are_not_counted(after, quiet, monkeypatch) -> None:
    """What comes next settles them as rejected, so that nothing waits for ever."""
    quiet.step(("a", 5))
    quiet.draft(("a", 5, 2))
    if after == "observe":
        quiet.step(("b", 4))
    elif after == "finish":
        quiet.tap.finish([])
    else:
        monkeypatch.setattr(quiet.tap._pump, "stop", lambda: None)
        quiet.tap.stop()
    coverage = quiet.flush()[Layers][0].coverage
    assert not quiet.tap._events
    assert coverage.rejected == 2
    assert coverage.observed[3] == 1
    quiet.tap.settle(np.array([2]))  # too late, and of another batch
    assert quiet.flush()[Layers][0].coverage == coverage


def test_a_word_of_another_shape_is_no_word(quiet) -> None:
    """It raises for the guard to count, and the drafts are taken for rejected."""
    quiet.step(("a", 5), ("b", 5))
    quiet.draft(("a", 5, 2), ("b", 5, 1))
    with pytest.raises(ValueError, match="broadcast"):
        quiet.tap.settle(np.array([1, 1, 1]))
    assert quiet.flush()[Layers][0].coverage.rejected == 3
    assert not quiet.tap._events


@pytest.mark.parametrize("cause", ["lost", "shed"])
def test_accepted_drafts_of_a_step_that_was_not_measured_are_tokens_of_it(cause, quiet) -> None:
    """The cause holds for them too, once their number is known."""
    quiet.step(("a", 5))
    if cause == "lost":
        taken = [quiet.slab._ring.take() for _ in range(NUM_LOANS)]
        assert None not in taken[:-1]
    else:
        quiet.tap.governor.orders = quiet.tap.orders._replace(is_on=False)
    quiet.draft(("a", 5, 3))
    quiet.tap.settle(np.array([2]))
    quiet.tap.finish(["a"])
    coverage = record_of(quiet.flush(), "a").coverage
    assert coverage == Coverage([4, 1, 0, 0], **{cause: 3})


def test_shed_steps_are_counted_and_measured_ones_go_on(quiet) -> None:
    """Of every second step the rows are shed, by order; the tap stays what it was."""
    quiet.tap.governor.orders = quiet.tap.orders._replace(steps_every=2, shed_level=3)
    quiet.step(("a", 5))
    measuring = [quiet.tap.is_measuring]
    for _ in range(4):
        quiet.step(("a", 1))
        measuring.append(quiet.tap.is_measuring)
    assert measuring == [True, False, True, False, True]
    quiet.tap.finish(["a"])
    said = quiet.flush()
    assert record_of(said, "a").coverage == Coverage([4, 1, 0, 2], shed=2)
    assert said[Layers][0].num_steps == 3
    assert said[Layers][0].coverage.shed == 2
    (status,) = said[Status]
    assert (status.state, status.shed_level) == ("live", 3)


def test_chosen_layers_are_collected_alone(quiet) -> None:
    """An order of the governor: the other layers keep what they had, and stay alive."""
    quiet.step(("a", 5))
    quiet.tap.governor.orders = quiet.tap.orders._replace(selection=quiet.slab.select([2]))
    quiet.step(("a", 1))
    said = quiet.flush()
    counts = Arrays.unpack(said[Layers][0].moments, 3).count
    assert counts[3].tolist() == [0, 0, 1]
    assert counts[1].tolist() == [1, 1, 1]
    assert said[Status][0].dead_layers == []


def test_a_finished_request_is_signed(quiet) -> None:
    """One vector in the announced layout, final, with what was said of the request."""
    quiet.tap.roster.enter("a", "legal", None)
    quiet.tap.roster.preempt(["a"])
    quiet.step(("a", 6))
    quiet.step(("a", 1))
    quiet.tap.finish(["a"])
    said = quiet.flush()
    (signed,) = signatures(said)
    assert (signed.id, signed.is_final) == ("a", True)
    assert (signed.num_prompt_tokens, signed.num_generated_tokens) == (6, 1)
    assert (signed.adapter, signed.preemptions) == ("legal", 1)
    record = record_of(said, "a")
    assert (record.adapter, record.preemptions) == ("legal", 1)
    assert signed.t_ns == record.end_ns
    layout = said[Signatures][0].layout
    assert layout == Layout(LAYER_IDS)
    got = dict(zip(entries(layout), np.frombuffer(signed.values, "<f4"), strict=True))
    sums = Arrays.unpack(record.moments, 3).sums
    assert got["residual/prefill/l7/log_rms"] == pytest.approx(sums[1, 1, 0, 1] / 2, rel=1e-6)
    assert signatures(quiet.flush()) == []


@pytest.fixture
def canary_key(tmp_path):
    """The file of the operator's secret."""
    file = tmp_path / "canary.key"
    file.write_bytes(b"a secret of the operator's, 32 b")
    return file


def test_a_signature_tells_the_route_and_the_proven_canary(
    socket_path, guard, canary_key, clock
) -> None:
    """At its end and while it runs; a tag with a wrong mac proves nothing, and is no route."""
    served = Served(socket_path, guard, routes=("chat",), canary_key_file=canary_key)
    served.tap.arm(was_warmed_up=False)
    round_ms = time.time_ns() // 1_000_000
    good = canary.tag(Canary("greeting", round_ms), canary_key.read_bytes())
    served.tap.roster.enter("a", None, {ROUTE_XARG: "chat", canary.XARG: good})
    served.tap.roster.enter("b", None, {ROUTE_XARG: "shop", canary.XARG: good[:-2] + "zz"})
    served.step(("a", 6), ("b", 4))
    clock.now += 10**9
    served.tap.finish(["b"])
    told = {each.id: each for each in signatures(served.flush())}
    assert not told["a"].is_final
    assert (told["a"].route, told["a"].canary) == ("chat", f"greeting@{round_ms}")
    assert (told["b"].route, told["b"].canary) == ("other", "")
    clock.now += 10**13  # it was in time when it came
    served.tap.finish(["a"])
    (last,) = signatures(served.flush())
    assert (last.is_final, last.route, last.canary) == (True, "chat", f"greeting@{round_ms}")


def test_a_signature_tells_how_many_rows_it_leaves_out(quiet) -> None:
    """Those that came from the prefix cache, of a prompt that was served before."""
    quiet.prompt["a"], quiet.position["a"] = 10, 4
    quiet.step(("a", 6), ("b", 6))
    quiet.tap.finish(["a", "b"])
    told = {each.id: each.num_unobserved for each in signatures(quiet.flush())}
    assert told == {"a": 4, "b": 0}


def test_a_canary_is_measured_like_any_other_request(socket_path, guard, canary_key) -> None:
    """The same numbers, a record, and a place in the totals; without a key file it is none."""
    told = []
    for options in ({"canary_key_file": canary_key}, {}):
        served = Served(socket_path, guard, **options)
        served.tap.arm(was_warmed_up=False)
        made = canary.tag(Canary("a", time.time_ns() // 1_000_000), canary_key.read_bytes())
        served.tap.roster.enter("a", None, {canary.XARG: made})
        served.step(("a", 6))
        served.tap.finish(["a"])
        said = served.flush()
        told += signatures(said)
        assert record_of(said, "a").coverage == Coverage([4, 2, 0, 0])
        assert said[Layers][0].num_requests == 1
    assert told[0].values == told[1].values
    assert (bool(told[0].canary), bool(told[1].canary)) == (True, False)


def test_a_tap_without_signatures_or_records_gives_none(socket_path, guard) -> None:
    """Each is switched off by its own key."""
    for key, absent, present in (
        ("signatures", Signatures, Requests),
        ("requests", Requests, Signatures),
    ):
        served = Served(socket_path, guard, **{key: False})
        served.tap.arm(was_warmed_up=False)
        served.step(("a", 4))
        served.tap.finish(["a"])
        said = served.flush()
        assert not said[absent]
        assert len(said[present]) == 1


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 10**18

    def time_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock of the tap, which stands still."""
    made = Clock()
    monkeypatch.setattr(engine, "time", made)
    monkeypatch.setattr(records, "time", made)
    return made


def test_a_long_request_is_signed_every_second(quiet, clock) -> None:
    """While it runs, at each flush a second apart; its last signature is final."""
    quiet.tap.roster.enter("a", "legal", None)
    quiet.step(("a", 6))
    assert signatures(quiet.flush()) == []  # too young
    told = []
    for jitter in (0.0, -0.01, 0.02, -0.02):
        clock.now += int((1.0 + jitter) * 1e9)
        quiet.step(("a", 1))
        told += signatures(quiet.flush())
        told += signatures(quiet.flush())  # at once again: not yet
    assert [each.is_final for each in told] == [False] * 4
    assert [each.num_generated_tokens for each in told] == [1, 2, 3, 4]
    assert {each.adapter for each in told} == {"legal"}
    quiet.tap.finish(["a"])
    assert [each.is_final for each in signatures(quiet.flush())] == [True]
    clock.now += 10**10
    assert signatures(quiet.flush()) == []


def test_a_request_that_has_left_is_signed_once_more_and_finally(quiet, clock) -> None:
    """Between its end and the pump's notice of it, it is no running request."""
    quiet.tap.roster.enter("a", None, None)
    quiet.step(("a", 6))
    quiet.tap._drain()
    clock.now += 2 * 10**9
    quiet.tap.finish(["a"])
    assert [body for body in quiet.tap._bodies() if isinstance(body, Signatures)] == []
    assert [each.is_final for each in signatures(quiet.flush())] == [True]


def test_many_long_requests_are_signed_in_turn(socket_path, guard, clock) -> None:
    """The pump signs so many in one flush, and those first that waited longest."""
    served = Served(socket_path, guard)
    served.slab = served.tap._slab = Slab(3, CAPACITY, 4 * MAX_RUNNING, torch.device("cpu"))
    served.tap.arm(was_warmed_up=False)
    names = [f"r{i}" for i in range(2 * MAX_RUNNING + 1)]
    for name in names:
        served.tap.roster.enter(name, None, None)
        served.step((name, 1))
        served.tap._drain()
    turns = []
    for seconds in (1, 0, 1):
        clock.now += seconds * 10**9
        turns.append([each.id for each in signatures(served.flush())])
    assert [len(turn) for turn in turns] == [MAX_RUNNING] * 3
    assert sorted({*turns[0], *turns[1], turns[2][0]}) == sorted(names)
    assert turns[2][1:] == turns[0][: MAX_RUNNING - 1]


def test_a_slot_passes_from_one_request_to_the_next(quiet, clock) -> None:
    """Its next owner begins at once, while the pump has yet to close the account of the last."""
    for name in "abc":
        quiet.tap.roster.enter(name, "legal" if name == "a" else None, None)
        quiet.step((name, 6))
        quiet.step((name, 1))
        quiet.tap.finish([name])
    assert len(quiet.tap._events) == 9
    said = quiet.flush()
    for name in "abc":
        record = record_of(said, name)
        assert record.coverage == Coverage([4, 2, 0, 1])
        assert record.adapter == ("legal" if name == "a" else "")


def test_a_resumed_request_is_covered_exactly(quiet) -> None:
    """Preempted, and resumed with a part of its prefix in the cache: each token once."""
    quiet.step(("a", 6))
    for _ in range(3):
        quiet.step(("a", 1))
    quiet.tap.roster.preempt(["a"])
    quiet.position["a"] = 5  # blocks of the first five tokens are still there
    quiet.step(("a", 5))
    quiet.step(("a", 1))
    quiet.tap.finish(["a"])
    record = record_of(quiet.flush(), "a")
    assert record.coverage == Coverage([4, 2, 0, 5], recomputed=4)
    assert record.preemptions == 1


class Numbers:
    """Numbers on their way that arrive when told to."""

    def __init__(self, slot: int = 0, *, is_ready: bool = True) -> None:
        self.slot = slot
        self.is_ready = is_ready


class Counting:
    """A fake instrument: one confident token per pending, in the order of accounting."""

    def __init__(self) -> None:
        self.tally = Tally("confidence", [["", "other"]], 4)
        self.whole = Tally("confidence", [["", "other"]])
        self.accounted: list[object] = []
        self.kept: list[object] = []
        self.cleared: list[int] = []
        self.places: list[Place] = []

    def add(self, slot: int) -> None:
        for tally, owner in ((self.tally, slot), (self.whole, 0)):
            tally.add(np.array([owner]), np.array([0]), np.ones((1, 5)))

    def totals(self) -> Iterator[Table]:
        yield self.whole.table()
        self.whole.forget_extremes()

    def of_request(self, slot: int) -> Iterator[Table]:
        if self.tally.has_rows(slot):
            yield self.tally.table(slot, last=True)

    def clear(self, slot: int) -> None:
        self.cleared.append(slot)
        self.tally.clear(slot)


class Sampled(Counting):
    """A sampler."""

    def account(self, pending: Numbers) -> None:
        self.accounted.append(pending)
        self.add(pending.slot)


class Grouped(Counting):
    """A row instrument."""

    def keep(self, place: Place) -> bool:
        self.places.append(place)
        return True

    def collect(self, plan: Plan, place: Place | None = None) -> Numbers | None:
        return Numbers(int(plan.batch_slots[0]))

    def account(self, pending: Numbers, plan: Plan, kept: object) -> None:
        self.accounted.append(plan)
        self.kept.append(kept)
        self.add(pending.slot)


class Broken(Sampled, Grouped):
    """An instrument that raises wherever it is called."""

    def _fail(self, *_: object) -> None:
        raise RuntimeError("a bug of an instrument")

    keep = collect = account = totals = of_request = clear = _fail  # type: ignore[assignment]


def instrumented(path, guard: Guard, *rows: object, samplers: tuple = (), **options) -> Served:
    kit = Instruments(Layout(LAYER_IDS), list(rows), list(samplers), absent={"router": "no MoE"})
    made = Served(path, guard, instruments=kit, **options)
    made.tap.arm(was_warmed_up=False)
    return made


def test_a_long_reason_does_not_silence_the_status(socket_path, guard) -> None:
    """It is cut at what a frame may carry: a refused status would tell of nothing."""
    served = instrumented(socket_path, guard)
    served.tap._instruments.absent["probe"] = "x" * 5000
    (status,) = served.flush()[Status]
    assert status.absent["probe"] == "x" * 2048
    assert status.absent["router"] == "no MoE"


def test_readings_are_accounted_in_order_and_before_the_end(socket_path, guard) -> None:
    """One that is under way holds back what came after it, its own request's end too."""
    sampler = Sampled()
    served = instrumented(socket_path, guard, samplers=(sampler,))
    served.step(("a", 4))
    first, second = Numbers(is_ready=False), Numbers()
    served.tap.submit(sampler, first)
    served.tap.submit(sampler, second)
    served.tap.finish(["a"])
    said = served.flush()
    assert sampler.accounted == []
    assert not said[Requests]
    first.is_ready = True
    said = served.flush()
    assert sampler.accounted == [first, second]
    (table,) = record_of(said, "a").tables
    assert Cells.unpack(table).count.tolist() == [2, 0]
    groups = [table.group for body in said[Totals] for table in body.tables]
    assert groups == ["requests", "confidence"]
    (signed,) = signatures(said)
    assert 1.0 in np.frombuffer(signed.values, "<f4")
    assert sampler.cleared == [0]


def test_a_row_instrument_sees_the_plan_of_its_step(socket_path, guard) -> None:
    """With the groups to count where drafts were rejected, and nothing of unmeasured steps."""
    grouped = Grouped()
    served = instrumented(socket_path, guard, grouped)
    served.step(("a", 4))
    served.draft(("a", 4, 2))
    served.tap.settle(np.array([1]))
    drafted = served.tap.plan
    served.tap.governor.orders = served.tap.orders._replace(is_on=False)
    served.draft(("a", 6, 0))
    served.flush()
    assert grouped.accounted[1] is drafted
    assert grouped.kept[0] is None
    assert grouped.kept[1].tolist() == [True, True, False]
    assert len(grouped.accounted) == 2


def test_an_instrument_that_raises_is_disarmed_alone(socket_path, guard) -> None:
    """It is counted at a site of its own; steps, records and the other instruments go on."""
    sampler, grouped, broken = Sampled(), Grouped(), Broken()
    served = instrumented(socket_path, guard, broken, grouped, samplers=(broken, sampler))
    for _ in range(4):
        served.step(("a", 2))
        served.tap.submit(broken, Numbers())
        served.tap.submit(sampler, Numbers())
    served.tap.finish(["a"])
    said = served.flush()
    assert guard.errors == {"Broken": 3}
    assert served.tap.is_measuring
    assert len(sampler.accounted) == len(grouped.accounted) == 4
    assert len(record_of(said, "a").tables) == 2
    (status,) = said[Status]
    assert status.state == "live"
    assert set(status.absent) == {"router", "Broken"}
    assert "errors" in status.absent["Broken"]
    served.step(("b", 2))
    assert served.tap.plan is not None
    assert guard.errors == {"Broken": 3}


def test_a_step_whose_own_numbers_cannot_be_read_gives_back_those_of_instruments(
    socket_path, guard
) -> None:
    """An exception at the slab leaves no instrument waiting for its memory."""
    grouped = Grouped()
    served = instrumented(socket_path, guard, grouped)
    broken = BrokenSlab(served.slab)
    served.tap._slab = broken
    served.step(("a", 2))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        served.tap._drain()
    assert broken.num_released == len(grouped.accounted) == 1


def test_who_opted_out_is_nowhere_but_in_the_count(socket_path, guard, clock) -> None:
    """No record, no signature, no sample, no row: its tokens are counted, and that is all."""
    grouped = Grouped()
    served = instrumented(socket_path, guard, grouped, allow_opt_out=True)
    served.tap.roster.enter("secret", "legal", {XARG: "off"})
    served.step(("secret", 6))
    clock.now += 2 * 10**9
    served.step(("secret", 1))
    during = served.flush()
    served.tap.finish(["secret"])
    # Between its end and the pump's notice of it, nobody knows its wish any more.
    between = list(served.tap._bodies())
    after = served.flush()
    for said in (during, after):
        assert not said[Requests]
        assert not said[Signatures]
    assert {type(body) for body in between} == {Status, Layers, Totals}
    (layers,) = after[Layers]
    assert layers.coverage == Coverage([0] * 4, opted_out=7)
    assert layers.num_requests == 0
    assert not Arrays.unpack(layers.moments, 3).count.any()
    assert all(plan.num_groups == 0 for plan in grouped.accounted)


def test_a_rank_that_speaks_for_no_layer_speaks_for_its_instruments(socket_path, guard) -> None:
    """No layers, records or signatures; live once a pass was observed, and counting steps."""
    kit = Instruments(Layout([]), samplers=[sampler := Sampled()])
    served = Served(socket_path, guard, instruments=kit, layer_ids=[])
    served.tap.arm(was_warmed_up=True)
    said = served.flush()
    assert set(said) == {Status, Totals}
    assert said[Status][0].state == "starting"
    for _ in range(3):
        served.step(("a", 2))
    served.tap.submit(sampler, Numbers())
    served.tap.finish(["a"])
    said = served.flush()
    assert set(said) == {Status, Totals}
    assert (said[Status][0].state, said[Status][0].num_layers) == ("live", 0)
    assert served.tap._ledger.num_steps == 3
    assert served.tap._records._finished == served.tap._records._signatures == []
    assert sampler.cleared == [0]


def test_tables_are_split_over_frames_that_fit(socket_path, guard, monkeypatch) -> None:
    """Neither more tables than a body may hold, nor records whose tables were not reckoned with."""
    samplers = tuple(Sampled() for _ in range(40))
    served = instrumented(socket_path, guard, samplers=samplers)
    said = served.flush()
    assert [len(body.tables) for body in said[Totals]] == [1, 32, 8]  # the census goes alone
    table = samplers[0].whole.table()
    large = len(pack(Frame(Header("boot-one", Source("engine"), 1, 1, 1, 0), Totals([table] * 6))))
    monkeypatch.setattr(records, "MAX_BYTES", 2 * large)
    said = served.flush()
    assert sum(len(body.tables) for body in said[Totals]) == 1 + 40
    assert max(len(body.tables) for body in said[Totals]) <= 6


def test_records_with_tables_are_split_by_the_largest(socket_path, guard, monkeypatch) -> None:
    """A record without tables is no measure for the one that has them."""
    sampler = Sampled()
    sampler.tally = Tally("confidence", [[str(label) for label in range(500)]], 8)
    served = instrumented(socket_path, guard, samplers=(sampler,), signatures=False)
    for name in "abcd":
        served.step((name, 1))
    for slot in (1, 2, 3):
        served.tap.submit(sampler, Numbers(slot))
    served.tap.finish("abcd")
    size = 4 * 3 * 104 + 1024 + sum(map(records._num_bytes, [sampler.tally.table(last=True)]))
    monkeypatch.setattr(records, "MAX_BYTES", 2 * 2 * size)
    assert [len(body.requests) for body in served.flush()[Requests]] == [2, 2]
