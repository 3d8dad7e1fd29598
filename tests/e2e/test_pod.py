"""One pod of the chart with a real vLLM in it: both sides meet, and neither needs the other."""

import os
import signal
from collections.abc import Iterator

import pytest

import sidecar
from tests.e2e import pods
from tests.e2e.harness import get_status, wait_for
from tests.e2e.pods import BESIDE, ENGINE, METRICS, PYTHON, Pod
from tests.image.machine import Machine

pytestmark = pytest.mark.e2e

WHERE = (
    "import importlib.metadata as metadata, sidecar;"
    "print(sidecar.__file__, metadata.version('llm-internals-sidecar'))"
)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def image(machine: Machine) -> str:
    """The sidecar's, as `make image` builds it; layers that were built before are taken again."""
    return machine.build("exporter")


@pytest.fixture(scope="module")
def pod(machine: Machine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """Played once for all; tests leave it as they found it."""
    with pods.playing(machine, image, tmp_path_factory.mktemp("pod")) as played:
        yield played


def received(pod: Pod) -> int:
    return int(pod.source().get("frames_received", 0))


def test_frames_reach_the_sidecar_through_the_shared_socket(pod: Pod) -> None:
    """Of every layer of a completion that the pod's vLLM served, with the tap proven alive."""
    served = pod.complete(8)
    usage = served["usage"]
    coverage = wait_for(lambda: pod.coverage(served["id"]), "a record of the request", 120)

    assert usage["completion_tokens"] == 8
    # All that was computed: the last token that comes out does not go in again.
    observed = sum(sum(rows.values()) for rows in coverage["observed"].values())
    assert observed == usage["prompt_tokens"] + 7
    wait_for(lambda: pod.source().get("state") == "live", "the tap is live", 120)
    live = 'llm_internals_tap_live{source="engine-dp0-pp0-tp0"} 1'
    wait_for(lambda: live in pod.metrics(), "the gauge says so", 60)
    shown = pod.metrics()
    for layer in range(4):
        assert f'layer="{layer}"' in shown
    assert pod.source()["dead_layers"] == []


def test_the_tap_is_the_one_that_was_laid(pod: Pod) -> None:
    """The engine's container knows this package by the volume on its PYTHONPATH alone."""
    program = f"{PYTHON}/bin/python3"
    told = pod.execute(ENGINE, program, "-c", WHERE).split()

    assert told == ["/opt/llm-internals/sidecar/__init__.py", sidecar.__version__]


def test_both_run_with_the_rights_of_the_restricted_standard(pod: Pod) -> None:
    """User 65532, no capability, no way to more; the sidecar cannot write to its root."""
    for container in (ENGINE, BESIDE):
        rights = pods.rights_of(pod.pid(container))
        assert rights["Uid"].split() == ["65532"] * 4
        assert {int(rights[key], 16) for key in ("CapEff", "CapPrm", "CapBnd")} == {0}
        assert rights["NoNewPrivs"] == "1"
    writing = "import pathlib\ntry: pathlib.Path('/x').touch()\nexcept OSError as e: print(e.errno)"
    assert pod.execute(BESIDE, "python3", "-c", writing).strip() == "30"  # EROFS


def test_a_sidecar_that_dies_in_its_container_leaves_the_pod_ready(pod: Pod) -> None:
    """kill -9: vLLM serves on, the container goes on, and frames flow again."""
    kept = pod.pid(BESIDE)
    os.kill(pods.child_of(kept), signal.SIGKILL)

    assert pod.is_ready()
    assert pod.complete(4)["usage"]["completion_tokens"] == 4
    wait_for(lambda: pod.inside(get_status, f"{METRICS}/healthz") == 200, "it answers again", 120)
    wait_for(lambda: received(pod), "frames flow again", 60)
    assert pod.pid(BESIDE) == kept
    assert pod.is_ready()


def test_a_killed_sidecar_container_leaves_the_engine_serving(pod: Pod) -> None:
    """And once it is started again, it hears the engine that never stopped."""
    engine = pod.pid(ENGINE)
    pod.kill(BESIDE)

    assert [pod.complete(4)["usage"]["completion_tokens"] for _ in range(3)] == [4] * 3
    pod.start(BESIDE)
    wait_for(lambda: pod.inside(get_status, f"{METRICS}/healthz") == 200, "it answers again", 120)
    wait_for(lambda: received(pod), "frames flow again", 60)
    assert pod.pid(ENGINE) == engine


def test_a_tap_that_was_switched_off_leaves_the_pod_ready(pod: Pod) -> None:
    """The model is served, and nothing of it is measured."""
    pod.execute(BESIDE, "sidecar", "control", "--off")
    try:
        wait_for(lambda: pod.source()["control"], "the tap has heard of it", 60)
        served = pod.complete(4)
        assert pod.is_ready()
        coverage = wait_for(lambda: pod.coverage(served["id"]), "a record of the request", 60)
    finally:
        pod.execute(BESIDE, "sidecar", "control", "--clear")

    assert coverage["shed"] == served["usage"]["prompt_tokens"] + 3
    assert sum(sum(rows.values()) for rows in coverage["observed"].values()) == 0


def test_what_is_laid_into_a_plain_volume_is_there_for_the_next_container(
    machine: Machine, image: str
) -> None:
    """As Compose does it: the volume is of the user who owns that folder in the image."""
    machine("volume", "create", "llm-internals-laid")
    try:
        mounted = ("--rm", "--read-only", "--volume", "llm-internals-laid:/opt/llm-internals")
        machine("run", *mounted, image, "keep", "--once", "lay-tap", "/opt/llm-internals")
        listing = "import os; print(*sorted(os.listdir('/opt/llm-internals')))"
        found = machine("run", *mounted, "--entrypoint", "python3", image, "-c", listing).split()
    finally:
        machine("volume", "rm", "--force", "llm-internals-laid")

    assert found[-1] == "sidecar"
    assert found[0].endswith(".dist-info")
