"""The fleet job over hosts that answer from memory: what it believes, and whom."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.config import FleetConfig
from sidecar.fold.drift.verdict import ChannelState
from sidecar.publish.fleet.fleet import Fleet, FleetView
from sidecar.store.snapshot import SnapshotFile
from sidecar.wire.signature import Layout
from tests.fakes import FakeClock
from tests.fold.drift import fleets
from tests.fold.drift.fleets import LENGTH, NUM_STREAMS, START, shift
from tests.publish.hosts import (
    PROMETHEUS,
    Answer,
    FakeExporter,
    FakePrometheus,
    Hosts,
    answering,
    plain_layout,
)

PAGE, ARMED, COLLECTING = ChannelState.PAGE, ChannelState.ARMED, ChannelState.COLLECTING
CONFIG = FleetConfig(fleet_prometheus=PROMETHEUS, fleet_timeout_seconds=2)


class World:
    """A fleet of four behind its exporters, and the job beside them."""

    def __init__(self, file: SnapshotFile | None = None, num_replicas: int = 4) -> None:
        self.fleet = fleets.Fleet(num_replicas=num_replicas, seed=1)
        self.names = self.fleet.names
        self.hosts = Hosts()
        self.exporters = {name: FakeExporter() for name in self.names}
        self.prometheus = FakePrometheus(*({"instance": name} for name in self.names))
        self.hosts.answers["prometheus"] = self.prometheus
        for name, exporter in self.exporters.items():
            self.hosts.answers[name.partition(":")[0]] = exporter
        self.clock = FakeClock(START)
        self.num_windows = 0
        self.job = Fleet(CONFIG, file, self.clock)

    def serve(self, num_windows: int) -> None:
        """Every replica closes so many windows."""
        for _ in range(num_windows):
            for name, window in self.fleet.windows(self.num_windows).items():
                self.exporters[name].windows.append(window)
            self.num_windows += 1
        self.clock.now_ns = START + self.num_windows * LENGTH

    def turn(self) -> FleetView:
        """One round."""

        async def once() -> None:
            async with self.hosts.client() as client:
                await self.job.turn(client)

        asyncio.run(once())
        return self.job.get()

    def run(self, num_windows: int) -> FleetView:
        """A round after each window."""
        for _ in range(num_windows):
            self.serve(1)
            self.turn()
        return self.job.get()


def states(view: FleetView) -> dict[str, ChannelState]:
    return {each.name: each.state for each in view.replicas}


def test_the_replica_that_differs_pages_by_name() -> None:
    """And no other; all are found by what Prometheus scrapes, at the API's port."""
    world = World()
    world.fleet.shifts = {world.names[2]: shift(3.0, NUM_STREAMS)}
    view = world.run(20)

    assert view.verdict.state is PAGE
    assert [name for name, state in states(view).items() if state is PAGE] == [world.names[2]]
    assert [each.url for each in view.exporters] == [f"http://10.0.0.{i}:9479" for i in range(4)]
    assert world.prometheus.queries[0] == "llm_internals_build_info"
    assert view.refused == {}


def test_a_day_of_windows_at_once_is_as_good_as_one_by_one() -> None:
    """A job that starts late reads what the exporters still hold, page by page, oldest first."""
    one, other = World(), World()
    for world in (one, other):
        world.fleet.shifts = {world.names[0]: shift(2.0, 4)}
    for exporter in other.exporters.values():
        exporter.page = 7
    one.run(40)
    other.serve(40)
    view = other.turn()

    assert view.replicas == one.job.get().replicas
    assert view.verdict == one.job.get().verdict
    assert view.counts.late == 0


