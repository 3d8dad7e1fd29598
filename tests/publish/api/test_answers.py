"""The JSON API's answers, as read off a snapshot."""

import math

import sidecar
from sidecar.fold.reducer import REFUSALS
from sidecar.publish.api.answers import (
    layers_answer,
    ready_answer,
)
from sidecar.wire.frame import SCHEMA
from sidecar.wire.signals import LAYER_SIGNALS
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, SECOND, FakeSource, reduced
from tests.publish.plain import plain, status_of

SNAPSHOT = fakes.everything().get(NOW + 11 * SECOND)


def test_readiness_is_told_with_its_reasons() -> None:
    """The same list that /readyz and /v1/status show."""
    ready = ready_answer(SNAPSHOT)

    assert ready.ready is False
    assert len(ready.reasons) == 2
    assert status_of(SNAPSHOT).reasons == ready.reasons


def test_a_source_is_told_in_full() -> None:
    """What it is, what it said of itself, and what became of its frames."""
    source = status_of(SNAPSHOT).sources[0].model_dump()

    assert source == {
        "source": "engine-dp0-pp0-tp0",
        "role": "engine",
        "state": "live",
        "reason": "",
        "detail": "",
        "boot": "boot-0000",
        "last_frame_age_seconds": 0.875,
        "frames_sent": 11,
        "frames_received": 8,
        "frames_lost": {"dropped": 2, "missing": 1, "stale": 0},
        "model_name": "tiny",
        "vllm_version": "0.32.0",
        "runner": "v1",
        "dtype": "bfloat16",
        "num_layers": 3,
        "dead_layers": [],
        "errors": {"pump": 2},
        "fingerprint": "f00d",
        "absent": {"router": "no router: this model is dense", "probe": "none is configured"},
        "shed_level": 1,
        "cost_share": 0.0078125,
        "control": "r7",
        "identity": {
            "model_name": "tiny",
            "weights_digest": "a1b2",
            "tokenizer_digest": "c3d4",
            "engine": "vllm",
            "engine_version": "0.32.0",
            "kernels": "AVX512",
            "attention_backend": "",
            "dtype": "",
            "kv_cache_dtype": "",
            "quantization": "",
            "tensor_parallel": 0,
            "pipeline_parallel": 0,
            "num_layers": 3,
            "hidden_size": 0,
        },
        "manifest": None,
    }


def test_the_files_of_a_model_are_told() -> None:
    """The digests, and each file with its bytes, once the tap has told of them."""
    reducer = reduced(FakeSource().frame(fakes.live()))
    reducer.update(FakeSource(boot="boot-two").frame(fakes.manifest(), NOW + 1), NOW + 1)
    told = status_of(reducer.get(NOW + 1)).sources[0].manifest

    assert told is not None
    assert told.model_dump() == {
        "state": "complete",
        "reason": "",
        "weights_digest": "a1b2",
        "tokenizer_digest": "c3d4",
        "files": [
            {"name": "config.json", "num_bytes": 2, "sha256": "0a"},
            {"name": "model.safetensors", "num_bytes": 1 << 40, "sha256": "0b"},
        ],
    }


def test_a_source_without_a_word_has_no_state() -> None:
    """Unknown is null, not a state."""
    source = status_of(reduced(FakeSource().frame(fakes.layers())).get(NOW)).sources[0]

    assert (source.state, source.reason, source.model_name) == (None, "", "")


def test_a_source_never_believed_has_no_age() -> None:
    """Only old frames came: there is no last frame."""
    old = FakeSource().frame(fakes.live(), NOW - LIMITS.max_age_ns - 1)
    source = status_of(reduced(old).get(NOW)).sources[0]

    assert source.last_frame_age_seconds is None
    assert source.frames_lost["stale"] == 1


def test_the_status_names_versions_and_refusals() -> None:
    """Enough to tell a version mismatch from a dead engine."""
    status = status_of(SNAPSHOT)

    assert (status.version, status.schema_version) == (sidecar.__version__, SCHEMA)
    assert status.frames_refused == {**dict.fromkeys(REFUSALS, 0), "schema": 3}


def test_serving_stats_are_told_per_front_end() -> None:
    """Count and mean of each latency."""
    (serving,) = status_of(SNAPSHOT).serving

    assert (serving.source, serving.model_name, serving.engine) == ("frontend-0", "tiny", "0")
    assert (serving.requests_running, serving.requests_waiting) == (3, 2)
    assert (serving.prompt_tokens, serving.generated_tokens) == (640, 90)
    assert (serving.finished["stop"], serving.finished["length"]) == (1, 1)
    assert serving.finished["abort"] == 1
    assert serving.ttft_seconds.model_dump() == {"count": 2, "mean": 0.5}
    assert serving.time_per_output_token_seconds.mean == 0.125
    assert serving.e2e_seconds.mean == 2.0
    assert serving.queue_seconds.mean == 0.25


def test_no_observation_has_no_mean() -> None:
    """A mean over nothing is null."""
    snapshot = reduced(FakeSource(FRONTEND).frame(fakes.serving())).get(NOW)
    (serving,) = status_of(snapshot).serving

    assert serving.ttft_seconds.model_dump() == {"count": 0, "mean": None}


def test_coverage_is_told_per_engine() -> None:
    """By phase and position class, and what was not observed."""
    first = status_of(SNAPSHOT).coverage[0]

    assert first.observed == {
        "prefill": {"first": 4, "rest": 60},
        "decode": {"first": 0, "rest": 8},
    }
    assert (first.prefix_cached, first.lost, first.recomputed) == (16, 1, 3)
    assert (first.shed, first.opted_out, first.rejected) == (5, 6, 2)
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


def test_every_answer_is_json() -> None:
    """No NaN and no Infinity, which are not."""
    for answer in (ready_answer(SNAPSHOT), status_of(SNAPSHOT), layers_answer(SNAPSHOT)):
        assert plain(answer)
