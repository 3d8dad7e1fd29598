"""The door of the API, asked as a client, a browser and a foreign page would."""

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sidecar.publish.guard.door import COOKIE, RIGHT, Door
from sidecar.publish.guard.refusal import Refusals
from sidecar.publish.guard.tokens import Tokens

SECRET = "the operator's token, of 32 byte"
BEARER = {"Authorization": f"Bearer {SECRET}"}


def told(request: Request) -> Response:
    """By which right the route was reached."""
    return PlainTextResponse(str(request.scope.get(RIGHT)))


class Guarded:
    """An API behind a door."""

    def __init__(self, *, token: bool = True, hosts: tuple[str, ...] = ()) -> None:
        self.refusals = Refusals()
        self.tokens = Tokens(SECRET.encode()) if token else None
        routes = [
            Route("/healthz", told),
            Route("/v1/drift", told, methods=["GET", "POST"]),
            Route("/ui", told),
        ]
        self.app = Door(Starlette(routes=routes), self.refusals, self.tokens, hosts)

    def client(self, host: str = "127.0.0.1:9479") -> TestClient:
        """A client that names this host, and does not follow redirections."""
        return TestClient(self.app, base_url=f"http://{host}", follow_redirects=False)


def test_the_token_opens_everything() -> None:
    """With it a route is reached, and told by which right."""
    answer = Guarded().client().get("/v1/drift", headers=BEARER)

    assert (answer.status_code, answer.text) == (200, "token")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": SECRET},
        {"Cookie": f"{COOKIE}={SECRET}".replace(" ", "").replace("'", "")},
        {"Cookie": f"{COOKIE}="},
        {"Cookie": "\x00;;=;"},
    ],
)
def test_without_it_nothing_is_reached(headers: dict[str, str]) -> None:
    """401 with a remedy, counted; the token itself is nowhere in the answer."""
    guarded = Guarded()
    answer = guarded.client().get("/v1/drift", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "SIDECAR_API_TOKEN_FILE" in answer.json()["remedy"]
    assert SECRET not in answer.text
    assert guarded.refusals.get()["token"] == 1


def test_health_needs_nothing() -> None:
    """The kubelet has no token, and asks by the pod's address."""
    assert Guarded().client("10.1.2.3:9479").get("/healthz").status_code == 200


def test_a_browser_comes_in_by_an_address_that_works_once() -> None:
    """The cookie is out of reach of scripts and of other sites; a second use of the word is not."""
    guarded = Guarded()
    assert guarded.tokens is not None
    address = f"/login?ticket={guarded.tokens.ticket()}"
    browser = guarded.client()

    answer = browser.get(address)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert browser.get("/ui").text == "session"
    assert guarded.client().get(address).status_code == 401


def test_the_cookie_is_for_tls_alone_where_there_is_tls() -> None:
    """Served by https, it is never sent over http."""
    guarded = Guarded()
    assert guarded.tokens is not None
    browser = TestClient(guarded.app, base_url="https://localhost", follow_redirects=False)

    answer = browser.get(f"/login?ticket={guarded.tokens.ticket()}")

    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1"])
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    """A name that was rebound to this address reads nothing, even where no token is needed."""
    guarded = Guarded(token=False)
    answer = guarded.client().get("/v1/drift", headers={"Host": host})

    assert answer.status_code == 421
    assert guarded.refusals.get()["host"] == 1


@pytest.mark.parametrize("host", ["localhost:9479", "127.0.0.1", "[::1]:9479", "LocalHost"])
def test_loopback_has_several_names(host: str) -> None:
    """All of them are served."""
    answer = Guarded(token=False).client().get("/v1/drift", headers={"Host": host})

    assert answer.status_code == 200


def test_more_names_can_be_given() -> None:
    """One of the operator's, or all."""
    assert (
        Guarded(hosts=("pod.example",))
        .client("pod.example")
        .get("/v1/drift", headers=BEARER)
        .is_success
    )
    assert Guarded(hosts=("*",)).client("any.example").get("/v1/drift", headers=BEARER).is_success


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:9479"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
@pytest.mark.parametrize("token", [True, False])
def test_a_page_of_another_origin_changes_nothing(
    headers: dict[str, str], status: int, token: bool
) -> None:
    """With a token or without: a post that another page made a browser send is refused."""
    client = Guarded(token=token).client()

    answer = client.post("/v1/drift", headers={**headers, **BEARER})

    assert answer.status_code == status


@pytest.mark.parametrize("ask", ["get", "post"])
def test_who_reaches_an_open_port_is_let_in(ask: str) -> None:
    """Without a token the right is that the port could be reached."""
    client = Guarded(token=False).client()
    method: Callable[[str], Response] = getattr(client, ask)  # type: ignore[assignment]

    assert method("/v1/drift").text == "reached the port"  # type: ignore[attr-defined]
