"""The sidecar as patches for charts and manifests of others, made of the chart's own templates.

`make chart` writes them to `kustomize/`: a component that Kustomize merges into Deployments by the
name of their container, and a list of operations for KServe, whose kinds it cannot merge.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python import Chart

CHART: Final = Path(__file__).parent
FOLDER: Final = CHART.parent / "kustomize"
ENGINE: Final = "vllm"  # the name that production-stack and llm-d give to vLLM's container
# A chart of one template, which includes what the chart lends.
_TEMPLATE: Final = """
{{- $ours := index .Subcharts "llm-internals-sidecar" -}}
labels:
  {{- include "llm-internals.podLabels" $ours | nindent 2 }}
securityContext:
  {{- include "llm-internals.podSecurityContext" $ours | nindent 2 }}
initContainers:
  {{- include "llm-internals.tapInitContainer" $ours | nindent 2 }}
  {{- include "llm-internals.sidecarInitContainer" $ours | nindent 2 }}
env:
  {{- include "llm-internals.engineEnv" $ours | nindent 2 }}
volumeMounts:
  {{- include "llm-internals.engineVolumeMounts" $ours | nindent 2 }}
volumes:
  {{- include "llm-internals.volumes" $ours | nindent 2 }}
"""
_HEAD: Final = "# Made of the chart's templates by `make chart`; change helm/, not this.\n"


def lent() -> dict[str, Any]:
    """What the chart lends, with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)
        (parent / "templates").mkdir()
        (parent / "charts").mkdir()
        (parent / "charts" / "llm-internals-sidecar").symlink_to(CHART)
        (parent / "Chart.yaml").write_text("{apiVersion: v2, name: theirs, version: 1.0.0}")
        (parent / "templates" / "all.yaml").write_text(_TEMPLATE)
        with Chart.load(parent) as chart:
            values = {"llm-internals-sidecar": {"engine": {"enabled": False}}}
            made = chart.render(values, name="sidecar", namespace="default")
    parts = dict(yaml.safe_load(made["theirs/templates/all.yaml"]))
    # Their vLLM stays the user that it is; the group alone lets it use the socket.
    parts["securityContext"] = {"fsGroup": parts["securityContext"]["fsGroup"]}
    return parts


def deployment(parts: dict[str, Any]) -> str:
    """A patch that is merged: lists by the names of their members."""
    engine = {"name": ENGINE, "env": parts["env"], "volumeMounts": parts["volumeMounts"]}
    keys = ("securityContext", "initContainers", "volumes")
    spec = {key: parts[key] for key in keys} | {"containers": [engine]}
    template = {"metadata": {"labels": parts["labels"]}, "spec": spec}
    whole = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "any"},
        "spec": {"template": template},
    }
    return _HEAD + yaml.safe_dump(whole, sort_keys=False)


def operations(parts: dict[str, Any]) -> str:
    """Operations on an InferenceService whose first container runs vLLM and has these lists."""
    predictor = "/spec/predictor"
    first = f"{predictor}/containers/0"
    added = [(f"{first}/env/-", each) for each in parts["env"]]
    added += [(f"{first}/volumeMounts/-", each) for each in parts["volumeMounts"]]
    added += [(f"{predictor}/volumes/-", each) for each in parts["volumes"]]
    added += [
        (f"{predictor}/initContainers", parts["initContainers"]),
        (f"{predictor}/securityContext", parts["securityContext"]),
    ]
    told = [{"op": "add", "path": path, "value": value} for path, value in added]
    return _HEAD + yaml.safe_dump(told, sort_keys=False)


def texts() -> dict[Path, str]:
    """What stands in each file."""
    parts = json.loads(json.dumps(lent()))  # without the anchors that YAML would share
    return {
        FOLDER / "sidecar" / "deployment.yaml": deployment(parts),
        FOLDER / "kserve" / "operations.yaml": operations(parts),
    }


def main() -> int:
    """Write them."""
    for path, text in texts().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
