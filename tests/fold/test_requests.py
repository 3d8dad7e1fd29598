"""The last finished requests, joined from both halves."""

import pytest

from sidecar.fold.requests import MAX_REQUESTS, RecentRequests, client_ids
from sidecar.fold.tables import table_bytes
from sidecar.wire.frame import Request, Requests
from tests import fakes
from tests.fakes import NOW, SECOND


def body(*requests: Request, num_layers: int = 3) -> Requests:
    return Requests(list(range(num_layers)), list(requests))


@pytest.mark.parametrize("serving_first", [True, False])
def test_halves_meet_in_either_order(serving_first: bool) -> None:
    """`<client id>-<8 hex>` finds the client id's stats, whichever half came first."""
    recent = RecentRequests()
    if serving_first:
        recent.finish([fakes.finished("cmpl-1-0")])
    recent.measure("engine", body(fakes.request("cmpl-1-0-0badcafe")))
    if not serving_first:
        recent.finish([fakes.finished("cmpl-1-0")])
    (found,) = recent.get(1)

    assert found.serving == fakes.finished("cmpl-1-0")


def test_a_missing_half_is_no_error() -> None:
    """A request whose front end is silent is shown without stats."""
    recent = RecentRequests()
    recent.measure("engine", body(fakes.request()))

    assert recent.get(10)[0].serving is None


@pytest.mark.parametrize(
    ("internal_id", "client_id"),
    [
        ("cmpl-7-0-0badcafe", "cmpl-7-0"),
        ("2_cmpl-7-0-0badcafe", "cmpl-7-0"),  # the third completion of one request
        ("3_mine-0badcafe", "3_mine"),  # a client's own id may look like a child's
        ("cmpl-7-0", "cmpl-7-0"),  # randomisation of ids switched off
        ("deadbeef-0badcafe-0badcafe", "deadbeef-0badcafe"),
    ],
)
def test_every_form_of_id_finds_its_client(internal_id: str, client_id: str) -> None:
    """The engine's id leads to the client's id in each form that vLLM gives it."""
    recent = RecentRequests()
    recent.measure("engine", body(fakes.request(internal_id)))
    recent.finish([fakes.finished(client_id)])

    assert recent.get(1)[0].serving == fakes.finished(client_id)
    assert [each.request.id for each in recent.find(client_id)] == [internal_id]
    assert [each.request.id for each in recent.find(internal_id)] == [internal_id]


def test_the_likeliest_client_id_comes_first() -> None:
    """Both endings are vLLM's before they are the client's."""
    expected = ["1_cmpl-7", "cmpl-7", "1_cmpl-7-0123abcd", "cmpl-7-0123abcd"]

    assert expected == list(client_ids("1_cmpl-7-0123abcd"))


def test_a_client_that_reuses_its_id_gets_each_request_its_own_stats() -> None:
    """Of several stats under one id, those with the nearest end are the request's."""
    recent = RecentRequests()
    for second, suffix in ((0, "00000000"), (60, "00000001")):
        end_ns = NOW + second * SECOND
        recent.measure("engine", body(fakes.request(f"same-{suffix}", end_ns=end_ns)))
        recent.finish([fakes.finished("same", end_ns=end_ns + 1000)])
    ends = [each.serving.end_ns - each.request.end_ns for each in recent.get(2) if each.serving]

    assert ends == [1000, 1000]


def test_a_request_whose_client_hung_up_is_marked() -> None:
    """By its internal id, whichever half came first; it has no stats to be joined with."""
    recent = RecentRequests()
    recent.abort([fakes.aborted("a-0badcafe")])
    recent.measure("engine", body(*(fakes.request(f"{k}-0badcafe") for k in "abc")))
    recent.abort([fakes.aborted("b-0badcafe")])

    assert [bool(each.aborted) for each in recent.get(3)] == [False, True, True]
    assert recent.find("a")[0].aborted == fakes.aborted("a-0badcafe")


def test_a_request_knows_its_callers_place_in_a_trace() -> None:
    """Whether it finished or was given up; of others there is none."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    recent = RecentRequests()
    recent.measure("engine", body(*(fakes.request(f"{k}-0badcafe") for k in "abc")))
    recent.finish([fakes.finished("a", traceparent=parent)])
    recent.abort([fakes.aborted("b-0badcafe", traceparent=parent)])

    assert [each.traceparent for each in recent.get(3)] == ["", parent, parent]


def test_ids_of_aborted_requests_are_bounded() -> None:
    """A front end cannot fill the memory with ids that no request ever has."""
    recent = RecentRequests(max_requests=3)
    recent.abort([fakes.aborted(f"r{k}") for k in range(5)])
    recent.measure("engine", body(*(fakes.request(f"r{k}") for k in (1, 2, 4))))

    assert len(recent._aborted) == 3
    assert [bool(each.aborted) for each in recent.get(3)] == [True, True, False]


def test_the_latest_come_first_up_to_the_limit() -> None:
    """A limit cuts off the oldest."""
    recent = RecentRequests()
    recent.measure("engine", body(*(fakes.request(f"r{k}") for k in range(5))))

    assert [each.request.id for each in recent.get(2)] == ["r4", "r3"]
    assert recent.find("r9") == []


def test_the_number_of_requests_is_bounded() -> None:
    """The oldest halves of both kinds go when there are too many."""
    recent = RecentRequests(max_requests=3)
    for k in range(5):
        recent.measure("engine", body(fakes.request(f"r{k}-0badcafe")))
        recent.finish([fakes.finished(f"r{k}")])

    assert [each.request.id[:2] for each in recent.get(10)] == ["r4", "r3", "r2"]
    assert [each.serving.id for each in recent.get(10) if each.serving] == ["r4", "r3", "r2"]


def test_stats_that_wait_for_their_request_are_bounded() -> None:
    """A front end whose engine is untapped cannot fill the memory: the oldest stats go."""
    recent = RecentRequests(max_requests=3)
    recent.finish([fakes.finished(f"r{k}") for k in range(5)])
    recent.measure("engine", body(*(fakes.request(f"r{k}-0badcafe") for k in (1, 2, 4))))

    assert [bool(each.serving) for each in recent.get(3)] == [True, True, False]


def test_the_bytes_of_requests_are_bounded() -> None:
    """A model with many layers keeps fewer requests, not more memory."""
    one = fakes.request("r", num_layers=100)
    size = sum(len(getattr(one.moments, name)) for name in one.moments.__struct_fields__)
    size += sum(map(table_bytes, one.tables))
    recent = RecentRequests(max_bytes=3 * size)
    recent.measure("engine", body(*([one] * 10), num_layers=100))

    assert len(recent.get(MAX_REQUESTS)) == 3


def test_the_bytes_of_tables_count() -> None:
    """Most of what is known of a request may be in them."""
    one = fakes.request("r", num_layers=1)
    one.tables *= 10
    recent = RecentRequests(max_bytes=3 * sum(map(table_bytes, one.tables)))
    recent.measure("engine", body(*([one] * 10), num_layers=1))

    assert len(recent.get(MAX_REQUESTS)) == 2
