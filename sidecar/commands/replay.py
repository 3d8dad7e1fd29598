"""`sidecar replay`: what would have paged, had this baseline judged what was recorded.

Exit status 3 when something would have paged, 0 when nothing would.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.commands.baseline import options
from sidecar.commands.baseline.summary import when
from sidecar.commands.progress import progress

if TYPE_CHECKING:
    from sidecar.fold.drift.verdict import Cause, Verdict
    from sidecar.jobs.replay import Event, Replayed

HELP: Final = "judge recordings by a baseline; print what would have paged"
PAGED: Final = 3
_MAX_CAUSES: Final = 3


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_recordings(parser)
    parser.add_argument("--baseline", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="every event and cause, as JSON")
    options.add_trust(parser)
    options.add_preset(parser)


def run(parsed: argparse.Namespace) -> int:
    """Replay and print."""
    recordings = options.recordings_of(parsed)
    baseline = options.baseline_of(parsed.baseline, parsed)
    from sidecar.jobs.fitting import num_requests
    from sidecar.jobs.replay import replay

    with progress("replay", num_requests(tuple(recordings))) as advance:
        replayed = replay(recordings, baseline, advance, options.policy_of(parsed))
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(_plain(replayed))).decode())
    else:
        _print(replayed)
    return PAGED if replayed.num_pages else 0


def _print(replayed: "Replayed") -> None:
    span = f"{when(replayed.start_ns)} to {when(replayed.end_ns)}"
    print(
        f"{replayed.num_requests} requests, {replayed.num_windows} windows "
        f"({replayed.num_insufficient} with too few requests), {span}"
    )
    for alike in _by_kind(replayed):
        _print_events(alike)
    for verdict in replayed.verdicts:
        print(f"{verdict.channel} in the end: {verdict.state}: {verdict.reason}")
    num_tickets = len(replayed.events) - replayed.num_pages
    print(f"would have paged {replayed.num_pages} times, and raised {num_tickets} tickets")


def _by_kind(replayed: "Replayed") -> "list[list[Event]]":
    """Events of one channel and state together, in order of their first."""
    found: dict[tuple[str, str], list[Event]] = {}
    for event in replayed.events:
        found.setdefault((event.verdict.channel, event.verdict.state), []).append(event)
    return list(found.values())


def _print_events(alike: "list[Event]") -> None:
    first, verdict = alike[0], alike[0].verdict
    since = f", since {when(verdict.since_ns)}" if verdict.since_ns is not None else ""
    print(f"{when(first.t_ns)}  {verdict.state}  {verdict.channel}{since}: {verdict.reason}")
    for cause in verdict.causes[:_MAX_CAUSES]:
        print(f"    {cause.stream} {cause.side}, {cause.share:.2f} of its limit")
    if len(alike) > 1:
        last = when(alike[-1].t_ns)
        print(f"    and {len(alike) - 1} times more until {last}; --json tells each")


def _plain(replayed: "Replayed") -> dict[str, Any]:
    return {
        **replayed._asdict(),
        "num_pages": replayed.num_pages,
        "events": [{"t_ns": e.t_ns, **_verdict(e.verdict)} for e in replayed.events],
        "verdicts": [_verdict(each) for each in replayed.verdicts],
    }


def _verdict(verdict: "Verdict") -> dict[str, Any]:
    return {**verdict._asdict(), "causes": [_cause(each) for each in verdict.causes]}


def _cause(cause: "Cause") -> dict[str, Any]:
    return cause._asdict()
