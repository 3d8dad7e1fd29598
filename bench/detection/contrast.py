"""Replica contrast: one bad replica in eight, windows until it pages, and who is accused.

The windows of each replica are of real requests of the bundled model; those of the bad one are of a
changed model's. Drawn with replacement from finite pools, of the same prompts for every model.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection import bounds, tamper
from bench.detection.pools import CHUNK, Pool
from bench.detection.report import Delay
from bench.detection.stand import Stand
from bench.detection.traffic import START, observations
from bench.detection.worlds import MONTH
from bench.report import Section, progress
from sidecar.fold.drift.contrast import ContrastChannel
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.strata import stratum_of
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.drift.window import LENGTH_NS, Window

REPLICAS: Final = tuple(f"replica-{number}" for number in range(8))
BAD: Final = REPLICAS[3]
BEFORE: Final = 12  # windows in which the fleet is alike
TARGET: Final = 30  # windows
PER_WINDOW: Final = (60, 600)  # requests that each replica serves in a window


class Size(NamedTuple):
    """Runs of a case, windows of a run at most, requests of each pool.

    quiet: windows of a fleet in which all are alike, and runs of it.
    """

    runs: int = 10
    patience: int = 144
    requests: int = 2 * CHUNK
    quiet: int = 2016
    quiet_runs: int = 2
    cases: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """Windows from the change to the page, infinite for never; and whether it named the bad one."""

    delay: float
    is_right: bool


def run(size: Size) -> Section:
    """Every change on one replica of eight, and none."""
    stand = Stand.of()
    schema = Schema.of(stand.layout())
    # The same prompts as those of the changed models: replicas differ in the model alone.
    good = Rows.of(schema, stand.pool("judged", size.requests))
    pages = sum(
        _quiet(schema, good, np.random.default_rng([19, number]), size.quiet)
        for number in range(size.quiet_runs)
    )
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for case in tamper.cases(stand.text, stand.tokens):
        if size.cases and case.name not in size.cases:
            continue
        progress(f"contrast: {case.name}")
        changed = tamper.applied(case.make, stand.model, 0)
        bad = Rows.of(schema, stand.changed_pool(case.slug, changed, size.requests))
        found = {num: _outcomes(schema, good, bad, num, size) for num in PER_WINDOW}
        rows.append([case.name, *(cell for each in found.values() for cell in _cells(case, each))])
        figures[case.name] = {"must_page": case.finds} | {
            str(num): Delay.of(each.delay for each in outcomes).plain()
            | {"right": sum(each.is_right for each in outcomes)}
            for num, outcomes in found.items()
        }
    return _section(rows, figures, pages, size)


class Rows(NamedTuple):
    """A pool as strata: name of each request's stratum as a place in `names`, values [n, p]."""

    names: list[str]
    strata: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, schema: Schema, pool: Pool) -> "Rows":
        """The requests of `pool`."""
        every = observations(pool, [np.arange(pool.num)])
        names, strata = np.unique([stratum_of(each) for each in every], return_inverse=True)
        return cls([str(name) for name in names], strata, schema.scalars(pool.values))

    def window(self, rng: np.random.Generator, number: int, num: int) -> Window:
        """A window of `num` requests, drawn with replacement."""
        places = rng.integers(len(self.values), size=num)
        strata = {}
        for which in np.unique(self.strata[places]):
            moments = Moments(self.values.shape[1])
            moments.update(self.values[places[self.strata[places] == which]])
            strata[self.names[which]] = moments
        start_ns = (START + number) * LENGTH_NS
        return Window(start_ns, start_ns + LENGTH_NS, num, strata)


def outcome(
    schema: Schema, good: Rows, bad: Rows, rng: np.random.Generator, patience: int, num: int
) -> Outcome:
    """A fleet of eight whose fourth replica changes after `BEFORE` windows."""
    channel = ContrastChannel(schema)
    channel.expect(REPLICAS)
    for number in range(BEFORE + patience):
        for name in REPLICAS:
            rows = bad if name == BAD and number >= BEFORE else good
            channel.update(name, rows.window(rng, number, num))
        accused = list(_accused(channel))
        if accused and number >= BEFORE:
            return Outcome(number - BEFORE + 1.0, accused == [BAD])
        if accused:
            channel.acknowledge((START + number + 1) * LENGTH_NS)
    return Outcome(float("inf"), is_right=False)


def _quiet(schema: Schema, good: Rows, rng: np.random.Generator, num_windows: int) -> int:
    channel = ContrastChannel(schema)
    channel.expect(REPLICAS)
    for number in range(num_windows):
        if number % 100 == 0:
            progress(f"contrast: nothing changed, window {number} of {num_windows}")
        for name in REPLICAS:
            channel.update(name, good.window(rng, number, PER_WINDOW[0]))
        if list(_accused(channel)):
            channel.acknowledge((START + number + 1) * LENGTH_NS)
    return channel.num_pages


def _accused(channel: ContrastChannel) -> Iterator[str]:
    return (each.name for each in channel.replicas() if each.state is ChannelState.PAGE)


def _outcomes(schema: Schema, good: Rows, bad: Rows, num: int, size: Size) -> list[Outcome]:
    return [
        outcome(schema, good, bad, np.random.default_rng([23, number]), size.patience, num)
        for number in range(size.runs)
    ]


def _cells(case: tamper.Case, found: list[Outcome]) -> tuple[str, str]:
    """Delay, and what it means."""
    told = Delay.of(each.delay for each in found)
    paged = told.runs - told.missed
    right = sum(each.is_right for each in found)
    named = "" if right == paged else f", {paged - right} named another"
    if not case.finds:
        verdict = "quiet, as it must be" if not paged else "PAGED, and must not"
    elif told.missed:
        verdict = "missed" if not paged else "partly missed"
    else:
        verdict = "met" if told.median <= TARGET else "MISSED"
    return str(told), verdict + named


def _section(rows: list[list[str]], figures: dict[str, Any], pages: int, size: Size) -> Section:
    exposure = size.quiet * size.quiet_runs
    upper = bounds.upper_rate(pages, exposure / MONTH)
    columns = ["change of the one"]
    for num in PER_WINDOW:
        columns += [f"{num} requests a window: median / p90", f"within {TARGET} (median)"]
    return Section(
        "One bad replica in eight: windows to the page",
        columns,
        rows,
        {
            "size": size._asdict(),
            "changes": figures,
            "quiet": {"pages": pages, "windows": exposure, "upper": upper},
        },
        [
            (
                f"Eight replicas alike, {PER_WINDOW[0]} requests a window each: {pages} pages in "
                f"{exposure} windows, at most {upper:.2f} a month (95 %): a bound only."
            ),
            (
                f"Every window is drawn with replacement from {size.requests} requests, the same "
                "prompts for every model."
            ),
        ],
    )


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    if is_quick:
        return Size(2, 48, requests=384, quiet=60, quiet_runs=1, cases=QUICK)
    return Size()


QUICK: Final = ("int4 weights, groups of 32",)
