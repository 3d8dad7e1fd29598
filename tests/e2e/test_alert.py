"""From a changed weight to the operator's pager, over the real components."""

from typing import Any

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.observatory import POD, Observatory, Strike

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


def test_a_tampered_weight_reaches_the_pager(page: dict[str, Any]) -> None:
    """The webhook is told which pod executes another model, and where to read what to do."""
    assert page["status"] == "firing"
    assert page["labels"]["severity"] == "page"
    assert page["labels"]["pod"] == POD
    assert page["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{ALERT}.md")
