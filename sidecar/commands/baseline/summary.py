"""What a baseline is, in lines for a reader; and whether it would arm each channel."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.fold.drift.baseline import Baseline
    from sidecar.fold.drift.policy import Policy
    from sidecar.fold.drift.verdict import Verdict


def print_summary(path: Path, baseline: "Baseline", policy: "Policy") -> None:
    """The file, its size, and the channels."""
    header = baseline.header
    span = f"{when(header.start_ns)} to {when(header.end_ns)}"
    print(f"{path}: baseline {baseline.digest[:12]}")
    print(f"  {baseline.num_requests} requests, {baseline.num_windows} windows, {span}")
    print(f"  {baseline.schema.num_streams} streams in {len(baseline.strata)} strata")
    for verdict in verdicts(baseline, policy):
        print(f"  {verdict.channel}: {verdict.state}: {verdict.reason}")


def verdicts(baseline: "Baseline", policy: "Policy") -> "list[Verdict]":
    """How each channel would start with this baseline."""
    from sidecar.fold.drift.mix import MixChannel
    from sidecar.fold.drift.tail import TailChannel
    from sidecar.fold.drift.traffic import TrafficChannel

    kinds = (TrafficChannel, MixChannel, TailChannel)
    return [kind(baseline, policy).get(baseline.header.end_ns) for kind in kinds]


def when(t_ns: int) -> str:
    """Unix time as a date in UTC, to the minute."""
    moment = datetime.datetime.fromtimestamp(t_ns / 1e9, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%MZ}"


def plain(baseline: "Baseline", policy: "Policy", signed_by: str) -> dict[str, Any]:
    """The same and more, for a machine."""
    calibration, tail = baseline.calibration, baseline.tail
    shares = {
        name: moments.num_rows / max(baseline.num_requests, 1)
        for name, moments in zip(baseline.plan.strata, baseline.strata, strict=True)
    }
    return {
        "digest": baseline.digest,
        "signed_by": signed_by,
        "header": baseline.header.to_plain(),
        "num_requests": baseline.num_requests,
        "num_windows": baseline.num_windows,
        "num_streams": baseline.schema.num_streams,
        "strata": shares,
        "calibration": calibration and calibration._asdict(),
        "num_tail_requests": tail.num_requests if tail else 0,
        "channels": {
            each.channel: {"state": str(each.state), "reason": each.reason}
            for each in verdicts(baseline, policy)
        },
    }
