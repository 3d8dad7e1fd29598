"""What the chart gives to Prometheus and Grafana: the repository's own rules and dashboards."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from tests.deploy.chart import MODEL, ROOT, containers, load, of_kind, pods, render
from tests.deploy.matrix import ALL

FOLDER = ROOT / "dashboards"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
DASHBOARDS = sorted((FOLDER / "json").glob("*.json"))
# Fields of https://prometheus-operator.dev/docs/api-reference/api/ that the chart uses.
MONITOR = {"selector", "sampleLimit", "labelLimit", "podMetricsEndpoints"}
ENDPOINT = {"port", "path", "interval", "scrapeTimeout", "relabelings", "metricRelabelings"}
RELABEL = {"sourceLabels", "separator", "targetLabel", "regex", "modulus", "replacement", "action"}
GROUP = {
    "name",
    "interval",
    "rules",
    "limit",
    "labels",
    "query_offset",
    "partial_response_strategy",
}
RULE = {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}

each_values = pytest.mark.parametrize("values", ALL.values(), ids=ALL)


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with load() as loaded:
        yield loaded


def rules(chart: Chart, values: dict[str, Any]) -> dict[str, Any]:
    [found] = of_kind(render(chart, {**MODEL, "prometheusRule": values}), "PrometheusRule")
    return dict(found["spec"])


def promtool(file: Path) -> str:
    """What it says of a file of rules that it accepts."""
    found = shutil.which("promtool")
    assert found, "promtool is not on PATH; `make tools` installs it (Debian: prometheus)"
    done = subprocess.run(
        [found, "check", "rules", "--lint-fatal", file],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_those_of_the_repository(chart: Chart, tmp_path: Path) -> None:
    """To the last field, and promtool accepts what was rendered."""
    spec = rules(chart, {})

    assert spec == RULES
    file = tmp_path / "rendered.yml"
    file.write_text(yaml.safe_dump(spec))
    count = sum(len(group["rules"]) for group in RULES["groups"])
    assert f"SUCCESS: {count} rules found" in promtool(file)


def test_the_rules_speak_the_operators_words(chart: Chart, tmp_path: Path) -> None:
    """Severities, labels, addresses of runbooks and alerts left out are values."""
    spec = rules(
        chart,
        {
            "severities": {"page": "critical", "ticket": "warning"},
            "ruleLabels": {"team": "ml"},
            "disabled": ["LLMInternalsBaselineMissing"],
            "runbookBaseUrl": "https://wiki/runbooks/",
        },
    )

    found = {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}
    wanted = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    assert set(wanted) - set(found) == {"LLMInternalsBaselineMissing"}
    for alert, rule in found.items():
        was = wanted[alert]["labels"]["severity"]
        severity = {"page": "critical", "ticket": "warning"}[was]
        assert rule["labels"] == {"severity": severity, "team": "ml"}
        assert rule["annotations"]["runbook_url"] == f"https://wiki/runbooks/{alert}.md"
        assert rule["expr"] == wanted[alert]["expr"]
    file = tmp_path / "rendered.yml"
    file.write_text(yaml.safe_dump(spec))
    promtool(file)


@each_values
def test_monitors_have_the_fields_of_the_operator(chart: Chart, values: dict[str, Any]) -> None:
    """No field that the operator does not know, and none that it would drop."""
    things = render(chart, values)
    for monitor in of_kind(things, "PodMonitor"):
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(monitor["spec"]) <= MONITOR
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert set(endpoint) <= ENDPOINT
            for relabel in endpoint.get("relabelings", []) + endpoint.get("metricRelabelings", []):
                assert set(relabel) <= RELABEL
            assert re.fullmatch(r"\d+s", endpoint["interval"])
    for rule in of_kind(things, "PrometheusRule"):
        assert set(rule["spec"]) == {"groups"}
        for group in rule["spec"]["groups"]:
            assert set(group) <= GROUP
            for each in group["rules"]:
                assert set(each) <= RULE


@each_values
def test_every_port_that_is_scraped_is_there(chart: Chart, values: dict[str, Any]) -> None:
    """Under its name, at a container of each pod that the monitor selects."""
    things = render(chart, values)
    for monitor in of_kind(things, "PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [
            pod for pod in pods(things).values() if selector <= pod["metadata"]["labels"].items()
        ]
        for pod in chosen:
            ports = {
                port["name"]
                for container in containers(pod).values()
                for port in container.get("ports", [])
            }
            asked = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
            is_worker = pod["metadata"]["labels"].get("llm-internals.io/role") == "worker"
            assert asked <= (ports | {"http"} if is_worker else ports)


def test_every_dashboard_is_a_config_map(chart: Chart) -> None:
    """Byte for byte, with the label that Grafana's loader looks for, and small enough to store."""
    things = of_kind(render(chart, MODEL), "ConfigMap")
    found = {name: (text, thing) for thing in things for name, text in thing["data"].items()}

    assert set(found) == {path.name for path in DASHBOARDS}
    for path in DASHBOARDS:
        text, thing = found[path.name]
        assert text == path.read_text()
        assert thing["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(json.dumps(thing)) < 1 << 20, "an object of Kubernetes has one MiB at most"


def test_dashboards_lead_to_the_operators_runbooks(chart: Chart) -> None:
    """The one place for their address holds for alerts and dashboards alike."""
    url = "https://wiki/runbooks/"
    things = render(chart, {**MODEL, "prometheusRule": {"runbookBaseUrl": url}})
    texts = [text for each in of_kind(things, "ConfigMap") for text in each["data"].values()]

    assert any(url in text for text in texts)
    assert not any("/blob/main/docs/runbooks/" in text for text in texts)


def test_dashboards_can_be_left_out_or_elsewhere(chart: Chart) -> None:
    """In the namespace that Grafana's loader watches, or not at all."""
    without = render(chart, {**MODEL, "dashboards": {"enabled": False}})
    elsewhere = render(chart, {**MODEL, "dashboards": {"namespace": "grafana"}})

    assert of_kind(without, "ConfigMap") == []
    for thing in of_kind(elsewhere, "ConfigMap"):
        assert thing["metadata"]["namespace"] == "grafana"
