"""Readiness: every reason why the telemetry is not to be trusted, and no other."""

import pytest

from sidecar.fold.reducer import Reducer
from sidecar.publish.vitals import reasons, tap_live
from sidecar.wire.frame import Source, Status, TapState
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, LIMITS, NOW, SECOND, FakeSource, reduced

STALE = LIMITS.stale_ns


def told(status: Status | None, source: Source = ENGINE) -> Reducer:
    frames = [FakeSource(source).frame(status or fakes.layers())]
    if source is not ENGINE:
        frames.append(FakeSource(ENGINE).frame(fakes.live()))
    return reduced(*frames)


def only_reason(reducer: Reducer, now_ns: int = NOW) -> str:
    (reason,) = reasons(reducer.get(now_ns))
    return reason


def test_a_live_tap_leaves_no_reason() -> None:
    """Ready is the absence of reasons."""
    assert reasons(told(fakes.live()).get(NOW)) == []


def test_no_engine_yet_is_a_reason() -> None:
    """No data yet is told with what to do, also while only a front end speaks."""
    silent = Reducer(LIMITS)
    frontend = reduced(FakeSource(FRONTEND).frame(fakes.serving()))

    for reducer in (silent, frontend):
        assert only_reason(reducer).startswith("no engine has been heard yet: start vLLM with")


@pytest.mark.parametrize("state", ["dead", "refused", "disarmed", "starting"])
def test_a_tap_that_is_not_live_is_a_reason(state: TapState) -> None:
    """With the source's name, its state, and its own words."""
    status = Status(state, "word", "layer 3 did not run; restart")
    expected = f"engine-dp0-pp0-tp0: its tap is {state}: layer 3 did not run; restart"

    assert only_reason(told(status)) == expected


def test_a_tap_without_a_word_is_a_reason() -> None:
    """Numbers from a tap that never said it lives are not to be trusted."""
    assert "has not said yet" in only_reason(told(None))


@pytest.mark.parametrize("state", ["refused", "disarmed", "dead"])
def test_a_front_end_in_trouble_is_a_reason(state: TapState) -> None:
    """It speaks of its own half, or of the engine that it refused to tap."""
    status = Status(state, "word", "unknown release")

    assert only_reason(told(status, FRONTEND)) == f"frontend-0: its tap is {state}: unknown release"


@pytest.mark.parametrize("status", [None, Status("live"), Status("starting")])
def test_a_front_end_without_trouble_is_no_reason(status: Status | None) -> None:
    """It has no tap to be live."""
    assert reasons(told(status, FRONTEND).get(NOW)) == []


def test_a_vanished_source_stays_a_reason_for_a_while() -> None:
    """From the staleness limit on for ten minutes; then it is forgotten."""
    reducer = told(fakes.live())
    assert reasons(reducer.get(NOW + STALE)) == []

    assert only_reason(reducer, NOW + 45 * SECOND).startswith("engine-dp0-pp0-tp0: silent for 45 s")
    assert "silent for 600 s" in only_reason(reducer, NOW + 600 * SECOND)
    assert "no engine has been heard" in only_reason(reducer, NOW + 700 * SECOND)


def test_frames_that_are_too_old_are_a_reason() -> None:
    """A source of which only old frames arrive is heard, and not believed."""
    reducer = Reducer(LIMITS)
    reducer.update(FakeSource().frame(fakes.live(), NOW - LIMITS.max_age_ns - 1), NOW)

    assert "older than 10 s when read" in only_reason(reducer)


@pytest.mark.parametrize(("cause", "remedy"), [("schema", "same"), ("mac", "SIDECAR_KEY_FILE")])
def test_recent_refusals_of_a_peer_are_a_reason(cause: str, remedy: str) -> None:
    """A release or key mismatch is told until no such frame has come for a while."""
    reducer = told(fakes.live())
    reducer.refuse(cause, NOW - STALE)

    assert remedy in only_reason(reducer)
    reducer.update(FakeSource(boot="boot-two").frame(fakes.live(), NOW + 1), NOW + 1)
    assert reasons(reducer.get(NOW + 1)) == []


def test_garbage_is_no_reason() -> None:
    """A stranger's noise does not make the telemetry untrustworthy; it is a counter."""
    reducer = told(fakes.live())
    for cause in ("magic", "decode", "oversized"):
        reducer.refuse(cause, NOW)

    assert reasons(reducer.get(NOW)) == []


def test_two_processes_under_one_name_are_a_reason() -> None:
    """As long as both speak."""
    first, second = FakeSource(boot="boot-one"), FakeSource(boot="boot-two")
    reducer = reduced(first.frame(fakes.live()))
    reducer.update(second.frame(fakes.live(), NOW + 1), NOW + 1)
    assert reasons(reducer.get(NOW + 1)) == []

    reducer.update(first.frame(fakes.live(), NOW + 2), NOW + 2)
    assert "two processes speak under this name" in only_reason(reducer, NOW + 2)


@pytest.mark.parametrize(
    ("source", "status", "expected"),
    [
        (ENGINE, Status("live"), True),
        (ENGINE, Status("starting"), False),
        (ENGINE, Status("dead"), False),
        (ENGINE, None, False),
        (FRONTEND, None, None),
        (FRONTEND, Status("live"), None),
        (FRONTEND, Status("refused"), False),
    ],
)
def test_the_gauge_is_one_only_for_a_proven_tap(
    source: Source, status: Status | None, expected: bool | None
) -> None:
    """Absent where no tap is to be expected, 0 wherever there is doubt."""
    views = told(status, source).get(NOW).sources
    (view,) = [view for view in views if view.source == source]

    assert tap_live(view) is expected
