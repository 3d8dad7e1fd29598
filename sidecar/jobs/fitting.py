"""Fit recordings: two passes (`fold.drift.plan`) over their parts, added up in a fixed order.

Guarantees: the same recordings give the same fit to the last bit, in whatever order they are named
and on whatever pool; memory is that of one part's fit and the sum, whatever the recordings hold.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sidecar.errors import BaselineError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header, compare, joined
from sidecar.fold.drift.plan import Plan, Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Assembly
from sidecar.jobs.pool import Advance, Pool
from sidecar.store.recording import Recording

PART_REQUESTS: Final = 1 << 15

Part = tuple[Recording, ...]


def parts_of(recordings: Sequence[Recording], num_requests: int = PART_REQUESTS) -> list[Part]:
    """Recordings in order of time, by parts of at most `num_requests`, but whole files."""
    parts: list[list[Recording]] = []
    room = 0
    for each in sorted(recordings, key=lambda each: (each.header.start_ns, each.path)):
        if not parts or each.num_requests > room:
            parts.append([])
            room = num_requests
        parts[-1].append(each)
        room -= each.num_requests
    return [tuple(part) for part in parts]


def header_of(recordings: Sequence[Recording], assembly: Assembly) -> Header:
    """What all of them are of, with the span of all. BaselineError names the one that differs."""
    if not any(each.num_requests for each in recordings):
        raise StoreError("there is no request in these recordings; serve some first")
    first, *rest = recordings
    header = first.header
    for each in rest:
        try:
            header = joined(header, each.header)
        except BaselineError as error:
            raise BaselineError(f"{each.path} and those before it: {error}") from error
    return header._replace(assembly=assembly)


def check_comparable(recordings: Sequence[Recording], baseline: Baseline) -> None:
    """BaselineError, with the file and the field, unless all can be compared with `baseline`."""
    for each in recordings:
        refusals = compare(baseline.header, each.header).refusals
        if refusals:
            told = "; ".join(map(str, refusals))
            raise BaselineError(
                f"{each.path} cannot be compared with the baseline ({told}); "
                "fit one from such recordings"
            )


def survey_recordings(recordings: Sequence[Recording], pool: Pool, advance: Advance) -> Plan:
    """The first pass; `advance` is told of requests."""
    parts = parts_of(recordings)
    schema = Schema.of(recordings[0].header.layout)
    total = Survey(schema)
    for part, survey in zip(parts, pool.map(partial(_survey, schema), parts), strict=True):
        total.merge(survey)
        advance(num_requests(part))
    return total.get()


def fit_recordings(
    recordings: Sequence[Recording], header: Header, plan: Plan, pool: Pool, advance: Advance
) -> Fit:
    """The second pass; `advance` is told of requests."""
    parts = parts_of(recordings)
    bare = header._replace(start_ns=0, end_ns=0)
    total = Fit(bare, plan)
    for part, fit in zip(parts, pool.map(partial(_fit, bare, plan), parts), strict=True):
        total.merge(fit)
        advance(num_requests(part))
    return total


def _survey(schema: Schema, part: Part) -> Survey:
    survey = Survey(schema)
    _feed(part, survey.update)
    return survey


def _fit(header: Header, plan: Plan, part: Part) -> Fit:
    fit = Fit(header, plan)
    _feed(part, fit.update)
    return fit


def _feed(part: Part, update: Callable[..., object]) -> None:
    for recording in part:
        for observation in recording.observations():
            update(observation)


def num_requests(part: Part) -> int:
    """Requests in a part."""
    return sum(each.num_requests for each in part)
