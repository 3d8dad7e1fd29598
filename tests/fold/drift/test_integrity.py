"""The integrity channel."""

import msgspec
import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.integrity import ANNOUNCED_NS, SILENT_NS, IntegrityChannel
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.drift.window import Window
from sidecar.wire.frame import Identity
from tests.fold.drift.references import HEADER, SCHEMA, START, P, baseline, moments, window

SERVED = HEADER._replace(identity=Identity(model_name="tiny", dtype="bfloat16"))
QUANTISED = HEADER._replace(
    identity=Identity(model_name="tiny", dtype="bfloat16", quantization="int8")
)
HALF = HEADER._replace(identity=Identity(model_name="tiny", dtype="float16"))
REFERENCE = baseline(header=SERVED, constant=2)
PAGE, ARMED = ChannelState.PAGE, ChannelState.ARMED


def calm(at: int = 0) -> Window:
    return window(np.random.default_rng(40 + at), at, constant=2)


def infinite(at: int = 0, stream: int = 7) -> Window:
    plain = calm(at)
    rows = np.zeros((5, P))
    rows[0, stream] = np.inf
    rows[:, 2] = 1.0
    return plain._replace(strata={**plain.strata, "other": moments(rows)})


def extreme(at: int = 0) -> Window:
    """Every stream but the constant is 12 window-sd low."""
    plain = window(np.random.default_rng(40 + at), at)
    rows = np.random.default_rng(at).normal(size=(60, P)) - 3.0
    rows[:, 2] = 1.0
    return plain._replace(strata={next(iter(plain.strata)): moments(rows)})


def test_a_calm_window_breaks_no_rule() -> None:
    """Armed from the first window on."""
    verdict = IntegrityChannel(REFERENCE).update(calm())

    assert (verdict.state, verdict.level, verdict.causes) == (ARMED, 0, ())


def test_an_infinite_value_pages_at_once() -> None:
    """One request is enough; the page names the stream."""
    verdict = IntegrityChannel(REFERENCE).update(infinite())

    assert (verdict.state, verdict.level) == (PAGE, 1)
    assert [cause.stream for cause in verdict.causes] == [SCHEMA.streams[7].name]
    assert verdict.causes[0].layer == SCHEMA.streams[7].layer
    assert "not finite" in verdict.reason


def test_a_constant_that_changed_pages_at_once() -> None:
    """What was the same in every request of the baseline is another value in some."""
    verdict = IntegrityChannel(REFERENCE).update(window(np.random.default_rng(41)))

    assert verdict.state is PAGE
    assert [cause.stream for cause in verdict.causes] == [SCHEMA.streams[2].name]
    assert "constant in the baseline" in verdict.reason


def test_extreme_windows_page_the_second_time() -> None:
    """Beyond 8 sd in two windows running; the page names the side."""
    channel = IntegrityChannel(REFERENCE)
    assert channel.update(extreme(0)).state is ARMED
    verdict = channel.update(extreme(1))

    assert verdict.state is PAGE
    assert {cause.side for cause in verdict.causes} == {"low"}
    assert "8 sd" in verdict.reason


def test_an_unannounced_change_of_the_header_pages_with_both_values() -> None:
    """The page says which field, what it was and what it is."""
    channel = IntegrityChannel(REFERENCE)
    assert channel.identify(SERVED, START).state is ARMED
    verdict = channel.identify(HALF, START + 1)

    assert (verdict.state, verdict.since_ns) == (PAGE, START + 1)
    assert [cause.stream for cause in verdict.causes] == ["header/dtype"]
    assert "dtype: bfloat16 in the baseline, float16 now" in verdict.reason


def test_what_nobody_knew_before_is_no_change() -> None:
    """A digest that the baseline has not heard cannot differ."""
    digest = SERVED._replace(identity=Identity(model_name="tiny", weights_digest="ab" * 32))

    assert IntegrityChannel(REFERENCE).identify(digest, START).state is ARMED


def test_an_announced_deployment_is_an_annotation() -> None:
    """Within 6 hours of the announcement the change is wanted, and stays so ever after."""
    channel = IntegrityChannel(REFERENCE)
    channel.announce(START, "half precision")
    verdict = channel.identify(HALF, START + ANNOUNCED_NS)
    assert verdict.state is ARMED
    assert "deployment announced: half precision" in verdict.reason

    assert channel.identify(HALF, START + 10 * ANNOUNCED_NS).state is ARMED
    other = HALF._replace(identity=Identity(model_name="other"))
    assert channel.identify(other, START + 10 * ANNOUNCED_NS).state is PAGE


def test_an_old_announcement_covers_nothing() -> None:
    """After 6 hours nobody remembers what it was for."""
    channel = IntegrityChannel(REFERENCE)
    channel.announce(START, "half precision")

    assert channel.identify(HALF, START + ANNOUNCED_NS + 1).state is PAGE


def test_an_announcement_that_comes_late_accepts_what_is_there() -> None:
    """The page stays latched until it was seen, and does not come again."""
    channel = IntegrityChannel(REFERENCE)
    channel.identify(HALF, START)
    channel.announce(START + 1, "sorry")
    assert channel.get(START + 1).state is PAGE
    channel.acknowledge(START + 2)

    assert channel.identify(HALF, START + 10 * ANNOUNCED_NS).state is ARMED


def test_what_was_seen_is_not_raised_while_it_lasts_and_is_when_it_comes_back() -> None:
    """Nobody is paged every five minutes for what they are mending."""
    channel = IntegrityChannel(REFERENCE)
    channel.update(infinite(0))
    channel.acknowledge(START)
    lasting = channel.update(infinite(1))
    assert (lasting.state, lasting.level) == (ARMED, 1)
    assert lasting.is_acknowledged
    assert lasting.causes[0].since_ns == START

    channel.update(calm(2))
    assert channel.update(infinite(3)).state is PAGE


