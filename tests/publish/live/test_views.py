"""The routes of what is going on now."""

import math
from typing import Any

import numpy as np
import pytest

from sidecar.fold.usual import MIN_COLUMNS, of_baseline
from sidecar.publish.live.choices import CHOICES
from sidecar.wire.frame import Arrays, Coverage, Layers, Source, pack
from tests.fakes import NOW, SECOND, FakeSource
from tests.publish import drifting
from tests.publish.live.room import Room


@pytest.fixture
def room() -> Room:
    made = Room()
    for _ in range(4):
        made.second()
    return made


def test_a_timeline_has_a_value_per_layer_and_second(room: Room) -> None:
    """What the engine measured in that second, to six digits."""
    before = room.engine.totals
    room.second()
    room.clock.advance(1)
    after = room.engine.totals
    room.second()
    told = room.get("/v1/timeline", signal="residual_peak", phase="prefill", position="first")
    (column,) = [each for each in told["columns"] if each["t_ns"] == NOW + 5 * SECOND]
    grown = after.sums[0, :, 1, 0] - before.sums[0, :, 1, 0]

    assert (told["signal"], told["phase"], told["position"]) == (
        "residual_peak",
        "prefill",
        "first",
    )
    assert (told["source"], told["layers"], told["unit"]) == ("engine-dp0", [0, 1, 2, 3], "ratio")
    assert column["rows"] == 4
    assert column["values"] == pytest.approx((grown / 4).tolist(), rel=1e-5)


def test_a_second_without_rows_is_null(room: Room) -> None:
    """Never 0; nor does the first reading say when its rows came."""
    first, *others = room.get("/v1/timeline")["columns"]

    assert (first["values"], first["z"], first["rows"]) == (None, None, 0)
    assert all(None not in each["values"] for each in others)


def test_every_signal_that_is_offered_can_be_had(room: Room) -> None:
    """Of the engine, and of its rank."""
    offered = room.get("/v1/timeline/signals")

    assert offered["sources"] == ["engine-dp0", "engine-dp0-pp0-tp0"]
    assert [each["id"] for each in offered["signals"]] == list(CHOICES)
    for each in offered["signals"]:
        for source in offered["sources"]:
            told = room.get("/v1/timeline", signal=each["id"], source=source)
            assert (told["source"], told["unit"]) == (source, each["unit"])
            assert (told["position"] is None) == (each["positions"] == [])
            assert told["columns"][-1]["values"][0] is not None


def test_only_what_is_new_is_told(room: Room) -> None:
    """With the time of the last column as `after`, for lines as for layers."""
    for path in ("/v1/timeline", "/v1/timeline/lines"):
        whole = room.get(path)
        times = whole["t_ns"] if "lines" in whole else [c["t_ns"] for c in whole["columns"]]
        rest = room.get(path, after=times[-2])
        again = rest["t_ns"] if "lines" in rest else [c["t_ns"] for c in rest["columns"]]
        assert again == times[-1:]
        assert times == [NOW + k * SECOND for k in range(1, 4)]


def test_before_any_frame_there_is_nothing_and_no_error() -> None:
    """Empty columns and lines; "no data yet" is not failure."""
    room = Room()
    timeline, lines = room.get("/v1/timeline"), room.get("/v1/timeline/lines")

    assert (timeline["columns"], timeline["source"], timeline["reference"]) == ([], "", "none")
    assert lines["t_ns"] == []
    assert all(line["values"] == [] for line in lines["lines"].values())


def test_lines_tell_what_was_served_and_how_sure_the_model_was(room: Room) -> None:
    """One value per second of each; the same units as the metrics."""
    told = room.get("/v1/timeline/lines")
    latest = {name: line["values"][-1] for name, line in told["lines"].items()}

    assert (latest["tokens"], latest["prompt_tokens"], latest["finished"]) == (9, 64, 1)
    assert (latest["first_token_p50"], latest["first_token_p99"]) == (0.11, 0.11)
    assert (latest["running"], latest["waiting"], latest["kv_cache_usage"]) == (1, 0, 0.25)
    assert latest["attention_entropy"] == pytest.approx(0.5, rel=0.1)
    assert latest["attention_effective_tokens"] == pytest.approx(12, rel=0.1)
    assert latest["token_entropy"] == pytest.approx(1.2, rel=0.2)
    assert latest["token_top1_probability"] == pytest.approx(0.6, rel=0.2)
    assert told["lines"]["token_entropy"]["unit"] == "nats"
    assert all(len(line["values"]) == 3 for line in told["lines"].values())


