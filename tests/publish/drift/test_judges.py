"""The judges with their real channels: who is told what, and what they make of it."""

from pathlib import Path
from typing import Any

import pytest

from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.verdict import ChannelState, Verdict
from sidecar.fold.drift.window import Assembly
from sidecar.publish.drift.judges import CHANNELS, Heard, Judges
from sidecar.publish.drift.panel import Panel, Terms, panel_of
from sidecar.publish.drift.seat import Seat
from sidecar.publish.drift.watch import Watch
from sidecar.store.recorder import Recorder
from sidecar.store.recording import find_recordings
from sidecar.wire.frame import Body, Identity, Manifest, Source, Status
from sidecar.wire.signature import Layout
from tests import fakes
from tests.fakes import FRONTEND, SECOND, FakeClock, FakeSource
from tests.publish.drifting import ASSEMBLY, LAYOUT, MINUTE, START, baseline, finished, judges

TERMS = Terms("production", MINUTE)
SERVED = Identity(weights_digest="d1", dtype="bfloat16")  # as in the baseline


class Deployed:
    """Real judges by a baseline, an engine and a front end, and a clock."""

    def __init__(self, panel: Panel | None = None, **others: Any) -> None:
        self.clock = FakeClock(START)
        self.engine, self.frontend = FakeSource(), FakeSource(FRONTEND)
        self.judges = Judges(TERMS, panel or panel_of(TERMS, baseline()), **others)
        self.watch = Watch(self.judges, None, self.clock)

    def hear(self, body: Body, source: FakeSource | None = None) -> None:
        frame = (source or self.engine).frame(body, self.clock())
        self.watch.hear(frame, self.clock())
        self.watch.turn()

    def execute(self, **identity: Any) -> None:
        self.hear(Status("live", identity=Identity(**{**SERVED_FIELDS, **identity})))

    def verdict(self, channel: str) -> Verdict:
        views = self.watch.get().channels
        return next(each.verdict for each in views if each.verdict.channel == channel)


SERVED_FIELDS = {"weights_digest": "d1", "dtype": "bfloat16"}


@pytest.fixture
def deployed() -> Deployed:
    made = Deployed()
    made.execute()
    made.hear(finished(START))
    return made


def test_what_is_served_as_in_the_baseline_is_no_finding(deployed: Deployed) -> None:
    """All channels of traffic are there, none of them pages."""
    configured = [each for each in deployed.watch.get().channels if each.is_configured]

    assert [each.verdict.channel for each in configured] == ["traffic", "mix", "tail", "integrity"]
    assert deployed.verdict("integrity").state is ChannelState.ARMED
    assert "record longer and fit again" in deployed.verdict("traffic").reason


def test_other_weights_without_an_announcement_are_a_page(deployed: Deployed) -> None:
    """Integrity names the field that differs."""
    deployed.execute(weights_digest="d2")
    verdict = deployed.verdict("integrity")

    assert verdict.state is ChannelState.PAGE
    assert [cause.stream for cause in verdict.causes] == ["header/weights_digest"]


def test_an_announced_deployment_is_a_note(deployed: Deployed) -> None:
    """Announced before it arrives, and no page comes of it."""
    deployed.judges.announce("release 7", deployed.clock())
    deployed.clock.advance(60)
    deployed.execute(weights_digest="d2")

    assert deployed.verdict("integrity").state is ChannelState.ARMED
    assert [each.note for each in deployed.watch.get().deployments] == ["release 7"]


def test_an_announcement_outlives_a_new_baseline(deployed: Deployed) -> None:
    """Reloading in the middle of a deployment does not forget that it was announced."""
    deployed.judges.announce("release 7", deployed.clock())
    deployed.judges.use(panel_of(TERMS, baseline(14)), deployed.clock())
    deployed.execute(weights_digest="d2")

    assert deployed.verdict("integrity").state is ChannelState.ARMED


