"""The schema of the chart's values: shapes by hand, the settings from `sidecar/config.py`.

`make chart` writes it to `values.schema.json`. Guarantees: a key that does not exist is refused
wherever the chart reads keys; every setting that the tap, the sidecar and the fleet job know is
accepted with its bounds, but those that the chart sets itself.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from sidecar.config import ExporterConfig, FleetConfig, TapConfig

PATH: Final = Path(__file__).with_name("values.schema.json")
# What follows from other values: a second place to set it would only contradict the first.
OF_THE_CHART: Final = {
    TapConfig: {"tap", "socket", "key_file", "canary_key_file"},
    ExporterConfig: {
        "socket",
        "key_file",
        "canary_key_file",
        "metrics_host",
        "metrics_port",
        "metrics_file",
        "api_host",
        "api_port",
        "api_token_file",
        "state_dir",
        "baseline_file",
        "baseline_source_file",
        "baseline_key_file",
        "canary_url",
        "canary_api_key_file",
    },
    FleetConfig: {
        "fleet_prometheus",
        "fleet_query",
        "fleet_replica_label",
        "fleet_api_port",
        "fleet_api_token_file",
        "fleet_host",
        "fleet_port",
        "preset",
        "window_seconds",
        "state_dir",
    },
}
_KEPT: Final = ("minimum", "maximum", "exclusiveMaximum", "enum", "const", "pattern")

ANY: Final = {"type": "object"}
TEXT: Final = {"type": "string"}
TEXTS: Final = {"type": "array", "items": TEXT}
OBJECTS: Final = {"type": "array", "items": ANY}
WORDS: Final = {"type": "object", "additionalProperties": TEXT}
FLAG: Final = {"type": "boolean"}
DURATION: Final = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
AUTO: Final = {"enum": [True, False, "auto"]}
DIGEST: Final = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
SHA256: Final = {"type": "string", "pattern": "^([0-9a-f]{64})?$"}
URL: Final = {"type": "string", "pattern": "^(https?://[^\\s/].*)?$"}
NAME: Final = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}


def one_of(*words: str) -> dict[str, Any]:
    """One of these words."""
    return {"type": "string", "enum": list(words)}


def number(least: int, most: int = 1_000_000) -> dict[str, Any]:
    """A whole number between both."""
    return {"type": "integer", "minimum": least, "maximum": most}


def keys(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object of these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def secret() -> dict[str, Any]:
    """A Secret by name, and which of its keys."""
    return keys(name=NAME, key={"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"})


def settings(config: type[BaseModel]) -> dict[str, Any]:
    """What an operator may set of `config`, with its bounds."""
    known = config.model_json_schema()["properties"]
    return keys(
        **{key: _plain(told) for key, told in known.items() if key not in OF_THE_CHART[config]}
    )


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """One type and its bounds; what may be absent is simply not given."""
    if "anyOf" in told:
        [told] = [each for each in told["anyOf"] if each["type"] != "null"]
    if told["type"] == "array":
        return TEXTS
    return {"type": told["type"], **{key: told[key] for key in _KEPT if key in told}}


def image(**more: dict[str, Any]) -> dict[str, Any]:
    """Where an image is."""
    pull = one_of("Always", "IfNotPresent", "Never")
    repository = {"type": "string", "minLength": 1}
    return keys(repository=repository, tag=TEXT, digest=DIGEST, pullPolicy=pull, **more)


def engine() -> dict[str, Any]:
    """Values of vLLM."""
    lists = dict.fromkeys(
        ("env", "tolerations", "topologySpreadConstraints", "extraVolumes", "extraVolumeMounts"),
        OBJECTS,
    )
    free = dict.fromkeys(
        ("resources", "cacheVolume", "strategy", "securityContext", "nodeSelector", "affinity"), ANY
    )
    return keys(
        enabled=FLAG,
        image=image(),
        command={**TEXTS, "minItems": 1},
        model=TEXT,
        servedName=TEXT,
        args=TEXTS,
        port=number(1, 65535),
        replicas=number(0),
        tensorParallel=number(1, 1024),
        pipelineParallel=number(1, 1024),
        dataParallel=number(1, 64),
        nodes=number(1, 1024),
        gpuResource=TEXT,
        shmSize={"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?([KMGT]i?)?$"},
        startSeconds=number(10, 86_400),
        terminationGracePeriodSeconds=number(1, 86_400),
        apiKeySecret=secret(),
        podLabels=WORDS,
        podAnnotations=WORDS,
        runtimeClassName=NAME,
        priorityClassName=NAME,
        **lists,
        **free,
    )


def schema() -> dict[str, Any]:
    """All values of the chart."""
    top = keys(
        image=image(),
        imagePullSecrets=OBJECTS,
        nameOverride=NAME,
        fullnameOverride=NAME,
        engine=engine(),
        service=keys(type=one_of("ClusterIP", "NodePort", "LoadBalancer"), port=number(1, 65535)),
        serviceAccount=keys(name=NAME),
        podSecurityContext=ANY,
        tap=keys(
            delivery=one_of("volume", "image"),
            pythonPath=TEXTS,
            settings=settings(TapConfig),
            resources=ANY,
        ),
        sidecar=keys(
            form=one_of("native", "classic"),
            settings=settings(ExporterConfig),
            metricsToml=TEXT,
            stateVolume={"type": "object", "minProperties": 1},
            resources=ANY,
            extraEnv=OBJECTS,
            extraVolumes=OBJECTS,
            extraVolumeMounts=OBJECTS,
        ),
        api=keys(tokenSecret=secret()),
        frames=keys(keySecret=secret()),
        canary=keys(keySecret=secret(), apiKeySecret=secret(), url=URL),
        baseline=keys(
            **{"from": one_of("none", "volume", "url")},
            volume=ANY,
            file={"type": "string", "pattern": "^[^/]+$"},
            url=URL,
            sha256=SHA256,
            sourceSecret=secret(),
            publicKeySecret=secret(),
        ),
        fleet=keys(
            enabled=FLAG,
            prometheus=URL,
            query=TEXT,
            replicaLabel={"type": "string", "minLength": 1},
            settings=settings(FleetConfig),
            stateVolume={"type": "object", "minProperties": 1},
            resources=ANY,
        ),
        **monitoring(),
        networkPolicy=keys(
            enabled=FLAG, engineFrom=OBJECTS, metricsFrom=OBJECTS, extraIngress=OBJECTS
        ),
        podDisruptionBudget=keys(
            enabled=FLAG, maxUnavailable={"anyOf": [number(1), {"type": "string"}]}
        ),
    )
    top["properties"]["global"] = ANY  # a chart that depends on this one gives it these
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values", **top}


def monitoring() -> dict[str, Any]:
    """Values of what is for Prometheus and Grafana."""
    return {
        "podMonitor": keys(
            enabled=AUTO,
            labels=WORDS,
            interval=DURATION,
            scrapeTimeout=DURATION,
            sampleLimit=number(0, 10_000_000),
            relabelings=OBJECTS,
            metricRelabelings=OBJECTS,
            selector=ANY,
        ),
        "prometheusRule": keys(
            enabled=AUTO,
            labels=WORDS,
            ruleLabels=WORDS,
            disabled=TEXTS,
            severities=keys(page=TEXT, ticket=TEXT),
            runbookBaseUrl={"type": "string", "pattern": "^(https?://.*/)?$"},
        ),
        "dashboards": keys(enabled=FLAG, namespace=NAME, labels=WORDS, annotations=WORDS),
    }


def text() -> str:
    """What stands in the file."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
