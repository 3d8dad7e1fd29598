"""The canary channel: what it learns, what it pages on, and what it refuses to learn."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import StateError
from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.drift.canary_judge import Pace
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout
from tests.fakes import SECOND
from tests.fold.drift.canaries import (
    ENGINE,
    LAYOUT,
    PACE,
    PROMPTS,
    QUICK,
    Engine,
    channel,
    feed,
)

BF16 = Identity("tiny", "d1", kernels="H100", attention_backend="FLASH", dtype="bfloat16")


def test_nothing_measured_names_the_remedy() -> None:
    """A channel that nobody feeds says what to set."""
    verdict = channel().get(0)

    assert verdict.state is ChannelState.COLLECTING
    assert "SIDECAR_CANARY_URL" in verdict.reason
    assert "SIDECAR_CANARY_KEY_FILE" in verdict.reason


def test_twenty_rounds_arm_the_hard_rule_and_say_so() -> None:
    """Before, it counts them; after, it says what is missing."""
    engine, judge = Engine(), channel()

    before = feed(judge, engine, 19).get(engine.now_ns)
    after = feed(judge, engine).get(engine.now_ns)

    assert (before.state, after.state) == (ChannelState.COLLECTING, ChannelState.ARMED)
    assert "19 of 20 rounds" in before.reason
    assert after.reason == "hard rule only: 20 of 60 benign rounds"


def test_it_learns_until_all_is_learnt_and_not_further() -> None:
    """What the runner asks for its pace."""
    engine, judge = Engine(), channel()

    assert feed(judge, engine, 59).is_learning
    assert not feed(judge, engine).is_learning
    assert "as they were learnt" in judge.get(engine.now_ns).reason
    assert len(judge._current[ENGINE].benign) == 60
    feed(judge, engine, 5)
    assert len(judge._current[ENGINE].benign) == 60


def test_repeats_page_nobody() -> None:
    """A year's worth of what was learnt, at a hundredth of the design's run length."""
    engine, judge = Engine(), channel(Pace(20, 200, 100_000))
    feed(judge, engine, 1000)

    assert judge.get(engine.now_ns).state is ChannelState.ARMED
    assert judge.get(engine.now_ns).level < 1


def test_a_large_change_pages_in_two_rounds_and_names_its_layer() -> None:
    """The hard rule, from the layer where it begins."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 20)
    engine.shift = {"prefill/l2/log_rms$": 0.01, "prefill/l5/log_rms$": 0.05}

    first = feed(judge, engine).get(engine.now_ns)
    changed_ns = engine.now_ns
    second = feed(judge, engine).get(engine.now_ns)

    assert first.state is ChannelState.ARMED
    assert second.state is ChannelState.PAGE
    assert "from layer 2 on" in second.reason
    assert second.causes[0].stream == "canary/l5/log_rms"
    assert {cause.layer for cause in second.causes if cause.share >= 1} == {2, 5}
    assert second.level == second.causes[0].share > 1
    assert second.since_ns == changed_ns


def test_a_layer_is_named_for_what_it_did_twice() -> None:
    """A lower layer that was odd in the last round alone is not where the change began."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 20)
    engine.shift = {"prefill/l5": 0.05}
    feed(judge, engine)
    engine.shift = {"prefill/l5": 0.05, "prefill/l0": 0.05}
    feed(judge, engine)

    assert "from layer 5 on" in judge.get(engine.now_ns).reason


def test_a_single_odd_round_pages_nobody() -> None:
    """Two consecutive ones do."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 60)
    engine.shift = {"log_rms": 1.0}
    feed(judge, engine)
    engine.shift = {}
    feed(judge, engine, 5)

    assert judge.get(engine.now_ns).state is ChannelState.ARMED


