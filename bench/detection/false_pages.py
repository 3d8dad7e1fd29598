"""False pages: simulated months in which nothing changed, through the shipped code.

Every month has a baseline of its own, 14 days before it in the same world. Beside the shipped chain
runs a plain CUSUM on raw z with the same limits: in hard worlds it must fail, or the worlds were
too easy and the comparison is void.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection import bounds, rivals, shipped, worlds
from bench.report import Section, progress
from sidecar.fold.drift.score import Reference, Score, between_variance

MIX: Final = "mix random walk"
POOLED: Final = "the same, pooled over strata (not shipped)"
WORLDS: Final = (*worlds.SCORED, MIX)
PAGES_A_MONTH: Final = shipped.DESIGN_RATE

Floats = NDArray[np.float64]


class Month(NamedTuple):
    """One simulated month: pages of the shipped chain, of CUSUM on raw z, and eta.

    is_armed: whether the channel would have armed; it cannot page otherwise.
    """

    pages: int
    plain_pages: int
    eta: float
    is_armed: bool


class Size(NamedTuple):
    """How long and wide: windows of baseline and month, streams, months of each world."""

    baseline: int = worlds.BASELINE
    month: int = worlds.MONTH
    streams: int = worlds.NUM_STREAMS
    months: int = 20


def run(size: Size) -> Section:
    """`size.months` months of each world."""
    found: dict[str, list[Month]] = {world: [] for world in (*WORLDS, POOLED)}
    for number in range(size.months):
        for place, world in enumerate(WORLDS):
            progress(f"false pages: month {number + 1} of {size.months}, {world}")
            rng = np.random.default_rng([place, number])
            for name, scores in _scores(world, rng, size):
                found[name].append(judge(scores, size.baseline))
    return _section(found, size)


def judge(scores: Floats, num_baseline: int) -> Month:
    """A month after its baseline, window scores [K + T, p]."""
    before, after = scores[:num_baseline], scores[num_baseline:]
    alarm = shipped.Alarm.of(before)
    pages = shipped.alarms(alarm.charts, alarm.score(after)) & (not alarm.is_blind)
    plain = shipped.alarms(alarm.charts, rivals.standardised(before, after))
    return Month(int(pages.sum()), int(plain.sum()), alarm.eta, not alarm.is_blind)


def stratified(world: worlds.Mixed, rng: np.random.Generator, size: Size) -> tuple[Floats, Floats]:
    """[K + T, p] window scores of a world of strata: the shipped ones, and of pooled means."""
    days = list(world.days(rng, size.baseline + size.month))
    num, mean, m2 = (np.concatenate(each) for each in zip(*days, strict=True))
    score = Score((len(num), mean.shape[2]))
    for stratum in range(num.shape[1]):
        score.update(
            mean[:, stratum],
            np.repeat(num[:, stratum, None], mean.shape[2], 1),
            _reference(num[:, stratum], mean[:, stratum], m2[:, stratum], size.baseline),
        )
    return score.get(), np.concatenate([worlds.pooled(day) for day in days])


def _scores(world: str, rng: np.random.Generator, size: Size) -> Iterator[tuple[str, Floats]]:
    if world != MIX:
        draw: Callable[..., Floats] = worlds.SCORED[world]
        yield world, draw(rng, size.baseline + size.month, size.streams)
        return
    drawn = worlds.mixed(rng, num_streams=size.streams)
    yield from zip((world, POOLED), stratified(drawn, rng, size), strict=True)


def _reference(num: NDArray[np.int64], mean: Floats, m2: Floats, until: int) -> Reference:
    """What a stratum is compared with: its first `until` windows, added up as moments are."""
    held, centres = num[:until, None], mean[:until]
    total = max(1, int(held.sum()))
    mu = (held * centres).sum(0) / total
    squares = m2[:until].sum(0) + (held * np.square(centres - mu)).sum(0)
    sigma2 = squares / max(1, total - 1)
    counts = np.repeat(held, mean.shape[1], 1)
    tau2 = between_variance(centres, counts.astype(np.float64), sigma2)
    return Reference(mu, sigma2, tau2, np.zeros(len(mu), bool))


def _section(found: dict[str, list[Month]], size: Size) -> Section:
    judged = [month for world in WORLDS for month in found[world]]
    rows = [_row(world, found[world], size) for world in WORLDS]
    rows.append(_row("all worlds", judged, size))
    rows.append(_row(POOLED, found[POOLED], size))
    plain = {world: sum(m.plain_pages > 0 for m in found[world]) for world in worlds.HARD}
    why = bounds.void(size.months, plain)
    exposure = len(judged) * size.month / worlds.MONTH
    total = sum(month.pages for month in judged)
    upper = bounds.upper_rate(total, exposure)
    verdict = "VOID: " + "; ".join(why) if why else "not void: CUSUM on raw z failed as it must"
    return Section(
        f"False pages of the traffic alarm: {len(judged)} simulated months without a change",
        ("world", "months", "armed", "false pages", "a month, at most (95 %)", "months with one",
         "CUSUM on raw z: pages", "months with one", "eta, median"),
        rows,
        {
            "size": size._asdict(),
            "months": exposure,
            "pages": total,
            "upper_rate": upper,
            "design_rate": PAGES_A_MONTH,
            "void": why,
            "worlds": {world: [month._asdict() for month in found[world]] for world in found},
        },
        [f"Design: at most {PAGES_A_MONTH:.2f} a month. The comparison is {verdict}."],
    )  # fmt: skip


def _row(world: str, months: list[Month], size: Size) -> list[str]:
    exposure = len(months) * size.month / worlds.MONTH
    pages = sum(month.pages for month in months)
    return [
        world,
        f"{exposure:.3g}",
        str(sum(month.is_armed for month in months)),
        str(pages),
        f"{bounds.upper_rate(pages, exposure):.3f}",
        str(sum(month.pages > 0 for month in months)),
        str(sum(month.plain_pages for month in months)),
        str(sum(month.plain_pages > 0 for month in months)),
        f"{np.median([month.eta for month in months]):.2f}",
    ]


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    return Size(months=1) if is_quick else Size()
