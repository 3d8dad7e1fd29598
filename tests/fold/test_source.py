"""One source: its lives, its staleness, its bounds."""

from sidecar.fold.source import MAX_ENGINES, SourceState, SourceView
from sidecar.wire.frame import Frame
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, LIMITS, NOW, SECOND, FakeSource


def told(*frames: Frame, now_ns: int = NOW) -> SourceView:
    state = SourceState(ENGINE, LIMITS.stale_ns)
    for frame in frames:
        assert state.update(frame, now_ns, stale=False) is None
    return state.get(now_ns)


def test_a_source_keeps_what_it_told_last() -> None:
    """Status, totals and times are those of the latest frames."""
    engine = FakeSource()
    view = told(engine.frame(fakes.live()), engine.frame(fakes.layers(), NOW + SECOND))

    assert view.name == "engine-dp0-pp0-tp0"
    assert view.status == fakes.live()
    assert view.totals is not None
    assert view.totals.layers == (0, 1, 2)
    assert (view.t_ns, view.heard_ns, view.arrived_ns) == (NOW + SECOND, NOW, NOW)


def test_a_new_boot_starts_from_nothing() -> None:
    """A restarted engine is a counter reset: nothing of its former life is left."""
    former, next_life = FakeSource(boot="boot-one"), FakeSource(boot="boot-two")
    view = told(
        former.frame(fakes.live()),
        former.frame(fakes.layers()),
        former.frame(fakes.totals()),
        next_life.frame(fakes.live(), NOW + SECOND),
    )

    assert view.boot == "boot-two"
    assert (view.totals, view.tables) == (None, ())
    assert (view.tally.sent, view.tally.received, view.tally.before) == (1, 1, 0)


def test_a_life_that_was_replaced_stays_dead() -> None:
    """Of two processes under one name the later one is heard, and the dispute is noted."""
    first, second = FakeSource(boot="boot-one"), FakeSource(boot="boot-two")
    state = SourceState(ENGINE, LIMITS.stale_ns)
    state.update(first.frame(fakes.live()), NOW, stale=False)
    state.update(second.frame(fakes.live(), NOW + 1), NOW + 1, stale=False)

    assert state.get(NOW).contested_ns == 0
    assert state.update(first.frame(fakes.live(), NOW + 2), NOW + 2, stale=False) == "superseded"
    assert state.get(NOW + 2).boot == "boot-two"
    assert state.get(NOW + 2).contested_ns == NOW + 2


def test_a_late_frame_of_an_unknown_former_life_changes_nothing() -> None:
    """A frame stamped before the life now heard is not a new life."""
    former, now = FakeSource(boot="boot-one"), FakeSource(boot="boot-two")
    state = SourceState(ENGINE, LIMITS.stale_ns)
    state.update(now.frame(fakes.live()), NOW, stale=False)

    assert state.update(former.frame(fakes.live(), NOW - 1), NOW, stale=False) == "superseded"
    assert state.update(now.frame(fakes.live(), NOW + 1), NOW, stale=False) is None


def test_a_replaced_life_returns_when_the_other_is_silent() -> None:
    """No boot id is refused for ever."""
    first, second = FakeSource(boot="boot-one"), FakeSource(boot="boot-two")
    state = SourceState(ENGINE, LIMITS.stale_ns)
    state.update(first.frame(fakes.live()), NOW, stale=False)
    state.update(second.frame(fakes.live(), NOW + 1), NOW + 1, stale=False)
    later = NOW + LIMITS.stale_ns + 2

    assert state.update(first.frame(fakes.live(), later), later, stale=False) is None
    assert state.get(later).boot == "boot-one"


def test_a_stale_source_shows_nothing_that_it_told() -> None:
    """Beyond the staleness limit no number is frozen; the account of frames stays."""
    state = SourceState(ENGINE, LIMITS.stale_ns)
    engine = FakeSource()
    told = (fakes.live(), fakes.layers(), fakes.totals(), fakes.serving(), fakes.manifest())
    for body in told:
        state.update(engine.frame(body), NOW, stale=False)

    assert state.get(NOW + LIMITS.stale_ns).totals is not None
    assert len(state.get(NOW + LIMITS.stale_ns).tables) == 7
    assert state.get(NOW + LIMITS.stale_ns).manifest == fakes.manifest()
    view = state.get(NOW + LIMITS.stale_ns + 1)
    assert (view.status, view.totals, view.tables, view.serving) == (None, None, (), ())
    assert view.manifest is None
    assert view.tally.received == 5


def test_frames_too_old_are_counted_and_not_believed() -> None:
    """An old frame proves that the source lives, and nothing else."""
    state = SourceState(ENGINE, LIMITS.stale_ns)
    state.update(FakeSource().frame(fakes.live()), NOW, stale=True)
    view = state.get(NOW)

    assert (view.tally.stale, view.tally.received) == (1, 0)
    assert (view.arrived_ns, view.heard_ns, view.status) == (NOW, 0, None)


def test_engines_of_a_front_end_are_bounded() -> None:
    """A front end cannot make us hold histograms without end."""
    state = SourceState(FRONTEND, LIMITS.stale_ns)
    frontend = FakeSource(FRONTEND)
    causes = [
        state.update(frontend.frame(fakes.serving(engine=k)), NOW, stale=False)
        for k in range(MAX_ENGINES + 2)
    ]

    assert causes == [None] * MAX_ENGINES + ["sources"] * 2
    assert len(state.get(NOW).serving) == MAX_ENGINES
    assert state.update(frontend.frame(fakes.serving(engine=0)), NOW, stale=False) is None


def test_a_word_of_its_status_closes_a_window() -> None:
    """An idle engine sends no layers, but the extremes of its last rows end all the same."""
    engine = FakeSource()
    frames = [engine.frame(body, NOW) for body in (fakes.layers(), fakes.totals())]
    frames += [engine.frame(fakes.live(), NOW + 10 * SECOND)]
    view = told(*frames)
    assert view.totals is not None
    assert view.totals.window is not None
    assert all(table.window is not None for table in view.tables)

    view = told(*frames, engine.frame(fakes.live(), NOW + 20 * SECOND))
    assert view.totals is not None
    assert view.totals.window is None
    assert all(table.window is None for table in view.tables)
