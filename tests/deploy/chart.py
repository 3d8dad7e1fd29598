"""The chart, rendered by Helm's own engine, and what a cluster would say of it."""

import contextlib
import copy
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml
from helm_python import Chart, _native
from kubernetes_validate import utils

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm"
OPERATOR: Final = "monitoring.coreos.com/v1"
RELEASE: Final = "chat"
NAMESPACE: Final = "serving"
MODEL: Final = {"engine": {"model": "org/model"}}
# What kubernetes-validate has no schema of, since no cluster has it by itself.
CUSTOM: Final = {"PodMonitor", "PrometheusRule", "LeaderWorkerSet"}

# It reads a megabyte of definitions for each object it is shown.
utils.schema_contents = functools.cache(utils.schema_contents)

Values = dict[str, Any]
Thing = dict[str, Any]


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """Without what the engine prints of links in charts, each time it reads ours."""
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nowhere)
        os.close(before)


def load(path: Path = CHART) -> Chart:
    """A chart from its folder or archive."""
    with silently():
        return Chart.load(path)


def files(
    chart: Chart, values: Values, kubernetes: str = "1.34", apis: tuple[str, ...] = (OPERATOR,)
) -> dict[str, str]:
    """What `helm template` writes, by template. Raises HelmError with what Helm would say."""
    options = {
        "name": RELEASE,
        "namespace": NAMESPACE,
        "kube_version": f"v{kubernetes}.0",
        "api_versions": list(apis),
    }
    # The wrapper's own method has no place for the cluster's versions; its library does.
    rendered = _native.call_string(
        "helm_render", chart._raw(), json.dumps(values), json.dumps(options)
    )
    return dict(json.loads(rendered))


def render(
    chart: Chart, values: Values, kubernetes: str = "1.34", apis: tuple[str, ...] = (OPERATOR,)
) -> list[Thing]:
    """Every object of a release."""
    texts = files(chart, values, kubernetes, apis)
    manifests = [text for name, text in texts.items() if not name.endswith(".txt")]
    return [copy.deepcopy(thing) for text in manifests for thing in _parsed(text)]


@functools.cache
def _parsed(text: str) -> list[Thing]:
    # Most of what is rendered, the rules and the dashboards, is the same whatever the values.
    return [thing for thing in yaml.load_all(text, yaml.CSafeLoader) if thing]


def of_kind(things: list[Thing], kind: str) -> list[Thing]:
    """Those of one kind."""
    return [thing for thing in things if thing["kind"] == kind]


def pods(things: list[Thing]) -> dict[str, Thing]:
    """Every template of a pod, by the name of what makes it and its role."""
    found = {}
    for thing in things:
        name = thing["metadata"]["name"]
        if thing["kind"] == "Deployment":
            found[name] = thing["spec"]["template"]
        if thing["kind"] == "LeaderWorkerSet":
            group = thing["spec"]["leaderWorkerTemplate"]
            found[f"{name} leader"] = group["leaderTemplate"]
            found[f"{name} worker"] = group["workerTemplate"]
    return found


def containers(pod: Thing) -> dict[str, Thing]:
    """All containers of a pod by name, those that come first too."""
    spec = pod["spec"]
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}


def environment(container: Thing) -> dict[str, str]:
    """Its variables with a value of their own."""
    return {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def validate(things: list[Thing], kubernetes: str) -> None:
    """Raise what a cluster of this release would say of a misspelt or mistyped field."""
    for thing in things:
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, kubernetes, strict=True)
    for pod in pods(things).values():
        metadata = {"name": "pod", **pod["metadata"]}
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
        kubernetes_validate.validate(whole, kubernetes, strict=True)
