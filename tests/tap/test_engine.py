"""One tapped engine, end to end: a toy model runs on one side, a real receiver reads the other."""

import statistics
import threading
import time

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.tap.engine import MAX_PENDING, EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.probes import row_signals
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.rows import Batch
from sidecar.tap.sites import Site
from sidecar.tap.slab import Slab
from sidecar.tap.stream import attach_probe
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Arrays, Frame, Layers, Requests, Source, Status
from tests.tap.toys import Decoder, streams, tokens

LAYER_IDS = [6, 7, 8]  # the third stage of a pipeline
CAPACITY = 32


class Served:
    """A toy model with a tap, and the loop of a runner around it."""

    def __init__(self, path, guard: Guard, sender: Sender | None = None, **options: object) -> None:
        config = TapConfig(socket=path, flush_seconds=0.05, **options)
        self.model = Decoder(3)
        self.guard = guard
        self.slab = Slab(3, CAPACITY, 8, torch.device("cpu"))
        self.detach = [
            attach_probe(Site(layer, module), rows, guard)
            for layer, module, rows in zip(
                LAYER_IDS, self.model.layers, self.slab.rows, strict=True
            )
        ]
        self.tap = EngineTap(
            config,
            Nameplate("toy", "0.32.0", "0.1", "v1", "float32", "abc"),
            LAYER_IDS,
            self.slab,
            sender or Sender(path, Source("engine", pp=2)),
            guard,
            max_requests=4,
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
        signals = row_signals(stream[layer], stream[layer + 1])[:3].double().numpy()
        values = np.stack([np.exp(signals[0]), signals[1], signals[2]])
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
    monkeypatch.setattr("sidecar.tap.engine.MAX_BYTES", 8 * (4 * 3 * 104 + 1024))
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
        return self.release.wait(30)


def test_the_step_path_never_waits_for_the_pump(socket_path, guard) -> None:
    """With the pump stuck, steps cost what they did, memory is bounded, and losses are counted."""
    sender = StuckSender(socket_path)
    served = Served(socket_path, guard, sender)
    served.tap.start()
    served.tap.arm(was_warmed_up=False)
    assert sender.entered.wait(5)
    served.forward(tokens(1))
    one = np.array([1])
    took = []
    for position in range(MAX_PENDING + 500):
        began = time.perf_counter()
        served.tap.observe(Batch(["a"], np.array([position]), one, one))
        took.append(time.perf_counter() - began)
    assert not sender.release.is_set()
    assert statistics.median(took) < 0.002
    assert sum(took) < 10.0  # the pump hangs for longer
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

    def collect(self, plan: object, selection: object = None) -> "BrokenSlab":
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
