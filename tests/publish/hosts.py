"""Prometheus and exporters that answer from memory: what the fleet job asks, without a socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from sidecar.fold.drift.window import Window
from sidecar.wire.signature import Layout
from tests.fold.drift.fleets import SCHEMA

PROMETHEUS = "http://prometheus:9090"

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Hosts:
    """By host name: what answers. `asked` counts requests by host."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: dict[str, int] = {}

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.asked[host] = self.asked.get(host, 0) + 1
        if host not in self.answers:
            raise httpx.ConnectError("no such host", request=request)
        made = await self.answers[host](request)
        return httpx.Response(made.status_code, headers=made.headers, content=_pieces(made.content))


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body as it comes off a socket."""
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


class FakePrometheus:
    """Knows these exporters: labels of each series."""

    def __init__(self, *series: dict[str, str]) -> None:
        self.series = list(series)
        self.queries: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/v1/query"
        self.queries.append(request.url.params["query"])
        found = [{"metric": each, "value": [0, "1"]} for each in self.series]
        data = {"resultType": "vector", "result": found}
        return httpx.Response(200, json={"status": "success", "data": data})


class FakeExporter:
    """Tells its closed windows after a cursor, as /v1/windows does, `page` at a time."""

    def __init__(self, page: int = 1000) -> None:
        self.windows: list[Window] = []
        self.layout: dict[str, Any] = plain_layout(SCHEMA.layout)
        self.baseline = ""
        self.page = page
        self.seconds = 0.0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/windows"
        await asyncio.sleep(self.seconds)
        after = int(request.url.params["after"])
        later = [(i + 1, each) for i, each in enumerate(self.windows) if i + 1 > after]
        told = later[: self.page]
        body = {
            "next": told[-1][0] if told else after,
            "has_gap": False,
            "is_cut": len(told) < len(later),
            "layouts": {"l": self.layout},
            "windows": [
                {"cursor": i, "layout": "l", "baseline": self.baseline, "window": each.to_plain()}
                for i, each in told
            ],
        }
        return httpx.Response(200, content=self.encoded(body))

    def encoded(self, body: dict[str, Any]) -> bytes:
        return json.dumps(body).encode()


def plain_layout(layout: Layout) -> dict[str, Any]:
    return {field: getattr(layout, field) for field in Layout.__struct_fields__}


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    """A host that says the same to everybody."""

    async def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers=headers)

    return answer
