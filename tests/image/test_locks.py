"""What the image is made of is named with its hashes, is what is tested, and is all there is."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sidecar
from tests.deploy.chart import ROOT

FOLDER = ROOT / "requirements"
LOCKS = ("exporter", "recordings", "build")
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==(\S+)", re.M)
DOCKERFILE = (ROOT / "Dockerfile").read_text()

each_lock = pytest.mark.parametrize("lock", LOCKS)


def pins(name: str) -> dict[str, str]:
    """Versions by name."""
    found = PIN.findall((FOLDER / name).read_text())
    return {canonicalize_name(package): version for package, version in found}


def missing(wanted: list[Requirement], found: dict[str, str]) -> set[str]:
    """Requirements that the pins do not meet."""
    return {
        str(each)
        for each in wanted
        if canonicalize_name(each.name) not in found
        or not each.specifier.contains(found[canonicalize_name(each.name)], prereleases=True)
    }


def required(package: str) -> list[Requirement]:
    """What a package asks for on this machine."""
    wanted = [Requirement(text) for text in importlib.metadata.requires(package) or []]
    return [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]


@pytest.mark.parametrize("extra", ["exporter", "recordings"])
def test_a_lock_is_what_pyproject_asks_for(extra: str) -> None:
    """Every requirement of the package and of the extra is met: else run `make lock`."""
    found = pins("exporter.lock") | (pins("recordings.lock") if extra == "recordings" else {})

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][extra]]
    assert missing([Requirement(text) for text in wanted], found) == set()


def test_what_is_locked_brings_what_it_needs() -> None:
    """Down to the last, as installed here; with hashes demanded, pip would refuse anything else."""
    found = pins("exporter.lock")

    assert {text for name in found for text in missing(required(name), found)} == set()


@each_lock
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    """Of all files of that version, so that one lock is for every architecture."""
    text = (FOLDER / f"{lock}.lock").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text[text.index("\n") + 1 :])

    assert len(blocks) == len(pins(f"{lock}.lock")) > 0
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]
    assert "://" not in text
    assert "--index" not in text


@pytest.mark.parametrize("lock", ["exporter", "recordings"])
def test_what_is_shipped_is_what_is_tested(lock: str) -> None:
    """The same versions as in requirements/constraints.txt."""
    tested = pins("constraints.txt")
    locked = pins(f"{lock}.lock")

    assert {name: tested.get(name) for name in locked} == locked


def test_hadolint_finds_nothing() -> None:
    """In any of the Dockerfile's lines."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_names_this_release_and_no_latest() -> None:
    """Bases are arguments with a tag, so that a digest can take its place."""
    assert f"ARG VERSION={sidecar.__version__}\n" in DOCKERFILE
    bases = re.findall(r"^ARG (BUILD|BASE|VLLM)=(\S+)", DOCKERFILE, re.M)
    assert {name for name, _ in bases} == {"BUILD", "BASE", "VLLM"}
    for _, image in bases:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), image
        assert not image.endswith(":latest")
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == [
        "${BUILD}",
        "scratch",
        "${VLLM}",
        "${BASE}",
    ]


def test_all_of_pip_demands_hashes_or_stays_here() -> None:
    """No line of the Dockerfile takes a package on its word."""
    commands = re.findall(
        r"/pip (?:--python \S+ )?(?:install|wheel)[^&\n]*(?:\\\n[^&\n]*)*", DOCKERFILE
    )

    assert len(commands) == 4
    for command in commands:
        assert ("--require-hashes" in command) != ("--no-index" in command), command
