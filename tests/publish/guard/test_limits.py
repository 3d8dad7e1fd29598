"""Limits on what one client may ask."""

from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sidecar.publish.guard.limits import MAX_BODY, MAX_CLIENTS, Limits, Rate
from sidecar.publish.guard.refusal import Refusals


async def echo(request: Request) -> Response:
    """How many bytes came."""
    return PlainTextResponse(str(len(await request.body())))


class Limited:
    """An app that answers two requests at once, and one a second after that."""

    def __init__(self) -> None:
        self.now = 0.0
        self.refusals = Refusals()
        routes = [Route("/", echo, methods=["GET", "POST"]), Route("/healthz", echo)]
        self.app = Limits(
            Starlette(routes=routes), self.refusals, Rate(1.0, 2.0), clock=lambda: self.now
        )

    def client(self, address: str = "10.0.0.1") -> TestClient:
        """Somebody at this address."""
        return TestClient(self.app, client=(address, 1234))


def statuses(client: TestClient, num: int) -> list[int]:
    """What so many requests are answered with."""
    return [client.get("/").status_code for _ in range(num)]


def test_a_client_that_asks_too_often_waits() -> None:
    """After a burst of two one request a second passes; the answer says when to come again."""
    limited = Limited()
    client = limited.client()

    assert statuses(client, 4) == [200, 200, 429, 429]
    assert client.get("/").headers["retry-after"] == "1"
    limited.now += 1.0
    assert statuses(client, 2) == [200, 429]
    limited.now += 100.0
    assert statuses(client, 3) == [200, 200, 429]
    assert limited.refusals.get()["rate"] == 5


def test_clients_do_not_take_from_one_another() -> None:
    """Another address has a bucket of its own."""
    limited = Limited()

    assert statuses(limited.client(), 3)[-1] == 429
    assert statuses(limited.client("10.0.0.2"), 2) == [200, 200]


def test_health_is_never_limited() -> None:
    """Kubernetes would restart what answers 429."""
    client = Limited().client()
    statuses(client, 5)

    assert all(client.get("/healthz").is_success for _ in range(5))


def test_what_is_held_of_clients_is_bounded() -> None:
    """Ten thousand addresses leave a bounded number of buckets."""
    limited = Limited()
    for number in range(MAX_CLIENTS + 500):
        limited.client(f"10.0.{number // 256}.{number % 256}").get("/healthz")
        limited.app._wait(f"10.0.{number // 256}.{number % 256}")

    assert len(limited.app._buckets) == MAX_CLIENTS


def test_a_body_within_the_limit_arrives_whole() -> None:
    """Not a byte is lost on the way."""
    answer = Limited().client().post("/", content=b"x" * MAX_BODY)

    assert answer.text == str(MAX_BODY)


def test_a_body_over_the_limit_reaches_no_route() -> None:
    """Whether it says its length or not."""

    def parts() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 1024 + 1):
            yield b"x" * 1024

    limited = Limited()
    client = limited.client()

    assert client.post("/", content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert client.post("/", content=parts()).status_code == 413
    assert limited.refusals.get()["size"] == 2


def test_a_length_that_is_no_number_is_refused() -> None:
    """Before anything is read."""
    answer = Limited().client().post("/", headers={"Content-Length": "-1"})

    assert answer.status_code == 413
