"""What /metrics shows: the default, what a file asks for, and how many series that makes."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.errors import ConfigError
from sidecar.fold.reducer import Reducer, Snapshot
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.frame import Body, Source
from sidecar.wire.signals import PREFIX
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, SECOND, FakeSource

EXAMPLES = Path(__file__).parents[3] / "examples"
SNAPSHOT = fakes.everything().get(NOW + 10 * SECOND)
Samples = dict[tuple[str, ...], float]


def samples(selection: Selection, snapshot: Snapshot = SNAPSHOT) -> Samples:
    """Each sample by name, without prefix, and label values in order."""
    body = Exposition(100_000, selection).render(snapshot).decode()
    return {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def selected(tmp_path: Path, text: str) -> Selection:
    """What a file with this text asks for."""
    path = tmp_path / "metrics.toml"
    path.write_text(text)
    return Selection.of_file(path)


def of_a_large_model(num_layers: int = 80, tensor_parallel: int = 8) -> Snapshot:
    """80 layers and 64 heads in 8 ranks, no experts, after a window has closed."""
    reducer = Reducer(LIMITS)
    frontend = FakeSource(FRONTEND)
    engine = SyntheticEngine(num_layers, num_heads=64 // tensor_parallel, num_experts=0)
    sources = [FakeSource(Source("engine", tp=tp)) for tp in range(tensor_parallel)]
    for second in (0, 5, 12):
        t_ns = NOW + second * SECOND
        for tp, source in enumerate(sources):
            tables = engine.tables()
            tables.tables = [t for t in tables.tables if t.group not in ("router", "expert_load")]
            for table in tables.tables:
                if table.group == "attention":  # each rank has heads of its own
                    table.axes[2] = [str(int(head) + tp * 64 // 8) for head in table.axes[2]]
                elif tp:
                    table.axes[0] = []
            dense = [t for t in tables.tables if t.axes[0]]
            tables.tables = dense
            bodies: list[Body] = [engine.status(), tables]
            bodies += [engine.step((4, 60, 2, 8))] if not tp else []
            for body in bodies:
                reducer.update(source.frame(body, t_ns), t_ns)
            reducer.update(frontend.frame(fakes.serving(fakes.finished("a")), t_ns), t_ns)
    return reducer.get(NOW + 12 * SECOND)


def test_a_large_dense_model_has_at_most_two_thousand_series() -> None:
    """80 layers, 64 heads, eight ranks: the whole exposition, the sidecar's own health included."""
    found = samples(Selection(), of_a_large_model())
    layers = {key[3] for key in found if key[0] == "residual_rms_sum"}

    assert layers == {str(layer) for layer in range(80)}
    assert 1_000 < len(found) <= 2_000


def test_the_formula_of_the_docs_counts_what_is_published() -> None:
    """13 series a layer, 16 a layer with attention, 6 maxima, 9 for tokens: as documented."""
    found = samples(Selection(), of_a_large_model())
    names = ("residual", "block_", "nonfinite", "attention", "token_", "router", "probe")
    mine = [key for key in found if key[0].startswith(names) and "probe" not in key[0]]
    num_adapters = len({key[3] for key in found if key[0] == "token_entropy_nats_count"})

    assert len(mine) == 13 * 80 + 16 * 10 + 6 + 9 * num_adapters
    assert "13 x layers + 16 x sampled attention layers" in " ".join(
        (EXAMPLES.parent / "docs" / "cardinality.md").read_text().split()
    )


def test_everything_is_everything() -> None:
    """Each head, both positions, and the maxima of each layer."""
    found = samples(Selection.everything())

    assert ("residual_rms_sum", "tiny", "0", "1", "prefill", "first") in found
    assert ("residual_rms_window_max", "tiny", "0", "1", "prefill", "rest") in found
    assert {key[5] for key in found if key[0] == "attention_entropy_ratio_sum"} == {"0", "1"}


def test_by_default_heads_are_added_up() -> None:
    """Sums and counts of head="all" are those of all heads."""
    each, summed = samples(Selection.everything()), samples(Selection())
    for name in ("attention_entropy_ratio_sum", "attention_sink_mass_ratio_count"):
        cells = {key[1:5] for key in each if key[0] == name}
        assert cells
        for cell in cells:
            parts = [value for key, value in each.items() if key[:5] == (name, *cell)]
            assert summed[name, *cell, "all"] == pytest.approx(sum(parts), rel=1e-12)


def test_heads_of_several_ranks_are_added_up_together() -> None:
    """Each rank has heads of its own; a layer has one series all the same."""
    found = samples(Selection(), of_a_large_model())
    counts = {key: n for key, n in found.items() if key[0] == "attention_entropy_ratio_count"}
    rows = set(counts.values())

    assert len(counts) == 10 * 2
    assert {key[5] for key in counts} == {"all"}
    assert all(n % 64 == 0 for n in rows)


def test_the_largest_of_a_model_is_that_of_its_layers() -> None:
    """One maximum by population, over all layers."""
    each, largest = samples(Selection.everything()), samples(Selection())
    name = "residual_peak_window_max_ratio"
    layers = [v for k, v in each.items() if k[0] == name and k[4:] == ("decode", "rest")]

    assert len(layers) > 1
    assert largest[name, "tiny", "0", "all", "decode", "rest"] == max(layers)
    assert len([key for key in largest if key[0] == name]) == 2


def test_a_file_chooses(tmp_path: Path) -> None:
    """Layers, phases, positions, heads and families."""
    text = """
    left_out = ["time_to_first_token_seconds", "tap_live"]
    [residual]
    layers = [0, 3]
    phases = ["decode"]
    positions = ["rest"]
    window_maxima = "none"
    [attention]
    heads = "each"
    phases = ["prefill"]
    """
    found = samples(selected(tmp_path, text))
    residual = {key[3:] for key in found if key[0] == "residual_rms_sum"}

    assert residual == {("0", "decode", "rest"), ("3", "decode", "rest")}
    assert {key[4] for key in found if key[0] == "attention_entropy_ratio_sum"} == {"prefill"}
    assert not [key for key in found if "window_max" in key[0] and "residual" in key[0]]
    assert not [key for key in found if key[0].startswith(("time_to_first", "tap_live"))]
    assert len({key for key in found if key[0] == "nonfinite_values_total"}) == 4


def test_the_examples_say_what_they_claim() -> None:
    """One spells out the default, the other asks for all there is."""
    assert Selection.of_file(EXAMPLES / "metrics.toml") == Selection() == Selection.of_file(None)
    assert Selection.of_file(EXAMPLES / "metrics_everything.toml") == Selection.everything()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[residual]\nlayer = 3", "residual.layer"),
        ("[attention]\nheads = 'some'", "attention.heads"),
        ("left_out = ['no_such_family']", "sidecar metrics"),
        ("[residual", "metrics.toml"),
        ("x" * 70_000, "longer"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """Whole, with the key and the remedy."""
    with pytest.raises(ConfigError, match=complaint):
        selected(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A path that was given was meant."""
    with pytest.raises(ConfigError, match="SIDECAR_METRICS_FILE"):
        Selection.of_file(tmp_path / "none.toml")
