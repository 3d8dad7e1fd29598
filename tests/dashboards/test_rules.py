"""The alerting rules: valid, documented, about metrics that exist, and held by promtool's tests."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import FleetConfig
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.reducer import REFUSALS
from sidecar.publish.canary.runner import OUTCOMES
from sidecar.publish.drift.judges import CHANNELS
from sidecar.tap.vllm.plugin import PLUGIN_NAME
from sidecar.wire.signals import FLEET_METRICS, METRICS, PREFIX, Kind, Metric

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards"
RUNBOOKS = ROOT / "docs" / "runbooks"
URL = "https://github.com/llm-internals/sidecar/blob/main/docs/runbooks/"
GROUPS = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
TESTS = yaml.safe_load((FOLDER / "rules_test.yml").read_text())
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

SUFFIXES = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.INFO: ("_info",)}
SERIES = {
    metric.name + suffix: metric
    for metric in (*METRICS, *FLEET_METRICS)
    for suffix in SUFFIXES.get(metric.kind, ("_sum", "_count", "_bucket"))
}
OF_THE_TARGET = {"job", "instance", "pod"}  # Prometheus adds these
VALUES = {
    "channel": set(CHANNELS),
    "state": set(ChannelState),
    "outcome": {*OUTCOMES, "left_out"},
    "cause": set(REFUSALS),
}
OTHERS = (PLUGIN_NAME, FleetConfig().fleet_api_label)  # called alike, and no metrics
SELECTOR = re.compile(rf"\b(?!{'|'.join(OTHERS)})({PREFIX}\w+)(?:\{{([^}}]*)\}})?")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"(?:, )?')
COMPARISON = re.compile(r"==|>")
THRESHOLD = re.compile(r"(?<=> )[\d.]+")
OPPOSITE = {"==": "!=", ">": "<="}

each_alert = pytest.mark.parametrize("alert", RULES)


def promtool(*arguments: str | Path, cwd: Path = FOLDER) -> tuple[int, str]:
    """Exit status, and all that it printed."""
    found = shutil.which("promtool")
    assert found, (
        "promtool is not on PATH; `make tools` installs it (Debian: apt install prometheus)"
    )
    done = subprocess.run(
        [found, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def selected(text: str) -> list[tuple[Metric, list[tuple[str, str, str]]]]:
    """Every metric named in an expression or series, with its matchers; fails on an unknown one."""
    return [(SERIES[name], MATCHER.findall(inside)) for name, inside in SELECTOR.findall(text)]


def checks(alert: str) -> Iterator[tuple[dict[str, Any], list[Any], list[Any]]]:
    """The groups of tests about an alert, each with what it says in either form.

    Without the last, which is about all of them.
    """
    for group in TESTS["tests"][:-1]:
        told = [c for c in group.get("alert_rule_test", []) if c["alertname"] == alert]
        counted = [c for c in group.get("promql_expr_test", []) if f'"{alert}"' in c["expr"]]
        if told or counted:
            yield group, told, counted


def test_promtool_accepts_the_rules() -> None:
    """Names, expressions and templates are valid, and no two rules are the same."""
    status, said = promtool("check", "rules", "--lint-fatal", "rules.yml")

    assert status == 0, said


def test_promtool_finds_every_alert_as_it_was_told() -> None:
    """Each alert fires, stays quiet and resolves as `rules_test.yml` has it."""
    status, said = promtool("test", "rules", "rules_test.yml")

    assert status == 0, said


def test_names_are_ours_and_given_once() -> None:
    """Alerts are called LLMInternals..., and groups after the rooms they are about."""
    names = [rule["alert"] for group in GROUPS for rule in group["rules"]]
    rooms = ("drift", "tap", "frames", "exporter", "fleet")

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"LLMInternals[A-Z]\w+", name) for name in names)
    assert [group["name"] for group in GROUPS] == [f"llm-internals-{room}" for room in rooms]


@each_alert
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    """It has a severity, a summary, a description, and a runbook that exists."""
    rule = RULES[alert]

    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(rule["annotations"].values())
    assert rule["annotations"]["runbook_url"] == f"{URL}{alert}.md"
    lines = (RUNBOOKS / f"{alert}.md").read_text().splitlines()
    assert lines[0] == f"# {alert}"
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == SECTIONS


def test_runbooks_are_listed_by_severity_and_none_is_left_over() -> None:
    """The list has each alert under its severity, and no file is of an alert that is gone."""
    _, page, ticket = re.split(r"\n## (?:Page|Ticket)\n", (RUNBOOKS / "README.md").read_text())
    ticket = ticket.partition("\n## ")[0]
    for severity, text in (("page", page), ("ticket", ticket)):
        listed = re.findall(r"\[(\w+)\]\((\w+)\.md\)", text)
        assert all(name == file for name, file in listed)
        wanted = {name for name, rule in RULES.items() if rule["labels"]["severity"] == severity}
        assert sorted(name for name, _ in listed) == sorted(wanted)
    assert {file.stem for file in RUNBOOKS.glob("*.md")} == {"README", *RULES}


@each_alert
def test_an_expression_is_about_what_is_published(alert: str) -> None:
    """Its metrics are in the table, and so are the labels that it selects, groups or tells by."""
    rule = RULES[alert]
    found = selected(rule["expr"])
    assert found
    known = set(OF_THE_TARGET)
    for metric, matchers in found:
        known |= set(metric.labels)
        for label, _, values in matchers:
            assert label in metric.labels
            assert set(values.split("|")) <= VALUES[label], values
    named = re.findall(r"\b(?:on|by|without) \(([^)]*)\)", rule["expr"])
    assert {label for each in named for label in each.split(", ")} <= known
    text = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= known


@each_alert
def test_a_description_asks_for_what_is_published(alert: str) -> None:
    """Where a description has Prometheus asked, metrics and labels are in the table as well."""
    for metric, matchers in selected(" ".join(RULES[alert]["annotations"].values())):
        assert {label for label, _, _ in matchers} <= {*metric.labels, *OF_THE_TARGET}


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_a_runbook_names_metrics_that_exist(page: Path) -> None:
    """What it has Prometheus asked for is in the table, labels included; links lead to files."""
    text = page.read_text()
    for metric, matchers in selected(text):
        assert {label for label, _, _ in matchers} <= {*metric.labels, *OF_THE_TARGET}
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_tests_are_of_series_that_there_can_be() -> None:
    """Their input series have the labels of the table and of a target, no more and no less."""
    for group in TESTS["tests"]:
        for given in group["input_series"]:
            if given["series"].startswith("up{"):  # Prometheus' own
                continue
            [(metric, matchers)] = selected(given["series"])
            labels = {label for label, _, _ in matchers}
            assert labels == {*metric.labels, *OF_THE_TARGET}, given["series"]


@each_alert
def test_an_alert_is_tested_both_ways(alert: str) -> None:
    """Promtool's tests have a moment at which it fires, and one at which it does not."""
    told = [bool(case["exp_alerts"]) for _, cases, _ in checks(alert) for case in cases]

    assert {True, False} == set(told)


