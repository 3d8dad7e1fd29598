"""Answers as a client reads them."""

import json
from typing import Any

from pydantic import BaseModel


def plain(answer: BaseModel) -> dict[str, Any]:
    """The answer as a client reads it: NaN would not parse here."""

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read: dict[str, Any] = json.loads(answer.model_dump_json(), parse_constant=refuse)
    return read
