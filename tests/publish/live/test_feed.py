"""The ring of events that every client reads."""

import json

import pytest
from pydantic import BaseModel

from sidecar.publish.live.feed import Feed
from tests.fakes import NOW


class Said(BaseModel):
    what: int


def feed(num_events: int = 0, max_events: int = 4) -> Feed:
    made = Feed(max_events, lambda: NOW)
    for what in range(num_events):
        made.publish("even" if what % 2 == 0 else "odd", Said(what=what))
    return made


def test_a_reader_gets_what_it_has_not_seen() -> None:
    """In order, with the JSON as published."""
    made = feed(3)
    events = made.after(1)
    assert events is not None

    assert [(each.number, each.kind, json.loads(each.data)) for each in events] == [
        (2, "odd", {"what": 1}),
        (3, "even", {"what": 2}),
    ]
    assert made.after(3) == ()
    assert made.last == 3


@pytest.mark.parametrize(("number", "found"), [(5, None), (6, 4), (9, 1), (10, 0), (11, None)])
def test_a_gap_is_told_from_nothing_new(number: int, found: int | None) -> None:
    """Of ten events four are held; what never was is a gap too."""
    events = feed(10).after(number)

    assert (None if events is None else len(events)) == found


def test_nothing_published_is_no_gap() -> None:
    """A client that comes first waits."""
    assert feed().after(0) == ()
    assert feed().latest("even") is None


def test_the_latest_of_a_kind_outlives_the_ring() -> None:
    """A client that comes now begins with it."""
    latest = feed(10, max_events=1).latest("even")

    assert latest is not None
    assert latest.number == 9


def test_an_id_is_of_this_life_alone() -> None:
    """One of another life, or nonsense, is no place to go on from."""
    made = feed(2)
    event = made.after(1)[0]  # type: ignore[index]

    assert made.number_of(made.id_of(event)) == 2
    for foreign in ("", "2", f"{NOW + 1}-2", f"{NOW}-x", f"{NOW}-", f"{NOW}-²"):
        assert made.number_of(foreign) is None


def test_what_clients_missed_is_counted() -> None:
    """By cause."""
    made = feed()
    made.drop("behind")

    assert made.dropped() == {"behind": 1, "stalled": 0, "refused": 0}
