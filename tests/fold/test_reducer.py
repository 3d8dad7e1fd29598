"""The whole state: frames in, snapshots out."""

import dataclasses

import numpy as np
import pytest

from sidecar.fold.reducer import FORGET_NS, REFUSALS, Limits, Reducer
from sidecar.wire.frame import CAUSES, Requests, Source
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, LIMITS, NOW, SECOND, FakeSource, reduced


def test_sources_are_kept_apart_and_in_order_of_rank() -> None:
    """Each rank and each front end is one source, whatever the order of arrival."""
    ranks = [Source("frontend", 1), Source("engine", 1), Source("engine", 0, 1), Source("engine")]
    snapshot = reduced(*(FakeSource(rank).frame(fakes.live()) for rank in ranks)).get(NOW)

    assert [view.name for view in snapshot.sources] == [
        "engine-dp0-pp0-tp0",
        "engine-dp0-pp1-tp0",
        "engine-dp1-pp0-tp0",
        "frontend-1",
    ]


def test_a_source_disappears_when_it_is_silent() -> None:
    """Published within the staleness limit, named as silent after it, forgotten in the end."""
    reducer = reduced(FakeSource().frame(fakes.live()))
    stale = LIMITS.stale_ns

    def names(now_ns: int) -> tuple[int, int]:
        snapshot = reducer.get(now_ns)
        return len(snapshot.sources), len(snapshot.silent)

    assert names(NOW + stale) == (1, 0)
    assert names(NOW + stale + 1) == (0, 1)
    assert names(NOW + stale + FORGET_NS) == (0, 1)
    assert names(NOW + stale + FORGET_NS + 1) == (0, 0)


def test_an_old_frame_is_counted_and_not_used() -> None:
    """Older than the limit when read: stale, and its numbers are nowhere."""
    engine = FakeSource()
    frames = [engine.frame(fakes.live(), NOW - LIMITS.max_age_ns - 1)]
    frames += [engine.frame(fakes.layers(), NOW - LIMITS.max_age_ns)]
    view = reduced(*frames).get(NOW).sources[0]

    assert (view.tally.stale, view.tally.received) == (1, 1)
    assert view.status is None
    assert view.totals is not None


def test_a_frame_from_the_future_has_no_negative_age() -> None:
    """A clock ahead of ours does not make the sum of ages fall."""
    ages = reduced(FakeSource().frame(fakes.live(), NOW + 5 * SECOND)).get(NOW).ages

    assert (ages.num_values, ages.sum) == (1, 0.0)


def test_refusals_are_counted_by_cause_and_change_nothing_else() -> None:
    """Every cause starts at 0, and remembers when it last came."""
    reducer = reduced(FakeSource().frame(fakes.live()))
    before = reducer.get(NOW)
    reducer.refuse("schema", NOW + 1)
    after = reducer.get(NOW)

    assert set(after.refused) == set(REFUSALS) >= set(CAUSES)
    assert after.refused == {**before.refused, "schema": 1}
    assert after.refused_ns == {"schema": NOW + 1}
    assert after.sources == before.sources


def test_a_repeated_frame_is_refused() -> None:
    """A replayed message changes one counter only."""
    frame = FakeSource(FRONTEND).frame(fakes.serving(fakes.finished()))
    snapshot = reduced(frame, frame).get(NOW)

    assert snapshot.refused["replayed"] == 1
    assert snapshot.sources[0].serving[0].finished["stop"] == 1
    assert snapshot.ages.num_values == 1


def test_the_number_of_sources_is_bounded() -> None:
    """Beyond the limit new names are refused, known ones are still heard."""
    reducer = Reducer(Limits(LIMITS.stale_ns, LIMITS.max_age_ns, max_sources=3))
    sources = [FakeSource(Source("engine", k)) for k in range(5)]
    for source in sources:
        reducer.update(source.frame(fakes.live()), NOW)
    reducer.update(sources[0].frame(fakes.live()), NOW)
    snapshot = reducer.get(NOW)

    assert len(snapshot.sources) == 3
    assert snapshot.refused["sources"] == 2
    assert snapshot.sources[0].tally.received == 2


