"""The observatory is whole: everything in it hears everything else."""

from typing import Any

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.observatory import POD, Observatory

pytestmark = pytest.mark.e2e


def test_both_are_scraped_as_one_pod(observatory: Observatory) -> None:
    """Prometheus holds numbers of the inside of the model and vLLM's own, of the same pod."""
    prometheus = observatory.prometheus
    [inside] = prometheus.wait_for(f'count(llm_internals_residual_rms_count{{pod="{POD}"}})')
    [outside] = prometheus.wait_for(f'sum(vllm:generation_tokens_total{{pod="{POD}"}}) > 0')

    assert float(inside["value"][1]) > 0
    assert float(outside["value"][1]) > 0


def test_every_rule_evaluates_on_what_is_really_published(observatory: Observatory) -> None:
    """None of the shipped rules fails, and each was judged."""

    def rules() -> list[dict[str, str]]:
        groups = observatory.prometheus.ask("rules")["groups"]
        told = [rule for group in groups for rule in group["rules"]]
        return told if all(rule["health"] != "unknown" for rule in told) else []

    told = wait_for(rules, "every rule was judged", 120.0)
    assert {rule["name"]: rule.get("lastError") for rule in told if rule["health"] != "ok"} == {}


def test_the_model_answers_and_nobody_is_paged(observatory: Observatory) -> None:
    """Requests of the demo's traffic finish, and what watches them is well.

    Drift is left out: the demo's short windows promise no rate of false pages.
    """
    tally = observatory.traffic.tally
    wait_for(lambda: tally.finished >= 5, "five requests", 300.0)
    pages = [alert for alert in observatory.prometheus.alerts() if _pages(alert)]

    assert pages == []
    assert observatory.stack.source()["state"] == "live"


def _pages(alert: dict[str, Any]) -> bool:
    is_page = alert["labels"]["severity"] == "page" and alert["state"] == "firing"
    return is_page and "channel" not in alert["labels"]