def test_an_acknowledged_page_starts_again() -> None:
    """The latch opens at once, not with the next round."""
    world = World()
    world.fleet.shifts = {world.names[2]: shift(4.0, NUM_STREAMS)}
    world.run(20)
    view = world.job.acknowledge()

    assert view.verdict.state is ARMED
    assert view.verdict.is_acknowledged


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        (None, "unreachable", "ConnectError no such host"),
        (answering(503), "status", "answered with status 503"),
        (answering(200, b"<html>"), "decode", "no answer of Prometheus"),
        (answering(200, b'{"data":{"result":[]}}'), "schema", "no series for"),
        (answering(200, b'{"data":{"result":[{"metric":{}}]}}'), "schema", "REPLICA_LABEL"),
        (
            answering(200, b'{"data":{"result":[{"metric":{"instance":"a b"}}]}}'),
            "schema",
            "no address of an API",
        ),
    ],
)
def test_a_prometheus_that_fails_is_a_state_with_a_reason(
    answer: Any, cause: str, words: str
) -> None:
    """Down, empty or something else: the job goes on, and with it the exporters it knew."""
    world = World()
    del world.hosts.answers["prometheus"]
    if answer:
        world.hosts.answers["prometheus"] = answer
    world.serve(1)
    view = world.turn()

    assert view.verdict.state is COLLECTING
    assert words in view.verdict.reason
    assert view.refused == {cause: 1}
    world.hosts.answers["prometheus"] = world.prometheus
    assert world.run(5).verdict.state is ARMED
    if answer:
        world.hosts.answers["prometheus"] = answer
    else:
        del world.hosts.answers["prometheus"]
    view = world.run(5)
    assert view.verdict.state is ARMED
    assert words in view.verdict.reason
    assert view.verdict.judged_ns == world.clock.now_ns


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bytes]:
    """An answer of which each stratum of each window is changed."""

    def encoded(body: dict[str, Any]) -> bytes:
        for each in body["windows"]:
            for moments in each["window"]["strata"].values():
                change(moments)
        return json.dumps(body).encode()

    return encoded


def moved(**fields: int) -> Callable[[dict[str, Any]], bytes]:
    """An answer of which each window is changed."""

    def encoded(body: dict[str, Any]) -> bytes:
        for each in body["windows"]:
            for field, difference in fields.items():
                each["window"][field] += difference
        return json.dumps(body).encode()

    return encoded


