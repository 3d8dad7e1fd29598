"""The exposition: both formats, read back with the stock parsers, and what happens on failure."""

import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.samples import Exemplar

from sidecar.fold.confidence import confidence
from sidecar.fold.reducer import Reducer, Snapshot
from sidecar.publish.metrics.collectors import family, reason_class
from sidecar.publish.metrics.exposition import Build, Exposition, Scrape
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.frame import Requests, Source, Status
from sidecar.wire.signals import BY_ID, METRICS, PREFIX, Kind
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, SECOND, FakeSource, Ticking
from tests.publish import drifting

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# What Prometheus 3.5 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
SNAPSHOT = fakes.everything().get(NOW + 10 * SECOND)
Samples = dict[tuple[str, ...], float]


def exposition(series_cap: int = 10_000, **others: object) -> Exposition:
    build = Build("1.2.3", "1", "3.11.0")
    given = {"collectors": drifting.collectors(), **others}
    return Exposition(series_cap, Selection.everything(), build=build, clock=Ticking(), **given)  # type: ignore[arg-type]


def parsed(text: str, accept: str = "") -> list[Metric]:
    read = openmetrics_parser if "openmetrics" in accept else parser
    return list(read.text_string_to_metric_families(text))


def samples(snapshot: Snapshot = SNAPSHOT, accept: str = "", **others: object) -> Samples:
    """Each sample of an exposition by name, without prefix, and label values in order."""
    body = exposition(**others).render(snapshot, Scrape(accept))  # type: ignore[arg-type]
    found: Samples = {}
    for metric in parsed(body.decode(), accept):
        for sample in metric.samples:
            key = (sample.name.removeprefix(PREFIX), *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_the_client_chooses_the_format(accept: str, content_type: str) -> None:
    """Content type and body agree; OpenMetrics ends as it must."""
    body, told = exposition().render(SNAPSHOT, Scrape(accept)), Scrape(accept).content_type

    assert told.startswith(content_type)
    assert body.endswith(b"# EOF\n") is ("openmetrics" in told)
    assert parsed(body.decode(), told)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_every_family_of_the_table_has_samples_somewhere(accept: str) -> None:
    """No family is described and never published."""
    body = exposition().render(SNAPSHOT, Scrape(accept))
    found = {metric.name for metric in parsed(body.decode(), accept)}

    assert {m.name for m in METRICS} <= found | {name.removesuffix("_info") for name in found}


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_names_kinds_units_and_help_come_from_the_table(accept: str) -> None:
    """Every family of the table is there when it has samples, and no other one."""
    body = exposition().render(SNAPSHOT, Scrape(accept))
    found = {metric.name: metric for metric in parsed(body.decode(), accept)}
    text_only = {f"{m.name}_info": "gauge" for m in METRICS if m.kind is Kind.INFO and not accept}
    expected = {m.name: m.kind.value for m in METRICS if f"{m.name}_info" not in text_only}

    assert expected | text_only == {name: metric.type for name, metric in found.items()}
    for metric in METRICS:
        if metric.name in found:
            assert metric.help == found[metric.name].documentation
            assert (metric.unit if accept else "") == found[metric.name].unit


def test_both_formats_tell_the_same() -> None:
    """Sample by sample."""
    assert samples() == samples(accept=OPENMETRICS)


def test_layers_are_told_as_they_were_folded() -> None:
    """Each layer of both stages, to the last bit."""
    found = samples()
    told = fakes.moments(2)
    for layer in range(4):
        at = ("tiny", "0", str(layer), "prefill", "rest")
        assert found["residual_rms_sum", *at] == told.sums[1, layer % 2, 0, 0]
        assert found["residual_rms_count", *at] == 60


def test_coverage_is_that_of_the_first_stage() -> None:
    """All stages see the same rows: they are not added up."""
    found = samples()

    assert found["observed_tokens_total", "tiny", "0", "prefill", "rest"] == 60
    assert found["unobserved_tokens_total", "tiny", "0", "prefix_cached"] == 16
    assert found["unobserved_tokens_total", "tiny", "0", "lost"] == 1
    assert found["unobserved_tokens_total", "tiny", "0", "shed"] == 5
    assert found["unobserved_tokens_total", "tiny", "0", "opted_out"] == 6
    assert found["rejected_draft_tokens_total", "tiny", "0"] == 2
    assert found["recomputed_tokens_total", "tiny", "0"] == 3
    assert found["engine_steps_total", "tiny", "0"] == 7


def test_observed_requests_are_told_by_adapter() -> None:
    """As the tap counts them; all as the base model's where it does not tell them apart."""
    by_adapter = {key[3]: n for key, n in samples().items() if key[0] == "observed_requests_total"}
    engine = FakeSource()
    plain = fakes.reduced(engine.frame(fakes.live()), engine.frame(fakes.layers())).get(NOW)

    assert by_adapter == {"": 5, "support": 1, "other": 0}
    assert samples(plain)["observed_requests_total", "tiny", "0", ""] == 2


def test_serving_stats_are_told() -> None:
    """Counters, gauges, and every bucket of a histogram up to +Inf."""
    found = samples()

    assert found["prompt_tokens_total", "tiny", "0"] == 640
    assert found["generated_tokens_total", "tiny", "0"] == 90
    assert found["cached_tokens_total", "tiny", "0"] == 160
    assert found["preempted_requests_total", "tiny", "0"] == 1
    assert found["requests_running", "tiny", "0"] == 3
    assert found["requests_waiting", "tiny", "0"] == 2
    assert found["kv_cache_usage_ratio", "tiny", "0"] == 0.25
    assert found["finished_requests_total", "tiny", "0", "length"] == 1
    assert found["finished_requests_total", "tiny", "0", "error"] == 0
    assert found["finished_requests_total", "tiny", "0", "abort"] == 1
    e2e = {key[3]: value for key, value in found.items() if "e2e" in key[0] and "bucket" in key[0]}
    assert (e2e["1.5"], e2e["2.0"], e2e["+Inf"]) == (0, 2, 2)
    assert found["e2e_request_latency_seconds_sum", "tiny", "0"] == 4
    assert found["request_queue_time_seconds_count", "tiny", "0"] == 2
    assert found["time_to_first_token_seconds_sum", "tiny", "0"] == 1
    assert found["time_per_output_token_seconds_sum", "tiny", "0"] == 0.25


def exemplars(snapshot: Snapshot = SNAPSHOT) -> dict[str, Exemplar]:
    """By family, of the one bucket that has one, as the stock parser reads them."""
    body = exposition().render(snapshot, Scrape(OPENMETRICS)).decode()
    return {
        metric.name.removeprefix(PREFIX): sample.exemplar
        for metric in parsed(body, OPENMETRICS)
        for sample in metric.samples
        if sample.exemplar is not None
    }


def test_histograms_name_the_trace_of_a_request_in_a_bucket() -> None:
    """In the format that can: trace, caller's span, value and time."""
    found = exemplars()
    assert {name: each.value for name, each in found.items()} == {
        "time_to_first_token_seconds": 0.5,
        "time_per_output_token_seconds": 0.125,
        "e2e_request_latency_seconds": 2.0,
        "request_confidence_ratio": confidence(fakes.request()),
    }
    for each in found.values():
        assert each.labels == {
            "trace_id": fakes.TRACEPARENT.split("-")[1],
            "span_id": fakes.TRACEPARENT.split("-")[2],
        }
        assert float(each.timestamp) == NOW / 1e9
    assert "# {" not in exposition().render(SNAPSHOT, Scrape()).decode()


def test_no_trace_is_named_in_an_empty_bucket() -> None:
    """The frame that counted the first token may have been lost, and only the end arrived."""
    told = fakes.serving(fakes.finished(traceparent=fakes.TRACEPARENT))
    told.time_to_first_token = []
    found = exemplars(fakes.reduced(FakeSource(FRONTEND).frame(told)).get(NOW))
    assert set(found) == {"time_per_output_token_seconds", "e2e_request_latency_seconds"}


def test_confidence_is_told_of_engines_that_measure_it() -> None:
    """Over the stages of a pipeline, of which the last one does; where it is absent, not at all."""
    engine, last = FakeSource(), FakeSource(Source("engine", 0, 1), "boot-0002")
    unheard = fakes.live()
    unheard.absent["confidence"] = "No logits: this engine embeds"
    bodies = [fakes.layers(), Requests([0], [fakes.request(num_layers=1)])]

    def counted(status: Status) -> list[float]:
        frames = [engine.frame(status), engine.frame(fakes.layers())]
        frames += [last.frame(each) for each in (status, *bodies)]
        found = samples(fakes.reduced(*frames).get(NOW))
        return [v for key, v in found.items() if key[0] == "request_confidence_ratio_count"]

    assert counted(fakes.live()) == [1]
    assert counted(unheard) == []


def test_front_ends_of_one_engine_are_added() -> None:
    """Two API servers of one engine make one series; two engines make two."""
    bodies = [(0, fakes.serving(fakes.finished())), (1, fakes.serving(fakes.finished()))]
    bodies += [(1, fakes.serving(engine=1))]
    frontends = {k: FakeSource(Source("frontend", k)) for k in range(2)}
    snapshot = fakes.reduced(*(frontends[k].frame(body) for k, body in bodies)).get(NOW)
    found = samples(snapshot)

    assert found["prompt_tokens_total", "tiny", "0"] == 1280
    assert found["e2e_request_latency_seconds_count", "tiny", "0"] == 2
    assert found["prompt_tokens_total", "tiny", "1"] == 640


def test_taps_tell_their_state() -> None:
    """Live engines 1, a front end that speaks of a refused one 0, and the reason as a label."""
    found = samples()
    engine, refused = "engine-dp0-pp1-tp0", "frontend-1"

    assert found["tap_live", engine] == 1
    assert found["tap_live", refused] == 0
    assert ("tap_live", "frontend-0") not in found
    assert found["tap_info", engine, "live", ""] == 1
    assert found["tap_info", refused, "refused", "release"] == 1
    assert found["tap_errors_total", engine, "pump"] == 2
    assert found["tap_shed_level", engine] == 1
    assert found["tap_cost_ratio", engine] == 0.0078125
    assert found["tap_absent_info", engine, "router", "no_router"] == 1
    assert found["tap_absent_info", engine, "probe", "other"] == 1
    assert ("tap_shed_level", refused) not in found
    assert found["engine_info", engine, "tiny", "0", "0.32.0", "v1", "bfloat16", "3"] == 1


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("no router: this model is dense", "no_router"),
        ("Sliding-window  layer: not read yet", "sliding_window_layer"),
        ("this model has no experts", "other"),
        ("a" * 41 + ": too long for a label", "other"),
        ("", "other"),
    ],
)
def test_a_reason_becomes_a_short_label(reason: str, label: str) -> None:
    """What stands before the first colon; a sentence is for /v1/status."""
    assert reason_class(reason) == label


