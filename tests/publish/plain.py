"""Answers and pages as a client reads them."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from sidecar.fold.reducer import Reducer
from sidecar.publish.api.answers import layers_answer, status_answer
from sidecar.publish.api.requests import requests_answer
from sidecar.publish.api.signals import signals_answer
from sidecar.publish.api.signatures import signatures_answer
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.scan.answers import scan_answer, scans_answer


def plain(answer: BaseModel) -> dict[str, Any]:
    """The answer as a client reads it: NaN would not parse here."""

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read: dict[str, Any] = json.loads(answer.model_dump_json(), parse_constant=refuse)
    return read


def pages(reducer: Reducer, now_ns: int) -> Iterator[object]:
    """Every page, read back: each sample of the exposition once, and no NaN in JSON."""
    snapshot = reducer.get(now_ns)
    exposition = Exposition(10_000, Selection.everything())
    body = exposition.render(snapshot)
    lines = [line.rpartition(" ")[0] for line in body.decode().splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    assert b"success{collector" in body
    assert all(exposition._success.values())
    yield lines
    yield plain(status_answer(snapshot))
    yield plain(layers_answer(snapshot))
    yield plain(signals_answer(snapshot))
    yield plain(requests_answer(reducer.requests(100)))
    yield plain(signatures_answer(reducer.signatures(100)))
    yield plain(scans_answer(reducer.scans(), None))
    for each in reducer.scans():
        yield plain(scan_answer(each, reducer.find_scans(each.scan.id)))
