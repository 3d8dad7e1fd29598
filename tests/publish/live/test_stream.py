"""Events over HTTP: to any number of clients, of whom none holds up another."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel

from sidecar.publish.live import stream, views
from sidecar.publish.live.feed import Feed
from tests.fakes import NOW
from tests.publish.listening import listening
from tests.publish.live.room import Room

Told = tuple[str, str, str]  # id, kind and data of one event


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


class Said(BaseModel):
    text: str


class Client:
    """A browser's EventSource, read by hand."""

    def __init__(self, url: str, last_event_id: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.connection.request("GET", "/v1/events", headers=headers)
        self.reply = self.connection.getresponse()

    def lines(self) -> Iterator[str]:
        """Lines as they come; they end when the server hangs up."""
        while line := self.reply.readline().decode():
            yield line.rstrip("\n")

    def events(self, num: int) -> list[Told]:
        """The next events; remarks and the like are passed over."""
        found: list[Told] = []
        fields: dict[str, str] = {}
        for line in self.lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "event" in fields:
                found.append((fields.get("id", ""), fields["event"], fields["data"]))
                fields = {}
            if len(found) == num:
                return found
        raise AssertionError(f"the stream ended after {found}")

    def close(self) -> None:
        self.reply.close()
        self.connection.close()


@pytest.fixture
def room() -> Room:
    return Room(Feed(max_events=16, clock_ns=lambda: NOW))


@pytest.fixture
def connect(room: Room) -> Iterator[Callable[..., Client]]:
    """Clients of the room's sidecar; they go before it does."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(listening(room.app))

        def made(last_event_id: str = "") -> Client:
            client = Client(url, last_event_id)
            stack.callback(client.close)
            return client

        yield made


def test_a_client_begins_with_the_status_and_hears_what_happens(
    room: Room, connect: Callable[..., Client]
) -> None:
    """At once, whoever else listens."""
    room.second()
    room.pulse.turn()
    clients = [connect() for _ in range(3)]
    for client in clients:
        assert client.reply.headers["content-type"].startswith("text/event-stream")
        assert client.reply.headers["cache-control"] == "no-store"
        ((_, kind, data),) = client.events(1)
        assert (kind, json.loads(data)["summary"]["level"]) == ("status", "ok")
    assert room.pulse.feed.num_clients == 3
    room.page()
    room.pulse.turn()
    heard = [client.events(2) for client in clients]

    assert heard[0] == heard[1] == heard[2]
    assert [kind for _, kind, _ in heard[0]] == ["status", "drift"]
    assert json.loads(heard[0][1][2])["to"] == "page"


def test_a_client_that_comes_back_misses_nothing(
    room: Room, connect: Callable[..., Client]
) -> None:
    """It names the last event it heard, and gets what came after."""
    room.pulse.turn()
    first = connect()
    ((heard, _, _),) = first.events(1)
    first.close()
    room.hear(room.requests("a", "b"))
    room.pulse.turn()

    again = connect(heard).events(2)
    assert [json.loads(data)["id"] for _, _, data in again] == ["a", "b"]


@pytest.mark.parametrize("last_event_id", [f"{NOW}-1", f"{NOW - 1}-30", "nonsense"])
def test_a_client_that_missed_too_much_is_told_to_begin_anew(
    room: Room, connect: Callable[..., Client], last_event_id: str
) -> None:
    """What it heard last is gone, of another life, or none of ours."""
    for turn in range(20):
        room.hear(room.requests(f"r{turn}"))
        room.pulse.turn()
    kinds = [kind for _, kind, _ in connect(last_event_id).events(2)]

    assert kinds == ["reset", "status"]


def test_a_client_that_is_gone_is_noticed(room: Room, connect: Callable[..., Client]) -> None:
    """Its place is free again."""
    client = connect()
    eventually(lambda: room.pulse.feed.num_clients == 1)
    client.close()

    eventually(lambda: room.pulse.feed.num_clients == 0)


def test_a_quiet_stream_shows_that_it_lives(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remark now and then, which a browser passes over."""
    monkeypatch.setattr(stream, "BEAT_SECONDS", 0.2)
    lines = connect().lines()

    assert next(lines) == "retry: 2000"
    assert [line for _, line in zip(range(4), lines, strict=False)] == ["", ": beat", "", ": beat"]


def test_a_client_that_takes_nothing_is_hung_up_on(
    room: Room, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, memory stays bounded, and the others hear on."""
    monkeypatch.setattr(stream, "STALLED_SECONDS", 0.5)
    address = connect().connection.sock.getpeername()
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(address)
    stalled.sendall(b"GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n")
    feed = room.pulse.feed
    eventually(lambda: feed.num_clients == 2)
    stopping = threading.Event()

    def publish() -> None:
        while not stopping.wait(0.02):
            feed.publish("large", Said(text="x" * 100_000))

    publishing = threading.Thread(target=publish)
    publishing.start()
    try:
        eventually(lambda: feed.dropped()["stalled"] >= 1)
        assert connect().events(1)[0][1] in ("large", "status")
    finally:
        stopping.set()
        publishing.join()
        stalled.close()


def test_a_client_that_falls_behind_is_told_and_goes_on(room: Room) -> None:
    """The ring has gone round while it was slow: it is told once to read everything anew."""
    feed = room.pulse.feed
    room.pulse.turn()
    served = stream.EventStream(feed)
    greeting, number = served._greeting()
    for number_said in range(40):
        feed.publish("status", Said(text=str(number_said)))
    text, number = served._news(number)

    assert "event: status" in greeting
    assert text == "event: reset\ndata: {}\n\n"
    assert feed.dropped()["behind"] == 1
    assert served._news(number) == ("", feed.last)


def test_one_client_too_many_is_refused(
    room: Room, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a problem that says what to do; it is counted."""
    monkeypatch.setattr(views, "MAX_CLIENTS", 1)
    connect()
    eventually(lambda: room.pulse.feed.num_clients == 1)
    refused = connect()

    assert refused.reply.status == 503
    assert "poll /v1" in json.loads(refused.reply.read())["remedy"]
    assert room.pulse.feed.dropped()["refused"] == 1


def test_all_clients_are_let_go_at_the_end(room: Room, connect: Callable[..., Client]) -> None:
    """The stream ends as a stream does, not by a broken connection."""
    lines = connect().lines()
    assert next(lines) == "retry: 2000"
    room.pulse.feed.close()

    assert list(lines) == [""]
    eventually(lambda: room.pulse.feed.num_clients == 0)
