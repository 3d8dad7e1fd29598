"""Bodies of requests that change something: JSON, short, and sent by no other site's page.

Guarantees: what changes something is a POST of `application/json`, which a browser's form cannot
send across sites; a body beyond `MAX_BODY` bytes is refused before it is read; what is wrong with
one is named field by field.
"""

from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from sidecar.publish.api.problems import Problem, Unanswerable

MAX_BODY: Final = 16_384
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": Problem} for code in (404, 409, 413, 415, 422, 503)
}
_Model = TypeVar("_Model", bound=BaseModel)


async def _body(request: Request) -> bytes:
    """The body of a POST that no other site's form can have sent."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        remedy = "send the header Content-Type: application/json"
        raise Unanswerable(415, "what changes something is posted as JSON alone", remedy)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Unanswerable(413, f"a body has {MAX_BODY} bytes at most", "send a shorter one")
    return body


Posted = Annotated[bytes, Depends(_body)]


def body_of(model: type[BaseModel] | None = None) -> dict[str, Any]:
    """What /openapi.json says of such a body, which routes read themselves; None: it is ignored."""
    schema = {} if model is None else model.model_json_schema()
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": model is not None, "content": content}}


def read(model: type[_Model], posted: bytes) -> _Model:
    """The body as `model`. Raises Unanswerable with every field that is wrong."""
    try:
        return model.model_validate_json(posted)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()]
        raise Unanswerable(422, "; ".join(wrong), "correct the named fields") from error
