"""Text of the per-layer families."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.fold.reducer import Reducer
from sidecar.publish.metrics.layers import LayerWriter
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.frame import Arrays, Layers, Source
from tests import fakes
from tests.fakes import LIMITS, NOW, SECOND, FakeSource

EVERYTHING = Selection.everything()


def every_family(name: str) -> bool:
    return True


# With rows in three of four populations: 3 x (sum, count, window maximum) each, and 1 nonfinite.
SERIES_PER_LAYER = 3 * 9 + 1


def engines(*bodies: tuple[Source, Layers], model_name: str = "tiny") -> Reducer:
    """A reducer that heard each engine's status and layers, a window ago and now."""
    reducer = Reducer(LIMITS)
    for source, body in bodies:
        engine = FakeSource(source)
        for t_ns in (NOW, NOW + 10 * SECOND):
            for each in (fakes.live(model_name), body):
                reducer.update(engine.frame(each, t_ns), t_ns)
    return reducer


def text_of(reducer: Reducer, writer: LayerWriter) -> str:
    snapshot = reducer.get(NOW + 10 * SECOND)
    return writer.write(snapshot.sources, every_family, openmetrics=False)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Each sample by name and label values in order; doubles are an error."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def layers_in(text: str) -> list[int]:
    return sorted({int(key[3]) for key in samples(text) if "nonfinite" in key[0]})


def test_only_populations_with_rows_are_written() -> None:
    """A series that never had a row would say 0 / 0."""
    text = text_of(engines((Source("engine"), fakes.layers(1))), LayerWriter(10_000, EVERYTHING))
    populations = {key[4:6] for key in samples(text) if "rms_count" in key[0]}

    assert populations == {("prefill", "first"), ("prefill", "rest"), ("decode", "rest")}


def test_every_number_is_the_one_that_was_told() -> None:
    """Sums to the last bit, counts, window maxima and non-finite counts."""
    told = fakes.moments(3)
    found = samples(
        text_of(engines((Source("engine"), fakes.layers(3))), LayerWriter(10_000, EVERYTHING))
    )

    assert len(found) == 3 * SERIES_PER_LAYER
    prefix = "llm_internals_"
    for layer in range(3):
        at = ("tiny", "0", str(layer), "decode", "rest")
        for signal, name in enumerate(("residual_rms", "residual_peak", "block_influence")):
            family = name if name == "residual_rms" else f"{name}_ratio"
            maximum = "residual_rms_window_max" if not signal else f"{name}_window_max_ratio"
            assert found[f"{prefix}{family}_sum", *at] == told.sums[3, layer, signal, 0]
            assert found[f"{prefix}{family}_count", *at] == 8
            assert found[prefix + maximum, *at] == told.extremes[3, layer, signal, 1]
        assert found[f"{prefix}nonfinite_values_total", "tiny", "0", str(layer)] == layer


def test_labels_stand_in_the_order_of_the_table() -> None:
    """And a model's name cannot break out of its quotes."""
    strange = 'a"b\\c\nd{}%s'
    one = engines((Source("engine"), fakes.layers(1)), model_name=strange)
    text = text_of(one, LayerWriter(10_000, EVERYTHING))

    assert r'{model_name="a\"b\\c\nd{}%s",engine="0",layer="0",phase="prefill",' in text
    assert {key[1] for key in samples(text)} == {strange}


def test_strange_numbers_are_spelled_as_prometheus_does() -> None:
    """Infinities in extremes, and sums of any magnitude."""
    arrays = fakes.moments(1)
    arrays.extremes[3, 0, 0, 1] = np.inf
    arrays.sums[3, 0, :, 0] = (1e300, 5e-324, 1e16)
    body = fakes.layers(1)
    body.moments = arrays.pack()
    text = text_of(engines((Source("engine"), body)), LayerWriter(10_000, EVERYTHING))
    decode = {key[0]: value for key, value in samples(text).items() if "decode" in key}

    assert decode["llm_internals_residual_rms_window_max"] == np.inf
    assert decode["llm_internals_residual_rms_sum"] == 1e300
    assert decode["llm_internals_residual_peak_ratio_sum"] == 5e-324
    assert decode["llm_internals_block_influence_ratio_sum"] == 1e16


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_family_is_written_once(openmetrics: bool) -> None:
    """Of many engines, all samples of a family stand together under one header."""
    reducer = engines(*((Source("engine", k), fakes.layers(2)) for k in range(3)))
    snapshot = reducer.get(NOW + 10 * SECOND)
    text = LayerWriter(10_000, EVERYTHING).write(
        snapshot.sources, every_family, openmetrics=openmetrics
    )

    assert text.count("# TYPE ") == 7
    assert text.count("# TYPE llm_internals_residual_rms summary\n") == 1
    assert (text.count("# UNIT ") > 0) is openmetrics


def test_pipeline_stages_are_joined_by_their_layers() -> None:
    """Each stage has global layer ids, so all layers of the model stand side by side."""
    text = text_of(
        engines(
            (Source("engine", 0, 0), fakes.layers(2)),
            (Source("engine", 0, 1), fakes.layers(2, first_layer=2)),
        ),
        LayerWriter(10_000, EVERYTHING),
    )

    assert layers_in(text) == [0, 1, 2, 3]


