"""What was served second by second."""

import numpy as np
import pytest

from sidecar.fold.lines import MAX_VALUES, Served, ServingLines
from sidecar.wire.frame import Serving, Source
from tests import fakes
from tests.fakes import FRONTEND, NOW, SECOND, FakeSource


def stats(tokens: int, running: int = 1, waits: tuple[float, ...] = (), engine: int = 0) -> Serving:
    done = [fakes.finished(f"cmpl-{k}") for k in range(len(waits))]
    return Serving(
        "tiny", engine, 2 * tokens, tokens, 0, 0, running, 2 * running, 0.25, list(waits), done
    )


class Told:
    """Lines that hear front ends; times in seconds after NOW."""

    def __init__(self) -> None:
        self.lines = ServingLines()
        self.sources: dict[Source, FakeSource] = {}

    def hear(self, body: Serving, seconds: float, source: Source = FRONTEND) -> None:
        fake = self.sources.setdefault(source, FakeSource(source))
        self.lines.update(fake.frame(body, NOW + int(seconds * SECOND)))

    def see(self) -> Served:
        return self.lines.read(self.lines.closed())


def test_counts_are_what_grew_and_gauges_what_stood() -> None:
    """The first frame has no growth; a closed second has."""
    told = Told()
    for seconds, tokens in enumerate((100, 130, 130, 150)):
        told.hear(stats(tokens, running=seconds, waits=(0.5,)), seconds + 0.2)
    seen = told.see()

    assert told.lines.closed() == range(NOW // SECOND, NOW // SECOND + 3)
    assert np.isnan(seen.tokens[0])
    assert seen.tokens[1:].tolist() == [30, 0]
    assert seen.prompt_tokens[1:].tolist() == [60, 0]
    assert seen.finished[1:].tolist() == [1, 1]
    assert (seen.running.tolist(), seen.waiting.tolist()) == ([0, 1, 2], [0, 2, 4])
    assert seen.kv_cache_usage.tolist() == [0.25] * 3


def test_engines_add_up_and_front_ends_of_one_see_one_queue() -> None:
    """Tokens are counted by whoever served them; what runs is not counted twice."""
    told, second = Told(), Source("frontend", 1)
    for seconds, tokens in enumerate((0, 10, 20)):
        told.hear(stats(tokens, 3), seconds)
        told.hear(stats(tokens, 3), seconds, second)
        told.hear(stats(tokens, 4, engine=1), seconds)
    seen = told.see()

    assert seen.tokens[1] == 30
    assert seen.running.tolist() == [7, 7]


def test_quantiles_are_those_of_numpy() -> None:
    """Of the waits of one second; none where nobody waited."""
    waits = tuple(np.random.default_rng(5).uniform(size=20).round(3).tolist())
    told = Told()
    for seconds, some in enumerate((waits[:12], (), waits[12:])):
        told.hear(stats(0, waits=some), seconds)
    told.hear(stats(0), 3)
    seen = told.see()

    for share in (0.5, 0.99):
        expected = [np.quantile(waits[:12], share), np.nan, np.quantile(waits[12:], share)]
        np.testing.assert_allclose(seen.first_token(share), expected)


def test_a_restart_is_no_growth() -> None:
    """Totals that begin again say nothing of the second between."""
    told = Told()
    told.hear(stats(100), 0)
    told.sources[FRONTEND] = FakeSource(FRONTEND, "boot-two")
    for seconds, tokens in ((1, 5), (2, 9), (3, 9)):
        told.hear(stats(tokens), seconds)

    assert told.see().tokens[1:].tolist() == pytest.approx([np.nan, 4], nan_ok=True)


def test_waits_of_one_second_are_bounded() -> None:
    """However many requests there are."""
    told = Told()
    for _ in range(3):
        told.hear(stats(0, waits=(1.0,) * MAX_VALUES), 0.5)
    told.hear(stats(0), 1)

    assert len(told.see().first_tokens[0]) == MAX_VALUES
