"""The tables of the overhead bench, from its figures: printed, and put into docs/performance.md."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from bench.arms import AGAIN, HOOKS, ON, REFERENCE
from bench.engines import Workload
from bench.ratios import Comparison, Ratio, Taken, compare, verdict
from bench.shapes import LEAST_RATE, MOST_DEVICE_MEMORY, MOST_START, MOST_TOKEN_TIME

_COLUMNS = (
    "arm",
    "over",
    "workload",
    "batch",
    "rounds",
    "tok/s before",
    "tok/s",
    "tok/s ratio",
    "token time p50",
    "token time p99",
    "first token",
    "target",
)


class Row(NamedTuple):
    """One arm over its reference, on one workload; rates in tokens per second."""

    arm: str
    reference: str
    workload: str
    batch: int
    rounds: int
    reference_rate: float
    rate: float
    compared: Comparison


def row(
    workload: Workload, arm: str, reference: str, before: Sequence[Taken], after: Sequence[Taken]
) -> Row:
    """Compare turns taken in pairs."""
    return Row(
        arm,
        reference,
        workload.name,
        workload.batch,
        len(after),
        median(each.rate for each in before),
        median(each.rate for each in after),
        compare(before, after),
    )


def start_rows(
    starts: Mapping[str, Mapping[str, float]], compared: Sequence[str]
) -> list[dict[str, Any]]:
    """What each arm added to loading, and to memory, over its reference."""
    found = []
    for arm in compared:
        ours, theirs = starts[arm], starts[REFERENCE[arm]]
        added = {
            f"added_{each}": ours[each] - theirs[each] for each in ("device_bytes", "host_bytes")
        }
        ratio = ours["load_seconds"] / theirs["load_seconds"]
        found.append({"arm": arm, "reference": REFERENCE[arm], "load_ratio": ratio} | added)
    return found


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Two tables in lines of Markdown: what serving costs, and what starting does."""
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|---|---|---|" + "---:|" * 4 + "---|" * 5
    for each in found["rows"]:
        yield f"| {' | '.join(_cells(each, found['shape_name']))} |"
    yield ""
    if found["start_ratios"]:
        yield from _starts(found)
    yield from _notes(found)


def _starts(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| arm | over | load and compile, s | ratio | device memory added | host memory added |"
    yield "|---|---|---:|---:|---:|---:|"
    for each in found["start_ratios"]:
        ours, theirs = (found["starts"][each[k]]["load_seconds"] for k in ("arm", "reference"))
        told = f"{theirs:.0f} to {ours:.0f} | {each['load_ratio']:.2f} | {_share(each, found)}"
        host = _mb(each["added_host_bytes"])
        yield f"| {each['arm']} | {each['reference']} | {told} | {host} |"
    yield ""
    yield (
        "Engines were loaded one after the other, each with a cache of its own; the target for the "
        f"tap is a ratio of at most {MOST_START:.2f}."
    )


def _cells(each: Mapping[str, Any], shape: str) -> list[str]:
    compared = {k: None if v is None else Ratio(**v) for k, v in each["compared"].items()}
    rate, first = compared["rate"], compared["first"]
    return [
        each["arm"],
        each["reference"],
        each["workload"],
        str(each["batch"]),
        str(each["rounds"]),
        f"{each['reference_rate']:,.1f}",
        f"{each['rate']:,.1f}",
        str(rate),
        _told(compared["token_p50"]),
        _told(compared["token_p99"]),
        _told(first),
        _target(each["arm"], shape, rate, compared["token_p99"]),
    ]


def _told(found: Ratio | None) -> str:
    return "" if found is None else str(found)


def _target(arm: str, shape: str, rate: Ratio | None, p99: Ratio | None) -> str:
    if arm != ON or rate is None:
        return ""
    least = LEAST_RATE[shape]
    told = f"tok/s >= {least}: {verdict(rate, least=least)}"
    if p99 is not None:
        told += f"; p99 <= {MOST_TOKEN_TIME}: {verdict(p99, most=MOST_TOKEN_TIME)}"
    return told


def _share(each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if found["device"] == "cpu":
        return ""
    whole = found["starts"][each["reference"]]["device_bytes"]
    share = each["added_device_bytes"] / whole
    return f"{_mb(each['added_device_bytes'])}, {share:.2%} (at most {MOST_DEVICE_MEMORY:.1%})"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Every tapped arm measured all of its work: nothing was shed, lost or left out, or there "
        "would be no figure."
    )
    if AGAIN in found["arms"]:
        yield (
            "`again` is `off` once more: engines that are alike differ by so much from process to "
            "process, and an interval over turns of the same two does not know of it."
        )
    if HOOKS in found["arms"]:
        yield (
            "`hooks` is our re-implementation of a common technique (eager mode, a forward hook "
            "on every layer, its output copied to the CPU), for scale; no product was measured."
        )
