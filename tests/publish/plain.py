"""Answers and pages as a client reads them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from sidecar.fold.reducer import Reducer, Snapshot
from sidecar.publish.api.answers import (
    StatusAnswer,
    SummaryAnswer,
    layers_answer,
    status_answer,
)
from sidecar.publish.api.requests import requests_answer
from sidecar.publish.api.signals import signals_answer
from sidecar.publish.api.signatures import signatures_answer
from sidecar.publish.live.answers import Asked, lines_answer, timeline_answer
from sidecar.publish.live.choices import CHOICES
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.scan.answers import scan_answer, scans_answer
from sidecar.wire.signals import POPULATIONS


def plain(answer: BaseModel) -> dict[str, Any]:
    """The answer as a client reads it: NaN would not parse here."""

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read: dict[str, Any] = json.loads(answer.model_dump_json(), parse_constant=refuse)
    return read


def status_of(snapshot: Snapshot) -> StatusAnswer:
    """The status where nobody judges drift."""
    summary = SummaryAnswer(level="ok", sentence="All is well.", since_ns=None, layers=[])
    return status_answer(snapshot, summary)


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
    yield plain(status_of(snapshot))
    yield plain(layers_answer(snapshot))
    yield plain(signals_answer(snapshot))
    yield plain(requests_answer(reducer.requests(100)))
    yield plain(signatures_answer(reducer.signatures(100)))
    yield plain(scans_answer(reducer.scans(), None))
    for each in reducer.scans():
        yield plain(scan_answer(each, reducer.find_scans(each.scan.id)))
    yield from pictures(reducer)


def pictures(reducer: Reducer) -> Iterator[dict[str, Any]]:
    """Every timeline, and the lines."""

    def read(question: Callable[[Reducer], Any]) -> Any:
        return question(reducer)

    for signal in CHOICES:
        for phase, position in POPULATIONS:
            yield plain(timeline_answer(Asked(signal, phase, position), read, None))
    yield plain(lines_answer(read))
