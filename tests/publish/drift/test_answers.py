"""The answers and routes about drift: every channel is told, and nobody changes one by accident."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sidecar.fold.drift.window import Window
from sidecar.fold.reducer import Reducer
from sidecar.publish.api import portion, posting
from sidecar.publish.app import create_api_app
from sidecar.publish.drift import watch as watching
from sidecar.publish.drift.answers import MAX_NOTE, drift_answer, windows_answer
from sidecar.publish.drift.judges import CHANNELS
from sidecar.publish.intake import Intake
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.state import State
from sidecar.wire.signature import Layout
from tests.fakes import LIMITS, FakeClock, FakeInbox, FakeSource
from tests.publish.drifting import LAYOUT, MINUTE, START, FakeChannel, finished, no_baselines, watch

JSON = {"Content-Type": "application/json"}
PROBLEM = {"type", "title", "status", "detail", "remedy"}


class Sidecar:
    """The API over a watch whose thread runs; `minutes` of traffic are judged at once."""

    def __init__(self) -> None:
        self.clock, self.source = FakeClock(START), FakeSource()
        self.channel = FakeChannel("traffic", pages_after=3)
        self.watch = watch(self.channel, clock=self.clock)
        intake = Intake(FakeInbox(), Reducer(LIMITS), None, self.clock, self.watch.hear)
        state = State(intake, Exposition(1000), self.watch, no_baselines())
        self.api = TestClient(create_api_app(state), raise_server_exceptions=False)

    def minutes(self, num: int, layout: Layout = LAYOUT) -> None:
        for _ in range(num):
            body = finished(self.clock(), 3, layout)
            self.watch.hear(self.source.frame(body, self.clock()), self.clock())
            self.clock.advance(60)
            # An answer of the thread comes after what was heard before.
            self.watch.ask(lambda judges, now_ns: judges.advance(now_ns))


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    made = Sidecar()
    made.watch.start()
    yield made
    made.watch.stop()


def told(sidecar: Sidecar, channel: str) -> dict[str, object]:
    channels = sidecar.api.get("/v1/drift").json()["channels"]
    found: dict[str, object] = next(each for each in channels if each["channel"] == channel)
    return found


def test_every_channel_is_told_and_how_to_configure_what_is_not(sidecar: Sidecar) -> None:
    """In one order, whatever is configured."""
    answer = sidecar.api.get("/v1/drift").json()
    absent = [each for each in answer["channels"] if not each["is_configured"]]

    assert [each["channel"] for each in answer["channels"]] == list(CHANNELS)
    assert [each["channel"] for each in absent] == [name for name in CHANNELS if name != "traffic"]
    for each in absent:
        assert each["reason"] == f"not configured: {CHANNELS[each['channel']]}"
    assert answer["state"] == told(sidecar, "traffic")["state"] == "armed"
    assert "SIDECAR_STATE_DIR" in answer["keeping"]
    assert (answer["preset"], answer["window_seconds"]) == ("production", 60.0)


def test_a_page_is_told_with_where_it_is_and_since_when(sidecar: Sidecar) -> None:
    """Layer, signal, phase and side; and the worst state stands at the top."""
    sidecar.minutes(8)
    answer = sidecar.api.get("/v1/drift").json()
    traffic = told(sidecar, "traffic")

    assert answer["state"] == traffic["state"] == "page"
    assert traffic["causes"] == [
        {
            "stream": "residual/decode/l1/log_rms",
            "layer": 1,
            "signal": "log_rms",
            "phase": "decode",
            "side": "high",
            "share": 1.5,
            "since_ns": traffic["since_ns"],
        }
    ]
    assert traffic["num_pages"] == 1
    assert answer["requests"]["used"] == 24
    assert answer["windows"]["scored"] == sidecar.channel.num_windows >= 3


def test_an_acknowledgement_opens_the_latch(sidecar: Sidecar) -> None:
    """Once, as JSON; the answer is how the channel stands then."""
    sidecar.minutes(8)
    reply = sidecar.api.post("/v1/drift/traffic/acknowledge", headers=JSON)

    assert reply.status_code == 200
    assert (reply.json()["state"], reply.json()["is_acknowledged"]) == ("armed", True)
    assert told(sidecar, "traffic")["is_acknowledged"] is True


def test_a_deployment_is_announced_and_listed(sidecar: Sidecar) -> None:
    """With the time of this sidecar."""
    reply = sidecar.api.post("/v1/deployments", json={"note": "release 7"})

    assert (reply.status_code, reply.json()) == (201, {"t_ns": START, "note": "release 7"})
    sidecar.minutes(1)
    listed = sidecar.api.get("/v1/drift").json()["deployments"]
    assert listed == [{"t_ns": START, "note": "release 7"}]


@pytest.mark.parametrize("path", ["/v1/drift/traffic/acknowledge", "/v1/deployments"])
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_of_another_site_can_send_changes_nothing(
    sidecar: Sidecar, path: str, content_type: str
) -> None:
    """Only JSON is taken, which a browser does not send across sites without asking first."""
    sidecar.minutes(8)
    headers = {"Content-Type": content_type}
    reply = sidecar.api.post(path, content=b'{"note": "x"}', headers=headers)

    assert reply.status_code == 415
    assert set(reply.json()) == PROBLEM
    assert "Content-Type: application/json" in reply.json()["remedy"]
    assert told(sidecar, "traffic")["state"] == "page"
    assert sidecar.api.get("/v1/drift").json()["deployments"] == []


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/v1/drift/nonsense/acknowledge", 404, "acknowledge one of canary"),
        ("/v1/drift/%00%ff/acknowledge", 404, "acknowledge one of"),
        ("/v1/drift/canary/acknowledge", 409, "SIDECAR_CANARY_URL"),
    ],
)
def test_a_channel_that_is_not_there_cannot_be_acknowledged(
    sidecar: Sidecar, path: str, status: int, word: str
) -> None:
    """A problem with the remedy."""
    reply = sidecar.api.post(path, headers=JSON)

    assert reply.status_code == status
    assert set(reply.json()) == PROBLEM
    assert word in reply.json()["remedy"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"note": ""}',
        b'{"note": 1}',
        b'{"note": "a\\nb"}',
        b'{"note": "x", "more": 1}',
        b'{"note": "\xff"}',
        json.dumps({"note": "x" * (MAX_NOTE + 1)}).encode(),
        b"[" * 10_000,
    ],
)
def test_a_hostile_announcement_is_refused(sidecar: Sidecar, body: bytes) -> None:
    """By name of the field, and nothing is announced."""
    reply = sidecar.api.post("/v1/deployments", content=body, headers=JSON)

    assert reply.status_code == 422
    assert set(reply.json()) == PROBLEM
    assert sidecar.api.get("/v1/drift").json()["deployments"] == []


def test_a_body_without_end_is_not_read_to_its_end(sidecar: Sidecar) -> None:
    """More than the limit is refused, however it is sent."""
    chunks = (b"x" * posting.MAX_BODY for _ in range(3))
    reply = sidecar.api.post("/v1/deployments", content=chunks, headers=JSON)

    assert reply.status_code == 413
    assert set(reply.json()) == PROBLEM


def test_a_judge_that_hangs_makes_a_problem_of_what_would_change_it(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API answers 503 in time; reading goes on."""
    monkeypatch.setattr(watching, "ASK_SECONDS", 0.05)
    held, release = threading.Event(), threading.Event()
    threading.Thread(
        target=lambda: sidecar.watch._mailbox.put(
            watching._Question(lambda j, now: held.set() or release.wait(60), watching.Future()), 1
        )
    ).start()
    assert held.wait(60)
    try:
        reply = sidecar.api.post("/v1/drift/traffic/acknowledge", headers=JSON)
        assert reply.status_code == 503
        assert set(reply.json()) == PROBLEM
        assert sidecar.api.get("/v1/drift").status_code == 200
        assert sidecar.api.get("/v1/windows").status_code == 200
    finally:
        release.set()


