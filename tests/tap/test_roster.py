"""Who is being served: adapters within the operator's list, and wishes that may be heard."""

import pytest

from sidecar.tap.roster import OTHER_ADAPTER, OTHER_ROUTE, ROUTE_XARG, XARG, Entry, Roster
from sidecar.wire import canary


@pytest.mark.parametrize(
    ("adapter", "label"), [(None, ""), ("legal", "legal"), ("private", OTHER_ADAPTER)]
)
def test_an_adapter_is_a_label_when_the_operator_listed_it(adapter, label) -> None:
    """Any other is `other`: a client cannot make series."""
    roster = Roster(["legal", "health"])
    roster.enter("a", adapter, None)
    assert roster.get("a") == Entry(label)
    assert roster.adapters[roster.adapter_index("a")] == label
    assert roster.adapters == ("", "legal", "health", "other")


@pytest.mark.parametrize("extra", [None, {}, {"other": "off"}, {XARG: "maybe"}, {XARG: ["off"]}])
def test_without_a_wish_a_request_is_like_any_other(extra) -> None:
    """Absent or unreadable wishes change nothing."""
    roster = Roster(allow_opt_out=True)
    roster.enter("a", None, extra)
    assert roster.get("a") == Entry()
    assert not roster.forced
    assert not roster.opted_out


@pytest.mark.parametrize("allowed", [True, False])
def test_a_client_may_opt_out_where_the_operator_allows_it(allowed) -> None:
    """Otherwise the wish is not heard."""
    roster = Roster(allow_opt_out=allowed)
    roster.enter("a", None, {XARG: "off"})
    assert roster.get("a").is_out is allowed
    assert roster.opted_out == ({"a"} if allowed else set())
    assert not roster.forced


def test_a_client_may_ask_for_every_step() -> None:
    """Such a request is forced, and not opted out."""
    roster = Roster(allow_opt_out=True)
    roster.enter("a", None, {XARG: "all"})
    assert roster.get("a").is_forced
    assert roster.forced == {"a"}
    assert not roster.opted_out


def test_preemptions_are_counted_and_survive_a_new_announcement() -> None:
    """A resumed request is announced anew by one of the runners: its past stays."""
    roster = Roster(["legal"])
    roster.enter("a", "legal", None)
    roster.preempt({"a"})
    assert roster.get("a") == Entry("legal", preemptions=1)
    roster.enter("a", "legal", None)
    roster.preempt(["a"])
    assert roster.get("a") == Entry("legal", preemptions=2)


@pytest.mark.parametrize(
    ("named", "label"),
    [
        (None, ""),
        ("", ""),
        ("chat", "chat"),
        ("private", OTHER_ROUTE),
        (["chat"], OTHER_ROUTE),
        (7, OTHER_ROUTE),
    ],
)
def test_a_route_is_a_label_when_the_operator_listed_it(named, label) -> None:
    """Any other is `other`, whatever its type: a client cannot make strata."""
    roster = Roster((), ["chat", "search"])
    roster.enter("a", None, {ROUTE_XARG: named})
    roster.enter("b", None, {XARG: "all"})
    assert roster.get("a") == Entry(route=label)
    assert roster.get("b").route == ""


def test_a_tag_is_kept_as_it_came_with_the_time_of_its_request() -> None:
    """Unproven; a preempted request that is announced anew keeps its first time."""
    now = iter([5, 6])
    roster = Roster(clock_ns=lambda: next(now))
    for req_id in ("a", "b", "a"):
        roster.enter(req_id, None, {canary.XARG: "greeting@1:00"})
    assert roster.get("a") == Entry(tag="greeting@1:00", entered_ns=5)
    assert roster.get("b").entered_ns == 6


@pytest.mark.parametrize("given", [None, 7, ["greeting@1:00"], "x" * (canary.MAX_TAG + 1)])
def test_what_can_be_no_tag_is_not_kept(given) -> None:
    """Neither another type nor a long text takes room, nor is the clock asked."""
    roster = Roster(clock_ns=lambda: 1 // 0)
    roster.enter("a", None, {canary.XARG: given})
    assert roster.get("a") == Entry()


def test_an_entry_is_replaced_never_changed() -> None:
    """What another thread holds stays as it was."""
    roster = Roster()
    roster.enter("a", None, None)
    before = roster.get("a")
    roster.preempt(["a"])
    assert before.preemptions == 0


def test_who_leaves_is_forgotten() -> None:
    """Its entry is handed over, and the next request of that id has no past."""
    roster = Roster(allow_opt_out=True)
    for wish in ("all", "off"):
        roster.enter(wish, None, {XARG: wish})
        roster.preempt([wish])
        assert wish in roster
        assert roster.leave(wish).preemptions == 1
        assert wish not in roster
        assert roster.get(wish) == roster.leave(wish) == Entry()
    assert not roster.forced
    assert not roster.opted_out
    assert roster.adapter_index("nobody") == 0
