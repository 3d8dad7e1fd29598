"""An answer as the JSON that leaves."""

from pydantic import BaseModel
from starlette.responses import Response


def json_reply(answer: BaseModel, status_code: int = 200) -> Response:
    """Serialised here, in the pool's thread; FastAPI would do it on the event loop."""
    return Response(answer.model_dump_json(), status_code, media_type="application/json")