def test_a_layer_measured_twice_is_published_once() -> None:
    """Two ranks of one engine never make two samples of one series: the first rank counts."""
    text = text_of(
        engines(
            (Source("engine", 0, 0, 0), fakes.layers(2, scale=1.0)),
            (Source("engine", 0, 0, 1), fakes.layers(3, scale=4.0)),
        ),
        LayerWriter(10_000, EVERYTHING),
    )
    found = samples(text)
    at = ("tiny", "0", "1", "prefill", "first")

    assert layers_in(text) == [0, 1, 2]
    assert found["llm_internals_residual_rms_sum", *at] == fakes.moments(2).sums[0, 1, 0, 0]


def test_an_engine_without_status_waits() -> None:
    """Its model's name is not known, and a series must not change its labels."""
    reducer = fakes.reduced(FakeSource().frame(fakes.layers()))
    writer = LayerWriter(10_000, EVERYTHING)

    assert writer.write(reducer.get(NOW).sources, every_family, openmetrics=False) == ""
    assert (writer.num_series, writer.num_dropped) == (0, 0)


@pytest.mark.parametrize(
    ("cap", "num_layers"),
    [
        (SERIES_PER_LAYER - 1, 0),
        (SERIES_PER_LAYER, 1),
        (2 * SERIES_PER_LAYER - 1, 1),
        (5 * SERIES_PER_LAYER, 5),
        (6 * SERIES_PER_LAYER, 6),
        (10_000, 6),
    ],
)
def test_the_cap_leaves_out_whole_layers_from_the_end(cap: int, num_layers: int) -> None:
    """Never half a summary, never more than the cap, and what is left out is counted."""
    reducer = engines(*((Source("engine", k), fakes.layers(3)) for k in range(2)))
    writer = LayerWriter(cap, EVERYTHING)
    text = text_of(reducer, writer)
    found = samples(text)
    published = [(int(key[2]), int(key[3])) for key in found if "nonfinite" in key[0]]

    assert published == [(engine, layer) for engine in range(2) for layer in range(3)][:num_layers]
    assert writer.num_series == len(found) == num_layers * SERIES_PER_LAYER <= cap
    assert writer.num_dropped == (6 - num_layers) * SERIES_PER_LAYER


def test_nothing_after_the_first_layer_left_out_is_published() -> None:
    """A small layer of a later engine does not slip into the gap: order decides, not size."""
    small = fakes.layers(1, rows=(0, 8, 0, 0))
    reducer = engines((Source("engine", 0), fakes.layers(2)), (Source("engine", 1), small))
    text = text_of(reducer, LayerWriter(2 * SERIES_PER_LAYER - 1, EVERYTHING))

    assert {key[2] for key in samples(text)} == {"0"}


def test_what_is_dropped_adds_up() -> None:
    """A counter over all expositions."""
    reducer = engines((Source("engine"), fakes.layers(3)))
    writer = LayerWriter(SERIES_PER_LAYER, EVERYTHING)
    for scrape in (1, 2, 3):
        text_of(reducer, writer)
        assert writer.num_dropped == scrape * 2 * SERIES_PER_LAYER


def test_the_cap_does_not_flicker_with_windows() -> None:
    """A window maximum comes and goes; which layers are published does not."""
    reducer = engines((Source("engine"), fakes.layers(3)))
    writer = LayerWriter(3 * SERIES_PER_LAYER - 1, EVERYTHING)
    with_window = text_of(reducer, writer)
    reborn = FakeSource(boot="boot-two")
    for body in (fakes.live(), fakes.layers(3)):
        reducer.update(reborn.frame(body, NOW + 11 * SECOND), NOW + 11 * SECOND)
    without = text_of(reducer, writer)

    assert "window_max{" in with_window
    assert "window_max{" not in without
    assert layers_in(with_window) == layers_in(without) == [0, 1]


def test_labels_of_a_changed_model_are_rendered_anew() -> None:
    """What is remembered belongs to one model, engine and set of layers."""
    writer = LayerWriter(10_000, EVERYTHING)
    former = text_of(engines((Source("engine"), fakes.layers(2)), model_name="former"), writer)
    now = text_of(engines((Source("engine"), fakes.layers(3)), model_name="now"), writer)

    assert {key[1] for key in samples(former)} == {"former"}
    assert {key[1] for key in samples(now)} == {"now"}
    assert layers_in(now) == [0, 1, 2]
    assert len(writer._labels) == 1


def test_many_rows_are_written_in_pieces_without_a_seam() -> None:
    """More rows than one piece holds, none lost and none doubled."""
    arrays = Arrays.zeros(700)
    arrays.count[:] = np.arange(2800, dtype=np.uint64).reshape(4, 700) + 1
    arrays.sums[..., 0] = arrays.count[..., None] * 0.5
    body = fakes.layers(700)
    body.moments = arrays.pack()
    found = samples(text_of(engines((Source("engine"), body)), LayerWriter(10**6, EVERYTHING)))

    at = ("tiny", "0", "699", "decode", "rest")
    assert found["llm_internals_residual_rms_count", *at] == 2800
    assert found["llm_internals_residual_rms_sum", *at] == 1400
    assert len([key for key in found if "rms_sum" in key[0]]) == 2800
