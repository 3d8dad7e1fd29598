"""Errors of the HTTP side, as application/problem+json (RFC 9457) with a remedy.

Guarantees: every answer above 399, of either app, has the same five fields; /openapi.json says so
for each that a route can give.
"""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"
_REMEDY: Final = "GET / on the metrics port lists what is served where"


class Problem(BaseModel):
    """The body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    remedy: str


class Unanswerable(HTTPException):
    """A request that cannot be answered, and what to ask instead."""

    def __init__(self, status: int, detail: str, remedy: str) -> None:
        super().__init__(status, detail)
        self.remedy = remedy


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe(made())
        return made()

    app.openapi = described  # type: ignore[method-assign]


def _describe(document: dict[str, Any]) -> None:
    """Say what errors look like; FastAPI would announce a body of its own that is never sent."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas[Problem.__name__] = Problem.model_json_schema()
    for name in _FOREIGN:
        schemas.pop(name, None)
    for answer in _answers(document):
        content = answer.get("content", {}).get("application/json", {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name in (Problem.__name__, *_FOREIGN):
            reference = {"$ref": f"#/components/schemas/{Problem.__name__}"}
            answer["content"] = {MEDIA_TYPE: {"schema": reference}}


_FOREIGN: Final = ("HTTPValidationError", "ValidationError")


def _answers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for routes in document["paths"].values():
        for route in routes.values():
            yield from route["responses"].values()


def _on_http(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    remedy = error.remedy if isinstance(error, Unanswerable) else _REMEDY
    return _answer(error.status_code, error.detail, remedy, dict(error.headers or {}))


def _on_invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return _answer(422, "; ".join(wrong), "correct the named parameters")


def _on_bug(_: Request, error: Exception) -> Response:
    remedy = "this is a bug: report it with the sidecar's log"
    return _answer(500, f"{type(error).__name__} while answering", remedy)


def _answer(
    status: int, detail: str, remedy: str, headers: dict[str, str] | None = None
) -> Response:
    title = {404: "Not found", 405: "Method not allowed", 422: "Invalid request"}
    problem = Problem(title=title.get(status, "Error"), status=status, detail=detail, remedy=remedy)
    return Response(problem.model_dump_json(), status, headers, MEDIA_TYPE)