def test_a_small_change_pages_by_evidence_within_some_rounds() -> None:
    """Too small for the hard rule at 1.6 times its noise; four or five rounds are enough."""
    engine, judge = Engine(), channel(Pace(20, 200, 105_120))
    feed(judge, engine, 200)
    engine.shift = {"prefill/l2": 0.0016, "prefill/l5": 0.0016}
    rounds = 0
    while judge.get(engine.now_ns).state is not ChannelState.PAGE and rounds < 20:
        feed(judge, engine)
        rounds += 1

    assert 3 <= rounds <= 8
    assert max(each.score / each.limit for each in judge.deviations()) < 1
    assert "from layer 2 on" in judge.get(engine.now_ns).reason


def test_noise_that_follows_the_load_pages_nobody() -> None:
    """Rounds that resemble their neighbours are worth less than independent ones."""
    engine, judge = Engine(), channel(Pace(20, 200, 1000))
    draw, load, levels = np.random.default_rng(3), 0.0, []
    for _ in range(700):
        load = 0.9 * load + 0.436 * draw.normal()
        engine.noise = 1e-3 * np.exp(0.2 * load)
        feed(judge, engine)
        levels.append(judge.get(engine.now_ns).level)

    assert judge._current[ENGINE].eta > 2
    assert judge.get(engine.now_ns).state is ChannelState.ARMED
    assert max(levels) < 1


def test_one_prompt_that_is_odd_moves_no_median() -> None:
    """However far."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 60)
    for _ in range(5):
        for signed in engine.round():
            if signed.signature.canary.startswith("p3@"):
                odd = signed.signature
                odd.values = (100 * np.frombuffer(odd.values, "<f4")).tobytes()
            judge.update(signed)

    assert judge.get(engine.now_ns).state is ChannelState.ARMED


def test_a_bit_stable_engine_pages_beyond_the_floor_only() -> None:
    """Repeats without any noise do not make the last bit of a float an alarm."""
    engine, judge = Engine(noise=0.0), channel()
    feed(judge, engine, 60)
    engine.shift = {"log_rms": 2e-6}  # a fifth of the floor
    feed(judge, engine, 30)
    assert judge.get(engine.now_ns).state is ChannelState.ARMED
    assert judge.get(engine.now_ns).level < 0.2

    engine.shift = {"log_rms": 1e-4}
    feed(judge, engine, 2)
    assert judge.get(engine.now_ns).state is ChannelState.PAGE


def test_the_floor_is_that_of_the_precision() -> None:
    """What is far below the rounding of bfloat16 is a change where float32 is computed with."""
    single = Identity("tiny", kernels="H100", attention_backend="FLASH", dtype="float32")
    states = []
    for identity in (BF16, single):
        engine, judge = Engine(noise=0.0), channel(QUICK)
        judge.identify(ENGINE, identity)
        feed(judge, engine, 12)
        engine.shift = {"log_rms": 1e-5}
        states.append(feed(judge, engine, 2).get(engine.now_ns).state)

    assert states == [ChannelState.ARMED, ChannelState.PAGE]


def test_a_page_stays_until_it_is_acknowledged() -> None:
    """And comes back when the change is still there, while the reference is what it was."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 60)
    engine.shift = {"log_rms": 0.05}
    feed(judge, engine, 2)
    engine.shift = {}
    feed(judge, engine, 10)
    latched = judge.get(engine.now_ns)
    assert latched.state is ChannelState.PAGE
    assert latched.level < 1

    judge.acknowledge(engine.now_ns)
    calm = judge.get(engine.now_ns)
    assert (calm.state, calm.is_acknowledged, calm.level) == (ChannelState.ARMED, True, 0.0)

    engine.shift = {"log_rms": 0.05}
    assert feed(judge, engine, 2).get(engine.now_ns).state is ChannelState.PAGE


def test_a_reference_never_follows_what_is_judged() -> None:
    """However slowly it moves, it pages in the end."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 60)
    for step in range(400):
        engine.shift = {"log_rms": step * 2e-5}
        feed(judge, engine)

    assert judge.get(engine.now_ns).state is ChannelState.PAGE


def test_discarding_learns_anew() -> None:
    """An operator's action after a change of theirs."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 60)
    engine.shift = {"log_rms": 0.05}
    feed(judge, engine, 2)
    judge.discard(engine.now_ns)

    assert judge.get(engine.now_ns).state is ChannelState.COLLECTING
    assert feed(judge, engine, 62).get(engine.now_ns).state is ChannelState.ARMED


