"""Is the model behaving as usual? One sentence, for the page, the terminal and the landing page.

Guarantees: the worst is told first: a page that is latched, then telemetry that cannot be trusted,
then a ticket, then that nothing judges yet; "as usual" is said only while a channel that compares
with something known is armed, and every tap is live.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.reducer import Snapshot
from sidecar.publish.api.answers import SummaryAnswer
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.vitals import reasons, tap_live

MAX_LAYERS: Final = 5
# What these have found nothing odd in is as usual; integrity alone knows no "usual".
_COMPARING: Final = ("canary", "traffic", "mix", "tail")
_REMEDY: Final = "set SIDECAR_CANARY_URL, or fit a baseline and set SIDECAR_BASELINE_FILE"


def summary_answer(snapshot: Snapshot, view: DriftView) -> SummaryAnswer:
    """How things stand at one moment."""
    verdicts = [each.verdict for each in view.channels if each.is_configured]
    doubts = reasons(snapshot)
    pages = _in_state(verdicts, ChannelState.PAGE)
    if pages:
        blind = f" Beyond that the sidecar is {_blind(snapshot, doubts)}" if doubts else ""
        return _found("page", "The model does not behave as usual", pages, view, blind)
    if doubts:
        sentence = f"The sidecar is {_blind(snapshot, doubts)}"
        return _summary("blind", sentence, _blind_since(snapshot))
    tickets = _in_state(verdicts, ChannelState.TICKET)
    if tickets:
        return _found("ticket", "The model is worth a look", tickets, view)
    return _calm(verdicts, view)


def _calm(verdicts: Sequence[Verdict], view: DriftView) -> SummaryAnswer:
    comparing = [each for each in verdicts if each.channel in _COMPARING]
    armed = _in_state(comparing, ChannelState.ARMED)
    waiting = [f"{each.channel}: {each.reason}" for each in comparing if each not in armed]
    if armed:
        names = _listed(each.channel for each in armed)
        more = f" Not judging yet: {'; '.join(waiting)}." if waiting else ""
        sentence = f"The model behaves as usual, says {names}.{more}"
        return _summary("ok", sentence, _changed_ns(armed, view))
    if waiting:
        sentence = f"Nothing odd was seen, but nothing judges yet: {'; '.join(waiting)}."
    else:
        sentence = f"Nothing odd was seen, but nothing says what is usual: {_REMEDY}."
    return _summary("collecting", sentence, None)


def _found(
    level: str, claim: str, verdicts: Sequence[Verdict], view: DriftView, more: str = ""
) -> SummaryAnswer:
    times = [each.since_ns for each in verdicts if each.since_ns is not None]
    since = min(times) if times else _changed_ns(verdicts, view)
    layers = _layers(cause for each in verdicts for cause in each.causes)
    when = f" since {_clock(since)}" if since is not None else ""
    where = (
        f", most in layer{'s' * (len(layers) > 1)} {_listed(map(str, layers))}" if layers else ""
    )
    told = "; ".join(f"{each.channel}: {each.reason}" for each in verdicts)
    sentence = f"{claim}{when}{where} ({told}).{more}"
    return _summary(level, sentence, since, layers)


def _summary(
    level: str, sentence: str, since_ns: int | None, layers: Sequence[int] = ()
) -> SummaryAnswer:
    told = {"level": level, "sentence": sentence, "since_ns": since_ns, "layers": list(layers)}
    return SummaryAnswer.model_validate(told)


def _blind(snapshot: Snapshot, doubts: Sequence[str]) -> str:
    partly = any(tap_live(view) for view in snapshot.sources)
    return f"{'partly ' if partly else ''}blind: {'; '.join(doubts)}."


def _blind_since(snapshot: Snapshot) -> int | None:
    """When a source was last heard that is not heard now; None when none ever was."""
    silent = [view.heard_ns for view in snapshot.silent if view.heard_ns]
    return min(silent, default=None)


def _changed_ns(verdicts: Iterable[Verdict], view: DriftView) -> int | None:
    """When the first of these channels came to where it is."""
    last = {change.channel: change for change in view.history}
    times = [last[each.channel].t_ns for each in verdicts if each.channel in last]
    return min(times, default=None)


def _layers(causes: Iterable[Cause]) -> list[int]:
    """Layers with a stream beyond its limit, the furthest first."""
    beyond = sorted((each for each in causes if each.share >= 1), key=lambda each: -each.share)
    found = dict.fromkeys(cause.layer for cause in beyond if cause.layer is not None)
    return list(found)[:MAX_LAYERS]


def _in_state(verdicts: Iterable[Verdict], state: ChannelState) -> list[Verdict]:
    return [each for each in verdicts if each.state is state]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _clock(t_ns: int) -> str:
    return datetime.fromtimestamp(t_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
