"""The answer about finished requests, with everything that was measured of each.

Guarantees: every number is the one that was told, at full float64 precision; what does not exist
is null; an answer is bounded, and says how many requests it leaves out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel

from sidecar.fold.requests import Measured
from sidecar.publish.api.answers import CoverageAnswer, coverage_answer, known
from sidecar.publish.api.portion import portion
from sidecar.wire.frame import Arrays, Cells, Finished, Table
from sidecar.wire.signals import GROUPS, LAYER_SIGNALS, POPULATIONS
from sidecar.wire.traceparent import parse

_MAY_BE_UNKNOWN: Final = ("time_to_first_token", "temperature", "top_p")
_SIGNAL_IDS: Final = tuple(signal.id for signal in LAYER_SIGNALS)


class SignalSums(BaseModel):
    """One signal of one request, per layer: raw sums over its rows, and the mean they make."""

    sum: list[float]
    log_sum: list[float]
    log_square_sum: list[float]
    min: list[float | None]
    max: list[float | None]
    mean: list[float | None]


class CellSums(BaseModel):
    """One signal of one request in one cell of its group.

    phi: the signal's transform, which makes values additive and comparable (see /v1/signals).
    last: of the row measured last.
    """

    mean: float
    sum: float
    phi_sum: float
    phi_square_sum: float
    min: float | None
    max: float | None
    last: float | None


class FinishedAnswer(BaseModel):
    """What the front end saw of a request; times in seconds.

    traceparent: the caller's place in a trace (W3C); empty unless it sent one.
    start_ns, max_tokens: 0 when not known.
    """

    id: str
    reason: str
    end_ns: int
    e2e: float
    queue: float
    prefill: float
    decode: float
    time_per_output_token: float
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    start_ns: int
    time_to_first_token: float | None
    traceparent: str
    max_tokens: int
    temperature: float | None
    top_p: float | None


class TableCell(BaseModel):
    """One cell of a group: how many rows it has, and each signal's statistics."""

    labels: dict[str, str]
    count: int
    signals: dict[str, CellSums]


class RequestAnswer(BaseModel):
    """One finished request. Per population: `rows` per layer, and each signal's sums.

    tables: by group, the cells that have rows.
    aborted: its client hung up; `serving` then stays null.
    trace_id: of the trace that its caller named (W3C); empty when it named none.
    canary: `<prompt>@<round>` of a proven canary; empty for others, and without its signature.
    """

    id: str
    source: str
    adapter: str
    preemptions: int
    aborted: bool
    start_ns: int
    end_ns: int
    num_prompt_tokens: int
    coverage: CoverageAnswer
    layers: list[int]
    populations: dict[str, dict[str, list[int] | SignalSums]]
    nonfinite: list[int]
    tables: dict[str, list[TableCell]]
    trace_id: str
    canary: str
    serving: FinishedAnswer | None


class RequestsAnswer(BaseModel):
    """Finished requests, latest first; `num_left_out` more did not fit into one answer."""

    requests: list[RequestAnswer]
    num_left_out: int


def requests_answer(
    measured: Sequence[Measured],
    limit: int | None = None,
    canaries: Mapping[str, str] | None = None,
) -> RequestsAnswer:
    """As many of the first of `measured` as fit, with all raw sums.

    canaries: `<prompt>@<round>` by engine id, of those that are canaries.
    Raises Unanswerable when a client asked for `limit` of them, and fewer fit.
    """
    kept = portion(measured, _num_numbers, limit)
    return RequestsAnswer(
        requests=[_request(each, (canaries or {}).get(each.request.id, "")) for each in kept],
        num_left_out=len(measured) - len(kept),
    )


def _request(measured: Measured, canary: str) -> RequestAnswer:
    request = measured.request
    moments = Arrays.unpack(request.moments, len(measured.layers))
    return RequestAnswer(
        id=request.id,
        source=measured.source,
        adapter=request.adapter,
        preemptions=request.preemptions,
        aborted=measured.aborted is not None,
        start_ns=request.start_ns,
        end_ns=request.end_ns,
        num_prompt_tokens=request.num_prompt_tokens,
        coverage=coverage_answer(request.coverage),
        layers=list(measured.layers),
        populations={
            f"{phase}/{position}": _population(moments, population)
            for population, (phase, position) in enumerate(POPULATIONS)
            if moments.count[population].any()
        },
        nonfinite=moments.nonfinite.tolist(),
        tables=_tables(request.tables),
        trace_id=_trace_id(measured.traceparent),
        canary=canary,
        serving=_finished(measured.serving),
    )


def _trace_id(header: str) -> str:
    context = parse(header)
    return context.trace_id if context else ""


def _population(moments: Arrays, population: int) -> dict[str, list[int] | SignalSums]:
    rows = moments.count[population]
    answer: dict[str, list[int] | SignalSums] = {"rows": rows.tolist()}
    for signal, name in enumerate(_SIGNAL_IDS):
        sums = moments.sums[population, :, signal]
        ends = moments.extremes[population, :, signal]
        answer[name] = SignalSums(
            sum=sums[:, 0].tolist(),
            log_sum=sums[:, 1].tolist(),
            log_square_sum=sums[:, 2].tolist(),
            min=[known(value) for value in ends[:, 0].tolist()],
            max=[known(value) for value in ends[:, 1].tolist()],
            mean=[
                total / count if count else None
                for total, count in zip(sums[:, 0].tolist(), rows.tolist(), strict=True)
            ],
        )
    return answer


def _finished(done: Finished | None) -> FinishedAnswer | None:
    if done is None:
        return None
    told = {name: getattr(done, name) for name in done.__struct_fields__}
    for name in _MAY_BE_UNKNOWN:
        told[name] = known(told[name])
    return FinishedAnswer(**told)


def _tables(tables: Sequence[Table]) -> dict[str, list[TableCell]]:
    answer: dict[str, list[TableCell]] = {}
    for table in tables:
        answer.setdefault(table.group, []).extend(_cells(table))
    return answer


def _cells(table: Table) -> Iterator[TableCell]:
    group, cells = GROUPS[table.group], Cells.unpack(table)
    for place in np.argwhere(cells.count):
        cell = tuple(place)
        yield TableCell(
            labels={
                axis: labels[at]
                for axis, labels, at in zip(group.axes, table.axes, cell, strict=True)
            },
            count=int(cells.count[cell]),
            signals={
                signal.id: _cell_sums(cells, (*cell, index))
                for index, signal in enumerate(group.signals)
            },
        )


def _cell_sums(cells: Cells, at: tuple[int, ...]) -> CellSums:
    total, phi_sum, phi_square_sum = cells.sums[at].tolist()
    smallest, largest = cells.extremes[at].tolist()
    return CellSums(
        mean=total / int(cells.count[at[:-1]]),
        sum=total,
        phi_sum=phi_sum,
        phi_square_sum=phi_square_sum,
        min=known(smallest),
        max=known(largest),
        last=known(float(cells.last[at])) if cells.last.size else None,
    )


def _num_numbers(measured: Measured) -> int:
    """About how many numbers the answer of one request holds, at most."""
    moments = measured.request.moments
    in_tables = sum(
        (len(table.count) // 8) * (1 + 7 * len(GROUPS[table.group].signals))
        for table in measured.request.tables
    )
    return len(moments.count) // 8 + 2 * (len(moments.sums) // 8) + in_tables
