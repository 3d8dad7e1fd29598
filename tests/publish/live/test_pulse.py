"""What is told as it happens: each thing once, whatever goes wrong."""

import json
from typing import Any

import pytest

from sidecar.publish.live.pulse import MAX_REQUESTS
from tests.fakes import NOW, SECOND
from tests.publish.live.room import Room


@pytest.fixture
def room() -> Room:
    return Room()


def told(room: Room, kind: str) -> list[dict[str, Any]]:
    """The data of all events of a kind, after another turn."""
    room.pulse.turn()
    events = room.pulse.feed.after(0)
    assert events is not None
    return [json.loads(each.data) for each in events if each.kind == kind]


def test_the_status_is_told_at_each_change_and_every_five_seconds(room: Room) -> None:
    """A client learns soon that all went silent, and at once that something pages."""
    room.second()
    assert [each["summary"]["level"] for each in told(room, "status")] == ["ok"]
    room.page()
    assert [each["summary"]["level"] for each in told(room, "status")] == ["ok", "page"]
    for _ in range(5):
        room.pulse.turn()
    (*_, last) = told(room, "status")

    assert len(told(room, "status")) == 3
    assert last["summary"] == room.get("/v1/status")["summary"]
    assert (last["last_frame_ns"], last["num_sources"]) == (NOW + SECOND, 2)


def test_a_verdict_that_changes_is_told_as_the_history_has_it(room: Room) -> None:
    """Once; what changed before this life of the sidecar is not news."""
    assert told(room, "drift") == []
    room.page()
    room.pulse.turn()
    history = room.get("/v1/drift/history")

    assert told(room, "drift") == history["changes"][1:]
    assert (history["changes"][1]["from"], history["changes"][1]["to"]) == ("armed", "page")
    assert history["now"] == {"traffic": "page"}
    assert history["changes"][1]["causes"][0]["layer"] == 1


def test_finished_requests_are_told_once_the_oldest_first(room: Room) -> None:
    """Two requests of one id that ended at different times are two."""
    room.hear(room.requests("a", "b"))
    assert [each["id"] for each in told(room, "request")] == ["a", "b"]
    room.clock.advance(1)
    room.hear(room.requests("b"))
    again = told(room, "request")

    assert [each["id"] for each in again] == ["a", "b", "b"]
    assert again[-1]["end_ns"] == room.clock()
    assert (again[-1]["num_rows"], again[-1]["nonfinite"]) == (72, 3)


def test_a_flood_of_requests_is_a_sample(room: Room) -> None:
    """The latest ones; /v1/requests has all."""
    room.hear(room.requests(*(f"r{k}" for k in range(100))))
    found = told(room, "request")

    assert len(found) == MAX_REQUESTS
    assert found[-1]["id"] == "r99"


def test_a_column_is_told_when_its_second_is_complete(room: Room) -> None:
    """Each once; /v1/timeline has it then."""
    for _ in range(4):
        room.second()
        room.pulse.turn()
    columns = [each["t_ns"] for each in told(room, "column")]

    assert columns == [NOW + k * SECOND for k in range(1, 4)]
    assert room.get("/v1/timeline")["columns"][-1]["t_ns"] == columns[-1]


def test_a_turn_that_fails_is_counted_and_the_next_one_is_tried(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours ends no thread."""
    with monkeypatch.context() as patched:
        patched.setattr(room.intake, "get", lambda: 1 / 0)
        room.pulse.turn()
    room.second()

    assert len(told(room, "status")) == 1
    assert room.pulse.num_errors == 1
