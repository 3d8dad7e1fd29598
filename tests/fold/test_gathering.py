"""Finished requests are put together out of frames of several sources, each part once."""

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.gathering import PATIENCE_NS, QUIET_NS, Gathered, Gathering
from sidecar.wire.frame import Requests, Serving, Signatures, Source
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, NOW, SECOND

ID = "cmpl-1-0-0badcafe"
Told = tuple[Source, Requests | Signatures | Serving]


def record(*ids: str, end_ns: int = NOW, source: Source = ENGINE) -> Told:
    return source, Requests([0, 1, 2], [fakes.request(each, end_ns=end_ns) for each in ids])


def signed(*ids: str, source: Source = ENGINE) -> Told:
    return source, fakes.signatures(*ids)


def served(*client_ids: str, end_ns: int = NOW) -> Told:
    return FRONTEND, fakes.serving(*(fakes.finished(each, end_ns=end_ns) for each in client_ids))


def told(gathering: Gathering, *parts: Told, now_ns: int = NOW) -> None:
    for source, body in parts:
        gathering.update(source, body, now_ns)


def summary(request: Gathered) -> tuple[str, int, int, str | None]:
    front = request.serving or request.aborted
    return request.id, len(request.measured), len(request.signed), front.id if front else None


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parts_find_each_other_in_any_order(order: tuple[int, ...]) -> None:
    """One request, with all that was told of it, once it has been quiet for two seconds."""
    parts = [record(ID), signed(ID), served("cmpl-1-0")]
    gathering = Gathering()
    told(gathering, *(parts[at] for at in order))
    early = gathering.take(NOW + QUIET_NS - 1)
    found = gathering.take(NOW + QUIET_NS)

    assert early == []
    assert [summary(each) for each in found] == [(ID, 1, 1, "cmpl-1-0")]
    assert found[0].model_name == "tiny"
    assert gathering.num_waiting == 0
    assert gathering.take_all(NOW + PATIENCE_NS) == []


def test_stages_of_a_pipeline_are_one_request_in_their_order() -> None:
    """Whichever stage flushes first; their signatures likewise."""
    stages = [Source("engine", 0, stage) for stage in range(3)]
    gathering = Gathering()
    for stage in reversed(stages):
        told(gathering, record(ID, source=stage), signed(ID, source=stage))
    told(gathering, served("cmpl-1-0"))
    (found,) = gathering.take(NOW + QUIET_NS)

    assert [each.source for each in found.measured] == [stage.name for stage in stages]
    assert [each.source for each in found.signed] == [stage.name for stage in stages]


def test_children_of_one_request_are_spans_of_their_own() -> None:
    """Each gets the nearest end, and no end is used twice."""
    ids = [f"{k}_cmpl-7-0badcafe" for k in range(3)]
    gathering = Gathering()
    for k, internal in enumerate(ids):
        told(gathering, record(internal, end_ns=NOW + k * SECOND))
    for k in reversed(range(3)):
        told(gathering, served("cmpl-7", end_ns=NOW + k * SECOND + 1))
    found = gathering.take(NOW + QUIET_NS)
    ends = {each.id: each.serving.end_ns for each in found if each.serving}

    assert ends == {internal: NOW + k * SECOND + 1 for k, internal in enumerate(ids)}


def test_ends_that_came_first_are_shared_out_likewise() -> None:
    """The front end may be quicker than the engine's next frame."""
    gathering = Gathering()
    for k in range(3):
        told(gathering, served("cmpl-7", end_ns=NOW + k * SECOND + 1))
    for k in range(3):
        told(gathering, record(f"{k}_cmpl-7-0badcafe", end_ns=NOW + k * SECOND))
    found = gathering.take(NOW + QUIET_NS)

    assert [each.serving.end_ns - NOW for each in found if each.serving] == [
        k * SECOND + 1 for k in range(3)
    ]


def test_a_request_whose_client_hung_up_says_so() -> None:
    """By the engine's id; the front end knows no other there."""
    for parts in permutations([record(ID), (FRONTEND, fakes.serving(gone=[fakes.aborted(ID)]))]):
        gathering = Gathering()
        told(gathering, *parts)
        (found,) = gathering.take(NOW + QUIET_NS)

        assert (found.serving, found.aborted) == (None, fakes.aborted(ID))
        assert len(found.measured) == 1


