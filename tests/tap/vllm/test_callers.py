"""Callers: their header and their wishes reach the stats of their own request, and nothing else."""

import asyncio
import math
import time
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.tap.vllm.front_end import asked, ended

SECONDS = 60
TRACE = "0af7651916cd43dd8448eb211c80319c"


def parent(number: int = 1) -> str:
    """A traceparent of its own for each number."""
    return f"00-{TRACE}-{number:016x}-01"


@pytest.fixture
def callers(installed_vllm):
    """The room itself, which knows vLLM's front end."""
    from sidecar.tap.vllm import callers

    return callers


@pytest.fixture
def heard(callers, monkeypatch):
    """Callers that vLLM's front end and every web application of this process tell."""
    from vllm.v1.engine.output_processor import OutputProcessor

    for method in ("add_request", "_update_stats_from_finished"):
        monkeypatch.setattr(OutputProcessor, method, getattr(OutputProcessor, method))
    monkeypatch.setattr(Starlette, "__call__", Starlette.__call__)
    made = callers.Callers()
    callers.hear_requests(made)
    callers.hear_http(made)
    return made


@pytest.fixture
def processor(heard):
    """vLLM's own OutputProcessor, which tells `heard`."""
    from vllm.v1.engine.output_processor import OutputProcessor

    return OutputProcessor(None, log_stats=True)


def finished(processor, *internal_ids: str):
    """vLLM's stats of these requests, which end."""
    return ended(processor, *internal_ids).finished_requests


def get(app: Starlette, *headers: tuple[str, str], path: str = "/") -> httpx.Response:
    """One HTTP request, in a loop of its own."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.wait_for(client.get(path, headers=list(headers)), SECONDS)

    return asyncio.run(ask())


class Routes:
    """Add a request for each call, as vLLM's do: at once, in a task, or while it streams."""

    def __init__(self, processor) -> None:
        self._processor = processor

    async def at_once(self, request: Request) -> JSONResponse:
        self._processor.add_request(asked(request.query_params["id"]), None)
        return JSONResponse({})

    async def in_a_task(self, request: Request) -> JSONResponse:
        return await asyncio.create_task(self.at_once(request))

    async def streaming(self, request: Request) -> StreamingResponse:
        # vLLM's routes run in a task that is over before the answer streams.
        return await asyncio.create_task(self._answer(request))

    async def _answer(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._pieces(request))

    async def _pieces(self, request: Request):
        await asyncio.sleep(0)
        await self.at_once(request)
        yield "piece"


async def through(request, call_next):
    """Middleware that changes nothing."""
    return await call_next(request)


def application(processor) -> Starlette:
    """A web application like vLLM's."""
    served_by = Routes(processor)
    endpoints = (served_by.at_once, served_by.in_a_task, served_by.streaming)
    app = Starlette(routes=[Route(f"/{each.__name__}", each) for each in endpoints])
    app.add_middleware(BaseHTTPMiddleware, dispatch=through)
    return app


@pytest.mark.parametrize("route", ["at_once", "in_a_task", "streaming"])
def test_a_header_reaches_the_stats_of_its_request(callers, processor, route: str) -> None:
    """Through middleware, tasks and streams, in whichever way vLLM adds the request."""
    app = application(processor)
    for number in (1, 2):
        header = ("Traceparent", parent(number))
        assert get(app, header, path=f"/{route}?id=r{number}").status_code == 200
    get(app, path=f"/{route}?id=r3")

    told = [callers.call_of(stats).traceparent for stats in finished(processor, "r1", "r2", "r3")]
    assert told == [parent(1), parent(2), ""]


def test_requests_at_the_same_time_keep_their_own_headers(callers, processor) -> None:
    """Each HTTP request is served by a task of its own."""
    app = application(processor)

    async def crowd() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.gather(
                *(
                    client.get(f"/streaming?id=r{k}", headers={"traceparent": parent(k)})
                    for k in range(1, 21)
                )
            )

    asyncio.run(asyncio.wait_for(crowd(), SECONDS))
    told = finished(processor, *(f"r{k}" for k in range(1, 21)))
    assert [callers.call_of(stats).traceparent for stats in told] == [
        parent(k) for k in range(1, 21)
    ]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"traceparent", b"nonsense")],
        [(b"traceparent", parent().upper().encode())],
        [(b"traceparent", parent(1).encode()), (b"traceparent", parent(2).encode())],
        [(b"traceparent", b"01-" + parent()[3:].encode() + b"-" + b"x" * 10_000)],
        [(b"traceparent", b"\xff\xfe\x00")],
    ],
    ids=["none", "nonsense", "capitals", "two", "long", "bytes"],
)
def test_anything_but_one_valid_header_is_none(callers, processor, headers) -> None:
    """And it takes away what the task had before."""
    callers.catch({"type": "http", "headers": [(b"traceparent", parent(9).encode())]})
    callers.catch({"type": "http", "headers": headers})
    processor.add_request(asked("r"), None)
    (stats,) = finished(processor, "r")
    assert callers.call_of(stats).traceparent == ""


def test_what_a_program_gave_vllm_itself_is_taken(callers, processor) -> None:
    """Where no HTTP request is served, and vLLM has kept it for its own tracing."""
    callers.catch({"type": "http", "headers": []})
    headers = {"traceparent": parent(5), "tracestate": "secret=1"}
    processor.add_request(asked("r", trace_headers=headers), None)
    (stats,) = finished(processor, "r")
    assert callers.call_of(stats).traceparent == parent(5)


