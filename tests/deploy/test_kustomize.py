"""The sidecar as patches, merged by Kustomize into manifests of others."""

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm import patches
from sidecar.config import ExporterConfig, TapConfig
from tests.deploy.chart import Thing, containers, environment, validate

THEIRS: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "theirs", "labels": {"llm-internals.io/inject": "true"}},
    "spec": {
        "selector": {"matchLabels": {"app": "theirs"}},
        "template": {
            "metadata": {"labels": {"app": "theirs"}},
            "spec": {
                "containers": [
                    {
                        "name": "vllm",
                        "image": "theirs/vllm:1",
                        "env": [{"name": "HF_TOKEN", "value": "t"}],
                        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
                    },
                    {"name": "proxy", "image": "theirs/proxy:1"},
                ],
                "volumes": [{"name": "models", "emptyDir": {}}],
            },
        },
    },
}
KSERVE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "theirs", "labels": {"llm-internals.io/inject": "true"}},
    "spec": {
        "predictor": {
            "containers": [
                {"name": "kserve-container", "image": "v", "env": [], "volumeMounts": []}
            ],
            "volumes": [],
        }
    },
}

needs_kustomize = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has Kustomize in it, is not on PATH"
)


def built(folder: Path, component: str, thing: Thing | str, **more: Any) -> Thing:
    """What Kustomize makes of a manifest, or a folder, and one of the components."""
    shutil.copytree(patches.FOLDER, folder / "kustomize")
    (folder / "theirs").mkdir()
    if not isinstance(thing, str):
        (folder / "theirs" / "thing.yaml").write_text(yaml.safe_dump(thing))
    resources = [thing if isinstance(thing, str) else "thing.yaml"]
    told = {"resources": resources, "components": [f"../kustomize/{component}"], **more}
    (folder / "theirs" / "kustomization.yaml").write_text(yaml.safe_dump(told))
    done = subprocess.run(
        ["kubectl", "kustomize", folder / "theirs"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [made] = yaml.safe_load_all(done.stdout)
    return dict(made)


def test_the_patches_are_what_the_chart_lends() -> None:
    """`make chart` has been run since its templates changed."""
    for path, text in patches.texts().items():
        assert path.read_text() == text, "run: make chart"


@needs_kustomize
def test_a_deployment_of_others_gets_the_sidecar(tmp_path: Path) -> None:
    """The tap, the socket and the sidecar come in; nothing of theirs goes."""
    made = built(tmp_path, "sidecar", THEIRS)

    validate([made], "1.34")
    pod = made["spec"]["template"]
    found = containers(pod)
    assert set(found) == {"llm-internals-tap", "llm-internals", "vllm", "proxy"}
    assert TapConfig.read(environment(found["vllm"])).tap is True
    beside = ExporterConfig.read(environment(found["llm-internals"]))
    assert beside.socket == TapConfig.read(environment(found["vllm"])).socket
    assert environment(found["vllm"])["HF_TOKEN"] == "t"
    assert found["vllm"]["readinessProbe"] == {"httpGet": {"path": "/health", "port": 8000}}
    assert found["proxy"] == {"name": "proxy", "image": "theirs/proxy:1"}
    assert pod["metadata"]["labels"] == {"app": "theirs", "llm-internals.io/sidecar": "true"}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in found.values():
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    assert pod["spec"]["securityContext"] == {"fsGroup": 65532}


@needs_kustomize
def test_without_the_label_nothing_is_touched(tmp_path: Path) -> None:
    """Other Deployments of the same release, such as a router, stay as they are."""
    other = copy.deepcopy(THEIRS)
    del other["metadata"]["labels"]

    assert built(tmp_path, "sidecar", other) == other


@needs_kustomize
def test_a_label_is_patched_in_one_folder_earlier(tmp_path: Path) -> None:
    """As docs/deploy.md has it, for charts that cannot set it; images are named likewise."""
    other = copy.deepcopy(THEIRS)
    other["metadata"] = {"name": "chat-deployment-vllm"}  # with no label at all
    page = (patches.FOLDER.parent / "docs" / "deploy.md").read_text()
    [label] = [text for text in page.split("```yaml\n") if text.startswith("patches:")]
    first = yaml.safe_load(label.partition("```")[0])
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    (labelled / "all.yaml").write_text(yaml.safe_dump(other))
    told = {"resources": ["all.yaml"], **first}
    (labelled / "kustomization.yaml").write_text(yaml.safe_dump(told))

    images = [{"name": "ghcr.io/llm-internals/sidecar", "newName": "mine/sidecar", "newTag": "7"}]
    made = built(tmp_path, "sidecar", "../labelled", images=images)

    found = containers(made["spec"]["template"])
    assert (
        found["llm-internals"]["image"] == found["llm-internals-tap"]["image"] == "mine/sidecar:7"
    )


@needs_kustomize
def test_an_inference_service_gets_the_sidecar(tmp_path: Path) -> None:
    """Whose predictor is a pod like any other."""
    made = built(tmp_path, "kserve", KSERVE)

    predictor = made["spec"]["predictor"]
    pod = {"metadata": {"labels": {}}, "spec": predictor}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": predictor}
    validate([whole], "1.34")
    found = containers(pod)
    assert TapConfig.read(environment(found["kserve-container"])).tap is True
    assert "llm-internals" in found
    volumes = {volume["name"] for volume in predictor["volumes"]}
    for container in found.values():
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
