"""What people would use instead, on the same streams: false pages in a month, and delay.

Requests are drawn around the window scores of a world, so that the shipped chain and CUSUM and
ADWIN see the window means of exactly those requests that KS and PSI see one by one.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection import delay, rivals, shipped, worlds
from bench.detection.report import Delay
from bench.report import Section, progress

SHIPPED: Final = "shipped traffic alarm"
NUM_REQUESTS: Final = 60  # of a window
NUM_REFERENCE: Final = 12_000  # requests of the reference that KS and PSI compare with
SHIFT: Final = 2.0
SHARE: Final = 0.1
PATIENCE: Final = 2 * worlds.DAY
AT_ONCE: Final = 288  # windows of requests held at a time

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Size(NamedTuple):
    """Months and runs of each world, streams."""

    months: int = 1
    runs: int = 12
    month: int = worlds.MONTH
    baseline: int = worlds.BASELINE
    streams: int = worlds.NUM_STREAMS
    worlds: tuple[str, ...] = ("iid", "t5", "AR(0.9)", "diurnal")


class Found(NamedTuple):
    """Of one detector in one world: pages and alarming windows by month, delays."""

    pages: list[int]
    windows: list[int]
    delays: list[float]


def run(size: Size) -> Section:
    """Every detector in every world."""
    names = (SHIPPED, *rivals.RIVALS)
    found = {world: {name: Found([], [], []) for name in names} for world in size.worlds}
    for place, world in enumerate(size.worlds):
        for number in range(size.months):
            progress(f"rivals: {world}, month {number + 1} of {size.months}")
            _month(found[world], world, np.random.default_rng([11, place, number]), size)
    return _section(found, size)


def alarming(baseline: Floats, scores: Floats, rng: np.random.Generator) -> Mapping[str, Bools]:
    """[T] windows in which each detector alarms on `scores` [T, p], by its name."""
    alarm = shipped.Alarm.of(baseline)
    reference = rivals.requests_of(baseline, rng, NUM_REQUESTS).reshape(-1, baseline.shape[1])
    reference = reference[rng.choice(len(reference), NUM_REFERENCE)]
    before, after = (rivals.standardised(baseline, each) for each in (baseline, scores))
    parts: dict[str, list[Bools]] = {name: [] for name in rivals.BY_REQUESTS}
    for start in range(0, len(scores), AT_ONCE):
        requests = rivals.requests_of(scores[start : start + AT_ONCE], rng, NUM_REQUESTS)
        for name, rival in rivals.BY_REQUESTS.items():
            parts[name].append(rival(reference, requests))
    return {
        SHIPPED: shipped.alarms(alarm.charts, alarm.score(scores)),
        **{name: np.concatenate(each) for name, each in parts.items()},
        **{name: rival(before, after) for name, rival in rivals.BY_MEANS.items()},
    }


def _month(found: Mapping[str, Found], world: str, rng: np.random.Generator, size: Size) -> None:
    length = delay.BEFORE + PATIENCE
    drawn = worlds.SCORED[world](rng, size.baseline + size.month + size.runs * length, size.streams)
    baseline, rest = drawn[: size.baseline], drawn[size.baseline :]
    for name, alarms in alarming(baseline, rest[: size.month], rng).items():
        found[name].pages.append(rivals.pages(alarms))
        found[name].windows.append(int(alarms.sum()))
    runs = rest[size.month :].reshape(size.runs, length, size.streams)
    for scores in delay.shifted(runs, rng, SHIFT, SHARE, delay.BEFORE):
        for name, alarms in alarming(baseline, scores, rng).items():
            after = np.flatnonzero(alarms[delay.BEFORE :])
            found[name].delays.append(float(after[0] + 1) if len(after) else np.inf)


def _section(found: Mapping[str, Mapping[str, Found]], size: Size) -> Section:
    months = size.month / worlds.MONTH
    rows = [
        [
            world,
            name,
            f"{np.mean(each.pages) / months:.1f}",
            f"{np.mean(each.windows) / months:.0f}",
            str(Delay.of(each.delays)),
        ]
        for world, detectors in found.items()
        for name, each in detectors.items()
    ]
    return Section(
        "Against what people would use instead, on the same streams",
        (
            "world",
            "detector",
            "false pages a month",
            "alarming windows a month (of 8640)",
            f"delay, {SHIFT:g} sd in {SHARE:.0%} of streams: median / p90",
        ),
        rows,
        {
            "size": size._asdict(),
            "requests_per_window": NUM_REQUESTS,
            "worlds": {
                world: {
                    name: each._asdict() | {"delays": Delay.of(each.delays).plain()}
                    for name, each in detectors.items()
                }
                for world, detectors in found.items()
            },
        },
        [
            (
                "A page is a run of alarming windows, so one that never ends counts once. Where a "
                "detector alarms all the time its "
                "delay says nothing: it would have alarmed in that window anyway."
            )
        ],
    )


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    if is_quick:
        return Size(1, 4, month=worlds.WEEK, streams=32, worlds=("iid", "AR(0.9)"))
    return Size()
