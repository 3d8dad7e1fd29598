"""Values that the chart is rendered with: each way of deploying once, and all together."""

from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.chart import CHART, MODEL

_SECRETS: Final[dict[str, Any]] = {
    "frames": {"keySecret": {"name": "frames"}},
    "canary": {"keySecret": {"name": "canary"}, "apiKeySecret": {"name": "clients"}},
}
_FLEET: Final = {"enabled": True, "prometheus": "http://prometheus:9090"}
_TOKEN: Final = {"tokenSecret": {"name": "token"}}
_URL: Final = {"from": "url", "url": "https://files/chat.baseline", "sha256": "0" * 64}
_VOLUME: Final = {"from": "volume", "volume": {"persistentVolumeClaim": {"claimName": "baselines"}}}

MATRIX: Final[dict[str, dict[str, Any]]] = {
    "nothing but a model": MODEL,
    "classic": {**MODEL, "sidecar": {"form": "classic"}},
    "tap in the image": {**MODEL, "tap": {"delivery": "image"}},
    "classic, tap in the image": {
        **MODEL,
        "sidecar": {"form": "classic"},
        "tap": {"delivery": "image"},
    },
    "keys": {**MODEL, **_SECRETS, "engine": {"model": "m", "apiKeySecret": {"name": "clients"}}},
    "baseline of a volume": {**MODEL, "baseline": _VOLUME},
    "baseline of an address": {**MODEL, "baseline": _URL},
    "baseline of a secret address": {
        **MODEL,
        "baseline": {
            "from": "url",
            "sourceSecret": {"name": "where"},
            "publicKeySecret": {"name": "reviewer"},
        },
    },
    "fleet": {**MODEL, "engine": {"model": "m", "replicas": 3}, "fleet": _FLEET, "api": _TOKEN},
    "token": {**MODEL, "api": _TOKEN},
    "library": {"engine": {"enabled": False}},
    "library with a fleet": {
        "engine": {"enabled": False},
        "api": _TOKEN,
        "fleet": {**_FLEET, "query": "llm_internals_build_info"},
    },
    "no operator": {
        **MODEL,
        "podMonitor": {"enabled": False},
        "prometheusRule": {"enabled": False},
    },
    "settings": {
        **MODEL,
        "tap": {"settings": {"attention_every": 1_000_000, "routes": ["chat", "search"]}},
        "sidecar": {
            "settings": {"series_cap": 1_000_000, "record": True, "stale_seconds": 12.5},
            "metricsToml": "[layers]\nshow = 'all'\n",
        },
    },
    "everything": {
        **_SECRETS,
        "engine": {
            "model": "m",
            "servedName": "chat",
            "tensorParallel": 4,
            "dataParallel": 2,
            "replicas": 4,
            "args": ["--max-model-len=8192"],
            "apiKeySecret": {"name": "clients"},
            "env": [{"name": "HF_TOKEN", "value": "t"}],
            "podLabels": {"team": "chat"},
            "podAnnotations": {"note": "n"},
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "engine"}},
                }
            ],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
        },
        "image": {"digest": f"sha256:{'a' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccount": {"name": "mine"},
        "baseline": _URL,
        "api": _TOKEN,
        "fleet": {**_FLEET, "settings": {"fleet_poll_seconds": 60}},
        "sidecar": {
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        },
        "podMonitor": {
            "labels": {"release": "kube-prometheus-stack"},
            "relabelings": [
                {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}
            ],
            "metricRelabelings": [{"regex": "source", "action": "labeldrop"}],
        },
        "prometheusRule": {"labels": {"release": "kube-prometheus-stack"}},
        "dashboards": {"namespace": "grafana"},
        "networkPolicy": {
            "engineFrom": [{"podSelector": {"matchLabels": {"app": "gateway"}}}],
            "metricsFrom": [
                {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": "monitoring"}
                    }
                }
            ],
            "extraIngress": [{"ports": [{"port": 9000}]}],
        },
    },
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted((Path(CHART) / "examples").glob("*.yaml"))
}
ALL: Final = {**MATRIX, **EXAMPLES}
