"""Costs are compared with what they were by ratios, and a grown one is found."""

from bench import watched
from bench.watched import Pair, grown, kept_ratios, ratio_of


def busy(loops: int):
    """Work of so many loops, as something to be measured."""

    def prepare(repeats: int):
        return lambda: [sum(range(loops)) for _ in range(repeats)]

    return prepare


def test_no_watched_cost_has_grown() -> None:
    """Each over a known piece of work, within the tolerance of what was kept.

    That leaves room for noise, so that a poll or a needless copy would pass; those are looked for
    by tests/wire/test_channel.py.
    """
    kept = kept_ratios()
    assert set(kept) == set(watched.PAIRS)
    assert grown(kept) == []


def test_a_ratio_tells_how_much_more_work_it_is() -> None:
    """Four times the loops, whatever else runs on the machine."""
    found = ratio_of(Pair(busy(40_000), busy(10_000), 10))
    assert 2 < found < 8


def test_a_cost_that_doubled_is_told_and_one_that_was_disturbed_is_not() -> None:
    """What is above its limit is asked about twice more."""
    asked = []

    def measure(names) -> dict[str, float]:
        asked.extend(names)
        disturbed = 9.0 if asked.count("disturbed") == 1 else 1.0
        found = {"doubled": 2.1, "disturbed": disturbed, "same": 1.1}
        return {name: found[name] for name in names}

    kept = {"doubled": 1.0, "disturbed": 1.0, "same": 1.0}
    assert grown(kept, measure) == ["doubled: 2.10, was 1.00"]
    assert [asked.count(name) for name in kept] == [3, 2, 1]
