"""The example for Alertmanager: valid, about alerts that exist, and its inhibitions work."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboards.test_rules import FOLDER, RULES
from tests.e2e.harness import wait_for
from tests.monitoring import Alertmanager, program

FILE = FOLDER / "alertmanager.yml"
CONFIG = yaml.safe_load(FILE.read_text())
MATCHER = re.compile(r'alertname (=~|=) "(.*)"')
LABELS = {"job": "llm", "instance": "a:9478"}


def alerts(matchers: list[str]) -> set[str]:
    """Alerts of the rules that these matchers select."""
    [(_, pattern)] = [MATCHER.fullmatch(each).groups() for each in matchers]  # type: ignore[union-attr]
    found = {name for name in RULES if re.fullmatch(pattern, name)}
    assert found, f"{pattern} is about no alert"
    return found


INHIBITIONS = [
    (alerts(rule["source_matchers"]), alerts(rule["target_matchers"]))
    for rule in CONFIG["inhibit_rules"]
]


def amtool(*arguments: str) -> str:
    """What it printed; a failure fails the test."""
    done = subprocess.run(
        [program("amtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    """A real one with the example as it is shipped; its receivers are nowhere."""
    running = Alertmanager(tmp_path_factory.mktemp("alertmanager"), FILE)
    try:
        yield running.start()
    finally:
        running.stop()


def test_amtool_accepts_the_example() -> None:
    """Routes, matchers, receivers and inhibitions are valid."""
    amtool("check-config", str(FILE))


@pytest.mark.parametrize("alert", RULES)
def test_pages_wake_and_tickets_wait(alert: str) -> None:
    """Alerts of severity page go to the pager, all others to the tickets."""
    severity = RULES[alert]["labels"]["severity"]
    labels = [f"alertname={alert}", f"severity={severity}"]
    receiver = amtool("config", "routes", "test", f"--config.file={FILE}", *labels)

    assert receiver == {"page": "pager", "ticket": "tickets"}[severity]


def test_no_page_is_kept_back_by_a_ticket() -> None:
    """What keeps a page back is a page itself, or says why nothing can be observed."""
    pages = {name for name, rule in RULES.items() if rule["labels"]["severity"] == "page"}
    blind = {"LLMInternalsFramesRefusedSchema", "LLMInternalsFramesRefusedMac"}
    for sources, targets in INHIBITIONS:
        assert sources.isdisjoint(targets)
        if targets & pages:
            assert sources <= pages | blind


@pytest.mark.parametrize("number", range(len(INHIBITIONS)))
def test_an_inhibition_holds_for_one_sidecar(manager: Alertmanager, number: int) -> None:
    """Its targets are kept back where its source fires, and told at every other instance."""
    sources, targets = INHIBITIONS[number]
    here, elsewhere = f"here-{number}", {name: f"{name}-{number}" for name in targets}
    inside = [(name, here) for name in targets]
    post(manager, [(sorted(sources)[0], here), *inside, *elsewhere.items()])

    def kept_back() -> set[tuple[str, str]] | None:
        held = [each for each in manager.alerts() if key(each)[1] in {here, *elsewhere.values()}]
        found = {key(each) for each in held if each["status"]["inhibitedBy"]}
        is_whole = len(held) == 1 + 2 * len(targets) and len(found) >= len(targets)
        return found if is_whole else None

    assert wait_for(kept_back, "inhibited", 60.0) == set(inside)


def test_an_address_of_runbooks_is_put_everywhere(tmp_path: Path) -> None:
    """One command names another folder of runbooks; what is no address changes nothing."""
    for name in ("rules.yml", "rules_test.yml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    script = FOLDER.parent / "scripts" / "runbooks.sh"

    wrong = subprocess.run([script, "wiki", tmp_path], capture_output=True, check=False)
    assert (wrong.returncode, b"https://" in wrong.stderr) == (2, True)
    assert (tmp_path / "rules.yml").read_text() == (FOLDER / "rules.yml").read_text()

    subprocess.run([script, "https://wiki.example/r/", tmp_path], check=True)
    groups = yaml.safe_load((tmp_path / "rules.yml").read_text())["groups"]
    told = {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for group in groups
        for rule in group["rules"]
    }
    assert told == {name: f"https://wiki.example/r/{name}.md" for name in RULES}
    promtool = [program("promtool"), "test", "rules", "rules_test.yml"]
    subprocess.run(promtool, cwd=tmp_path, check=True, capture_output=True, timeout=300)


def key(alert: dict[str, Any]) -> tuple[str, str]:
    """Its name, and where it fires."""
    return alert["labels"]["alertname"], alert["labels"]["instance"]


def post(manager: Alertmanager, fired: list[tuple[str, str]]) -> None:
    """Tell Alertmanager what Prometheus would: these alerts fire at these instances."""
    body = [
        {
            "labels": {
                **LABELS,
                "alertname": name,
                "instance": at,
                "severity": RULES[name]["labels"]["severity"],
            }
        }
        for name, at in fired
    ]
    request = urllib.request.Request(
        f"http://{manager.address}/api/v2/alerts",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