def test_a_silent_source_makes_room() -> None:
    """The longest silent of the stale sources is forgotten for a new one."""
    reducer = Reducer(Limits(LIMITS.stale_ns, LIMITS.max_age_ns, max_sources=2))
    later = NOW + LIMITS.stale_ns + 1
    for k, now_ns in ((0, NOW), (1, later), (2, later)):
        reducer.update(FakeSource(Source("engine", k)).frame(fakes.live(), now_ns), now_ns)
    snapshot = reducer.get(later)

    assert [view.source.dp for view in snapshot.sources] == [1, 2]
    assert snapshot.refused["sources"] == 0


def test_sources_of_one_name_are_one_source() -> None:
    """No two sources can make two samples with the same label."""
    twins = [Source("frontend", 0, tp=0), Source("frontend", 0, tp=1)]
    frames = [FakeSource(twin, f"boot-000{k}").frame(fakes.live()) for k, twin in enumerate(twins)]

    assert len(reduced(*frames).get(NOW).sources) == 1


def test_requests_are_joined_across_sources() -> None:
    """The engine's half and the front end's half become one record."""
    engine, frontend = FakeSource(ENGINE), FakeSource(FRONTEND)
    reducer = reduced(
        engine.frame(Requests([0, 1, 2], [fakes.request("cmpl-1-0-0badcafe")])),
        frontend.frame(fakes.serving(fakes.finished("cmpl-1-0"))),
    )
    (found,) = reducer.requests(10)

    assert found.source == "engine-dp0-pp0-tp0"
    assert found.serving == fakes.finished("cmpl-1-0")
    assert reducer.find("cmpl-1-0") == [found]


def test_requests_in_old_frames_are_not_remembered() -> None:
    """Neither half of a request is taken from a frame that is not believed."""
    old = NOW - LIMITS.max_age_ns - 1
    engine, frontend = FakeSource(ENGINE), FakeSource(FRONTEND)
    reducer = reduced(
        engine.frame(Requests([0, 1, 2], [fakes.request("a-0badcafe")]), old),
        frontend.frame(fakes.serving(fakes.finished("b")), old),
        engine.frame(Requests([0, 1, 2], [fakes.request("b-0badcafe")])),
    )
    (found,) = reducer.requests(10)

    assert found.request.id == "b-0badcafe"
    assert found.serving is None


def test_what_a_client_gave_up_is_marked_across_sources() -> None:
    """The front end's word about a request that only the engine has measured."""
    engine, frontend = FakeSource(ENGINE), FakeSource(FRONTEND)
    reducer = reduced(
        engine.frame(Requests([0, 1, 2], [fakes.request("a-0badcafe")])),
        frontend.frame(fakes.serving(gone=[fakes.aborted("a-0badcafe")])),
    )

    assert reducer.requests(1)[0].aborted


def test_signatures_are_remembered_with_their_source() -> None:
    """Those of frames that are believed."""
    old = NOW - LIMITS.max_age_ns - 1
    engine = FakeSource(ENGINE)
    reducer = reduced(
        engine.frame(fakes.signatures("old"), old), engine.frame(fakes.signatures("new"))
    )
    (found,) = reducer.signatures(10)

    assert (found.source, found.signature.id) == ("engine-dp0-pp0-tp0", "new")


def test_losing_frames_loses_no_totals() -> None:
    """Whatever frames are lost, the totals are those of the last one that arrived."""
    engine, told = SyntheticEngine(), FakeSource()
    reducer = Reducer(LIMITS)
    for step in range(20):
        body = engine.step()
        if step % 3:
            told.lose()
        else:
            reducer.update(told.frame(body), NOW)
    reducer.update(told.frame(engine.step()), NOW)
    view = reducer.get(NOW).sources[0]

    assert view.totals is not None
    np.testing.assert_array_equal(engine.totals.sums, view.totals.moments.sums)
    np.testing.assert_array_equal(engine.totals.count, view.totals.moments.count)
    assert (view.tally.sent, view.tally.received, view.tally.missing) == (21, 8, 13)


def test_a_restarted_sidecar_continues_the_totals() -> None:
    """Two sidecars that hear the same last frame publish the same totals."""
    engine, told = SyntheticEngine(), FakeSource()
    frames = [told.frame(engine.step()) for _ in range(5)]
    old, new = reduced(*frames).get(NOW), reduced(*frames[4:]).get(NOW)
    old_totals, new_totals = old.sources[0].totals, new.sources[0].totals

    assert old_totals is not None
    assert new_totals is not None
    for field in dataclasses.fields(old_totals.moments):
        mine, theirs = (getattr(each.moments, field.name) for each in (old_totals, new_totals))
        np.testing.assert_array_equal(mine, theirs)
    assert new.sources[0].tally.before == 4


