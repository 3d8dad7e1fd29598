"""The meter: what our calls take of the engine, and nothing else's."""

import time
from collections import deque

import pytest
import torch

from sidecar.tap.guard import Guard
from sidecar.tap.meter import NUM_PAIRS, SAMPLED, DeviceTime, Meter


class Clock:
    """A host clock in nanoseconds that work moves."""

    def __init__(self) -> None:
        self.now_ns = 7

    def __call__(self) -> int:
        return self.now_ns

    def work(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return Guard(max_errors=3, clock_ns=clock)


def test_the_time_of_our_calls_is_the_engines(guard, clock) -> None:
    """What raises takes its time too; what is not ours does not count."""

    def broken() -> None:
        clock.work(2_000_000_000)
        raise RuntimeError("a bug of ours")

    meter = Meter(guard, torch.device("cpu"))
    guard.run("step", clock.work, 3_000_000_000)
    guard.run("step", broken)
    clock.work(5_000_000_000)
    assert meter.read().host == 5.0
    assert meter.read().device == 0.0


def test_a_call_within_a_call_is_counted_once(guard, clock) -> None:
    """An instrument's seat may go through the guard again."""
    guard.run("outer", lambda: (clock.work(10), guard.run("inner", clock.work, 30), clock.work(1)))
    assert guard.host_ns == 41


def test_the_time_of_our_own_thread_is_not_the_engines(guard, clock) -> None:
    """The pump's calls are guarded alike, and metered by CPU time instead."""
    guard.run_aside("pump", clock.work, 10)
    assert guard.host_ns == 0
    guard.run_aside("pump", lambda: 1 / 0)
    assert guard.errors == {"pump": 1}


def test_the_pump_costs_its_cpu_time_and_no_sleep(guard) -> None:
    """Waiting takes nothing from anybody."""
    meter = Meter(guard, torch.device("cpu"))
    before = meter.read().pump
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    worked = meter.read().pump - before
    time.sleep(0.1)
    slept = meter.read().pump - before - worked
    assert worked >= 0.02
    assert slept < 0.05


class Device:
    """A device whose kernels take as long as each call says, and are done when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = -1.0
        self.num_events = 0

    def event(self) -> "Event":
        self.num_events += 1
        return Event(self)


class Event:
    """One of its events; unlike CUDA's it raises where a time would not be known yet."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._at: float | None = None

    def record(self) -> None:
        self._at = self._device.now

    def query(self) -> bool:
        return self._at is None or self._at <= self._device.done

    def elapsed_time(self, end: "Event") -> float:
        assert self._at is not None
        assert end._at is not None
        assert end.query()
        return 1e3 * (end._at - self._at)


def launch(guard: Guard, device: Device, seconds: float) -> None:
    def kernels() -> None:
        device.now += seconds

    device.now += 1.0  # the engine's own
    guard.run("step", kernels)


@pytest.fixture
def device() -> Device:
    return Device()


def test_device_time_is_the_samples_mean_times_the_calls(guard, device) -> None:
    """One call in thirteen is timed; calls of several kinds are met in turn."""
    timed = DeviceTime(device.event)
    guard.watch(timed)
    kinds = deque([0.001, 0.002, 0.006])
    for _ in range(3 * SAMPLED * 10):
        launch(guard, device, kinds[0])
        kinds.rotate()
    device.done = device.now
    assert timed.read() == pytest.approx(3 * SAMPLED * 10 * 0.003)
    assert timed.read() == pytest.approx(3 * SAMPLED * 10 * 0.003)


def test_what_is_under_way_is_not_waited_for(guard, device) -> None:
    """Its time is read when it is known, and until then is none."""
    timed = DeviceTime(device.event)
    guard.watch(timed)
    for _ in range(SAMPLED):
        launch(guard, device, 0.5)
    assert timed.read() == 0.0
    device.done = device.now
    assert timed.read() == pytest.approx(0.5 * SAMPLED)


def test_a_pump_that_does_not_read_costs_events_no_memory(guard, device) -> None:
    """Pairs are made once; calls without one are taken for the sample's mean."""
    timed = DeviceTime(device.event)
    guard.watch(timed)
    for _ in range(SAMPLED * NUM_PAIRS * 3):
        launch(guard, device, 0.25)
    assert device.num_events == 2 * NUM_PAIRS
    device.done = device.now
    assert timed.read() == pytest.approx(0.25 * SAMPLED * NUM_PAIRS * 3)
    for _ in range(SAMPLED):
        launch(guard, device, 1.0)
    device.done = device.now
    assert timed.read() == pytest.approx(0.25 * SAMPLED * NUM_PAIRS * 3 + SAMPLED)


def test_an_event_that_raises_is_our_error_alone(guard) -> None:
    """Counted, and the engine goes on."""

    class Broken:
        def record(self) -> None:
            raise RuntimeError("device lost")

    guard.watch(DeviceTime(Broken))
    for _ in range(SAMPLED):
        guard.run("step", int)
    assert guard.errors == {"step": 1}


def test_on_a_cpu_nothing_is_watched(guard) -> None:
    """Kernels there are done when the call is: the host's clock has seen them."""
    meter = Meter(guard, torch.device("cpu"))
    meter.start()
    assert guard._stopwatch is None