def test_a_change_while_it_learns_is_not_averaged_in() -> None:
    """The first rounds must agree: those before the change are dropped, and it says so."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 13)
    engine.shift = {"log_rms": 0.02}

    verdict = feed(judge, engine, 7).get(engine.now_ns)
    assert verdict.state is ChannelState.COLLECTING
    assert "disagree" in verdict.reason

    feed(judge, engine, 13)
    assert judge.get(engine.now_ns).state is ChannelState.ARMED
    engine.shift = {}
    feed(judge, engine, 2)
    assert judge.get(engine.now_ns).state is ChannelState.PAGE


def test_a_round_beyond_the_hard_limit_is_never_learnt() -> None:
    """And the limit is not walked up by rounds that stay below it."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 20)
    limits = judge._current[ENGINE].limit.copy()
    engine.shift = {"log_rms": 0.05}
    feed(judge, engine)
    engine.shift = {"log_rms": 0.002}
    feed(judge, engine, 10)

    assert judge.ignored["not_benign"] == 1
    assert judge._current[ENGINE].num_learnt == 30
    np.testing.assert_array_equal(judge._current[ENGINE].limit, limits)


def test_silence_is_not_armed() -> None:
    """A canary that is not measured any more cannot be trusted to page."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 20)

    assert judge.get(engine.now_ns + 100 * SECOND).state is ChannelState.ARMED
    silent = judge.get(engine.now_ns + 200 * SECOND)
    assert silent.state is ChannelState.COLLECTING
    assert "llm_internals_canary_rounds_total" in silent.reason


def test_short_rounds_are_neither_judged_nor_learnt() -> None:
    """Fewer than three quarters of the prompts, as when an engine restarts in the middle."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 21)
    engine.shift = {"log_rms": 1.0}
    for _ in range(4):
        for signed in engine.round(PROMPTS[:8]):
            judge.update(signed)
    judge.advance(engine.now_ns + 3600 * SECOND)

    assert judge.ignored["short_round"] == 4
    assert judge.deviations()[0].score < 2
    assert judge._current[ENGINE].num_learnt == 21


def test_a_round_with_most_of_its_prompts_is_judged() -> None:
    """Ten of twelve."""
    engine, judge = Engine(), channel()
    feed(judge, engine, 20)
    engine.shift = {"log_rms": 1.0}
    for _ in range(2):
        for signed in engine.round(PROMPTS[2:]):
            judge.update(signed)
        judge.advance(engine.now_ns + 200 * SECOND)

    assert judge.get(engine.now_ns).state is ChannelState.PAGE


def test_each_source_is_judged_by_its_own_rounds() -> None:
    """Two engines differ from one another all the time; only a change of one is one."""
    one, two = Engine("engine-dp0-pp0-tp0"), Engine("engine-dp1-pp0-tp0", seed=1)
    two.shift = {"log_rms": 0.1}
    judge = channel()
    for _ in range(60):
        feed(judge, one)
        feed(judge, two)
    assert judge.get(one.now_ns).state is ChannelState.ARMED
    assert "2 sources" in judge.get(one.now_ns).reason

    two.shift = {}
    for _ in range(2):
        feed(judge, one)
        feed(judge, two)
    assert "engine-dp1-pp0-tp0 deviates" in judge.get(one.now_ns).reason


def test_many_sources_share_one_rate_of_false_pages() -> None:
    """The run length of each is as many times as long."""
    judge = channel()
    for dp in range(4):
        feed(judge, Engine(f"engine-dp{dp}-pp0-tp0"))

    assert {each.evidence.run_length for each in judge._judges.values()} == {40_000}


