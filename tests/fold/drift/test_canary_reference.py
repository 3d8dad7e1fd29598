"""What is learnt of canaries: floors, scores, and whether the rounds learnt agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sidecar.fold.drift.canary_reference import (
    DISAGREEMENT,
    Reference,
    benign_scores,
    disagreement,
)
from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.wire.signature import Layout, entries, size

LAYOUT = Layout([0, 3], [0], [3], sketch_layers=[3], sketch_size=4, probes=["refusal"])
STREAMS = CanaryStreams.of(LAYOUT)
WIDTH = len(STREAMS.places)
SKETCH = [stream.signal for stream in STREAMS.streams].index("sketch")


def repeats(num: int, noise: float = 1e-3, seed: int = 0, prompts: int = 9) -> np.ndarray:
    """[num, prompts, m] rounds of one model."""
    truth = np.random.default_rng(5).normal(2, 1, (prompts, WIDTH))
    draw = np.random.default_rng(seed)
    return truth + noise * draw.normal(size=(num, prompts, WIDTH))


def test_streams_are_the_prefill_statistics_layer_by_layer() -> None:
    """With the sketch of the last prompt token as one, and the first token's at the end."""
    assert [stream.name for stream in STREAMS.streams] == [
        "canary/l0/log_rms",
        "canary/l0/log_rms_max",
        "canary/l0/log_influence",
        "canary/l0/log_peak",
        "canary/l3/log_rms",
        "canary/l3/log_rms_max",
        "canary/l3/log_influence",
        "canary/l3/log_peak",
        "canary/l3/gate_entropy",
        "canary/l3/log_topk_margin",
        "canary/l3/sketch",
        "canary/output/entropy",
        "canary/output/top1_margin",
        "canary/output/min_logprob",
    ]
    names = list(entries(LAYOUT))
    read = {names[place] for place in STREAMS.places}
    assert not any("decode" in name or "attention" in name or "probe" in name for name in read)
    assert sum("last_prompt" in name for name in read) == 4


def test_infinities_are_not_measured() -> None:
    """As NaN, they say nothing about a mean."""
    values = np.ones(size(LAYOUT), np.float32)
    values[STREAMS.places[0]] = np.inf

    assert np.isnan(STREAMS.read(values)[0])
    assert np.isfinite(STREAMS.read(values)[1:]).all()


def test_a_repeat_scores_about_one_whatever_its_noise() -> None:
    """In floors, a noisy stream and a quiet one are alike."""
    for noise in (1e-3, 1.0):
        reference = Reference.of(STREAMS, repeats(20, noise))
        scores = np.array([reference.score(STREAMS, each) for each in repeats(50, noise, 1)])
        assert 0.4 < scores[:, :SKETCH].mean() < 1.2
        assert 0.7 < scores[:, SKETCH].mean() < 1.3


def test_a_score_is_the_distance_in_floors() -> None:
    """Computed here a second time, from the formula and prompt by prompt."""
    rounds, other = repeats(20), repeats(1, 5e-3, 2)[0]
    reference = Reference.of(STREAMS, rounds)
    expected = []
    for prompt in range(9):
        mean = rounds[:, prompt].mean(0)
        deviation = rounds[:, prompt].std(0, ddof=1)
        row = []
        for stream in range(len(STREAMS.streams)):
            own = slice(*[*STREAMS.starts, WIDTH][stream : stream + 2])
            floor = np.sqrt((deviation[own] ** 2).mean())
            row.append(np.sqrt((((other[prompt] - mean)[own] / floor) ** 2).mean()))
        expected.append(row)

    np.testing.assert_allclose(
        reference.score(STREAMS, other), np.median(expected, axis=0), rtol=1e-9
    )