def test_the_same_baseline_read_again_opens_no_latch(deployed: Deployed) -> None:
    """A page stays a page, and the open window keeps its requests, when somebody sends SIGHUP."""
    deployed.execute(weights_digest="d2")
    deployed.hear(finished(START, 3))
    deployed.judges.use(panel_of(TERMS, baseline()), deployed.clock())
    deployed.watch.turn()
    assert deployed.verdict("integrity").state is ChannelState.PAGE

    deployed.clock.advance(600)
    deployed.watch.turn()
    assert len(deployed.watch.get().windows) == 1


def test_what_is_served_is_compared_with_a_new_baseline_at_once(deployed: Deployed) -> None:
    """Nobody has to wait for the engine to say again what it executes."""
    other = baseline()
    header = other.header._replace(identity=Identity(weights_digest="d9", dtype="bfloat16"))
    panel = panel_of(TERMS, _with_header(header))
    deployed.judges.use(panel, deployed.clock())
    deployed.watch.turn()

    assert deployed.verdict("integrity").state is ChannelState.PAGE


def _with_header(header: Header) -> Any:
    import dataclasses

    return dataclasses.replace(baseline(), header=header)


def test_signatures_of_another_layout_are_not_judged_and_say_so() -> None:
    """Not armed, whatever the baseline allows; the field that differs and the remedy are named."""
    made = Deployed()
    made.execute()
    made.hear(finished(START, 3, Layout([0, 7])))
    reason = made.verdict("traffic").reason

    assert made.verdict("traffic").state is ChannelState.COLLECTING
    assert "layers: [0, 1] in the baseline, [0, 7] now" in reason
    assert "fit a baseline anew" in reason
    assert made.verdict("integrity").state is ChannelState.PAGE


def test_a_second_stage_of_a_pipeline_is_no_finding(deployed: Deployed) -> None:
    """It has a layout of its own; the stage that the baseline is of is judged."""
    stage = FakeSource(Source("engine", 0, 1))
    deployed.hear(Status("live", identity=SERVED), stage)
    deployed.hear(finished(START, 3, Layout([2, 3])), stage)

    assert deployed.verdict("integrity").state is ChannelState.ARMED
    assert "not judged" not in deployed.verdict("traffic").reason


def test_windows_are_scored_when_they_are_of_the_baselines_layout(deployed: Deployed) -> None:
    """Others are closed and told, and counted as not scored."""
    stage = FakeSource(Source("engine", 0, 1))
    for _ in range(6):
        deployed.hear(finished(deployed.clock(), 3))
        deployed.hear(finished(deployed.clock(), 3, Layout([2, 3])), stage)
        deployed.clock.advance(60)
        deployed.watch.turn()
    view = deployed.watch.get()
    folded = {closed.baseline for closed in view.windows}

    assert folded == {baseline().digest, ""}
    assert view.num_scored == sum(closed.baseline != "" for closed in view.windows) >= 3
    assert view.counts.num_closed == 2 * view.num_scored


def silence(made: Deployed) -> ChannelState:
    for _ in range(12):
        for k in range(4):
            done = [fakes.finished(f"r{k}-{n}") for n in range(3)]
            made.hear(fakes.serving(*done), made.frontend)
        made.clock.advance(60)
    made.watch.turn()
    return made.verdict("integrity").state


def test_a_tap_that_falls_silent_while_requests_finish_is_a_page(deployed: Deployed) -> None:
    """After five minutes of it."""
    assert silence(deployed) is ChannelState.PAGE
    assert deployed.verdict("integrity").causes[0].stream == "tap"


def test_who_never_measured_anything_has_not_fallen_silent() -> None:
    """Signatures may be switched off."""
    assert silence(Deployed()) is ChannelState.ARMED


def test_a_baseline_is_no_longer_in_force_after_another() -> None:
    """Windows that were open are given up, since they were folded by it."""
    made = Deployed()
    made.hear(finished(START, 3))
    made.judges.use(panel_of(TERMS, None), made.clock())
    made.clock.advance(600)
    made.watch.turn()
    view = made.watch.get()

    assert view.baseline is None
    assert view.windows == ()
    assert {c.verdict.channel for c in view.channels if c.is_configured} == {"integrity"}


