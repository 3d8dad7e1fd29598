"""The sidecar's own health: every reason why the telemetry is not to be trusted right now.

Guarantee: no reason means that every tap heard of is live, heard within the staleness limit and
understood. "No data yet" is a reason, never an error, and a vanished source stays a reason for
ten minutes. No reason says anything about whether the engine serves: never gate traffic on it.
"""

from collections.abc import Iterator
from typing import Final

from sidecar.fold.reducer import Snapshot
from sidecar.fold.source import SourceView

LIVE: Final = "live"
_REMEDIES: Final = {
    "schema": "install the same llm-internals-sidecar release in the engine and here",
    "mac": "give both sides the same SIDECAR_KEY_FILE",
}


def reasons(snapshot: Snapshot) -> list[str]:
    """Why the telemetry is not to be trusted, one sentence each with its remedy; empty is ready."""
    return [
        *_unheard(snapshot),
        *(reason for view in snapshot.sources for reason in _doubts(view, snapshot)),
        *(_silence(view, snapshot) for view in snapshot.silent),
        *_refusals(snapshot),
    ]


def tap_live(view: SourceView) -> bool | None:
    """Whether the tap of a source is proven to run; None where no tap is to be expected."""
    if view.source.role == "engine":
        return view.status is not None and view.status.state == LIVE
    # A front end has no tap; it speaks of one only to say that the whole engine is refused.
    refused = view.status is not None and view.status.state == "refused"
    return False if refused else None


def _unheard(snapshot: Snapshot) -> Iterator[str]:
    if not any(view.source.role == "engine" for view in (*snapshot.sources, *snapshot.silent)):
        yield (
            "no engine has been heard yet: start vLLM with SIDECAR_TAP=1 and the same "
            "SIDECAR_SOCKET as this sidecar; where VLLM_PLUGINS is set, it must list "
            "llm_internals_sidecar"
        )


def _doubts(view: SourceView, snapshot: Snapshot) -> Iterator[str]:
    if not _is_recent(view.heard_ns, snapshot):
        limit = snapshot.limits.max_age_ns / 1e9
        yield f"{view.name}: its frames are older than {limit:g} s when read; give it more CPU"
    elif not _is_well(view):
        yield f"{view.name}: {_state(view)}"
    if _is_recent(view.contested_ns, snapshot):
        yield (
            f"{view.name}: two processes speak under this name; give each engine a sidecar and a "
            "SIDECAR_SOCKET of its own"
        )


def _is_well(view: SourceView) -> bool:
    if view.source.role == "engine":
        return tap_live(view) is True
    return view.status is None or view.status.state in (LIVE, "starting")


def _state(view: SourceView) -> str:
    status = view.status
    if status is None:
        return "its tap has not said yet what state it is in"
    return f"its tap is {status.state}" + (f": {status.detail}" if status.detail else "")


def _silence(view: SourceView, snapshot: Snapshot) -> str:
    seconds = (snapshot.now_ns - view.arrived_ns) / 1e9
    return f"{view.name}: silent for {seconds:.0f} s; has its process ended?"


def _refusals(snapshot: Snapshot) -> Iterator[str]:
    for cause, remedy in _REMEDIES.items():
        if _is_recent(snapshot.refused_ns.get(cause, 0), snapshot):
            yield f"frames are being refused ({cause}): {remedy}"


def _is_recent(t_ns: int, snapshot: Snapshot) -> bool:
    return bool(t_ns) and snapshot.now_ns - t_ns <= snapshot.limits.stale_ns
