"""Delay: windows from a shift of the mean until the shipped traffic alarm pages.

A shift is in window-sd, up or down at random in each stream that it hits; the charts have run on
unchanged windows for six hours before it. Worlds where an alarm is slow stand here too: a chart
that never pages has no false pages either.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection import shipped, worlds
from bench.detection.report import Delay
from bench.report import Section, progress

SHIFTS: Final = (4.0, 2.0, 1.0)
SHARES: Final = {"1 stream": 0.0, "10 %": 0.1, "50 %": 0.5}
BEFORE: Final = 72  # windows of a run before the shift
PATIENCE: Final = {4.0: 2 * worlds.DAY, 2.0: 4 * worlds.DAY, 1.0: worlds.WEEK}
PURE: Final = "AR(0.9), all of the variance"
# name: (median wanted, of a shift of 2 window-sd)
TARGETS: Final = {"iid": 15, "AR(0.9)": 60}

Floats = NDArray[np.float64]
WORLDS: Final = {**worlds.SCORED, PURE: worlds.autocorrelated(0.9, share=1.0)}


class Size(NamedTuple):
    """Baselines of each world, and runs after each of them."""

    baselines: int = 5
    runs: int = 8
    baseline: int = worlds.BASELINE
    streams: int = worlds.NUM_STREAMS
    shifts: tuple[float, ...] = SHIFTS
    worlds: tuple[str, ...] = tuple(WORLDS)


def run(size: Size) -> Section:
    """Every world, shift and share of the streams."""
    found: dict[str, dict[str, Delay]] = {}
    for place, world in enumerate(size.worlds):
        delays: dict[tuple[float, str], list[float]] = {}
        for number in range(size.baselines):
            progress(f"delay: {world}, baseline {number + 1} of {size.baselines}")
            for key, each in _delays(world, np.random.default_rng([7, place, number]), size):
                delays.setdefault(key, []).extend(each.tolist())
        found[world] = {_cell(*key): Delay.of(each) for key, each in delays.items()}
    return _section(found, size)


def shifted(
    scores: Floats, rng: np.random.Generator, sd: float, share: float, onset: int
) -> Floats:
    """`scores` [R, T, p] plus a shift from `onset` on in `share` of the streams, at least one."""
    num_runs, _, num_streams = scores.shape
    num = max(1, round(share * num_streams))
    moved = scores.copy()
    for each in range(num_runs):
        streams = rng.choice(num_streams, num, replace=False)
        moved[each, onset:, streams] += sd * rng.choice([-1.0, 1.0], (num, 1))
    return moved


def _delays(
    world: str, rng: np.random.Generator, size: Size
) -> "list[tuple[tuple[float, str], Floats]]":
    length = BEFORE + max(PATIENCE[sd] for sd in size.shifts)
    drawn = WORLDS[world](rng, size.baseline + size.runs * length, size.streams)
    alarm = shipped.Alarm.of(drawn[: size.baseline])
    runs = drawn[size.baseline :].reshape(size.runs, length, size.streams)
    found = []
    for sd in size.shifts:
        for name, share in SHARES.items():
            moved = shifted(runs[:, : BEFORE + PATIENCE[sd]], rng, sd, share, BEFORE)
            delays = shipped.delays(alarm.charts, alarm.score(moved), BEFORE)
            found.append(((sd, name), delays))
    return found


def _section(found: dict[str, dict[str, Delay]], size: Size) -> Section:
    columns = ["world", "shift", *SHARES]
    rows = [
        [world, f"{sd:g} sd", *(str(found[world][_cell(sd, share)]) for share in SHARES)]
        for world in found
        for sd in size.shifts
    ]
    notes = [
        _target(world, found[world], most) for world, most in TARGETS.items() if world in found
    ]
    return Section(
        "Delay of the traffic alarm after a shift, in windows of 5 minutes: median / p90",
        columns,
        rows,
        {
            "size": size._asdict(),
            "worlds": {
                world: {name: each.plain() for name, each in cells.items()}
                for world, cells in found.items()
            },
        },
        [*notes, "A delay in requests is the windows times the requests of a window."],
    )


def _target(world: str, cells: dict[str, Delay], target: int) -> str:
    told = {share: cells.get(_cell(2.0, share)) for share in SHARES}
    medians = [f"{each.median:g} ({share})" for share, each in told.items() if each is not None]
    is_met = all(each is None or each.median <= target for each in told.values())
    verdict = "met" if is_met else "MISSED"
    wanted = f"Target, {world}: 2 sd within {target} windows (median)"
    return f"{wanted}: {verdict}: {', '.join(medians)}."


def _cell(sd: float, share: str) -> str:
    return f"{sd:g} sd, {share}"


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    if is_quick:
        return Size(2, 4, shifts=(2.0,), worlds=("iid", "AR(0.9)"))
    return Size()
