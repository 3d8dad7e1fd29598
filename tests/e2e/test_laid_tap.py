"""A tap that was laid beside a vLLM whose environment knows nothing of this package."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.harness import ROOT, Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

OURS = ("llm_internals_sidecar", "__editable__")


def strangers_environment(folder: Path) -> Path:
    """A virtual environment with all that this one has, this package excepted; its Python.

    What is installed is linked, not copied: vLLM and torch alone have gigabytes.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    theirs = Path(told(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.startswith(OURS):
            (theirs / each.name).symlink_to(each)
    return python


def told(python: Path, program: str, **environ: str) -> str:
    """What a program prints that runs in a folder and an environment without anything of ours."""
    done = subprocess.run(
        [python, "-c", program],
        cwd="/",
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return (done.stdout or done.stderr).strip()


def test_a_laid_tap_measures_a_vllm_that_never_heard_of_it(
    launch: Callable[..., Stack], tmp_path: Path, prompts: Prompts
) -> None:
    """Its environment has no such package; with the folder on PYTHONPATH each row is measured."""
    python, laid = strangers_environment(tmp_path / "venv"), tmp_path / "laid"
    where = "import sidecar; print(sidecar.__file__)"
    assert "No module named 'sidecar'" in told(python, where)
    laying = [sys.executable, "-m", "sidecar", "lay-tap", laid]
    subprocess.run(laying, cwd=ROOT, check=True, timeout=300)
    assert told(python, where, PYTHONPATH=str(laid)) == str(laid / "sidecar" / "__init__.py")

    stack = launch(
        "laid",
        args=("--enforce-eager",),
        python=str(python),
        # Tests run in the repository: without this, `-m` would find the package there.
        engine_environ={"PYTHONPATH": str(laid), "PYTHONSAFEPATH": "1"},
    )
    reply = stack.complete(prompts.cut([40], seed=71)[0], 8)

    record = stack.record(reply["id"])
    rows = [kind["rows"] for kind in record["populations"].values()]
    # All that was computed: the last token that comes out does not go in again.
    assert np.sum(rows, 0).tolist() == [40 + 7] * 4
    wait_for(lambda: stack.source().get("state") not in (None, "starting"), "a verdict", 60)
    assert (stack.source()["state"], stack.source()["dead_layers"]) == ("live", [])
