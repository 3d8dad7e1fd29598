"""The example that trains a probe: its file is read, and scores what it was trained for."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sidecar.demo.options import MODEL
from sidecar.tap.pooling import Pooling, Rows
from sidecar.tap.probe_file import read

EXAMPLE = Path(__file__).parents[1] / "examples" / "make_probe.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_probe", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_writes_a_probe_that_tells_code_from_prose(example, tmp_path, capsys) -> None:
    """Of the texts that were held out nearly all pairs are told apart, and the file is valid."""
    path = tmp_path / "probes.json"
    example.main([str(path)])
    told = capsys.readouterr().out
    area = re.search(r"ROC curve ([\d.]+)", told)
    assert area is not None
    assert float(area.group(1)) > 0.95
    (probe,) = read(path, num_layers=4, hidden_size=224)
    assert (probe.name, probe.layer, probe.pooling, probe.rows) == (
        "code",
        2,
        Pooling.MEAN,
        Rows.PROMPT,
    )

    prose = example.features(MODEL, 2, example.texts()[1][1::2])
    scores = prose @ probe.direction + probe.bias
    for share, limit in probe.quantiles.items():
        assert np.mean(scores > limit) == pytest.approx(1 - float(share), abs=0.02)