def test_every_frame_is_told() -> None:
    """Sent, received, lost by cause; what was dropped before the first one heard is told too."""
    found = samples()
    engine = "engine-dp0-pp0-tp0"

    assert found["frames_sent_total", engine] == 11
    assert found["frames_received_total", engine] == 8
    assert found["frames_lost_total", engine, "dropped"] == 2
    assert found["frames_lost_total", engine, "missing"] == 1
    assert found["frames_lost_total", engine, "stale"] == 0
    assert found["frames_refused_total", "schema"] == 3
    assert found["frames_refused_total", "mac"] == 0
    assert found["frame_age_seconds_count",] == 19
    assert found["frame_age_seconds_sum",] == 16 / 8
    assert found["last_frame_timestamp_seconds", engine] == NOW / 1e9 + 10
    assert found["sources",] == 4


def test_nothing_yet_is_a_valid_exposition() -> None:
    """Before any source is heard the sidecar tells of itself only."""
    found = samples(Reducer(LIMITS).get(NOW), OPENMETRICS)

    assert found["sources",] == 0
    assert found["series",] == 0
    assert found["build_info", "1.2.3", "1", "3.11.0"] == 1
    assert not [key for key in found if "residual" in key[0] or "tokens" in key[0]]


def test_a_vanished_source_leaves_every_family() -> None:
    """Beyond the staleness limit nothing carries its name or its model's any more."""
    found = samples(fakes.everything().get(NOW + 11 * SECOND + LIMITS.stale_ns))

    assert found["sources",] == 0
    assert not [key for key in found if {"tiny", "engine-dp0-pp0-tp0", "frontend-0"} & set(key)]
    assert found["frames_refused_total", "schema"] == 3