def test_windows_are_told_after_a_cursor(sidecar: Sidecar) -> None:
    """Each once, oldest first, as exact as they were folded; with what their streams are."""
    sidecar.minutes(9)
    first = sidecar.api.get("/v1/windows?limit=2").json()
    rest = sidecar.api.get(f"/v1/windows?after={first['next']}").json()
    none = sidecar.api.get(f"/v1/windows?after={rest['next']}").json()
    plain = [each["window"] for each in (*first["windows"], *rest["windows"])]
    (layout,) = first["layouts"].values()

    assert (first["is_cut"], rest["is_cut"], first["has_gap"]) == (True, False, False)
    assert none["windows"] == []
    assert none["next"] == rest["next"]
    assert [each["start_ns"] for each in plain] == [START + k * MINUTE for k in range(len(plain))]
    num_streams = sidecar.watch.get().windows[0].schema.num_streams
    for each, held in zip(plain, sidecar.channel.windows, strict=True):
        window = Window.from_plain(each, num_streams)
        assert window.num_requests == held.num_requests == 3
        assert window.to_plain() == held.to_plain()
    assert layout["layers"] == LAYOUT.layers
    assert set(first["layouts"]) == {each["layout"] for each in first["windows"]}


@given(st.integers(0, 2**63 - 1), st.integers(1, 5))
def test_reading_by_cursor_misses_and_repeats_nothing(after: int, limit: int) -> None:
    """From any cursor and in steps of any size, all later windows come, each once."""
    view = WINDOWS
    expected = [each.cursor for each in view.windows if each.cursor > after]
    found: list[int] = []
    cursor, is_cut = after, True
    while is_cut:
        answer = windows_answer(view, cursor, limit)
        found += [each.cursor for each in answer.windows]
        cursor, is_cut = answer.next, answer.is_cut

    assert found == expected


