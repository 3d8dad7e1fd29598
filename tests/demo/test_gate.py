"""The gate before the demo's vLLM: ordinary requests pass, those for development need the key."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo import gate
from sidecar.demo.gate import HEADER, KEY_FILE, MIDDLEWARE, Gate


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "key"
    file.write_text("right")
    monkeypatch.setenv(KEY_FILE, str(file))
    return "right"


def status(path: str, *, kind: str = "http", **headers: str) -> Any:
    """What a client gets: 200 from the application behind the gate, or the gate's own answer."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read of a refused request")

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "headers": raw}
    asyncio.run(Gate(app)(scope, receive, send))
    return sent[0].get("status") or sent[0]["type"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health", "/metrics"])
def test_ordinary_requests_pass(path: str, key: str) -> None:
    """With no key at all."""
    assert status(path) == 200


@pytest.mark.parametrize(
    "path", ["/collective_rpc", "/sleep", "/update_weights", "/server_info", "/", "/v1", "/docs"]
)
def test_everything_else_needs_the_key(path: str, key: str) -> None:
    """No key, a wrong one, or the right one."""
    assert status(path) == 403
    assert status(path, **{HEADER: "wrong"}) == 403
    assert status(path, **{HEADER: ""}) == 403
    assert status(path, **{HEADER: key}) == 200


def test_without_a_key_file_nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty key is no key."""
    monkeypatch.delenv(KEY_FILE, raising=False)
    assert status("/collective_rpc", **{HEADER: ""}) == 403
    assert status("/health") == 200


def test_sockets_are_closed_and_the_server_may_start(key: str) -> None:
    """The gate stands in the way of requests, not of the server's own start and end."""
    assert status("/anything", kind="websocket") == "websocket.close"
    assert status("", kind="lifespan") == 200


def test_the_middleware_is_where_the_server_looks_for_it() -> None:
    """By its full name."""
    module, _, name = MIDDLEWARE.rpartition(".")
    assert (module, getattr(gate, name)) == (gate.__name__, Gate)