def test_what_was_asked_for_and_when_is_told(callers, processor) -> None:
    """Arrival by the wall clock, the first token after it, and the sampling that was wished."""
    arrival = time.time() - 3.0
    wishes = {"max_tokens": 17, "temperature": 0.25, "top_p": 0.75}
    processor.add_request(asked("r", arrival_time=arrival, **wishes), None)
    (stats,) = finished(processor, "r")
    call = callers.call_of(stats)
    assert call.start_ns == int(arrival * 1e9)
    assert (call.max_tokens, call.temperature, call.top_p) == (17, 0.25, 0.75)
    assert 3.0 <= call.time_to_first_token < 3.0 + SECONDS


def test_requests_of_one_client_id_are_told_apart(callers, processor) -> None:
    """A client may use its id again; vLLM's stats have no other."""
    for number in (1, 2):
        callers.catch({"type": "http", "headers": [(b"traceparent", parent(number).encode())]})
        processor.add_request(asked(f"same-{number}", "same"), None)
    second, first = finished(processor, "same-2", "same-1")
    assert (first.request_id, second.request_id) == ("same", "same")
    assert callers.call_of(first).traceparent == parent(1)
    assert callers.call_of(second).traceparent == parent(2)


def test_more_input_of_a_request_changes_nothing_of_its_call(callers, heard) -> None:
    """Input may come in pieces, from another task."""
    callers.catch({"type": "http", "headers": [(b"traceparent", parent(1).encode())]})
    heard.begin(asked("r", max_tokens=5))
    callers.catch({"type": "http", "headers": []})
    heard.begin(asked("r", max_tokens=9))
    assert heard.end("r")[1:3] == (parent(1), 5)


def test_a_call_is_told_once_and_nothing_stays(heard, processor) -> None:
    """What finished or was given up is forgotten."""
    for name in ("a", "b"):
        processor.add_request(asked(name), None)
    assert len(heard._calls) == 2
    finished(processor, "a")
    heard.end("b")
    assert heard._calls == {}
    assert heard.end("b").start_ns == 0


def test_calls_are_bounded_and_the_rest_is_counted(callers, heard, monkeypatch) -> None:
    """The oldest make way: requests that vLLM lost hold no memory for ever."""
    monkeypatch.setattr(callers, "MAX_CALLS", 3)
    for number in range(5):
        heard.begin(asked(f"r{number}", max_tokens=number + 1))
    assert [heard.end(f"r{number}").max_tokens for number in range(5)] == [0, 0, 3, 4, 5]
    assert heard.errors() == {"callers_cut": 2}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("temperature", math.inf, math.nan),
        ("temperature", None, math.nan),
        ("top_p", math.nan, math.nan),
        ("max_tokens", None, 0),
        ("max_tokens", -4, 0),
        ("max_tokens", 1 << 80, 1 << 62),
        ("arrival_time", math.nan, 0),
        ("arrival_time", -1.0, 0),
        ("arrival_time", 1e300, 1 << 62),
    ],
)
def test_numbers_that_no_frame_may_hold_are_not_known(heard, field, value, told) -> None:
    """A frame that one client can have refused would cost the stats of all."""
    request = SimpleNamespace(request_id="r", arrival_time=1.0, sampling_params=SimpleNamespace())
    setattr(request if field == "arrival_time" else request.sampling_params, field, value)
    heard.begin(request)
    call = heard.end("r")
    found = call.start_ns if field == "arrival_time" else getattr(call, field)
    assert found == told or (math.isnan(found) and math.isnan(told))


def test_whatever_fails_in_us_serving_goes_on(heard, processor, monkeypatch) -> None:
    """It is counted, and disarmed; the web application answers as before."""

    def fail(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(heard, "begin", fail)
    monkeypatch.setattr(heard, "finish", fail)
    app = application(processor)
    for number in range(20):
        assert get(app, path=f"/at_once?id=r{number}").status_code == 200
        assert len(finished(processor, f"r{number}")) == 1
    assert heard.errors() == {"callers": 10}


def test_a_failure_of_vllms_own_passes(heard, processor) -> None:
    """Its exception reaches its caller, and is none of ours."""
    with pytest.raises(AttributeError):
        processor.add_request(None, None)
    assert heard.errors() == {}


def test_a_scope_of_any_shape_harms_nothing(callers, heard) -> None:
    """Servers other than vLLM's own may speak ASGI with less care."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    made = Starlette()
    made.middleware_stack = app
    for scope in ({"type": "lifespan"}, {"type": "http"}, {"type": "http", "headers": [(1, 2)]}):
        asyncio.run(made(scope, None, None))
    assert seen == ["lifespan", "http", "http"]
    assert heard.errors() == {"traceparent": 1}


def test_hearing_twice_wraps_once(callers, heard) -> None:
    """vLLM may make several managers of stat loggers in a process."""
    once = Starlette.__call__
    callers.hear_http(heard)
    assert Starlette.__call__ is once


def test_no_web_framework_is_loaded_for_it(callers, heard, monkeypatch) -> None:
    """In a worker, or where vLLM is a library, there is nothing to hear."""
    import sys

    monkeypatch.delitem(sys.modules, "starlette.applications")
    callers.hear_http(heard)
    assert "starlette.applications" not in sys.modules


def test_a_release_laid_out_otherwise_has_unknown_callers(callers, monkeypatch, caplog) -> None:
    """The log says so; the front end is vLLM's own."""
    from vllm.v1.engine.output_processor import OutputProcessor

    before = OutputProcessor.add_request
    monkeypatch.delattr(OutputProcessor, "_update_stats_from_finished")
    callers.hear_requests(callers.Callers())
    assert OutputProcessor.add_request is before
    assert "callers of requests are not known" in caplog.text