def replaced(old: bytes, new: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda body: json.dumps(body).encode().replace(old, new)


@pytest.mark.parametrize(
    ("encoded", "cause"),
    [
        (lambda _: b"\xff\x00", "decode"),
        (lambda _: b"[" * 100_000, "decode"),
        (lambda _: b"{}", "decode"),
        (lambda _: b"x" * (33 << 20), "oversized"),
        (edited(lambda m: m["total"].__setitem__(0, float("nan"))), "decode"),
        (edited(lambda m: m["total"].__setitem__(0, None)), "value"),
        (replaced(b'"total": [', b'"total": [1e999, '), "decode"),
        (edited(lambda m: m["total"].__setitem__(0, 1e300)), "value"),
        (edited(lambda m: m["m2"].__setitem__(0, -1.0)), "value"),
        (edited(lambda m: m["m2"].__setitem__(0, 1e300)), "value"),
        (edited(lambda m: m["n"].__setitem__(0, -5)), "value"),
        (edited(lambda m: m["n"].__setitem__(0, 10**6)), "value"),
        (edited(lambda m: m["n"].__setitem__(0, 1e30)), "value"),
        (edited(lambda m: m["n"].pop()), "schema"),
        (edited(lambda m: m.__setitem__("n", "many")), "schema"),
        (edited(lambda m: m.clear()), "schema"),
        (moved(num_requests=1), "value"),
        (moved(start_ns=1), "time"),
        (moved(end_ns=LENGTH // 2), "time"),
        (moved(end_ns=-2 * LENGTH), "time"),
        (moved(end_ns=100 * LENGTH), "time"),
        (moved(start_ns=LENGTH * 999, end_ns=LENGTH * 999), "time"),
        (replaced(b'"strata": {', b'"strata": 3, "other": {'), "schema"),
        (replaced(b'"layouts": {"l"', b'"layouts": {"k"'), "schema"),
        (replaced(b'"sketch_size": 0', b'"sketch_size": -1'), "schema"),
    ],
)
def test_a_lying_exporter_is_refused_and_the_others_are_judged(
    encoded: Callable[[dict[str, Any]], bytes], cause: str
) -> None:
    """Not one of its numbers is used; the cause is counted, and the sentence names it."""
    world = World(num_replicas=5)
    liar = world.names[4]
    world.exporters[liar].encoded = encoded
    view = world.run(8)

    assert view.refused == {cause: 8}
    assert [bool(each.reason) for each in view.exporters] == [False] * 4 + [True]
    assert liar not in states(view)
    assert set(states(view).values()) == {ARMED}
    assert view.verdict.state is ARMED
    assert liar in view.verdict.reason


def test_a_slow_exporter_costs_the_others_nothing() -> None:
    """It has its own limit; they are judged in the same round, and it when it is back."""
    world = World()
    world.job = Fleet(CONFIG.model_copy(update={"fleet_timeout_seconds": 0.2}), None, world.clock)
    world.exporters[world.names[0]].seconds = 60
    view = world.run(6)

    assert view.refused == {"slow": 6}
    assert view.verdict.state is ARMED
    assert set(states(view)) == set(world.names[1:])
    world.exporters[world.names[0]].seconds = 0
    assert states(world.run(4))[world.names[0]] is ARMED


def test_too_few_that_answer_are_not_a_fleet() -> None:
    """What was armed is not, while two of four are gone, and says who is missing."""
    world = World()
    assert world.run(5).verdict.state is ARMED
    for name in world.names[:2]:
        del world.hosts.answers[name.partition(":")[0]]
    view = world.run(1)

    assert view.verdict.state is COLLECTING
    assert "10.0.0.0:9478: http://10.0.0.0:9479/v1/windows: ConnectError" in view.verdict.reason


def test_an_exporter_of_another_layout_is_foreign() -> None:
    """Most decide; the one that differs is told what to do."""
    world = World()
    world.exporters[world.names[3]].layout = plain_layout(Layout(layers=[0, 4]))
    view = world.run(5)

    assert view.refused == {"foreign": 5}
    assert set(states(view)) == set(world.names[:3])
    assert "same tap settings" in view.exporters[3].reason
    assert view.verdict.state is ARMED


def test_the_label_of_the_api_wins_over_the_port() -> None:
    """A target may say itself where its API is, and under which name it is known."""
    world = World(num_replicas=3)
    labels = [
        {"instance": f"10.0.0.{i}:9478", "pod": f"vllm-{i}", "llm_internals_api": f"10.0.0.{i}:81"}
        for i in range(3)
    ]
    labels[2]["llm_internals_api"] = "https://10.0.0.2"
    world.prometheus.series = labels
    config = CONFIG.model_copy(update={"fleet_replica_label": "pod", "fleet_query": "up{a='b'}"})
    world.job = Fleet(config, None, world.clock)
    view = world.run(4)

    assert [each.url for each in view.exporters] == [
        "http://10.0.0.0:81",
        "http://10.0.0.1:81",
        "https://10.0.0.2:9479",
    ]
    assert list(states(view)) == ["vllm-0", "vllm-1", "vllm-2"]
    assert world.prometheus.queries[0] == "up{a='b'}"


def test_the_token_is_shown_to_exporters_and_to_nobody_else(tmp_path: Path) -> None:
    """An API that asks for a token is read, and Prometheus never sees it."""
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    shown: dict[str, set[str | None]] = {}
    world = World()
    world.job = Fleet(CONFIG.model_copy(update={"fleet_api_token_file": file}), None, world.clock)

    def noting(host: str, answer: Answer) -> Answer:
        async def noted(request: httpx.Request) -> httpx.Response:
            shown.setdefault(host, set()).add(request.headers.get("Authorization"))
            return await answer(request)

        return noted

    for host, answer in list(world.hosts.answers.items()):
        world.hosts.answers[host] = noting(host, answer)
    world.run(2)

    assert shown.pop("prometheus") == {None}
    assert len(shown) == 4
    assert set.union(*shown.values()) == {"Bearer 0123456789abcdef"}


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Half an alarm is not forgotten: the second life pages as one life would have."""
    path = tmp_path / "fleet.snapshot"
    whole, halves = World(), World(SnapshotFile(path))
    for world in (whole, halves):
        world.fleet.shifts = {world.names[1]: shift(2.0, 4)}
    whole.run(30)
    halves.run(10)
    halves.job = Fleet(CONFIG, SnapshotFile(path), halves.clock)
    view = halves.run(20)

    assert view.replicas == whole.job.get().replicas
    assert view.verdict.state is PAGE
    assert view.keeping == ""


def test_a_torn_state_is_refused_and_said_so(tmp_path: Path) -> None:
    """It starts again, and the torn file is kept aside."""
    path = tmp_path / "fleet.snapshot"
    path.write_bytes(b"half a file")
    world = World(SnapshotFile(path))
    assert "refused" in world.job.get().keeping or world.turn().keeping
    world.run(5)

    assert list(tmp_path.glob("*.refused"))
    assert Fleet(CONFIG, SnapshotFile(path), world.clock).get().keeping == ""


def test_without_a_folder_it_says_that_a_restart_begins_again() -> None:
    """And how to mend it."""
    assert "SIDECAR_STATE_DIR" in World().turn().keeping


def test_an_old_verdict_is_not_called_armed() -> None:
    """Nothing was closed for hours: the last word is doubted."""
    world = World()
    assert world.run(5).verdict.state is ARMED
    world.clock.advance(2 * 3600)
    view = world.turn()

    assert view.verdict.state is COLLECTING
    assert view.verdict.reason.startswith("nothing was judged for more than an hour")