def test_something_new_is_raised_beside_what_was_seen() -> None:
    """Another stream that turns infinite is another page, and only it is a cause of it."""
    channel = IntegrityChannel(REFERENCE)
    channel.update(infinite(0, stream=7))
    channel.acknowledge(START)
    verdict = channel.update(infinite(1, stream=8))

    assert verdict.state is PAGE
    assert [cause.stream for cause in verdict.causes] == [SCHEMA.streams[8].name]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(20, 0, 0), (10, 0, SILENT_NS)], PAGE),
        ([(20, 0, 0), (9, 0, SILENT_NS)], ARMED),
        ([(20, 0, 0), (10, 0, SILENT_NS - 1)], ARMED),
        ([(20, 0, 0), (20, 1, 5), (20, 0, 6), (9, 0, SILENT_NS + 6)], ARMED),
        ([(0, 0, 0), (30, 0, SILENT_NS)], ARMED),
    ],
)
def test_a_silent_tap_pages_while_requests_run(
    counts: list[tuple[int, int, int]], expected: ChannelState
) -> None:
    """30 requests in 5 minutes without a measurement; an idle engine may be silent."""
    channel = IntegrityChannel()
    for num_finished, num_measured, at in counts:
        channel.count(num_finished, num_measured, START + at)

    assert channel.get(0).state is expected


def test_without_a_baseline_only_silence_is_judged() -> None:
    """And the reason says so."""
    channel = IntegrityChannel()
    channel.update(infinite())
    channel.identify(HALF, START)

    assert channel.get(0).state is ARMED
    assert "no baseline" in channel.get(0).reason


def test_a_split_anywhere_changes_nothing() -> None:
    """Export, pack, unpack, restore into a new channel and go on: as if it had never stopped."""
    steps = [
        lambda c: c.update(calm(0)),
        lambda c: c.update(extreme(1)),
        lambda c: c.update(extreme(2)),
        lambda c: c.count(20, 0, START),
        lambda c: c.acknowledge(START),
        lambda c: c.update(extreme(3)),
        lambda c: c.announce(START, "half precision"),
        lambda c: c.identify(HALF, START + 5),
        lambda c: c.identify(QUANTISED, START + 2 * ANNOUNCED_NS),
        lambda c: c.count(20, 0, START + SILENT_NS),
    ]
    whole = IntegrityChannel(REFERENCE)
    for step in steps:
        step(whole)
    for at in range(len(steps) + 1):
        first, second = IntegrityChannel(REFERENCE), IntegrityChannel(REFERENCE)
        for step in steps[:at]:
            step(first)
        second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.export())))
        for step in steps[at:]:
            step(second)
        assert second.export() == whole.export()
        assert second.get(0) == whole.get(0)


def test_a_foreign_state_is_refused() -> None:
    """Of another baseline, torn, or of other rules; the channel is as it was."""
    channel = IntegrityChannel(REFERENCE)
    channel.update(infinite())
    before = channel.export()
    foreign = [
        IntegrityChannel().export(),
        {**before, "found": {}},
        {**before, "silence": "no"},
        {key: value for key, value in before.items() if key != "seen"},
    ]
    for state in foreign:
        with pytest.raises(StateError):
            channel.restore(state)

    assert channel.export() == before


def test_a_value_that_is_not_finite_pages_without_a_baseline() -> None:
    """By the tap's own count, which a signature does not show; the layer is named."""
    channel = IntegrityChannel()
    assert channel.overflow("engine", {0: 0, 5: 0}, START).state is ARMED

    verdict = channel.overflow("engine", {0: 0, 5: 3}, START + 1)
    assert (verdict.state, verdict.since_ns) == (PAGE, START + 1)
    assert [(cause.signal, cause.layer) for cause in verdict.causes] == [("residual", 5)]
    assert "NaN or Inf" in verdict.reason


def test_an_overflow_that_was_seen_pages_again_when_it_grows_again() -> None:
    """Not while the count stands still, nor because it goes on; another layer's is another."""
    channel = IntegrityChannel()
    channel.overflow("engine", {5: 3}, START)
    channel.overflow("engine", {5: 4}, START + 1)
    channel.acknowledge(START + 2)
    assert channel.overflow("engine", {5: 5}, START + 3).state is ARMED  # it never stopped
    assert channel.overflow("engine", {5: 5}, START + 4).state is ARMED

    assert channel.overflow("engine", {5: 6}, START + 5).state is PAGE
    channel.acknowledge(START + 6)
    assert channel.overflow("engine", {5: 6, 7: 1}, START + 7).state is PAGE


def test_sources_overflow_each_for_itself() -> None:
    """One that is well does not clear what another one found, and a restart counts from 0."""
    channel = IntegrityChannel()
    channel.overflow("bad", {1: 2}, START)
    verdict = channel.overflow("good", {1: 0}, START + 1)
    assert (verdict.level, len(verdict.causes)) == (1, 1)

    channel.overflow("bad", {1: 2}, START + 2)
    channel.acknowledge(START + 3)
    assert channel.overflow("bad", {1: 1}, START + 4).state is PAGE  # fewer: a new life, not finite


def test_what_overflowed_before_a_restart_is_not_told_again() -> None:
    """The counts are part of the state; a first look at what is not finite is a page."""
    channel, other = IntegrityChannel(), IntegrityChannel()
    channel.overflow("engine", {5: 3}, START)
    channel.acknowledge(START + 1)
    channel.overflow("engine", {5: 3}, START + 2)
    other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(channel.export())))

    assert other.overflow("engine", {5: 3}, START + 3).state is ARMED
    assert IntegrityChannel().overflow("engine", {5: 3}, START + 3).state is PAGE