def test_a_snapshot_is_left_alone_by_later_frames() -> None:
    """What is being rendered never changes under the renderer."""
    engine, frontend = FakeSource(), FakeSource(FRONTEND)
    reducer = reduced(engine.frame(fakes.layers()), frontend.frame(fakes.serving()))
    snapshot = reducer.get(NOW)
    totals = snapshot.sources[0].totals
    assert totals is not None
    before = (totals.moments.sums.copy(), snapshot.sources[1].serving, dict(snapshot.refused))

    reducer.update(engine.frame(fakes.layers(scale=9.0)), NOW)
    reducer.update(frontend.frame(fakes.serving(fakes.finished())), NOW)
    reducer.refuse("mac", NOW)

    np.testing.assert_array_equal(before[0], totals.moments.sums)
    assert before[1:] == (snapshot.sources[1].serving, snapshot.refused)


def test_an_unknown_cause_is_a_mistake_of_ours() -> None:
    """Causes are a closed set: they are labels."""
    with pytest.raises(KeyError):
        Reducer(LIMITS).refuse("because", NOW)


@pytest.mark.parametrize("engine_first", [True, False])
def test_confidence_is_counted_by_its_engine_and_pointed_to_by_its_caller(
    engine_first: bool,
) -> None:
    """Each request once; a NaN, where no token was measured, in no bucket."""
    engine, frontend = FakeSource(), FakeSource(FRONTEND)
    silent = fakes.request("b-0badcafe", 1)
    silent.tables = []
    measured = engine.frame(Requests([0], [fakes.request("a-0badcafe", 1), silent]))
    done = fakes.finished("a", traceparent=fakes.TRACEPARENT)
    halves = [measured, frontend.frame(fakes.serving(done))]
    view = next(
        each
        for each in fakes.reduced(*(halves if engine_first else halves[::-1])).get(NOW).sources
        if each.source.role == "engine"
    )
    assert view.confidence is not None
    assert view.confidence.num_values == 1
    (found,) = filter(None, view.confidence.exemplars)
    assert found.trace_id in fakes.TRACEPARENT
    assert found.value == view.confidence.sum


def test_a_new_life_counts_confidence_from_nothing() -> None:
    """Like all that its source tells."""
    reducer = fakes.reduced(
        FakeSource(boot="boot-0001").frame(Requests([0], [fakes.request(num_layers=1)]))
    )
    reducer.update(FakeSource(boot="boot-0002").frame(fakes.live(), NOW + SECOND), NOW + SECOND)
    (view,) = reducer.get(NOW + SECOND).sources
    assert view.confidence is not None
    assert view.confidence.num_values == 0


@pytest.mark.parametrize("hours", [1, 24])
def test_a_source_that_dies_as_the_clock_is_set_back_is_silent_in_time(hours: int) -> None:
    """As long after its last frame as ever, not after the clock has caught up."""
    reducer = reduced(FakeSource().frame(fakes.live()))
    then = NOW - hours * 3600 * SECOND
    assert len(reducer.get(then).sources) == 1
    assert len(reducer.get(then + LIMITS.stale_ns).sources) == 1
    snapshot = reducer.get(then + LIMITS.stale_ns + 1)

    assert (len(snapshot.sources), len(snapshot.silent)) == (0, 1)


def test_an_engine_that_begins_anew_after_the_clock_was_set_back_is_heard() -> None:
    """It is no life that another one has replaced, although its frames look older."""
    reducer = reduced(FakeSource(boot="boot-one").frame(fakes.live()))
    then = NOW - 3600 * SECOND
    reducer.get(then)
    now = then + SECOND

    assert reducer.update(FakeSource(boot="boot-two").frame(fakes.live(), now), now)
    assert reducer.get(now).sources[0].boot == "boot-two"


def test_a_frame_that_was_on_its_way_when_the_clock_was_set_back_bars_no_new_life() -> None:
    """Stamped an hour ahead, it is the last of an engine that begins anew a second later."""
    source, then = FakeSource(boot="boot-one"), NOW - 3600 * SECOND
    reducer = reduced(source.frame(fakes.live()))
    reducer.update(source.frame(fakes.live(), NOW), then)
    now = then + SECOND

    assert reducer.update(FakeSource(boot="boot-two").frame(fakes.live(), now), now)