def test_a_source_that_lags_shows_its_losses_only() -> None:
    """Old frames keep a source in the account of frames, not in the numbers."""
    engine = FakeSource()
    reducer = fakes.reduced(engine.frame(fakes.live()), engine.frame(fakes.layers()))
    later = NOW + LIMITS.stale_ns + SECOND
    reducer.update(engine.frame(fakes.layers()), later)
    found = samples(reducer.get(later))

    assert found["frames_lost_total", "engine-dp0-pp0-tp0", "stale"] == 1
    assert found["tap_live", "engine-dp0-pp0-tp0"] == 0
    assert not [key for key in found if "residual" in key[0] or "tap_info" in key[0]]


def failing(_: Snapshot) -> Iterator[Metric]:
    yield family("sources", [((), 1)])
    raise RuntimeError


def test_a_failing_collector_never_fails_the_scrape(caplog: pytest.LogCaptureFixture) -> None:
    """It is scored 0, leaves no half of itself, is logged once; all others are served."""
    rendering = exposition(collectors={**drifting.collectors(), "serving": failing})
    for _ in range(2):
        body = rendering.render(SNAPSHOT, Scrape(OPENMETRICS))
    text = body.decode()
    success = {
        sample.labels["collector"]: sample.value
        for metric in parsed(text, OPENMETRICS)
        for sample in metric.samples
        if metric.name == BY_ID["scrape_collector_success"].name
    }

    own = {"selection", "layers", "tables", "exporter"}
    served = {*drifting.collectors(), *own} - {"serving"}
    assert success == {**dict.fromkeys(served, 1), "serving": 0}
    assert "e2e_request_latency" not in text
    assert 'scrape_duration_seconds_count{collector="serving"} 2' in text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_label_that_cannot_be_written_is_a_failure_like_any_other() -> None:
    """Writing happens under the same guard as collecting."""

    def wrong(_: Snapshot) -> Iterator[Metric]:
        yield family("tap_live", [((None,), 1)])  # type: ignore[list-item]

    found = samples(collectors={"taps": wrong})
    assert found["scrape_collector_success", "taps"] == 0


