"""The answers about scanned requests: which there are, and the picture of one.

Guarantees: every number is the one that was told; what was not measured, or is no finite number, is
null; an answer holds at most `scan.MAX_ROWS` columns, and says how many rows it leaves out.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sidecar.fold.scans import Scanned
from sidecar.fold.source import SourceView
from sidecar.wire.control import Control
from sidecar.wire.frame import Status
from sidecar.wire.scan import CONFIDENCE, MAX_REQUESTS, MAX_SHED_LEVEL
from sidecar.wire.signals import FAMILY_OF, LAYER_SIGNALS, SUMMARY_OF, Phase

NOT_TOLD: Final = "no request of this id was scanned, or others have taken its place"
HOW_TO: Final = (
    'POST /v1/scans {"num_requests": 1} or `sidecar control --scan 1`, then send the request; '
    "GET /v1/scans lists those that were scanned"
)


class ScanWish(BaseModel):
    """What a client asks for: scan the next so many requests; 0 ends what was asked before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    num_requests: Annotated[int, Field(ge=0, le=MAX_REQUESTS)]


class WishAnswer(BaseModel):
    """The operator's wish in force, and the revision of the control that says so."""

    scan_id: str
    num_requests: int
    revision: str


class ScanEntry(BaseModel):
    """One scanned request.

    t_ns: when its last rows were sent. num_rows: rows that it has by now; num_columns of them were
    told, num_rows_left_out were not. is_complete: it is over, and no more columns come.
    """

    id: str
    source: str
    t_ns: int
    num_prompt_tokens: int
    num_rows: int
    num_columns: int
    num_rows_left_out: int
    is_complete: bool


class ScansAnswer(BaseModel):
    """Scanned requests, latest first.

    wish: what was asked for last; null when nothing was. wish_problem: why it cannot be read, or
    which engine does not obey it yet, and why; empty when nothing is wrong.
    """

    wish: WishAnswer | None
    wish_problem: str
    scans: list[ScanEntry]


class ScanSignal(BaseModel):
    """One signal: for each column, a value per layer."""

    unit: str
    formula: str
    values: list[list[float | None]]


class TokenSignal(BaseModel):
    """One signal of the tokens: for each column, that of the token which the row led to."""

    unit: str
    formula: str
    values: list[float | None]


class ScanAnswer(BaseModel):
    """The picture of one request: a column for each token row, a value per layer in each.

    positions, phases: of the columns, by rising position. nonfinite: NaN and Inf elements in the
    residual stream, [columns][layers]; null when there was none. confidence: null when no token's
    was measured. num_rows_left_out: rows of the request that are not among the columns: found in
    the prefix cache, lost, shed, or beyond what a scan holds. is_complete: the request is over, and
    no more columns come. others: sources that tell of a request with this id too; ask with source=.
    """

    id: str
    source: str
    t_ns: int
    num_prompt_tokens: int
    num_rows: int
    layers: list[int]
    positions: list[int]
    phases: list[Phase]
    signals: dict[str, ScanSignal]
    nonfinite: list[list[int]] | None
    confidence: dict[str, TokenSignal] | None
    num_rows_left_out: int
    is_complete: bool
    others: list[ScanEntry]


def wish_answer(asked: Control) -> WishAnswer | None:
    """What `asked` says of scans."""
    if asked.scan_requests is None:
        return None
    return WishAnswer(
        scan_id=asked.scan_id, num_requests=asked.scan_requests, revision=asked.revision
    )


def scans_answer(
    scanned: Sequence[Scanned], wish: WishAnswer | None, wish_problem: str = ""
) -> ScansAnswer:
    """All of `scanned`, without their rows."""
    entries = [ScanEntry(**_entry(each)) for each in scanned]
    return ScansAnswer(wish=wish, wish_problem=wish_problem, scans=entries)


def not_obeying(wish: WishAnswer | None, sources: Iterable[SourceView]) -> str:
    """Which engine begins no scan although the operator wishes it, and why."""
    if wish is None or not wish.num_requests:
        return ""
    told = [(view.name, _reason(view.status, wish)) for view in sources if view.status is not None]
    return "; ".join(f"{name}: {reason}" for name, reason in told if reason)


def _reason(status: Status, wish: WishAnswer) -> str:
    if not status.num_layers:  # a front end, or a rank that another one speaks for
        return ""
    if reason := status.absent.get("scan"):
        return reason
    if status.shed_level > MAX_SHED_LEVEL:
        level = f"the budget leaves layers out (level {status.shed_level})"
        return f"{level}; the wish waits until it does not, or raise SIDECAR_BUDGET_SHARE"
    return "" if status.control == wish.revision else "it has not read the wish yet"


def scan_answer(scanned: Scanned, others: Sequence[Scanned] = ()) -> ScanAnswer:
    """The picture of one; `others` go by the same id."""
    columns, scan = scanned.columns(), scanned.scan
    entry = _entry(scanned)
    del entry["num_columns"]
    return ScanAnswer(
        **entry,
        layers=scan.layers,
        positions=columns.positions.tolist(),
        phases=[_phase(each, scan.num_prompt_tokens) for each in columns.positions.tolist()],
        signals={
            signal.id: ScanSignal(
                unit=SUMMARY_OF[signal.id].unit,
                formula=signal.formula,
                values=_known(columns.values[..., place]),
            )
            for place, signal in enumerate(LAYER_SIGNALS)
        },
        nonfinite=columns.nonfinite.tolist() if columns.nonfinite.any() else None,
        confidence=_confidence(columns.confidence),
        others=[ScanEntry(**_entry(each)) for each in others],
    )


def _entry(scanned: Scanned) -> dict[str, Any]:
    scan = scanned.scan
    return {
        "id": scan.id,
        "source": scanned.source,
        "t_ns": scanned.t_ns,
        "num_prompt_tokens": scan.num_prompt_tokens,
        "num_rows": scan.num_rows,
        "num_columns": scanned.num_columns,
        "num_rows_left_out": scanned.num_left_out,
        "is_complete": scan.is_final,
    }


def _phase(position: int, num_prompt_tokens: int) -> Phase:
    return Phase.PREFILL if position < num_prompt_tokens else Phase.DECODE


def _confidence(values: NDArray[np.float32] | None) -> dict[str, TokenSignal] | None:
    if values is None:
        return None
    return {
        signal.id: TokenSignal(
            unit=FAMILY_OF["confidence", signal.id].unit,
            formula=signal.formula,
            values=_known(values[:, place]),
        )
        for place, signal in enumerate(CONFIDENCE)
    }


def _known(values: NDArray[np.float32]) -> list[Any]:
    """Nested lists; null for what is no finite number."""
    told = values.astype(object)
    told[~np.isfinite(values)] = None
    nested: list[Any] = told.tolist()
    return nested
