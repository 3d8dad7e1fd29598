"""Sketches and probes in a worker: what is read, on which rank, and what a bad file costs."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.tap import projection as room
from sidecar.tap.guard import Guard
from sidecar.tap.projection import DIRECTIONS, PROJECTED
from sidecar.tap.sites import Site
from sidecar.tap.sketch import directions
from sidecar.tap.vllm import fitting, projection
from sidecar.tap.vllm.fingerprint import fingerprint
from sidecar.tap.vllm.fitting import Workbench
from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import Source
from sidecar.wire.signature import Layout, entries, size
from tests.tap.probe_files import entry, write
from tests.tap.toys import HIDDEN, Decoder, tokens
from tests.tap.vllm.fakes import vllm_config


@pytest.fixture
def undo() -> contextlib.ExitStack:
    return contextlib.ExitStack()


def bench(
    undo: contextlib.ExitStack, *, ids: range = range(4), total: int = 4, **parts: object
) -> Workbench:
    """A workbench for layers `ids` of `total`; `parts` are keys of the tap, and the source."""
    source = parts.pop("source", Source("engine"))
    config = TapConfig(**{"sketch_layers": 2, "sketch_size": 3, "signature_layers": 2, **parts})
    layers = Decoder(len(ids)).layers
    sites = [Site(layer, module) for layer, module in zip(ids, layers, strict=True)]
    model = {"get_total_num_hidden_layers": lambda: total}
    return Workbench(
        None,
        vllm_config(model_config=model),
        config,
        Guard(3),
        source,
        sites,
        32,
        8,
        torch.device("cpu"),
        undo,
        fitting.plain(config, list(ids)),
    )


def fitted(made: Workbench) -> Workbench:
    fitting.fit(made, {"projection": projection.fit})
    return made


def read(made: Workbench) -> list[int]:
    """Layers that have the buffers."""
    return [site.layer for site in made.sites if hasattr(site.module, DIRECTIONS)]


def test_sketches_are_fitted_by_default(undo) -> None:
    """At evenly spaced layers, with the directions that the layout names, and no probes."""
    made = fitted(bench(undo, sketch_seed=9))
    kit = made.instruments
    assert read(made) == sorted(made.readers) == [0, 3]
    assert kit.layout == Layout([0, 3], sketch_layers=[0, 3], sketch_size=3, sketch_seed=9)
    assert len(list(entries(kit.layout))) == size(kit.layout)
    assert kit.absent == {}
    for place in (0, 3):
        own = getattr(made.sites[place].module, DIRECTIONS)
        np.testing.assert_array_equal(own, directions(9, place, 3, HIDDEN))
    assert kit.sketches is not None
    assert kit.sketches(0).shape == (2, 2, 3)
    assert not made.guard.errors


def test_probes_stand_beside_the_sketches(undo, tmp_path) -> None:
    """One product per layer, in whose columns both are; the layout names the probes in order."""
    direction = torch.arange(float(HIDDEN))
    path = write(tmp_path, entry("b", layer=3), entry("a", layer=1), saved={"w": direction})
    made = fitted(bench(undo, probe_file=path))
    assert read(made) == [0, 1, 3]
    assert made.instruments.layout.probes == ["b", "a"]
    assert [len(getattr(made.sites[n].module, PROJECTED)) for n in (0, 1, 3)] == [3, 1, 4]
    torch.testing.assert_close(getattr(made.sites[3].module, DIRECTIONS)[3], direction)
    assert len(made.instruments.rows) == 1


def test_a_reader_writes_the_products_of_its_layer(undo) -> None:
    """What is handed to it in the model's own type is read in float32."""
    made = fitted(bench(undo))
    stream = tokens(5).bfloat16()
    made.readers[3](stream)
    module = made.sites[3].module
    want = getattr(module, DIRECTIONS) @ stream.float().T
    torch.testing.assert_close(getattr(module, PROJECTED)[:, :5], want)


