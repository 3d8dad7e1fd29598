"""The JSON API's answers, as read off a snapshot."""

import json
import math
from typing import Any

import numpy as np
from pydantic import BaseModel

import sidecar
from sidecar.fold.reducer import REFUSALS
from sidecar.publish.answers import (
    layers_answer,
    ready_answer,
    requests_answer,
    status_answer,
)
from sidecar.wire.frame import Requests
from sidecar.wire.signals import LAYER_SIGNALS
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, SECOND, FakeSource, reduced

SNAPSHOT = fakes.everything().get(NOW + 11 * SECOND)


def plain(answer: BaseModel) -> dict[str, Any]:
    """The answer as a client reads it: NaN would not parse here."""

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read: dict[str, Any] = json.loads(answer.model_dump_json(), parse_constant=refuse)
    return read


def test_readiness_is_told_with_its_reasons() -> None:
    """The same list that /readyz and /v1/status show."""
    ready = ready_answer(SNAPSHOT)

    assert ready.ready is False
    assert len(ready.reasons) == 2
    assert status_answer(SNAPSHOT).reasons == ready.reasons


def test_a_source_is_told_in_full() -> None:
    """What it is, what it said of itself, and what became of its frames."""
    source = status_answer(SNAPSHOT).sources[0].model_dump()

    assert source == {
        "source": "engine-dp0-pp0-tp0",
        "role": "engine",
        "state": "live",
        "reason": "",
        "detail": "",
        "boot": "boot-0000",
        "last_frame_age_seconds": 0.875,
        "frames_sent": 7,
        "frames_received": 4,
        "frames_lost": {"dropped": 2, "missing": 1, "stale": 0},
        "model_name": "tiny",
        "vllm_version": "0.32.0",
        "runner": "v1",
        "dtype": "bfloat16",
        "num_layers": 3,
        "dead_layers": [],
        "errors": {"pump": 2},
        "fingerprint": "f00d",
    }


def test_a_source_without_a_word_has_no_state() -> None:
    """Unknown is null, not a state."""
    source = status_answer(reduced(FakeSource().frame(fakes.layers())).get(NOW)).sources[0]

    assert (source.state, source.reason, source.model_name) == (None, "", "")


def test_a_source_never_believed_has_no_age() -> None:
    """Only old frames came: there is no last frame."""
    old = FakeSource().frame(fakes.live(), NOW - LIMITS.max_age_ns - 1)
    source = status_answer(reduced(old).get(NOW)).sources[0]

    assert source.last_frame_age_seconds is None
    assert source.frames_lost["stale"] == 1


def test_the_status_names_versions_and_refusals() -> None:
    """Enough to tell a version mismatch from a dead engine."""
    status = status_answer(SNAPSHOT)

    assert (status.version, status.schema_version) == (sidecar.__version__, 1)
    assert status.frames_refused == {**dict.fromkeys(REFUSALS, 0), "schema": 3}


def test_serving_stats_are_told_per_front_end() -> None:
    """Count and mean of each latency."""
    (serving,) = status_answer(SNAPSHOT).serving

    assert (serving.source, serving.model_name, serving.engine) == ("frontend-0", "tiny", "0")
    assert (serving.requests_running, serving.requests_waiting) == (3, 2)
    assert (serving.prompt_tokens, serving.generated_tokens) == (640, 90)
    assert (serving.finished["stop"], serving.finished["length"]) == (1, 1)
    assert serving.ttft_seconds.model_dump() == {"count": 2, "mean": 0.5}
    assert serving.time_per_output_token_seconds.mean == 0.125
    assert serving.e2e_seconds.mean == 2.0
    assert serving.queue_seconds.mean == 0.25


def test_no_observation_has_no_mean() -> None:
    """A mean over nothing is null."""
    snapshot = reduced(FakeSource(FRONTEND).frame(fakes.serving())).get(NOW)
    (serving,) = status_answer(snapshot).serving

    assert serving.ttft_seconds.model_dump() == {"count": 0, "mean": None}


def test_coverage_is_told_per_engine() -> None:
    """By phase and position class, and what was not observed."""
    first = status_answer(SNAPSHOT).coverage[0]

    assert first.observed == {
        "prefill": {"first": 4, "rest": 60},
        "decode": {"first": 0, "rest": 8},
    }
    assert (first.prefix_cached, first.lost, first.recomputed) == (16, 1, 3)
    assert (first.steps, first.requests) == (7, 2)


