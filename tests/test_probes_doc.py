"""docs/probes.md: the file it shows is valid, and the script it shows writes a valid one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sidecar.tap.probe_file import read

ROOT = Path(__file__).parents[1]
BLOCKS = dict(
    re.findall(r"^```(json|python)\n(.*?)^```", (ROOT / "docs/probes.md").read_text(), re.M | re.S)
)


def test_the_file_that_is_shown_is_read(tmp_path) -> None:
    """With a tensor of the name that it gives."""
    (tmp_path / "probes.json").write_text(BLOCKS["json"])
    save_file({"code": torch.ones(8)}, tmp_path / "probes.safetensors")
    (probe,) = read(tmp_path / "probes.json", num_layers=3, hidden_size=8)
    assert probe.quantiles["0.99"] == 0.2


def test_the_script_that_is_shown_writes_a_file_that_is_read(tmp_path) -> None:
    """As it stands, but for where the model is."""
    script = BLOCKS["python"].replace("sidecar/demo/model", str(ROOT / "sidecar/demo/model"))
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    (probe,) = read(tmp_path / "probes.json", num_layers=4, hidden_size=224)
    assert set(probe.quantiles) == {"0.5", "0.99"}