def test_what_is_never_whole_is_given_out_as_it_is() -> None:
    """After fifteen seconds: an engine without a front end, and the other way round."""
    gathering = Gathering()
    gone = (FRONTEND, fakes.serving(gone=[fakes.aborted("b-0badcafe")]))
    told(gathering, record("a-0badcafe"), gone, served("c"))
    early = gathering.take(NOW + PATIENCE_NS - 1)
    found = gathering.take(NOW + PATIENCE_NS)

    assert early == []
    assert sorted(summary(each) for each in found) == [
        ("a-0badcafe", 1, 0, None),
        ("b-0badcafe", 0, 0, "b-0badcafe"),
        ("c", 0, 0, "c"),
    ]


def test_a_late_part_is_counted_and_makes_no_second_request() -> None:
    """A rank that flushes after the others were told of."""
    gathering = Gathering()
    told(gathering, record(ID), served("cmpl-1-0"))
    gathering.take(NOW + QUIET_NS)
    told(gathering, signed(ID), now_ns=NOW + 3 * SECOND)

    assert gathering.num_late == 1
    assert gathering.take_all(NOW + 3 * SECOND) == []


def test_an_id_that_is_used_again_is_another_request() -> None:
    """Some engines let clients name their requests; the earlier one is given out at once."""
    gathering = Gathering()
    told(gathering, record("mine", end_ns=NOW), record("mine", end_ns=NOW + SECOND))
    found = gathering.take_all(NOW)

    assert [each.measured[0].request.end_ns for each in found] == [NOW, NOW + SECOND]


def test_signatures_of_what_goes_on_are_no_part() -> None:
    """A long request is told of every second."""
    gathering = Gathering()
    gathering.update(ENGINE, fakes.signatures(ID, is_final=False), NOW)

    assert gathering.num_waiting == 0


def test_too_many_are_given_out_early_not_lost() -> None:
    """Of engines and of front ends: the oldest first, in the bounds of number and of bytes."""
    gathering = Gathering(max_waiting=3)
    for k in range(8):
        told(gathering, record(f"e{k}"), served(f"f{k}"), now_ns=NOW + k)
    early = gathering.take(NOW + 8)

    assert gathering.num_waiting == 6
    assert [each.id for each in early if each.measured] == [f"e{k}" for k in range(5)]
    assert [each.id for each in early if each.serving] == [f"f{k}" for k in range(5)]

    small = Gathering(max_bytes=1)
    told(small, record("a", "b"))
    assert [each.id for each in small.take(NOW)] == ["a", "b"]


requests = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from("rsfa"), st.integers(0, 20)), max_size=40
)


@given(requests)
def test_every_part_is_in_exactly_one_request(parts: list[tuple[int, str, int]]) -> None:
    """Whatever comes when: nothing is lost or told twice, but for what is counted as late."""
    gathering = Gathering(max_waiting=4)
    found: list[Gathered] = []
    sent: Counter[str] = Counter()
    hung_up: set[int] = set()
    now_ns = NOW
    for number, kind, seconds in parts:
        now_ns += seconds * SECOND
        internal = f"q{number}-00000000"
        if kind == "a" and number in hung_up:
            continue  # nobody hangs up twice
        hung_up |= {number} if kind == "a" else set()
        body = {
            "r": record(internal),
            "s": signed(internal),
            "f": served(f"q{number}"),
            "a": (FRONTEND, fakes.serving(gone=[fakes.aborted(internal)])),
        }[kind]
        told(gathering, body, now_ns=now_ns)
        sent[kind] += 1
        found += gathering.take(now_ns)
    found += gathering.take_all(now_ns)
    given_out = Counter(
        {
            "r": sum(len(each.measured) for each in found),
            "s": sum(len(each.signed) for each in found),
            "f": sum(each.serving is not None for each in found),
            "a": sum(each.aborted is not None for each in found),
        }
    )

    assert sum(sent.values()) == sum(given_out.values()) + gathering.num_late
    assert (sent["f"], sent["a"]) == (given_out["f"], given_out["a"])
    assert gathering.num_waiting == 0
