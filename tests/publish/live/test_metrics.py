"""The summary as families: the same state and time that /v1/status tells in words."""

import pytest

from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.reducer import Snapshot
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.live.metrics import collector, events_collector
from sidecar.publish.live.summary import summary_answer
from tests import fakes
from tests.fakes import NOW, FakeSource
from tests.publish import drifting
from tests.publish.live.room import Room

QUIET = drifting.everything()._replace(channels=())


def heard() -> Snapshot:
    """One engine that is live."""
    source = FakeSource()
    frames = [source.frame(body) for body in (fakes.live(), fakes.layers())]
    return fakes.reduced(*frames).get(NOW)


def told(snapshot: Snapshot, view: DriftView) -> tuple[dict[str, float], list[float]]:
    """Value by state, and the times."""
    state, since = collector(lambda: view)(snapshot)
    assert (state.name, since.name) == (
        "llm_internals_summary_state",
        "llm_internals_summary_since_timestamp_seconds",
    )
    return {s.labels["state"]: s.value for s in state.samples}, [s.value for s in since.samples]


@pytest.mark.parametrize(
    ("snapshot", "view", "level"),
    [
        (heard(), drifting.everything(), "page"),
        (heard(), QUIET, "collecting"),
        (fakes.reduced().get(NOW), QUIET, "blind"),
    ],
)
def test_one_state_is_1_and_it_is_that_of_the_sentence(
    snapshot: Snapshot, view: DriftView, level: str
) -> None:
    """Page before blind before collecting, as the sentence has it; since then, where it says."""
    answer = summary_answer(snapshot, view)
    states, since = told(snapshot, view)

    assert answer.level == level
    assert states == {
        each: float(each == level) for each in ("ok", "collecting", "ticket", "page", "blind")
    }
    assert since == ([] if answer.since_ns is None else [answer.since_ns / 1e9])


def test_an_armed_channel_makes_it_ok() -> None:
    """As soon as one that compares with something known is armed."""
    armed = [
        each for each in drifting.everything().channels if each.verdict.state is ChannelState.ARMED
    ]
    states, _ = told(heard(), QUIET._replace(channels=tuple(armed)))

    assert states["ok"] == 1
    assert sum(states.values()) == 1


def test_how_clients_and_columns_fare_is_published() -> None:
    """As the pulse tells it at that scrape."""
    room = Room()
    room.pulse.feed.num_clients = 2
    room.pulse.feed.drop("stalled")
    collect = events_collector(room.pulse.get)
    found = {
        (sample.name.removeprefix("llm_internals_"), *sample.labels.values()): sample.value
        for family in collect(room.intake.get())
        for sample in family.samples
    }

    assert found == {
        ("event_clients",): 2,
        ("event_clients_failed_total", "behind"): 0,
        ("event_clients_failed_total", "stalled"): 1,
        ("event_clients_failed_total", "refused"): 0,
        ("event_errors_total",): 0,
        ("lost_timeline_readings_total",): 0,
    }
