"""Told to end under load, a real sidecar ends soon and keeps what it learnt."""

from pathlib import Path

import pytest

from bench.ending import NOTE, PROMISED_SECONDS, Load, end_within_a_window
from sidecar.publish import server
from sidecar.publish.canary import runner
from sidecar.publish.drift import fetch, watch
from sidecar.publish.live import pulse
from sidecar.publish.traces import outbox, pushing, tracer

SMALL = Load(ranks=2, listeners=3, sleepers=3, scrapers=2, requests=20)


@pytest.mark.parametrize("num_signals", [1, 2])
def test_it_ends_with_everything_kept(tmp_path: Path, num_signals: int) -> None:
    """With receivers that never answer, and a second signal while it keeps what it learnt."""
    ended = end_within_a_window(tmp_path, SMALL, num_signals)

    assert ended.status == 0
    assert ended.told >= SMALL.requests
    assert not ended.has_closed  # or nothing could be said of what was kept
    assert ended.kept >= ended.told
    assert ended.notes == (NOTE,)
    assert not ended.is_socket_left
    # Measured are seconds (docs/reliability.md); what waits for one of the silent waits for ever.
    assert ended.seconds < 10 * PROMISED_SECONDS


def test_the_limits_of_all_parts_add_up_to_less_than_promised() -> None:
    """Those who ask and read end at once, then the watch, then the tracer and its outbox."""
    asking = (runner, pulse, pushing)
    first = max(fetch.STOP_SECONDS, *(each.STOP_SECONDS for each in asking))
    then = watch.STOP_SECONDS + tracer.STOP_SECONDS + outbox.STOP_SECONDS

    assert server.GRACE_SECONDS + first + then < PROMISED_SECONDS