def test_layers_are_told_with_their_statistics() -> None:
    """Mean, mean and spread of the logarithm, and the ends of the last closed window."""
    answer = layers_answer(SNAPSHOT)
    told = fakes.moments(2)
    row = next(r for r in answer.rows if (r.layer, r.phase, r.position) == (3, "decode", "rest"))
    sums, ends = told.sums[3, 1, 1] / 8, told.extremes[3, 1, 1]

    assert (row.source, row.model_name, row.engine) == ("engine-dp0-pp1-tp0", "tiny", "0")
    assert row.rows == 8
    stat = row.signals["residual_peak"]
    assert stat.mean == sums[0]
    assert stat.log_mean == sums[1]
    assert stat.log_std == math.sqrt(max(0.0, sums[2] - sums[1] ** 2))
    assert (stat.window_min, stat.window_max) == tuple(ends)
    assert list(row.signals) == [signal.id for signal in LAYER_SIGNALS]


def test_only_populations_with_rows_are_told() -> None:
    """Four layers in three populations each; non-finite counts for every layer."""
    answer = layers_answer(SNAPSHOT)

    assert len(answer.rows) == 12
    assert [each.values for each in answer.nonfinite] == [0, 1, 0, 1]
    assert answer.signals[0].metric == "llm_internals_residual_rms"


def test_an_empty_window_is_null() -> None:
    """Before the first window closes there are no ends."""
    answer = layers_answer(reduced(FakeSource().frame(fakes.layers())).get(NOW))

    assert answer.rows[0].signals["residual_rms"].window_max is None
    assert plain(answer)


def test_a_spread_is_never_the_root_of_a_negative() -> None:
    """Equal values round to a variance just below 0."""
    arrays = fakes.moments(1)
    arrays.sums[0, 0, 0] = (4.0, 4 * 0.1, 4 * 0.1 * 0.1 - 1e-17)
    body = fakes.layers(1)
    body.moments = arrays.pack()
    answer = layers_answer(reduced(FakeSource().frame(body)).get(NOW))

    assert answer.rows[0].signals["residual_rms"].log_std == 0.0


def test_a_request_is_told_to_the_last_bit() -> None:
    """Raw sums in float64, as JSON reads them back."""
    arrays = fakes.moments(3)
    arrays.sums[1] = np.random.default_rng(0).normal(size=arrays.sums[1].shape) * 1e9
    one = fakes.request("cmpl-1-0-0badcafe")
    one.moments = arrays.pack()
    reducer = reduced(
        FakeSource().frame(Requests([5, 6, 7], [one])),
        FakeSource(FRONTEND).frame(fakes.serving(fakes.finished("cmpl-1-0"))),
    )
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]

    assert (told["id"], told["source"]) == ("cmpl-1-0-0badcafe", "engine-dp0-pp0-tp0")
    assert (told["layers"], told["nonfinite"]) == ([5, 6, 7], [0, 1, 2])
    assert told["coverage"]["prefix_cached"] == 16
    assert told["serving"]["reason"] == "stop"
    assert list(told["populations"]) == ["prefill/first", "prefill/rest", "decode/rest"]
    population = told["populations"]["prefill/rest"]
    assert population["rows"] == [60, 60, 60]
    for signal, name in enumerate(("residual_rms", "residual_peak", "block_influence")):
        sums, ends = arrays.sums[1, :, signal], arrays.extremes[1, :, signal]
        assert population[name]["sum"] == sums[:, 0].tolist()
        assert population[name]["log_sum"] == sums[:, 1].tolist()
        assert population[name]["log_square_sum"] == sums[:, 2].tolist()
        assert population[name]["min"] == ends[:, 0].tolist()
        assert population[name]["max"] == ends[:, 1].tolist()
        assert population[name]["mean"] == (sums[:, 0] / 60).tolist()


def test_what_a_request_lacks_is_null() -> None:
    """A layer without rows, extremes that are no numbers, stats that never came."""
    arrays = fakes.moments(2)
    arrays.count[1, 0] = 0
    arrays.extremes[1, 0] = np.nan
    arrays.extremes[1, 1, 0, 1] = np.inf
    one = fakes.request(num_layers=2)
    one.moments = arrays.pack()
    reducer = reduced(FakeSource().frame(Requests([0, 1], [one])))
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]
    rms = told["populations"]["prefill/rest"]["residual_rms"]

    assert rms["min"][0] is None
    assert rms["max"] == [None, None]
    assert rms["mean"][0] is None
    assert told["serving"] is None


def test_every_answer_is_json() -> None:
    """No NaN and no Infinity, which are not."""
    for answer in (ready_answer(SNAPSHOT), status_answer(SNAPSHOT), layers_answer(SNAPSHOT)):
        assert plain(answer)
