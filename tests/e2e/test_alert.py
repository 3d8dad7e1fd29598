"""From a changed weight to the operator's pager, over the real components.

The weights of the model are changed while it serves. Its canary notices, the sidecar's metrics say
so, the shipped rule fires in Prometheus, and Alertmanager, with the shipped routes, calls a pager.
Scrapes and evaluations are every two seconds here; the rule has no `for`.
"""

import re
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.harness import ROOT, wait_for
from tests.e2e.observatory import NAMESPACE, POD, Observatory, Strike

pytestmark = pytest.mark.e2e

ALERT = "LLMInternalsCanaryPage"
PAGED_SECONDS = 600.0  # some 20 on a quiet machine


@pytest.fixture(scope="module")
def page(observatory: Observatory, tampered: Strike) -> dict[str, Any]:
    """The first page of the canary's that the webhook received."""
    [first, *_] = wait_for(
        lambda: observatory.pager.alerts(ALERT), "the pager rings", PAGED_SECONDS, every=0.5
    )
    return first


def test_a_tampered_weight_reaches_the_pager(page: dict[str, Any], tampered: Strike) -> None:
    """The webhook is told which pod executes another model, once it does and not before."""
    assert page["status"] == "firing"
    assert page["labels"]["severity"] == "page"
    assert (page["labels"]["namespace"], page["labels"]["pod"]) == (NAMESPACE, POD)
    assert datetime.fromisoformat(page["startsAt"]).timestamp() > tampered.at


def test_the_page_names_the_layer(page: dict[str, Any], tampered: Strike) -> None:
    """Its description names the layer that was changed; no layer before that one moved."""
    told = re.search(r"furthest first:([\d ]+)\.", page["annotations"]["description"])
    assert told, page["annotations"]["description"]
    assert min(map(int, told[1].split())) == tampered.layer


def test_the_page_leads_to_a_runbook(page: dict[str, Any]) -> None:
    """The last part of its address is a file of ours."""
    *_, name = page["annotations"]["runbook_url"].split("/")
    assert (ROOT / "docs" / "runbooks" / name).read_text().startswith(f"# {ALERT}\n")


def test_a_shell_says_the_same(
    observatory: Observatory, page: dict[str, Any], tampered: Strike
) -> None:
    """`sidecar top --once` says that the model is not as usual, where, and asks for somebody."""
    command = [sys.executable, "-m", "sidecar", "top", "--once", "--url", observatory.stack.api_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1, done.stderr
    assert "PAGE  The model does not behave as usual since" in done.stdout
    assert f"from layer {tampered.layer} on" in " ".join(done.stdout.split())