def test_failing_tables_leave_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two writers are guarded apart."""

    def write(*_: object, **__: object) -> str:
        raise RuntimeError

    broken = exposition()
    monkeypatch.setattr(broken._tables, "write", write)
    body = broken.render(SNAPSHOT)

    assert b'scrape_collector_success{collector="tables"} 0' in body
    assert b"residual_rms_sum{" in body


def test_failing_layers_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one collector with its own writer."""

    def write(*_: object, **__: object) -> str:
        raise RuntimeError

    broken = exposition()
    monkeypatch.setattr(broken._layers, "write", write)
    body = broken.render(SNAPSHOT)

    assert b'scrape_collector_success{collector="layers"} 0' in body
    assert b"prompt_tokens_total" in body


def test_collectors_are_timed() -> None:
    """By the clock given: each of the seven took one tick."""
    found = samples()

    assert found["scrape_duration_seconds_sum", "layers"] == pytest.approx(0.00025)
    assert found["scrape_duration_seconds_bucket", "layers", "0.0005"] == 1


def test_the_cap_is_told_and_kept() -> None:
    """At the cap whole layers are left out, and every table with them; all of it is counted."""
    everything, rendering = exposition(), exposition(series_cap=60)
    everything.render(SNAPSHOT)
    rendering.render(SNAPSHOT)
    body = rendering.render(SNAPSHOT)
    found = {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for metric in parsed(body.decode())
        for sample in metric.samples
    }
    names = ("residual", "block_", "nonfinite", "attention", "token_", "router", "probe")
    per_cell = [key for key in found if key[0].startswith(names)]

    assert len(per_cell) == found["series",] == 56
    assert found["series_cap",] == 60
    assert found["series_dropped_total",] > 2 * 56


