"""Errors of the HTTP side, as application/problem+json (RFC 9457) with a remedy.

Guarantee: every answer above 399, of either app, has the same five fields.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

_REMEDY = "GET / on the metrics port lists what is served where"


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
    return Response(problem.model_dump_json(), status, headers, "application/problem+json")
