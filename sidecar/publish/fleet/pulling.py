"""What one exporter tells of its windows, read as a stranger's word.

Guarantee: a window that leaves here is arithmetic that holds: counts that are not negative, sums
and squares that are finite and of the size of float32, as many requests as its strata have, of the
asked length, and not of the future. Everything else is a FleetError, and changes nothing.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx
import msgspec
import numpy as np

from sidecar.errors import FleetError, StateError
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import LONGEST_NS, MAX_STRATA, Window
from sidecar.publish.fleet.directory import Exporter
from sidecar.publish.fleet.fetching import Limits, fetch, shown
from sidecar.wire.signature import Layout

_MAX_PAGES: Final = 8  # of one exporter in one round
_MAX_WINDOWS: Final = 1000
_MAX_LAYOUTS: Final = 64
_MAX_NAME: Final = 400  # of a stratum
_MAX_ROWS: Final = 10**9  # of one window
_LARGEST: Final = float(np.finfo(np.float32).max)


class Kind(NamedTuple):
    """What a window's numbers are of; those of one kind can be compared.

    baseline: digest of the baseline by whose strata it was folded; "" without one.
    """

    schema: Schema
    baseline: str

    @property
    def key(self) -> str:
        """Both in one word."""
        return f"{self.schema.digest}/{self.baseline}"


class Told(NamedTuple):
    """One window, and what it is of."""

    kind: Kind
    window: Window


class Pulled(NamedTuple):
    """Windows in the exporter's order, and the cursor for the next question."""

    cursor: int
    windows: tuple[Told, ...]


class Terms(NamedTuple):
    """What a window must be like; times in nanoseconds."""

    length_ns: int
    now_ns: int


async def pull(
    client: httpx.AsyncClient,
    exporter: Exporter,
    after: int,
    terms: Terms,
    seconds: float,
    token: bytes | None = None,
) -> Pulled:
    """Windows that `exporter` closed after cursor `after`. Raises FleetError.

    token: what its API asks for; it is sent to no other address.
    """
    url = f"{exporter.url}/v1/windows"
    cursor, told, is_cut = after, list[Told](), True
    for _ in range(_MAX_PAGES):
        body = await fetch(client, url, {"after": str(cursor)}, Limits(seconds), token)
        answer = _decoded(body, url)
        try:
            told += [_told(answer, each, terms) for each in answer.windows]
        except (StateError, TypeError, AttributeError) as error:
            raise FleetError("schema", f"{shown(url)}: {error}") from error
        is_cut = answer.is_cut and answer.next > cursor
        cursor = answer.next
        if not is_cut:
            break
    return Pulled(cursor, tuple(told))


class _Window(msgspec.Struct):
    layout: str
    baseline: str
    window: dict[str, Any]


class _Answer(msgspec.Struct):
    next: int
    is_cut: bool
    layouts: dict[str, dict[str, Any]]
    windows: list[_Window]


def _decoded(body: bytes, url: str) -> _Answer:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FleetError("decode", f"{shown(url)}: no windows: {error}") from error
    if len(answer.windows) > _MAX_WINDOWS or len(answer.layouts) > _MAX_LAYOUTS:
        raise FleetError("oversized", f"{shown(url)}: more windows or layouts than there can be")
    return answer


def _told(answer: _Answer, each: _Window, terms: Terms) -> Told:
    kind = Kind(_schema(answer.layouts.get(each.layout)), each.baseline[:_MAX_NAME])
    strata = each.window.get("strata")
    if not isinstance(strata, dict) or not 0 < len(strata) <= MAX_STRATA + 1:
        raise FleetError("schema", "a window has at least one stratum, and a few hundred at most")
    if any(_has_gaps(moments) for moments in strata.values()):
        raise FleetError("value", "a count, sum or square that is not a number")
    with np.errstate(invalid="ignore"):  # a count beyond int64 becomes one that is refused below
        window = Window.from_plain(each.window, kind.schema.num_streams)
    _check_time(window, terms)
    _check_values(window)
    return Told(kind, window)


def _schema(layout: Mapping[str, Any] | None) -> Schema:
    try:
        fields = [] if layout is None else [layout[f] for f in Layout.__struct_fields__]
        return Schema.of(msgspec.convert(fields, Layout))
    except (KeyError, msgspec.ValidationError) as error:
        raise FleetError("schema", f"no layout of signatures: {error}") from error


def _has_gaps(moments: Mapping[str, Any]) -> bool:
    """JSON has no NaN: null stands for it, which is no count and no sum."""
    return any(None in moments.get(field, ()) for field in ("n", "nonfinite", "total", "m2"))


def _check_time(window: Window, terms: Terms) -> None:
    length_ns = window.end_ns - window.start_ns
    if length_ns <= 0 or length_ns % terms.length_ns or window.start_ns % terms.length_ns:
        raise FleetError(
            "time",
            f"a window of {length_ns / 1e9:g} s, where {terms.length_ns / 1e9:g} s are asked for: "
            "give the exporters and this job the same SIDECAR_WINDOW_SECONDS",
        )
    if length_ns > max(LONGEST_NS, terms.length_ns) or window.start_ns < 0:
        raise FleetError("time", f"a window of {length_ns / 1e9:g} s, which is too long")
    if window.end_ns > terms.now_ns + terms.length_ns:
        raise FleetError("time", "a window that has not ended yet: correct that host's clock")


def _check_values(window: Window) -> None:
    counts = [moments.num_rows for moments in window.strata.values()]
    if min(counts) < 0 or sum(counts) != window.num_requests or sum(counts) > _MAX_ROWS:
        raise FleetError("value", "its strata do not have as many requests as the window")
    for name, moments in window.strata.items():
        if len(name) > _MAX_NAME or not _is_arithmetic(moments):
            raise FleetError("value", "counts, sums and squares that no values have")


def _is_arithmetic(moments: Moments) -> bool:
    n, total, m2 = moments.n, moments.total, moments.m2
    counted = (n >= 0) & (moments.nonfinite >= 0) & (n + moments.nonfinite <= moments.num_rows)
    finite = np.isfinite(total) & np.isfinite(m2)
    bounded = (np.abs(total) <= n * _LARGEST) & (m2 >= 0) & (m2 <= n * _LARGEST * _LARGEST)
    alone = (n > 1) | (m2 == 0)
    return bool((counted & finite & bounded & alone).all())