def test_a_source_that_still_learns_is_the_state_of_all() -> None:
    """One engine that cannot page yet is not hidden behind one that can."""
    one, two = Engine("engine-dp0-pp0-tp0"), Engine("engine-dp1-pp0-tp0")
    judge = feed(channel(), one, 60)
    two.num_rounds = one.num_rounds
    feed(judge, two, 3)

    verdict = judge.get(one.now_ns)
    assert verdict.state is ChannelState.COLLECTING
    assert "engine-dp1-pp0-tp0 has learnt 3 of 20 rounds" in verdict.reason


def test_another_kernel_configuration_is_a_ticket_with_a_reference_of_its_own() -> None:
    """And coming back finds the old reference."""
    engine, judge = Engine(), channel(QUICK)
    judge.identify(ENGINE, BF16)
    feed(judge, engine, 12)
    judge.identify(ENGINE, Identity("tiny", "d1", kernels="A100", dtype="bfloat16"))
    engine.shift = {"log_rms": 0.02}

    ticket = feed(judge, engine).get(engine.now_ns)
    assert ticket.state is ChannelState.TICKET
    assert "kernels A100 instead of H100" in ticket.reason
    judge.acknowledge(engine.now_ns)
    assert judge.get(engine.now_ns).state is ChannelState.COLLECTING
    feed(judge, engine, 12)
    assert judge.get(engine.now_ns).state is ChannelState.ARMED

    judge.identify(ENGINE, BF16)
    feed(judge, engine, 2)
    assert judge.get(engine.now_ns).state is ChannelState.PAGE


def test_an_identity_that_is_told_late_changes_nothing() -> None:
    """A source may be measured before it says what it is."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 4)
    judge.identify(ENGINE, BF16)
    feed(judge, engine, 2)

    assert judge.get(engine.now_ns).state is ChannelState.ARMED


def test_another_digest_is_a_finding_and_comparison_goes_on() -> None:
    """A ticket once, and a page when the numbers moved as well."""
    engine, judge = Engine(), channel(QUICK)
    judge.identify(ENGINE, BF16)
    feed(judge, engine, 12)
    other = Identity("tiny", "d2", kernels="H100", attention_backend="FLASH", dtype="bfloat16")
    judge.identify(ENGINE, other)

    ticket = feed(judge, engine).get(engine.now_ns)
    assert ticket.state is ChannelState.TICKET
    assert "weights_digest d2 instead of d1" in ticket.reason
    judge.acknowledge(engine.now_ns)
    assert feed(judge, engine).get(engine.now_ns).state is ChannelState.ARMED

    engine.shift = {"log_rms": 0.05}
    assert feed(judge, engine, 2).get(engine.now_ns).state is ChannelState.PAGE


def test_another_tokenizer_shows_in_the_number_of_tokens() -> None:
    """With the prompt and both numbers."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 12)
    engine.num_tokens = 41

    ticket = feed(judge, engine).get(engine.now_ns)
    assert ticket.state is ChannelState.TICKET
    assert "such as p0: 41 instead of 40" in ticket.reason


def test_another_adapter_is_a_finding() -> None:
    """Canaries that an adapter answers are not of the model that was learnt."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 12)
    engine.adapter = "support"

    ticket = feed(judge, engine).get(engine.now_ns)
    assert ticket.state is ChannelState.TICKET
    assert "answers with support" in ticket.reason


def test_another_layout_of_signatures_starts_anew_with_a_ticket() -> None:
    """Its numbers cannot be compared."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 12)
    other = Engine(layout=Layout([0, 1, 2, 5]))
    other.num_rounds = engine.num_rounds

    ticket = feed(judge, other).get(other.now_ns)
    assert ticket.state is ChannelState.TICKET
    assert "another signature layout" in ticket.reason


