"""Replays: what would have paged is found, where and when it began, and nothing else is."""

from pathlib import Path

import msgspec
import pytest

from sidecar.errors import BaselineError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.drift.window import Assembly
from sidecar.jobs.calibrating import calibrate_limits, calibrate_tail
from sidecar.jobs.fitting import fit_recordings, header_of, num_requests, survey_recordings
from sidecar.jobs.pool import Here
from sidecar.jobs.replay import Replayed, replay
from sidecar.wire.signature import Layout
from tests.jobs.traffic import DAY, IDENTITY, MIDNIGHT, PER_WINDOW, SHIFTED, record


def ignore(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Of seven days and an hour, calibrated: everything is armed."""
    recordings = record(tmp_path_factory.mktemp("reference"), 7 + 1 / 24)
    plan = survey_recordings(recordings, Here(), ignore)
    header = header_of(recordings, Assembly())
    fitted = fit_recordings(recordings, header, plan, Here(), ignore).get()
    fitted = fitted.with_tail(calibrate_tail(fitted, recordings, Here(), ignore))
    return fitted.calibrated(calibrate_limits(fitted, Policy(), 0, Here(), ignore, 10))


def pages(replayed: Replayed) -> list[str]:
    return [
        event.verdict.channel
        for event in replayed.events
        if event.verdict.state is ChannelState.PAGE
    ]


def test_more_of_the_same_pages_nobody(baseline: Baseline, tmp_path: Path) -> None:
    """Half a day like those of the reference; every window and request is counted."""
    recordings = record(tmp_path, 0.5, first_day=9, seed=7)
    told: list[int] = []
    replayed = replay(recordings, baseline, told.append)

    assert pages(replayed) == []
    assert (replayed.num_windows, replayed.num_insufficient, replayed.num_late) == (144, 0, 0)
    assert sum(told) == replayed.num_requests == num_requests(tuple(recordings))
    assert [each.state for each in replayed.verdicts] == [ChannelState.ARMED] * 4
    assert (replayed.start_ns, replayed.end_ns) == (
        recordings[0].header.start_ns,
        recordings[-1].header.end_ns,
    )


def test_a_shift_pages_traffic_and_says_where_and_since_when(baseline, tmp_path: Path) -> None:
    """Hours are as before; from midnight on one entry is a deviation higher."""
    before = record(tmp_path / "a", 0.25, first_day=9.75, seed=7)
    after = record(tmp_path / "b", 0.1, first_day=10, shift=1.0, seed=8)
    replayed = replay([*after, *before], baseline, ignore)
    first = next(e for e in replayed.events if e.verdict.state is ChannelState.PAGE)
    midnight = MIDNIGHT + 10 * DAY

    assert set(pages(replayed)) == {"traffic"}
    assert replayed.num_pages == len(pages(replayed)) > 1, "each is acknowledged at once"
    assert midnight < first.t_ns < midnight + DAY // 12
    assert abs(first.verdict.since_ns - midnight) <= 2 * 300 * 10**9
    assert (first.verdict.causes[0].stream, first.verdict.causes[0].side) == (SHIFTED, "high")
    assert replay([*before, *after], baseline, ignore) == replayed


def test_another_mix_is_a_ticket(baseline: Baseline, tmp_path: Path) -> None:
    """Nine of ten requests are chat, where it was half: no page."""
    mixed = record(tmp_path, 0.5, first_day=9, routes=("chat",) * 9 + ("code",))
    replayed = replay(mixed, baseline, ignore)

    assert pages(replayed) == []
    assert "mix" in {event.verdict.channel for event in replayed.events}


def test_other_weights_page_integrity_from_that_recording_on(baseline, tmp_path: Path) -> None:
    """Once, with the field; as long as it stays it is not raised again."""
    other = msgspec.structs.replace(IDENTITY, weights_digest="cd" * 32)
    recordings = [
        *record(tmp_path / "a", 0.1, first_day=9),
        *record(tmp_path / "b", 0.2, first_day=9.1, identity=other, files_per_day=10),
    ]
    replayed = replay(recordings, baseline, ignore)
    (page,) = [e for e in replayed.events if e.verdict.state is ChannelState.PAGE]

    assert (page.t_ns, page.verdict.channel) == (recordings[1].header.start_ns, "integrity")
    assert "weights_digest" in page.verdict.reason


def test_a_channel_that_is_not_armed_says_why(tmp_path: Path) -> None:
    """A baseline of an hour judges nothing."""
    recordings = record(tmp_path, 1 / 24)
    plan = survey_recordings(recordings, Here(), ignore)
    header = header_of(recordings, Assembly())
    short = fit_recordings(recordings, header, plan, Here(), ignore).get()
    replayed = replay(record(tmp_path, 0.1, first_day=1, shift=9), short, ignore)
    states = {each.channel: each for each in replayed.verdicts}

    assert replayed.num_windows == 28
    assert "traffic" not in pages(replayed)
    assert states["traffic"].state is ChannelState.COLLECTING
    assert "12 of 2016 windows" in states["traffic"].reason
    assert PER_WINDOW >= 30


def test_another_layout_is_refused(baseline: Baseline, tmp_path: Path) -> None:
    """Before anything is judged."""
    with pytest.raises(BaselineError, match="layers"):
        replay(record(tmp_path, 0.05, layout=Layout([0])), baseline, ignore)