def _some_windows() -> watching.DriftView:
    made, clock, source = watch(FakeChannel()), FakeClock(START), FakeSource()
    made = watch(FakeChannel(), clock=clock)
    for _ in range(12):
        made.hear(source.frame(finished(clock(), 3), clock()), clock())
        made.turn()
        clock.advance(60)
    return made.get()


WINDOWS = _some_windows()


def test_windows_that_do_not_fit_are_left_for_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless a number of them was asked for, which is refused with the number that fits."""
    monkeypatch.setattr(portion, "MAX_NUMBERS", WINDOWS.windows[0].num_bytes // 8 * 3)
    answer = windows_answer(WINDOWS, 0)

    assert (len(answer.windows), answer.is_cut) == (3, True)
    assert answer.next == WINDOWS.windows[2].cursor


@pytest.mark.parametrize("query", ["after=-1", "after=x", f"after={2**64}", "limit=0", "limit=x"])
def test_a_hostile_question_for_windows_is_refused(sidecar: Sidecar, query: str) -> None:
    """As a problem."""
    reply = sidecar.api.get(f"/v1/windows?{query}")

    assert reply.status_code == 422
    assert set(reply.json()) == PROBLEM


def test_the_worst_configured_state_stands_at_the_top() -> None:
    """What is not configured has no say."""
    view = watch(FakeChannel("mix", pages_after=0), FakeChannel("tail")).get()

    assert drift_answer(view, {}).state == "page"
    assert drift_answer(watch().get(), {}).state == "collecting"


def test_the_page_about_drift_names_what_there_is(sidecar: Sidecar) -> None:
    """Every channel and every route of docs/drift.md, and no other."""
    page = (Path(__file__).parents[3] / "docs" / "drift.md").read_text()
    channels = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    routes = re.findall(r"^\| `(GET|POST) (/[^`?]+)", page, re.MULTILINE)
    described = sidecar.api.get("/openapi.json").json()["paths"]
    expected = {
        (method.upper(), path)
        for path, methods in described.items()
        for method, route in methods.items()
        if "drift" in route["tags"]
    }

    assert channels == list(CHANNELS)
    assert set(routes) == expected


def test_a_reader_that_was_away_too_long_is_told() -> None:
    """Windows beyond those held cannot be had any more."""
    view = WINDOWS._replace(forgotten=WINDOWS.windows[0].cursor - 1)

    assert windows_answer(view, 0).has_gap
    assert not windows_answer(view, WINDOWS.windows[0].cursor).has_gap


def test_a_page_does_not_change_readiness(sidecar: Sidecar) -> None:
    """It says whether the telemetry is to be trusted, not whether the model is."""
    before = sidecar.api.get("/readyz").json()
    sidecar.minutes(8)

    assert told(sidecar, "traffic")["state"] == "page"
    assert sidecar.api.get("/readyz").json() == before
