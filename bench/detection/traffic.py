"""Traffic: windows of real requests until the shipped alarm pages, and that it need not.

Requests of the bundled model, measured by the tap, through `Windows`, `Fit` and `Baseline` as an
exporter would. A month of requests would take a month to serve, so the windows of a case are drawn
with replacement from a finite pool, and its baseline from the *same prompts*: two pools of other
prompts have other means, and the alarm finds that (in 200 windows, with 2048 requests each, in 10
of 10 runs). What is left is the change alone, without the variety of prompts that never repeat:
delays are optimistic. The requests of "nothing changed" are others than those of their baseline,
and each is judged once.

Served in bfloat16 without emulated noise: what varies from request to request is a thousand times
what a kernel adds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection import bounds, shipped, tamper, text
from bench.detection.pools import CHUNK, Pool
from bench.detection.report import Delay
from bench.detection.stand import Stand
from bench.report import Section, progress
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import LENGTH_NS, Windows
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

START: Final = 6_000_000  # windows since 1970: any time will do
PER_WINDOW: Final = 60  # requests
SHIFTED_MIX: Final = (0.1, 0.3, 0.6)
FOREIGN_SHARES: Final = (0.01, 0.05, 0.2)

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Size(NamedTuple):
    """Windows of the baseline; windows of a run at most, runs of a case.

    requests: of the pool of each model, which windows and baseline are drawn from.
    foreign: requests that are German, or lists of characters.
    quiet: requests judged once, unchanged, against a baseline drawn from `fitted` others.
    """

    baseline: int = 4032
    patience: int = 288
    runs: int = 10
    requests: int = 2 * CHUNK
    foreign: int = CHUNK
    quiet: int = 100 * CHUNK
    fitted: int = 18 * CHUNK
    cases: tuple[str, ...] = ()


class Kind(NamedTuple):
    """Traffic to be judged: a pool, by which shares its domains are asked for, and a relabelling.

    shares: of requests by domain; None for those of the pool itself. foreign, foreign_share:
    requests of that share come out of this other pool, and keep the route of those they replace.
    """

    name: str
    pool: Pool
    shares: tuple[float, ...] | None = None
    foreign: Pool | None = None
    foreign_share: float = 0.0
    must_page: bool = True


def run(size: Size) -> Section:
    """No change, changed models, shifted text and a shifted mix."""
    stand = Stand.of()
    layout = stand.layout()
    progress("traffic: pool and baseline")
    pool = stand.pool("judged", size.requests)
    baseline = fitted(layout, pool, size.baseline)
    alarm = shipped.Alarm.of(baseline.reservoir)
    rows, figures = [], {}
    for kind in _kinds(stand, pool, size):
        progress(f"traffic: {kind.name}")
        found = [
            delay_of(baseline, alarm, kind, np.random.default_rng([13, number]), size.patience)
            for number in range(size.runs)
        ]
        told = Delay.of(found)
        figures[kind.name] = told.plain() | {"must_page": kind.must_page}
        rows.append(_row(kind, told, size))
    progress("traffic: nothing changed")
    apart = fitted(layout, stand.pool("baseline", size.fitted), size.baseline)
    quiet = _quiet(apart, stand.pool("quiet", size.quiet))
    return _section(rows, figures, quiet, alarm, size)


def fitted(layout: Layout, pool: Pool, num_windows: int) -> Baseline:
    """A baseline over `num_windows` windows drawn from `pool`."""
    rng = np.random.default_rng(num_windows)
    places = [rng.integers(pool.num, size=PER_WINDOW) for _ in range(num_windows)]
    survey = Survey(Schema.of(layout))
    for each in observations(pool, places):
        survey.update(each)
    fit = Fit(Header(Identity(dtype="bfloat16"), layout), survey.get())
    for each in observations(pool, places):
        fit.update(each)
    return fit.get()


def observations(
    pool: Pool, windows: Iterable[Places], routes: Callable[[int, int], str] | None = None
) -> Iterator[Observation]:
    """Requests as they end, evenly over their window.

    windows: places in the pool, by window. routes: route of a request, by window and number; that
    of its domain by default.
    """
    for window, places in enumerate(windows):
        for number, place in enumerate(places):
            route = pool.names[pool.domains[place]] if routes is None else routes(window, number)
            prompt, generated = pool.lengths[place]
            yield Observation(
                t_ns=(START + window) * LENGTH_NS + (number + 1) * LENGTH_NS // (len(places) + 1),
                source="engine-dp0-pp0-tp0",
                route=route,
                adapter="",
                num_prompt_tokens=int(prompt),
                num_generated_tokens=int(generated),
                canary="",
                values=pool.values[place],
            )


def scores(baseline: Baseline, items: Iterable[Observation]) -> Iterator[Floats]:
    """D [p] of each window that the items make."""
    windows = Windows(baseline.schema, plan=baseline.plan)
    for item in items:
        for window in windows.update(item):
            yield baseline.score(window)
    for window in windows.flush():
        yield baseline.score(window)


def delay_of(
    baseline: Baseline, alarm: shipped.Alarm, kind: Kind, rng: np.random.Generator, patience: int
) -> float:
    """Windows of `kind` until the page, from charts at 0; infinite after `patience`."""
    charts = alarm.charts
    levels = np.zeros((len(charts.signs), baseline.schema.num_streams))
    for window, score in enumerate(scores(baseline, drawn(kind, rng, patience))):
        levels = charts.step(levels, alarm.score(score))
        if (levels >= charts.limits[:, None]).any():
            return window + 1.0
    return float("inf")


def drawn(kind: Kind, rng: np.random.Generator, num_windows: int) -> Iterator[Observation]:
    """Requests of `num_windows` windows of a kind of traffic, a window at a time."""
    pool = kind.pool if kind.foreign is None else joined(kind.pool, kind.foreign)
    own = kind.pool.num
    weights = _weights(kind)
    windows, routes = [], []
    for _ in range(num_windows):
        places = rng.choice(own, PER_WINDOW, p=weights)
        routes.append([pool.names[each] for each in pool.domains[places]])
        if kind.foreign is not None:
            is_foreign = rng.random(PER_WINDOW) < kind.foreign_share
            others = own + rng.integers(kind.foreign.num, size=PER_WINDOW)
            places = np.where(is_foreign, others, places)
        windows.append(places)
    return observations(pool, windows, lambda window, number: routes[window][number])


def joined(pool: Pool, foreign: Pool) -> Pool:
    """Both pools as one; domains of the second are beside those of the first."""
    domains = np.concatenate([pool.domains, foreign.domains + len(pool.names)])
    rest = [np.concatenate(pair) for pair in zip(pool[2:], foreign[2:], strict=True)]
    return Pool((*pool.names, *foreign.names), domains, *rest)


def _weights(kind: Kind) -> Floats | None:
    if kind.shares is None:
        return None
    counts = np.bincount(kind.pool.domains, minlength=len(kind.pool.names))
    weights = np.array(kind.shares)[kind.pool.domains] / counts[kind.pool.domains]
    return np.asarray(weights / weights.sum())


def _kinds(stand: Stand, judged: Pool, size: Size) -> Iterator[Kind]:
    german = stand.pool("german", size.foreign, {text.FOREIGN: 1.0})
    names = stand.pool("characters", size.foreign, {"characters": 1.0})
    yield Kind("no change", judged, must_page=False)
    yield Kind("mix shift: 30/50/20 to 10/30/60", judged, SHIFTED_MIX, must_page=False)
    for share in FOREIGN_SHARES:
        yield Kind(f"language: {share:.0%} German", judged, None, german, share)
    for share in FOREIGN_SHARES:
        yield Kind(f"domain: {share:.0%} lists of characters", judged, None, names, share)
    for case in tamper.cases(stand.text, stand.tokens):
        if size.cases and case.name not in size.cases:
            continue
        changed = tamper.applied(case.make, stand.model, 0)
        pool = stand.changed_pool(case.slug, changed, size.requests)
        yield Kind(case.name, pool, must_page=case.finds)


def _quiet(baseline: Baseline, pool: Pool) -> tuple[int, int]:
    """Pages and windows of `pool`, each request judged once."""
    alarm = shipped.Alarm.of(baseline.reservoir)
    starts = range(0, pool.num - PER_WINDOW + 1, PER_WINDOW)
    places = [np.arange(start, start + PER_WINDOW) for start in starts]
    found = np.stack(list(scores(baseline, observations(pool, places))))
    return int(shipped.alarms(alarm.charts, alarm.score(found)).sum()), len(found)


def _row(kind: Kind, told: Delay, size: Size) -> list[str]:
    paged = told.runs - told.missed
    if not kind.must_page:
        verdict = "PAGED, and must not" if paged else "quiet, as it must be"
        return [kind.name, f"{paged} of {told.runs} runs of {size.patience}", "", verdict]
    in_requests = " / ".join(
        "never" if np.isinf(q) else f"{q * PER_WINDOW:.0f}" for q in (told.median, told.p90)
    )
    verdict = "missed" if told.missed == told.runs else "partly missed" if told.missed else "found"
    return [kind.name, str(told), in_requests, verdict]


def _section(
    rows: list[list[str]],
    figures: Mapping[str, object],
    quiet: tuple[int, int],
    alarm: shipped.Alarm,
    size: Size,
) -> Section:
    pages, windows = quiet
    requests = windows * PER_WINDOW
    upper = bounds.upper_rate(pages, requests / 1e6)
    return Section(
        f"Traffic: windows of {PER_WINDOW} real requests until the page, median / p90",
        ("what changed", "windows", "requests", ""),
        rows,
        {
            "size": size._asdict(),
            "eta": alarm.eta,
            "kinds": figures,
            "quiet": {"pages": pages, "windows": windows, "requests": requests, "upper": upper},
        },
        [
            (
                f"Nothing changed, {requests} requests judged once: {pages} false pages, at most "
                f"{upper:.1f} in 10^6 requests (95 %). The design is "
                f"{1e6 / (PER_WINDOW * shipped.RUN_LENGTH):.2f}: a bound, no measurement of it."
            ),
            (
                f"Windows of a case, and those of its baseline, are drawn with replacement from "
                f"{size.requests} requests of the same prompts ({size.foreign} foreign ones): "
                "delays are optimistic. A fleet that serves more finds it in fewer windows."
            ),
        ],
    )


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    if is_quick:
        return Size(200, 48, 2, 384, 256, 512, 768, cases=QUICK)
    return Size()


QUICK: Final = ("int4 weights, groups of 32",)
