"""Rounds of canaries: which signature counts where."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.drift.canary_rounds import MAX_OPEN, MAX_SOURCES, PATIENCE_NS, Rounds
from sidecar.wire.signature import Layout
from tests.fakes import NOW
from tests.fold.drift.canaries import ENGINE, PROMPTS, Engine

MS = NOW // 1_000_000
THREE = PROMPTS[:3]
DRAWN = st.tuples(
    st.integers(0, 5),
    st.sampled_from([*THREE, "p9"]),
    st.sampled_from(["one", "two"]),
    st.booleans(),
)


def test_a_round_is_closed_when_its_last_prompt_is_in() -> None:
    """With all that was measured of it, in the suite's order whatever the order of arrival."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    signeds = list(engine.round(reversed(PROMPTS)))
    closed = [rounds.update(signed) for signed in signeds]

    assert not any(closed[:-1])
    ((only,),) = closed[-1:]
    assert (only.source, only.start_ns, only.share) == (ENGINE, engine.now_ns, 1.0)
    assert only.end_ns > only.start_ns
    assert only.num_tokens.tolist() == [40] * 12
    for values, signed in zip(only.values, reversed(signeds), strict=True):
        told = np.frombuffer(signed.signature.values, "<f4")
        np.testing.assert_array_equal(values, only.streams.read(told))


def test_a_round_is_closed_when_nobody_waits_any_longer() -> None:
    """With what there is; the share says how much."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    for signed in engine.round(PROMPTS[:9]):
        assert rounds.update(signed) == []

    assert rounds.advance(engine.now_ns + PATIENCE_NS - 1) == []
    (only,) = rounds.advance(engine.now_ns + PATIENCE_NS)
    assert only.share == 0.75
    assert np.isnan(only.values[9:]).all()


def test_later_rounds_close_an_earlier_one() -> None:
    """Rounds are judged in order of time, the incomplete one before those behind it."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    for signed in engine.round(PROMPTS[:4]):
        rounds.update(signed)
    closed = [each for signed in engine.round() for each in rounds.update(signed)]

    assert [each.share for each in closed] == [4 / 12, 1.0]
    assert closed[0].start_ns < closed[1].start_ns


def test_what_comes_after_its_round_is_late() -> None:
    """And changes nothing."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    (*_, last) = list(engine.round())
    for signed in engine.round():
        rounds.update(signed)

    assert rounds.update(last) == []
    assert rounds.ignored == Counter(late=1)


def test_a_prompt_counts_once_in_a_round() -> None:
    """The first that comes."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    first, second = (engine.signed("p0", MS) for _ in range(2))
    rounds.update(first)
    rounds.update(second)
    (only,) = rounds.advance(NOW + PATIENCE_NS)

    assert rounds.ignored == Counter(duplicate=1)
    told = np.frombuffer(first.signature.values, "<f4")
    np.testing.assert_array_equal(only.values[0], only.streams.read(told))


def test_what_does_not_count_is_counted_by_cause() -> None:
    """Unknown prompts, rows that were not measured, and another layout in the middle of a round."""
    engine, rounds = Engine(prompts=[*PROMPTS, "stranger"]), Rounds(PROMPTS)
    rounds.update(engine.signed("stranger", MS))
    rounds.update(engine.signed("p0", MS, num_unobserved=3))
    rounds.update(engine.signed("p1", MS))
    rounds.update(Engine(layout=Layout([0])).signed("p2", MS))

    assert rounds.ignored == Counter(unknown_prompt=1, unmeasured=1, layout=1)


def test_only_final_signatures_of_canaries_are_looked_at() -> None:
    """What traffic leaves is not even counted."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    rounds.update(engine.signed("p0", MS, is_final=False))
    rounds.update(engine.signed("p0", MS, canary=""))
    rounds.update(engine.signed("p0", MS, canary="no canary"))

    assert not rounds.ignored
    assert not rounds.open


def test_the_number_of_sources_is_bounded() -> None:
    """Whoever can speak to the sidecar cannot fill its memory with names."""
    rounds = Rounds(PROMPTS)
    for number in range(MAX_SOURCES + 3):
        rounds.update(Engine(f"engine-dp{number}-pp0-tp0").signed("p0", MS))

    assert rounds.ignored == Counter(too_many_sources=3)


@given(drawn=st.lists(DRAWN, max_size=60))
def test_any_order_of_signatures_gives_each_round_once(
    drawn: list[tuple[int, str, str, bool]],
) -> None:
    """In order of time for each source, none twice, and no more open ones than allowed."""
    engines = {name: Engine(name) for name in ("one", "two")}
    rounds = Rounds(THREE)
    closed = []
    for number, prompt, source, is_whole in drawn:
        missing = 0 if is_whole else 1
        signed = engines[source].signed(prompt, MS + number, num_unobserved=missing)
        closed += rounds.update(signed)
        assert all(len(held) <= MAX_OPEN for held in rounds.open.values())
    closed += rounds.advance(NOW + PATIENCE_NS + 10**9)

    for source in engines:
        times = [each.start_ns for each in closed if each.source == source]
        assert times == sorted(set(times))
    num_counted = sum(int((each.num_tokens > 0).sum()) for each in closed)
    assert num_counted + rounds.ignored.total() == len(drawn)
    assert not any(rounds.open.values())


def test_rounds_begin_anew_when_the_clock_was_set_back() -> None:
    """A round of an hour ago is no late one: nothing is under way for so long."""
    engine, rounds = Engine(), Rounds(PROMPTS)
    for signed in engine.round():
        rounds.update(signed)
    engine.num_rounds -= 60
    closed = [each for signed in engine.round() for each in rounds.update(signed)]

    assert [each.start_ns for each in closed] == [engine.now_ns]
    assert rounds.ignored == {}