def test_a_stage_of_a_pipeline_reads_its_own_layers(undo, tmp_path) -> None:
    """The same layers are chosen on every stage, and each has a part of them."""
    path = write(tmp_path, entry("early", layer=0), entry("late", layer=6))
    layouts = [
        fitted(bench(undo, ids=ids, total=8, sketch_layers=3, probe_file=path)).instruments.layout
        for ids in (range(4), range(4, 8))
    ]
    assert [layout.sketch_layers for layout in layouts] == [[0], [4, 7]]
    assert [layout.probes for layout in layouts] == [["early"], ["late"]]


def test_the_first_rank_of_a_tensor_parallel_group_speaks_alone(undo) -> None:
    """The stream is the same on all of them."""
    made = fitted(bench(undo, source=Source("engine", tp=1)))
    assert read(made) == []
    assert made.instruments.rows == []
    assert made.instruments.layout.sketch_layers == []


@pytest.mark.parametrize("keys", [{"sketch_layers": 0}, {"signatures": False}])
def test_what_nobody_asked_for_is_not_read(keys, undo) -> None:
    """Without sketches and probes no layer has a product, and nothing is absent."""
    made = fitted(bench(undo, **keys))
    assert read(made) == []
    assert made.readers == {}
    assert made.instruments.absent == {}
    assert made.instruments.sketches is None


def test_a_bad_probe_file_costs_the_probes_alone(undo, tmp_path) -> None:
    """The status says why, in a sentence that fits its field; sketches are read all the same."""
    bad = {"w": torch.ones(HIDDEN + 1)}
    made = fitted(bench(undo, probe_file=write(tmp_path, entry(), saved=bad)))
    assert "tensor w has shape [17]" in made.instruments.absent["probe"]
    assert made.instruments.layout.probes == []
    assert read(made) == [0, 3]
    assert not made.guard.errors
    long = entry(tensor="x" * 5000)
    made = fitted(bench(undo, probe_file=write(tmp_path, long)))
    assert len(made.instruments.absent["probe"]) == MAX_LONG_TEXT


def test_more_directions_than_the_model_is_wide_are_refused(undo, tmp_path) -> None:
    """No such many are orthonormal; probes are read all the same."""
    path = write(tmp_path, entry())
    made = fitted(bench(undo, sketch_size=HIDDEN + 1, probe_file=path))
    assert "lower SIDECAR_SKETCH_SIZE" in made.instruments.absent["sketch"]
    assert made.instruments.layout.sketch_size == 0
    assert made.instruments.layout.probes == ["p"]
    assert read(made) == [1]


def test_the_undo_takes_the_buffers_off(undo) -> None:
    """When the tap cannot be attached after all, the layers are as they were."""
    made = fitted(bench(undo))
    undo.close()
    assert read(made) == []


def test_a_product_that_fails_its_rehearsal_is_never_traced(undo, monkeypatch) -> None:
    """Inside a compiled graph nothing could be caught: no layer is read, and it is told."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(room, "record", broken)
    made = fitted(bench(undo))
    assert made.readers == {}
    assert read(made) == []
    assert made.instruments.rows == []
    assert made.instruments.layout.sketch_layers == []
    assert "projection" in made.instruments.absent
    assert made.guard.errors == {"fit_projection": 1}


def test_the_compile_key_changes_with_what_the_files_say(tmp_path) -> None:
    """A compiler may fold weights into a graph: other directions under an old name are another."""

    def key(path: Path) -> str:
        return fingerprint(64, TapConfig(probe_file=path))

    path = write(tmp_path, entry())
    keys = [key(path), key(path)]
    write(tmp_path, entry(layer=0))
    keys.append(key(path))
    write(tmp_path, entry(layer=0), saved={"w": torch.zeros(HIDDEN)})
    keys.append(key(path))
    path.unlink()
    keys.append(key(path))
    assert len(set(keys)) == 4
    assert keys[0] == keys[1]