def test_without_noise_the_floor_is_a_share_of_the_value() -> None:
    """1e-5 of a mean over tokens, 1e-4 of the length of a sketch; less in float32."""
    rounds = np.full((20, 9, WIDTH), 4.0)
    moved = rounds[0] * (1 + 1e-4)

    scores = Reference.of(STREAMS, rounds).score(STREAMS, moved)
    assert scores[0] == pytest.approx(10)
    assert scores[SKETCH] == pytest.approx(1)
    single = CanaryStreams.of(LAYOUT, "float32")
    scores = Reference.of(single, rounds).score(single, moved)
    assert scores[0] == pytest.approx(100)
    assert scores[SKETCH] == pytest.approx(20)


def test_a_prompt_that_was_seldom_seen_has_no_reference() -> None:
    """And the others are judged without it."""
    rounds = repeats(20)
    rounds[:11, 4] = np.nan
    reference = Reference.of(STREAMS, rounds)
    odd = repeats(1, seed=3)[0]
    odd[4] += 100

    assert np.isnan(reference.floor[4]).all()
    assert np.isfinite(np.delete(reference.floor, 4, axis=0)).all()
    assert reference.score(STREAMS, odd).max() < 3


def test_a_median_of_too_few_prompts_is_none() -> None:
    """Four of nine say nothing, five do."""
    reference = Reference.of(STREAMS, repeats(20))
    values = repeats(1, seed=3)[0]
    values[5:] = np.nan
    assert np.isfinite(reference.score(STREAMS, values)).all()

    values[4:] = np.nan
    assert np.isnan(reference.score(STREAMS, values)).all()


def test_benign_scores_leave_their_own_round_out() -> None:
    """A round that is far from all others is far in its own score too."""
    rounds = repeats(20)
    rounds[7] += 1.0
    scores = benign_scores(STREAMS, rounds)

    assert (scores[7] > 100).all()
    assert (np.delete(scores, 7, axis=0) < 3).all()


def test_repeats_agree() -> None:
    """Also when all prompts move together with the load, or nothing moves at all."""
    for seed in range(20):
        assert disagreement(STREAMS, repeats(20, seed=seed))[0] < 2.5
    together = 1e-3 * np.random.default_rng(1).normal(size=(20, 1, 1))
    assert disagreement(STREAMS, repeats(20) + together)[0] < DISAGREEMENT
    assert disagreement(STREAMS, np.ones((20, 9, WIDTH)))[0] == 0.0


@pytest.mark.parametrize("cut", [2, 5, 10, 17, 18])
def test_a_change_in_the_middle_is_a_disagreement(cut: int) -> None:
    """And where it was is known, so that what came before can be dropped."""
    rounds = repeats(20)
    rounds[cut:] += 0.01

    distance, found = disagreement(STREAMS, rounds)
    assert distance >= DISAGREEMENT
    assert found == cut


FLOATS = st.floats(-1e30, 1e30) | st.sampled_from([np.nan])


@given(rounds=arrays.arrays(np.float64, (4, 3, WIDTH), elements=FLOATS))
def test_any_numbers_give_scores_or_none(rounds: np.ndarray) -> None:
    """Never an exception, a warning, or a negative score."""
    reference = Reference.of(STREAMS, rounds)
    for scores in (reference.score(STREAMS, rounds[0]), benign_scores(STREAMS, rounds)):
        assert not (scores < 0).any()
        assert scores.shape[-1] == len(STREAMS.streams)
    assert disagreement(STREAMS, rounds)[0] >= 0


@given(order=st.permutations(range(9)), scale=st.floats(1.5, 100))
def test_the_order_of_prompts_does_not_matter(order: list[int], scale: float) -> None:
    """And a change that is larger scores no less."""
    rounds, moved = repeats(12), repeats(1, seed=4)[0] + 0.003
    reference = Reference.of(STREAMS, rounds)
    other = Reference.of(STREAMS, rounds[:, order])

    np.testing.assert_array_equal(
        reference.score(STREAMS, moved), other.score(STREAMS, moved[order])
    )
    further = reference.mean + scale * (moved - reference.mean)
    assert (reference.score(STREAMS, further) >= reference.score(STREAMS, moved)).all()
