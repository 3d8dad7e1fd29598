"""The exporter's image, built and run: small, never root, nothing in it that it does not need."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sidecar
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source
from tests.deploy.chart import ROOT
from tests.fakes import layers, live
from tests.image.containers import USER, Image, Running, eventually

METRICS = "http://127.0.0.1:9478"
MOST_BYTES = 200 * 10**6
PACKAGES = """
import importlib.metadata, json
print(json.dumps({d.name: d.version for d in importlib.metadata.distributions()}))
"""
# As a container without a shell shows it: whatever lies where programs and packages are looked for.
PROGRAMS = """
import os, sys
for folder in [*os.environ["PATH"].split(":"), *sys.path]:
    if os.path.isdir(folder):
        print(*os.listdir(folder), sep="\\n")
"""
RIGHTS = """
import os
print(os.getuid(), os.getgid())
print(next(line for line in open("/proc/self/status") if line.startswith("CapEff")))
for path in ("/", "/opt/sidecar", "/var/lib/llm-internals"):
    try:
        open(os.path.join(path, "written"), "w")
        print("wrote", path)
    except OSError as error:
        print(error.strerror)
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_says_what_it_is(exporter: Image) -> None:
    """User, command, health check and labels, of this release."""
    config = exporter.about["Config"]

    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["sidecar"]
    assert config["Cmd"] == ["serve"]
    assert config["Labels"]["org.opencontainers.image.version"] == sidecar.__version__
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(
        "[0-9a-f]{40}|unknown", config["Labels"]["org.opencontainers.image.revision"]
    )
    assert exporter.about["Healthcheck"]["Test"] == ["CMD", "sidecar", "health"]


def test_it_is_small(exporter: Image, base: Image) -> None:
    """Under 200 MB with everything; what is ours is told apart from the base."""
    whole, below = exporter.about["Size"], base.about["Size"]

    print(f"image: {whole / 1e6:.0f} MB, {(whole - below) / 1e6:.0f} MB above its base")
    assert 0 < whole - below < whole < MOST_BYTES


def test_it_holds_what_it_needs_and_nothing_else(exporter: Image) -> None:
    """No torch, no vLLM, no shell, no package manager, no toy model."""
    found = {normal(name) for name in exporter.python(PROGRAMS).split()}

    assert {"sidecar", "fastapi", "numpy"} <= found
    unwanted = {"torch", "vllm", "triton", "pyarrow", "ray", "pip", "setuptools", "apt"}
    assert found & (unwanted | {"sh", "bash", "dash", "apt-get"}) == set()
    model = "import os, sidecar.demo as d; print(os.path.exists(d.__path__[0] + '/model'))"
    assert exporter.python(model) == "False\n"


def test_its_packages_are_those_of_the_lock(exporter: Image) -> None:
    """Each at the version whose hashes are named there, and no other."""
    text = (ROOT / "requirements" / "exporter.lock").read_text()
    locked = {
        normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)
    }
    found = {
        normal(name): version for name, version in json.loads(exporter.python(PACKAGES)).items()
    }

    assert found.pop("llm-internals-sidecar") == sidecar.__version__
    assert found == locked


def test_its_sbom_is_what_it_holds(exporter: Image) -> None:
    """CycloneDX, made at the build: the same packages that Python finds in it."""
    text = exporter.python("print(open('/opt/sidecar/sbom.cdx.json').read())")
    sbom = json.loads(text)
    told = {normal(part["name"]): part["version"] for part in sbom["components"]}
    found = {
        normal(name): version for name, version in json.loads(exporter.python(PACKAGES)).items()
    }

    assert sbom["bomFormat"] == "CycloneDX"
    assert told == found
    assert json.loads((ROOT / "build" / "sbom.cdx.json").read_text()) == sbom


def test_it_runs_without_any_right(exporter: Image) -> None:
    """As nobody, without a capability, on a root that cannot be written."""
    ids, capabilities, *writes = [line for line in exporter.python(RIGHTS).splitlines() if line]

    assert ids == f"{USER} {USER}"
    assert int(capabilities.split()[1], 16) == 0
    assert writes == ["Read-only file system"] * 3


def test_its_folders_are_its_own(exporter: Image) -> None:
    """So that a volume mounted over them takes their owner from there."""
    folders = ["/var/lib/llm-internals", "/run/llm-internals"]
    code = f"import os; print([os.stat(path).st_uid for path in {folders}])"
    with_root = exporter.machine(
        *("run", "--rm", "--entrypoint", "python3", exporter.name, "-c", code)
    )

    assert json.loads(with_root) == [USER, USER]


def test_its_health_is_told_when_nothing_serves(exporter: Image) -> None:
    """In plain words, with status 1."""
    said = exporter.run("health")

    assert said.status == 1
    assert "is `sidecar serve` running?" in said.out


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder of its user, as a volume that this machine mounts too."""
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(["chown", f"{USER}:{USER}", folder], check=True)
    return folder


def test_recording_names_its_remedy(exporter: Image, shared: Path) -> None:
    """What it needs is not in this image; that is told at the start, not when a request comes."""
    state = "/var/lib/llm-internals"
    settings = ("--env=SIDECAR_RECORD=1", f"--env=SIDECAR_STATE_DIR={state}")
    said = exporter.run(options=(*settings, f"--volume={shared}:{state}"))

    assert said.status == 2
    assert "--build-arg RECORDINGS=1" in said.err
    assert "Traceback" not in said.err


def serves(container: Running) -> None:
    """Wait until it does."""
    eventually(lambda: "sidecar ready" in container.logs(), container.logs)


def counted(shown: str, family: str) -> float:
    """The sum of a family's series in an exposition."""
    return sum(map(float, re.findall(rf"^{family}(?:{{.*}})? (\S+)", shown, re.M)))


def test_frames_through_a_mounted_socket_are_published(exporter: Image, shared: Path) -> None:
    """With no network but loopback it hears an engine of this machine, and ends when told to."""
    with exporter.running(options=(f"--volume={shared}:/run/llm-internals",)) as container:
        serves(container)
        with engine(shared / "ingest.sock") as (send, num_sent):
            shown = ""

            def is_shown() -> bool:
                nonlocal shown
                send()
                shown = container.get(f"{METRICS}/metrics")
                return "\nllm_internals_residual_rms_count{" in shown

            eventually(is_shown, lambda: shown[-2000:] + container.logs())
            received = counted(shown, "llm_internals_frames_received_total")
            lost = counted(shown, "llm_internals_frames_lost_total")
            assert 0 < received + lost <= num_sent()
        assert counted(shown, "llm_internals_tap_live") == 1
        health = container.said("sidecar", "health")
        checked = exporter.machine.asked("podman", "healthcheck", "run", container.id)

        assert (health.status, checked.status) == (0, 0)
        assert health.out == f"sidecar: {METRICS}/healthz is well\n"
        assert container.stop(30) == 0  # how fast is measured with the process itself


@contextmanager
def engine(socket: Path) -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    """What sends frames as the tap does: one go at it, and how many were sent."""
    sender = Sender(socket, Source("engine"))
    sender.open()

    def send() -> None:
        for body in (live(), layers()):
            sender.send(body)

    try:
        yield send, lambda: sender.num_sent
    finally:
        sender.close()