def test_what_is_no_canary_counts_for_nothing() -> None:
    """Nor does one of an unknown prompt, or one of which rows were not measured."""
    engine, judge = Engine(), channel(QUICK)
    for _ in range(8):
        for signed in engine.round():
            judge.update(without_canary(signed))
    assert not judge._judges

    for _ in range(8):
        for signed in engine.round():
            signed.signature.num_unobserved = 1
            judge.update(signed)
    assert judge.ignored["unmeasured"] == 8 * len(PROMPTS)
    assert not judge._judges


def without_canary(signed: Signed) -> Signed:
    signed.signature.canary = ""
    return signed


@settings(max_examples=25)
@given(stop=st.integers(0, 18), part=st.integers(0, len(PROMPTS)), seed=st.integers(0, 99))
def test_a_restored_channel_goes_on_as_if_it_had_never_stopped(
    stop: int, part: int, seed: int
) -> None:
    """Whenever it stops: while it learns, in the middle of a round, or with a page latched."""
    engine = Engine(seed=seed)
    stream = []
    for number in range(18):
        engine.shift = {"log_rms": 0.05} if number >= 15 else {}
        stream.append(list(engine.round()))
    whole = channel(QUICK)
    before = channel(QUICK)
    for each in (whole, before):
        each.identify(ENGINE, BF16)
    flat = [signed for signeds in stream for signed in signeds]
    cut = min(stop * len(PROMPTS) + part, len(flat))
    for signed in flat[:cut]:
        before.update(signed)
    after = channel(QUICK)
    after.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(before.export())))
    after.identify(ENGINE, BF16)
    for signed in flat:
        whole.update(signed)
    for signed in flat[cut:]:
        after.update(signed)

    assert after.get(engine.now_ns) == whole.get(engine.now_ns)
    assert msgspec.msgpack.encode(after.export()) == msgspec.msgpack.encode(whole.export())
    assert whole.get(engine.now_ns).state is ChannelState.PAGE


def test_state_of_another_suite_is_refused() -> None:
    """And the channel is what it was."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 12)
    other = CanaryChannel(PROMPTS, "another digest", QUICK)

    with pytest.raises(StateError, match="another suite"):
        other.restore(judge.export())
    assert not other._judges


@pytest.mark.parametrize("field", ["judges", "current", "rounds", "latch", "seen", "digest"])
@pytest.mark.parametrize("value", [None, 7, [7], {"a": {}}])
def test_torn_state_is_refused_and_changes_nothing(field: str, value: object) -> None:
    """Never another error."""
    engine, judge = Engine(), channel(QUICK)
    feed(judge, engine, 12)
    before = judge.export()

    with pytest.raises(StateError):
        judge.restore(before | {field: value})
    assert judge.export() == before


@settings(max_examples=50)
@given(
    values=st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=30, max_size=30)
)
def test_no_numbers_break_it(values: list[list[float]]) -> None:
    """NaN, infinities and the largest floats are judged or left out, and nothing is raised."""
    engine, judge = Engine(), channel(QUICK)
    for wild in values:
        for signed in engine.round():
            numbers = np.frombuffer(signed.signature.values, "<f4").copy()
            numbers[:3] = wild
            signed.signature.values = numbers.tobytes()
            judge.update(signed)
    verdict = judge.get(engine.now_ns)

    assert verdict.level >= 0
    assert len(verdict.causes) <= 20


def test_layers_that_nobody_measured_have_no_verdict() -> None:
    """A signature of NaN alone arms the rule with nothing to judge, and pages nobody."""
    engine, judge = Engine(), channel(QUICK)
    empty = np.full(len(engine.values("p0")), np.nan, "<f4").tobytes()
    for _ in range(20):
        for signed in engine.round():
            signed.signature.values = empty
            judge.update(signed)

    assert judge.get(engine.now_ns).level == 0.0


def test_the_default_pace_is_a_page_in_twelve_months() -> None:
    """A, in rounds of five minutes; and 20 and 200 rounds to learn."""
    assert Pace.of(300.0) == Pace(20, 200, 105_120)
    assert PACE.num_rounds < Pace().num_rounds
    assert LAYOUT.sketch_size