def test_layers_that_fit_leave_room_for_tables() -> None:
    """One cap over both: what the layers leave is what the tables have."""
    layers_only = Exposition(4 * 28, Selection.everything())
    layers_only.render(SNAPSHOT)
    found = samples(series_cap=4 * 28 + 2 * 9)

    assert (layers_only._layers.num_left, layers_only._tables.num_series) == (0, 0)
    assert found["token_entropy_nats_count", "tiny", "0", ""] == 32
    assert not [key for key in found if key[0].startswith("probe")]


def test_scrapes_at_the_same_time_do_not_mix() -> None:
    """Eight threads, two formats: each body is the one it would have been alone."""
    rendering = Exposition(10_000, Selection.everything(), collectors={})
    bodies: list[tuple[str, bytes]] = []

    def scrape(accept: str) -> None:
        for _ in range(5):
            body = rendering.render(SNAPSHOT, Scrape(accept))
            bodies.append((accept, body.split(b"# HELP llm_internals_series ")[0]))

    threads = [threading.Thread(target=scrape, args=(["", OPENMETRICS][k % 2],)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(bodies) == 40
    assert len(set(bodies)) == 2


def test_the_multiprocess_mode_of_the_client_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """vLLM sets PROMETHEUS_MULTIPROC_DIR for itself; nothing of ours goes there."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    assert samples() == samples()
    assert list(tmp_path.iterdir()) == []


def test_no_sample_is_nan() -> None:
    """What does not exist is absent, not NaN."""
    assert not [key for key, value in samples().items() if math.isnan(value)]


def test_a_front_end_alone_has_no_tap() -> None:
    """tap_live is absent rather than 0 where nothing was ever to be tapped."""
    snapshot = fakes.reduced(FakeSource(FRONTEND).frame(fakes.serving())).get(NOW)

    assert not [key for key in samples(snapshot) if key[0] == "tap_live"]


def test_a_client_may_ask_for_some_families() -> None:
    """By the name of a family or of one of its series; nothing else is written."""
    names = ("llm_internals_tap_live", "llm_internals_residual_rms_sum", "up")
    body = exposition().render(SNAPSHOT, Scrape(OPENMETRICS, names))
    found = {metric.name for metric in parsed(body.decode(), OPENMETRICS)}

    assert found == {"llm_internals_tap_live", "llm_internals_residual_rms"}


def test_asking_for_some_families_does_not_change_what_is_counted() -> None:
    """`series` tells of the whole exposition, whoever looks."""
    rendering = exposition()
    rendering.render(SNAPSHOT, Scrape(names=("up",)))
    some = rendering._layers.num_series + rendering._tables.num_series
    rendering.render(SNAPSHOT)

    assert some == rendering._layers.num_series + rendering._tables.num_series > 0


def test_what_would_come_too_late_is_left_out() -> None:
    """Small families stand first; the large ones are given up when time is over, and said so."""
    clock = Ticking()  # a quarter of a millisecond for each look at it
    rendering = Exposition(10_000, clock=clock)
    body = rendering.render(SNAPSHOT, Scrape(seconds=0.0011))

    assert b"llm_internals_observed_tokens_total{" in body
    assert b'scrape_collector_success{collector="coverage"} 1' in body
    assert b'scrape_collector_success{collector="layers"} 0' in body
    assert b"residual_rms_sum{" not in body
    assert b"residual_rms_sum{" in rendering.render(SNAPSHOT)


def test_a_scrape_does_not_wait_longer_than_its_client() -> None:
    """While another one takes all the time there is."""
    rendering = exposition()
    with rendering._lock, pytest.raises(TimeoutError):
        rendering.render(SNAPSHOT, Scrape(seconds=0.01))
