"""How each cost grows with what drives it: a table of cost against size, and the exponent.

CPU of one thread of the shipped code, the best of some turns. The exponent is the slope of
log cost over log size among the three largest sizes: 1 is proportional, above it grows faster.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from bench.capacity.frames import Stream
from bench.reference import filled
from bench.report import Section, progress
from sidecar.fold.drift.window import LENGTH_NS, Window
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish.intake import Intake
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.frame import Body, Source
from sidecar.wire.synthetic import SyntheticEngine

NOW: Final = 1_790_000_000 * 10**9
_NUM_WINDOWS: Final = 64  # of the baseline that windows are scored by


class Size(NamedTuple):
    """Turns of each measurement, and how many of its sizes."""

    turns: int = 7
    sizes: int = 5


class Growth(NamedTuple):
    """What it costs, against what: unit is of the costs."""

    cost: str
    driver: str
    unit: str
    sizes: Sequence[int]
    costs: Sequence[float]

    @property
    def exponent(self) -> float:
        """Slope of log cost over log size, of the three largest sizes."""
        sizes, costs = np.log(self.sizes[-3:]), np.log(self.costs[-3:])
        return float(np.polyfit(sizes, costs, 1)[0])


def settings(*, is_quick: bool) -> Size:
    """The full size, or a few turns."""
    return Size(3, 4) if is_quick else Size()


def run(size: Size) -> Section:
    """One row for each cost."""
    found = [_grown(each, size) for each in _QUESTIONS]
    return Section(
        "How costs grow",
        ("cost", "with", "sizes", "cost at each", "exponent"),
        [
            [
                each.cost,
                each.driver,
                ", ".join(str(n) for n in each.sizes),
                ", ".join(f"{cost:.3g}" for cost in each.costs) + f" {each.unit}",
                f"{each.exponent:.2f}",
            ]
            for each in found
        ],
        {
            "size": size._asdict(),
            "growth": [each._asdict() | {"exponent": each.exponent} for each in found],
        },
        ["Exponent 1: in proportion; 0: not at all. CPU of one thread."],
    )


class _Inbox:
    """Messages are handed over by hand."""

    def receive(self, timeout_seconds: float) -> bytes | None:  # noqa: ARG002 - the seam's
        return None

    def close(self) -> None:
        pass


# Everything that is not to be timed is made beforehand; what comes back is called once, timed.
Prepare = Callable[[int], Callable[[], object]]


def intake() -> Intake:
    """An intake that is handed its messages, at a time that stands still."""
    reducer = Reducer(Limits(30 * 10**9, 10 * 10**9))
    return Intake(_Inbox(), reducer, clock_ns=lambda: NOW)


def accepting(body: Body) -> Prepare:
    """Takes in a body so many times more, as frames that go on being numbered."""
    stream, into = Stream(Source("engine")), intake()

    def prepare(repeats: int) -> Callable[[], object]:
        messages = [stream.message(body, NOW) for _ in range(repeats)]

        def work() -> None:
            for message in messages:
                into.accept(message)

        return work

    into.accept(stream.message(body, NOW))
    if refused := {cause: num for cause, num in into.get().refused.items() if num}:
        raise RuntimeError(f"the frame to measure is refused: {refused}")
    return prepare


def again(call: Callable[[], object]) -> Prepare:
    """Calls it so many times."""

    def prepare(repeats: int) -> Callable[[], object]:
        def work() -> None:
            for _ in range(repeats):
                call()

        return work

    return prepare


def best(prepare: Prepare, repeats: int, turns: int) -> float:
    """CPU seconds of one repeat: the least of some turns, since other work only adds."""
    prepare(repeats)()
    found = []
    for _ in range(turns):
        work = prepare(repeats)
        started = time.thread_time()
        work()
        found.append((time.thread_time() - started) / repeats)
    return min(found)


def scrape(engine: SyntheticEngine, num_ranks: int, selection: Selection) -> Callable[[], bytes]:
    """A snapshot of so many ranks of an engine, rendered as later scrapes are."""
    into = intake()
    bodies = [engine.status(), engine.step(), engine.tables()]
    for rank in range(num_ranks):
        stream = Stream(Source("engine", tp=rank))
        for body in bodies:
            into.accept(stream.message(body, NOW))
    exposition = Exposition(1_000_000, selection, collectors={})
    return lambda: exposition.render(into.get())


def _layers(num_layers: int) -> Prepare:
    return accepting(SyntheticEngine(num_layers).step())


def _requests(num_requests: int) -> Prepare:
    return accepting(SyntheticEngine(8).requests(num_requests, NOW))


def _ranks(num_ranks: int) -> Prepare:
    return again(scrape(SyntheticEngine(32, num_heads=8), num_ranks, Selection()))


def _series(num_layers: int) -> Prepare:
    engine = SyntheticEngine(num_layers, num_heads=64, num_experts=64)
    return again(scrape(engine, 1, Selection.everything()))


def _strata(num_strata: int) -> Prepare:
    fit = filled(np.random.default_rng(0), _NUM_WINDOWS, num_strata)
    baseline = fit.get()
    strata = dict(zip(fit.plan.strata, baseline.strata, strict=True))
    window = Window(0, LENGTH_NS, 20 * num_strata, strata)
    return again(lambda: baseline.score(window))


class _Question(NamedTuple):
    cost: str
    driver: str
    make: Callable[[int], Prepare]
    sizes: Sequence[int]
    repeats: int


_QUESTIONS: Final = (
    _Question("a frame of layers", "layers", _layers, (10, 20, 40, 80, 160), 200),
    _Question("a frame of requests", "requests in it", _requests, (4, 8, 16, 32, 64), 20),
    _Question("a scrape, default selection", "ranks", _ranks, (2, 4, 8, 16, 32), 3),
    _Question("a scrape of everything", "layers", _series, (10, 20, 40, 80, 160), 2),
    _Question("scoring a window", "strata", _strata, (4, 8, 16, 32, 64), 20),
)


def _grown(question: _Question, size: Size) -> Growth:
    sizes, costs = question.sizes[: size.sizes], []
    for each in sizes:
        progress(f"growth: {question.cost}, {each} {question.driver}")
        costs.append(1e6 * best(question.make(each), question.repeats, size.turns))
    return Growth(question.cost, question.driver, "us", sizes, costs)
