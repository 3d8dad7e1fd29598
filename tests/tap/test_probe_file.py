"""Probe files: read whole, or refused with what is needed to mend them."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from sidecar.errors import TapRefused
from sidecar.tap.pooling import Pooling, Rows
from sidecar.tap.probe_file import MAX_PROBES, content, read
from tests.tap.probe_files import entry, write

NUM_LAYERS, HIDDEN = 4, 16


def test_a_probe_file_is_read_whole(tmp_path) -> None:
    """Everything that it says of each probe arrives, in its order, directions as float32."""
    direction = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    tensors = {"w": torch.ones(HIDDEN), "b": direction.bfloat16(), "d": direction.double()}
    quantiles = {"0.5": -1, "0.99": 3.4}
    path = write(
        tmp_path,
        entry("first", layer=3, quantiles=quantiles),
        entry("last", tensor="b", bias=None, pooling="last", rows="prompt", quantiles=quantiles),
        entry("ema", tensor="d", pooling="ema", alpha=0.25, rows="generated", quantiles=quantiles),
        saved=tensors,
    )
    first, last, ema = read(path, NUM_LAYERS, HIDDEN)
    assert first[:2] == ("first", 3)
    assert first[3:] == (0.5, Pooling.MEAN, 0.0, Rows.ALL, {"0.5": -1.0, "0.99": 3.4})
    assert last[3:7] == (0.0, Pooling.LAST, 0.0, Rows.PROMPT)
    assert ema[3:7] == (0.5, Pooling.EMA, 0.25, Rows.GENERATED)
    np.testing.assert_array_equal(first.direction, np.ones(HIDDEN, np.float32))
    np.testing.assert_array_equal(last.direction, tensors["b"].float())
    np.testing.assert_array_equal(ema.direction, direction)
    assert {probe.direction.dtype for probe in (first, last, ema)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry(pooling="median")], r"probes\.0\.pooling: Input should be 'last', 'mean'"),
        ([entry(layer=4)], "p is at layer 4; this model has layers 0 to 3"),
        ([entry(layer=-1)], r"probes\.0\.layer: .*greater than or equal to 0"),
        ([entry(layer="1")], r"probes\.0\.layer: .*valid integer"),
        ([entry(), entry()], "more than one probe is named p"),
        ([entry(f"p{n}") for n in range(MAX_PROBES + 1)], "at most 256 items"),
        ([], "at least 1 item"),
        ([entry(name="a b")], r"probes\.0\.name: .*pattern"),
        ([entry(name="x" * 65)], r"probes\.0\.name: .*pattern"),
        ([entry(name=None)], r"probes\.0\.name: Field required"),
        ([entry(colour="red")], r"probes\.0\.colour: Extra inputs"),
        ([entry(bias=float("nan"))], r"probes\.0\.bias: .*finite"),
        ([entry(quantiles={"0.5": float("inf")})], r"probes\.0\.quantiles\.0\.5: .*finite"),
        ([entry(quantiles={"1.5": 1.0})], r"probes\.0\.quantiles.*pattern"),
        ([entry(quantiles={"0.5": 1.0}), entry("q")], "q and p name different quantiles"),
        ([entry(pooling="ema")], "p: alpha belongs to pooling ema, which needs it"),
        ([entry(alpha=0.5)], "p: alpha belongs to pooling ema"),
        ([entry(pooling="ema", alpha=0.0)], r"probes\.0\.alpha: .*greater than 0"),
        ([entry(pooling="ema", alpha=1.1)], r"probes\.0\.alpha: .*less than or equal to 1"),
        ([entry(rows="some")], r"probes\.0\.rows: Input should be 'prompt', 'generated' or 'all'"),
        ([entry(tensor="v")], "no tensor v; the tensors file holds w"),
    ],
)
def test_a_bad_probe_is_refused_with_what_is_wrong(entries, reason, tmp_path) -> None:
    """The message names the file, the place in it, and what was expected there."""
    path = write(tmp_path, *entries)
    with pytest.raises(TapRefused, match=reason) as refused:
        read(path, NUM_LAYERS, HIDDEN)
    assert str(refused.value).startswith(f"probe file {path}: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "other"}, "format: Input should be 'llm-internals-probes'"),
        ({"version": 2}, "version: Input should be 1"),
        ({"tensors": "../probes.safetensors"}, "tensors: .*pattern"),
        ({"tensors": "probes.bin"}, "tensors: .*pattern"),
        ({"tensors": "missing.safetensors"}, "missing.safetensors: .*No such file"),
    ],
)
def test_a_bad_head_is_refused(changes, reason, tmp_path) -> None:
    """So is what is said of the file as a whole; the tensors stand beside it and nowhere else."""
    with pytest.raises(TapRefused, match=reason):
        read(write(tmp_path, entry(), **changes), NUM_LAYERS, HIDDEN)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(8), r"tensor w has shape \[8\]; .*shape \[16\]"),
        (torch.ones(2, HIDDEN), r"tensor w has shape \[2, 16\]; one direction .*shape \[16\]"),
        (torch.full((HIDDEN,), torch.nan), "tensor w holds NaN or Inf"),
        (torch.full((HIDDEN,), 1e300, dtype=torch.float64), "tensor w holds NaN or Inf"),
    ],
)
def test_a_bad_tensor_is_refused_by_name(tensor, reason, tmp_path) -> None:
    """With the shape that was found and the one that is expected."""
    path = write(tmp_path, entry(), saved={"w": tensor})
    with pytest.raises(TapRefused, match=reason):
        read(path, NUM_LAYERS, HIDDEN)


def test_a_file_that_is_not_there_is_refused(tmp_path) -> None:
    """With the remedy."""
    with pytest.raises(TapRefused, match=r"No such file.*give a file that this user can read"):
        read(tmp_path / "none.json", NUM_LAYERS, HIDDEN)


def test_a_file_that_is_not_json_is_refused(tmp_path) -> None:
    """Whatever its bytes are."""
    path = tmp_path / "probes.json"
    path.write_bytes(os.urandom(64))
    with pytest.raises(TapRefused, match="Invalid JSON"):
        read(path, NUM_LAYERS, HIDDEN)


def test_tensors_that_are_none_are_refused(tmp_path) -> None:
    """A file that only has the name of one is told from one that is missing."""
    path = write(tmp_path, entry())
    (tmp_path / "probes.safetensors").write_bytes(b"not a header")
    with pytest.raises(TapRefused, match=r"probes\.safetensors: .*save it with safetensors"):
        read(path, NUM_LAYERS, HIDDEN)


def test_many_problems_make_a_short_message(tmp_path) -> None:
    """The first few are told, and how many more there are."""
    path = write(tmp_path, *[entry(f"p{n}", pooling="median") for n in range(10)])
    with pytest.raises(TapRefused, match=r"probes\.2\.pooling.*; and 7 more$"):
        read(path, NUM_LAYERS, HIDDEN)


def test_without_safetensors_the_file_is_refused(tmp_path, monkeypatch) -> None:
    """The package is no dependency of ours: its absence costs the probes alone."""
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(TapRefused, match="install safetensors"):
        read(write(tmp_path, entry()), NUM_LAYERS, HIDDEN)


def test_the_content_is_that_of_both_files(tmp_path) -> None:
    """It changes with the JSON and with the tensors, and a file that cannot be read has some."""
    path = write(tmp_path, entry())
    seen = {content(path)}
    write(tmp_path, entry(bias=0.25))
    seen.add(content(path))
    write(tmp_path, entry(bias=0.25), saved={"w": torch.zeros(16)})
    seen.add(content(path))
    path.write_text(json.dumps({"format": "other"}))
    seen.add(content(path))
    path.unlink()
    seen.add(content(path))
    assert len(seen) == 5
    assert content(path) == b""