def test_traffic_is_recorded_and_canaries_are_not(tmp_path: Path) -> None:
    """With what executed them; files are finished when the judges close."""
    made = Deployed(recorder=Recorder(tmp_path, "1.2.3"))
    made.execute()
    made.hear(finished(START, 5))
    made.hear(finished(START, 2, canary="p1@1790000000000"))
    made.judges.close()
    (recording,) = find_recordings([tmp_path])
    told = made.judges.get(START).recording

    assert told is not None
    assert (told.num_recorded, told.num_lost, told.reason) == (5, 0, "")
    assert recording.header.identity == SERVED
    assert recording.header.layout == LAYOUT


def test_canaries_and_identities_reach_the_canary_channel() -> None:
    """Proven ones alone; what is learnt is kept like the rest."""
    heard: list[str] = []
    known: dict[str, Identity] = {}

    class Listening(CanaryChannel):
        def update(self, signed: Any) -> None:
            heard.append(signed.signature.canary)

        def identify(self, source: str, identity: Identity) -> None:
            known[source] = identity

    made = Deployed(canary=Seat(Listening(["p1"], "digest")))
    made.execute()
    made.hear(finished(START, 2, canary="p1@1790000000000"))
    made.hear(finished(START, 2))
    view = made.watch.get()

    assert heard == ["p1@1790000000000"] * 2
    assert known == {"engine-dp0-pp0-tp0": SERVED}
    assert view.canaries.is_learning
    assert "canary" in made.judges.export(START).channels
    assert view.channels[0].is_configured


def test_a_front_end_executes_nothing() -> None:
    """Only engines are compared with the baseline."""
    made = Deployed()
    for body in (Status("live", identity=Identity(weights_digest="x")), Manifest("absent")):
        made.hear(body, made.frontend)

    assert made.watch.get().executed == {}
    assert made.verdict("integrity").state is ChannelState.ARMED


def test_made_up_sources_fill_no_memory() -> None:
    """What is executed is remembered of so many sources at most."""
    made = judges()
    for k in range(300):
        made.take(Heard(Source("engine", k), Status("live", identity=SERVED), START))

    assert len(made.get(START).executed) == 256


def test_without_a_baseline_only_integrity_judges() -> None:
    """And the others say how to get one."""
    made = Deployed(panel_of(TERMS, None))
    view = made.watch.get()
    reasons = {c.verdict.channel: c.verdict.reason for c in view.channels if not c.is_configured}

    assert set(reasons) == set(CHANNELS) - {"integrity"}
    assert "SIDECAR_BASELINE_FILE" in reasons["traffic"]


def test_windows_are_made_as_the_baselines_were() -> None:
    """Its length wins over the configured one; those of a demonstration are easy to fill."""
    assert panel_of(Terms("production", 7 * SECOND), baseline()).assembly == ASSEMBLY
    assert panel_of(Terms("production", 7 * SECOND), None).assembly == Assembly(7 * SECOND)
    demo = panel_of(Terms("demo", 5 * SECOND), None).assembly
    assert (demo.length_ns, demo.min_requests, demo.longest_ns) == (5 * SECOND, 10, MINUTE)


def test_a_panel_folds_by_its_baseline_only_what_is_of_its_layout() -> None:
    """Everything else is folded plainly."""
    panel = panel_of(TERMS, baseline())

    assert panel.open_windows(Schema.of(LAYOUT))[1] == baseline().digest
    assert panel.open_windows(Schema.of(Layout([9])))[1] == ""
    assert panel_of(TERMS, None).open_windows(Schema.of(LAYOUT))[1] == ""


def test_a_nan_in_the_residual_stream_is_a_page_without_any_baseline() -> None:
    """As the tap counts it, in the frame that says so, with the layer."""
    made = Deployed()
    calm = fakes.layers()
    calm.moments.nonfinite = bytes(len(calm.moments.nonfinite))
    made.hear(calm)
    made.watch.turn()
    assert made.verdict("integrity").state is ChannelState.ARMED

    made.hear(fakes.layers())  # one element in layer 1, two in layer 2
    made.watch.turn()
    assert made.verdict("integrity").state is ChannelState.PAGE
    assert {cause.layer for cause in made.verdict("integrity").causes} == {1, 2}
