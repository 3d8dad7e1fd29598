"""The arithmetic of the kernel benchmark, and every operation once on a CPU."""

from collections.abc import Callable

import pytest
import torch

from bench import kernels
from bench.kernels import COMPILED, EAGER, Report, Row, measure, table
from bench.operations import SHAPES, Operation, Shape, operations
from sidecar.config import TapConfig

CPU = torch.device("cpu")
# A context that does not fill its last block, and more heads than KV heads.
TINY = Shape("tiny", 8, 3, 4, 2, 4, 11, context=20, num_experts=4, num_chosen=2)
BATCH = 3


class FakeTimer:
    """Runs each call once, and says what it was told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds_left = list(seconds)
        self.num_calls = 0

    def seconds(self, call: Callable[[], object]) -> float:
        call()
        self.num_calls += 1
        return self.seconds_left.pop(0) if len(self.seconds_left) > 1 else self.seconds_left[0]


def made(shape: Shape = TINY, batch: int = BATCH) -> dict[str, Operation]:
    return {each.name: each for each in operations(shape, batch, CPU)}


def test_bytes_are_each_input_once_and_each_output_once() -> None:
    """By hand, at a shape small enough to count."""
    config = TapConfig()
    stream = 2 * BATCH * TINY.hidden_size
    columns, groups = config.sketch_layers * config.sketch_size, BATCH + 1  # and one of the rest
    keys = 2 * BATCH * TINY.context * 2 * 4
    assert {name: each.num_bytes for name, each in made().items()} == {
        "layer signals": 2 * stream + 4 * BATCH * (1 + 5),
        "layer signals, grouped": 4 * 3 * 4 * BATCH + 8 * BATCH + groups * 3 * (8 * 11 + 4 * 6),
        "attention concentration": keys
        + 2 * BATCH * 4 * 4  # query
        + 4 * BATCH * 2  # table: two blocks each
        + 2 * 8 * BATCH  # places, lengths
        + 4 * BATCH * 4 * 4,
        "confidence": 2 * BATCH * 11 + 5 * 4 * BATCH,
        "projection, product": stream + 4 * config.sketch_size * (TINY.hidden_size + BATCH),
        "projection, reduced": 4 * columns * (BATCH + 4 * BATCH + 2) + 3 * 8 * BATCH,
        "router gate": 2 * BATCH * 4 + 4 * BATCH * (2 + 2),
        "router gates, grouped": 4 * 3 * 2 * BATCH + 8 * BATCH + groups * 3 * (8 * 7 + 4 * 4),
        "experts, counted": 4 * 3 * 2 * BATCH + BATCH + 8 * 3 * 5,
    }


def test_every_operation_writes_what_it_says_it_writes() -> None:
    """On a CPU, at tiny shapes: all outputs are filled, and with numbers."""
    for name, each in made().items():
        if name != "confidence":  # its outputs are its result
            for output in each.writes:
                output.fill_(77)
        each.function(*each.arguments)
        for output in each.writes:
            assert (output != 77).all(), name
            assert not output.isnan().any(), name


def test_attention_is_sampled_of_no_more_requests_than_the_tap_samples() -> None:
    """A larger batch makes a step's sample no larger than the setting."""
    most = TapConfig().attention_requests
    assert made(batch=most + 5)["attention concentration"].writes[0].shape[0] == most


def test_a_floor_is_bytes_over_the_bandwidth_of_the_same_run() -> None:
    """A copy of n bytes in s seconds moves 2 n / s; each row's floor follows from it."""
    timer = FakeTimer(0.5, 1e-6, 3.0)  # the copy, nothing, and every operation
    report = measure([TINY], [1, 2], CPU, timer, None, copied_bytes=1000)
    assert report.copy_bytes_per_second == 4000
    assert report.empty_seconds == 1e-6
    expected = [each.num_bytes for batch in (1, 2) for each in operations(TINY, batch, CPU)]
    assert [row.num_bytes for row in report.rows] == expected
    assert [row.floor_seconds for row in report.rows] == [num / 4000 for num in expected]
    assert {(row.seconds, row.mode, row.shape) for row in report.rows} == {(3.0, EAGER, "tiny")}
    assert [row.batch for row in report.rows] == [1] * 9 + [2] * 9
    assert timer.num_calls == 2 + len(expected)


def test_what_the_graph_traces_is_timed_compiled_as_well() -> None:
    """And nothing else: the rest is launched eagerly in the engine too."""
    report = measure([TINY], [2], CPU, FakeTimer(1.0), "eager", copied_bytes=8)
    compiled = [row.operation for row in report.rows if row.mode == COMPILED]
    assert compiled == ["layer signals", "projection, product"]
    assert {row.operation for row in report.rows if row.mode == EAGER} == set(made())


def test_the_table_says_times_floors_and_their_ratio() -> None:
    """In microseconds, one line for each row."""
    row = Row("8B", 32, "confidence", EAGER, 0.625, 2_500_000, 30e-6, 12e-6)
    lines = list(table(Report(3.3e12, 2.25e-6, [row])))
    assert lines[0] == "copy bandwidth 3300 GB/s; an empty call 2.2 us"
    assert lines[-1] == "| 8B | 32 | confidence | eager | 0.625 | 2.500 | 30.0 | 12.00 | 2.5 |"
    assert {line.count("|") for line in lines[2:]} == {10}


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    """One sentence, no figures, no file, and no failure."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kernels.main(["--json", str(tmp_path / "result.json")])
    assert "finds no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_too_few_repetitions_are_refused(capsys) -> None:
    """A median of a few is no figure."""
    with pytest.raises(SystemExit):
        kernels.main(["--repetitions", "49"])
    assert "50 at least" in capsys.readouterr().err


def test_the_shapes_are_those_of_the_models_they_are_named_for() -> None:
    """Query heads times head size is the hidden size, of Llama 3 at 8B and at 70B."""
    for shape in SHAPES:
        assert shape.num_heads * shape.head_size == shape.hidden_size
        assert shape.num_heads % shape.num_kv_heads == 0