def steady(room: Room, seconds: int, log_value: float = 0.0) -> None:
    """An engine of layers 0 and 1 whose every row is exp(log_value)."""
    made = Arrays.zeros(2)
    for second in range(seconds):
        room.clock.advance(1)
        value = log_value + 0.25 * (-1) ** second
        made.count[3] += 4
        made.sums[3, :, :, :2] += 4 * np.array([math.exp(value), value])
        room.hear(Layers([0, 1], 1, 1, Coverage([0, 0, 0, 4]), made.pack()))


def test_without_a_baseline_z_is_against_the_own_start() -> None:
    """Labelled so; and before the start is known there is no z."""
    room = Room()
    steady(room, MIN_COLUMNS)
    assert room.get("/v1/timeline")["reference"] == "none"
    assert room.get("/v1/timeline")["columns"][-1]["z"] is None
    steady(room, 40)
    told = room.get("/v1/timeline")

    assert told["reference"] == "own start"
    assert np.abs(told["columns"][-1]["z"]) == pytest.approx(1.0, rel=0.05)
    assert room.get("/v1/timeline", reference="baseline")["reference"] == "none"


def test_with_a_baseline_z_is_against_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """For rows after the first positions; the own start can still be asked for."""
    room = Room()
    steady(room, 80)
    baseline = drifting.baseline()
    view = room.watch.get()._replace(baseline=baseline)
    monkeypatch.setattr(room.watch, "get", lambda: view)
    usual = of_baseline(baseline, "residual", "residual_rms", "decode", (0, 1))
    told = room.get("/v1/timeline")
    sign = 1 if told["columns"][-1]["values"][0] > 1 else -1
    expected = (sign * 0.25 - usual.mean) / usual.sd

    assert told["reference"] == "baseline"
    assert told["columns"][-1]["z"] == pytest.approx(expected.tolist(), abs=1e-3)
    assert room.get("/v1/timeline", reference="own start")["reference"] == "own start"
    assert room.get("/v1/timeline", position="first")["reference"] == "none"


def test_engines_are_told_apart() -> None:
    """The first one unless another is named."""
    room, second = Room(), FakeSource(Source("engine", 1))
    for _ in range(3):
        room.second()
        room.intake.accept(pack(second.frame(room.engine.step((0, 0, 0, 99)), room.clock())))

    assert room.get("/v1/timeline")["source"] == "engine-dp0"
    other = room.get("/v1/timeline", source="engine-dp1")
    assert other["columns"][-1]["rows"] == 99 + 8


@pytest.mark.parametrize(
    ("params", "status", "remedy"),
    [
        ({"signal": "nonsense"}, 422, "residual_rms"),
        ({"source": "engine-dp9"}, 404, "engine-dp0"),
        ({"phase": "dream"}, 422, "correct the named"),
        ({"after": 2**64}, 422, "correct the named"),
    ],
)
def test_what_there_is_not_is_a_problem_with_a_remedy(
    room: Room, params: dict[str, Any], status: int, remedy: str
) -> None:
    """It names what there is."""
    reply = room.client.get("/v1/timeline", params=params)

    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert remedy in reply.json()["remedy"]


def test_an_answer_is_bounded(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest columns that fit, and how many do not."""
    monkeypatch.setattr("sidecar.publish.live.answers.MAX_NUMBERS", 16)
    told = room.get("/v1/timeline")

    assert [each["t_ns"] for each in told["columns"]] == [NOW + k * SECOND for k in (2, 3)]
    assert told["num_left_out"] == 1