def test_of_each_alert_is_told_what_no_series_at_all_means() -> None:
    """The last group of tests has no series of ours: only the alert on absence fires."""
    *_, last = TESTS["tests"]
    fires = {case["alertname"]: bool(case["exp_alerts"]) for case in last["alert_rule_test"]}

    assert not any(selected(given["series"]) for given in last["input_series"])
    assert fires == {alert: "absent(" in RULES[alert]["expr"] for alert in RULES}


def test_every_part_of_a_rule_matters(tmp_path: Path) -> None:
    """A rule with one part of it changed is still valid, and fails promtool's tests."""
    names = []
    for alert, rule in RULES.items():
        changed = list(mutants(rule))
        assert changed, f"{alert}: nothing of it could be changed"
        for number, (what, mutant) in enumerate(changed):
            names.append(f"{alert}.{number}")
            write(tmp_path, names[-1], mutant, what)
    status, said = promtool("check", "rules", *[f"{name}.rules" for name in names], cwd=tmp_path)
    assert status == 0, said

    status, said = promtool("test", "rules", *[f"{name}.test" for name in names], cwd=tmp_path)

    outcomes = re.findall(r"^  (SUCCESS|FAILED)", said, re.MULTILINE)  # in the order asked for
    assert status == 1, said
    told = zip(names, outcomes, strict=True)
    unnoticed = [name for name, outcome in told if outcome == "SUCCESS"]
    assert {name: (tmp_path / f"{name}.what").read_text() for name in unnoticed} == {}


def mutants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rule with one part changed, and in words which."""
    for key in ("for", "keep_firing_for"):
        if key in rule:
            yield f"without {key}", {k: v for k, v in rule.items() if k != key}
    text = rule["expr"]
    changes = [(at, OPPOSITE[at[0]]) for at in COMPARISON.finditer(text)]
    changes += [(at, "") for each in SELECTOR.finditer(text) for at in matchers_in(text, each)]
    changes += [(at, "and") for at in re.finditer(r"\bunless\b", text)]
    changes += [(at, "") for at in re.finditer(r"\babsent\b", text)]
    changes += [(at, "") for at in re.finditer(r"\bon \([^)]*\)", text)]
    for at in THRESHOLD.finditer(text):
        changes += [(at, f"{float(at[0]) * factor:g}") for factor in (0.1, 10) if float(at[0])]
    for at, new in changes:
        expr = text[: at.start()] + new + text[at.end() :]
        yield f"{at[0]!r} is {new!r} in {expr}", {**rule, "expr": expr}


def matchers_in(text: str, selector: re.Match[str]) -> list[re.Match[str]]:
    """Where the matchers of a selector stand."""
    return list(MATCHER.finditer(text, *selector.span(2))) if selector[2] else []


def write(folder: Path, name: str, rule: dict[str, Any], what: str) -> None:
    """A file of this rule alone, and one of the tests that speak of it. JSON is YAML too."""
    rules = {"groups": [{"name": name, "rules": [rule]}]}
    tests = [
        {**group, "alert_rule_test": told, "promql_expr_test": counted}
        for group, told, counted in checks(rule["alert"])
    ]
    whole = {**TESTS, "rule_files": [f"{name}.rules"], "tests": tests}
    (folder / f"{name}.rules").write_text(json.dumps(rules))
    (folder / f"{name}.test").write_text(json.dumps(whole))
    (folder / f"{name}.what").write_text(what)
