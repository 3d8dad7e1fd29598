"""`sidecar lay-tap`: the tap alone, where another Python finds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sidecar
from sidecar import cli

# Everything that does not need vLLM itself, which the next container has.
ASKING = """
import importlib, importlib.metadata, pkgutil, sys
import sidecar, sidecar.tap, sidecar.wire
for room in (sidecar.wire, sidecar.tap):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        if not module.name.startswith("sidecar.tap.vllm."):
            importlib.import_module(module.name)
[point] = [
    each
    for each in importlib.metadata.entry_points(group="vllm.general_plugins")
    if each.name == "llm_internals_sidecar"
]
print(point.load().__module__)
print(point.dist.version)
ours = {each for name, each in sys.modules.items() if name.split(".")[0] == "sidecar"}
print(*sorted({each.__file__ for each in ours}), sep="\\n")
"""


def asked(folder: Path) -> list[str]:
    """What a Python says that has the folder first on its path."""
    done = subprocess.run(
        [sys.executable, "-c", ASKING],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_tap_works_from_where_it_was_laid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM finds the plugin there, and every module it imports is there too."""
    folder = tmp_path / "new" / "place"

    assert cli.main(["lay-tap", str(folder)]) == 0

    assert f"lies in {folder}" in capsys.readouterr().out
    plugin, version, *files = asked(folder)
    assert plugin == "sidecar.tap.vllm.plugin"
    assert version == sidecar.__version__
    assert len(files) > 30
    assert [file for file in files if not file.startswith(str(folder))] == []


def test_only_what_runs_in_the_engine_is_laid(tmp_path: Path) -> None:
    """No server, no model, no page: small, and Python alone."""
    cli.main(["lay-tap", str(tmp_path)])

    rooms = {path.name for path in (tmp_path / "sidecar").iterdir()}
    assert rooms == {"__init__.py", "errors.py", "config.py", "wire", "tap"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 << 20
    assert {path.suffix for path in (tmp_path / "sidecar").rglob("*.*")} == {".py"}


def test_what_was_laid_before_goes(tmp_path: Path) -> None:
    """A release after another leaves nothing of the first."""
    old = tmp_path / "llm_internals_sidecar-0.0.1.dist-info"
    old.mkdir()
    (tmp_path / "sidecar").mkdir()
    (tmp_path / "sidecar" / "gone.py").touch()
    cli.main(["lay-tap", str(tmp_path)])

    assert not old.exists()
    assert not (tmp_path / "sidecar" / "gone.py").exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the remedy."""
    (tmp_path / "file").touch()

    assert cli.main(["lay-tap", str(tmp_path / "file" / "below")]) == 2
    assert "give a folder that this user can write" in capsys.readouterr().err
