"""The live page on the whole of what an operator has: real vLLM, real traffic, real Chromium."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests import browser as browsers
from tests.e2e.harness import MODEL, get_json, wait_for
from tests.e2e.observatory import Observatory, Strike

pytestmark = pytest.mark.e2e

TRAFFIC_MS = 300_000  # its first request is sent some seconds after the server is ready
NUM_LAYERS = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of this module."""
    with browsers.browsing() as made:
        yield made


@pytest.fixture
def page(observatory: Observatory, browser: Browser) -> Iterator[Page]:
    """The page; whatever a test does, nothing may be wrong with it."""
    with browsers.opened(browser, observatory.stack.api_url) as (made, seen):
        yield made
        assert seen.complaints == []
        assert seen.foreign == []


def ask(observatory: Observatory, path: str) -> dict[str, Any]:
    found: dict[str, Any] = get_json(f"{observatory.stack.api_url}/v1/{path}")
    return found


def test_live_data_of_a_real_model_is_drawn(observatory: Observatory, page: Page) -> None:
    """Every layer in the picture, a value under the cursor, trends, requests and both sources."""
    page.set_default_timeout(TRAFFIC_MS)
    page.wait_for_selector("#heat:not(.blank)")
    page.focus("#heat")
    page.keyboard.press("End")
    page.wait_for_selector(f"#heat-readout:has-text('Layer {NUM_LAYERS - 1}, ')")
    page.click("#layers-tools button:has-text('Table')")
    page.wait_for_function(
        """num => {
          const cells = [...document.querySelectorAll('#layers-table td:nth-child(4)')];
          return cells.length === num && cells.every(cell => Number(cell.innerText) > 0);
        }""",
        arg=NUM_LAYERS,
    )
    page.wait_for_selector("#lines-figure .chart:nth-child(9) canvas")
    page.wait_for_selector("#requests-table tbody tr")
    page.wait_for_selector("#sources-table td:has-text('live')")
    page.wait_for_selector("#sources-table td:has-text('front end')")
    assert page.inner_text("#model") == "tiny"


def test_a_request_is_scanned_from_the_page_and_opened(
    observatory: Observatory, page: Page
) -> None:
    """The button asks, traffic brings a request, and each of its columns is one of its rows."""
    page.click("#requests-tools button")
    page.wait_for_selector("#requests-tools [role=status]:has-text('will be scanned')")
    scan = wait_for(
        lambda: next((s for s in ask(observatory, "scans")["scans"] if s["is_complete"]), None),
        "a request was scanned",
        300.0,
    )
    page.click(f"#requests-scans button[data-id='{scan['id']}']")
    page.wait_for_selector(".scan-canvas")
    told = ask(observatory, f"requests/{scan['id']}/scan")
    page.focus(".scan-canvas")
    page.keyboard.press("End")
    found = re.match(
        r"Layer (\d+), position (\d+) \((\w+)\): residual rms ([\d.]+)",
        page.inner_text("#request-body .readout"),
    )

    assert found
    assert int(found[2]) == told["positions"][-1]
    assert found[3] == told["phases"][-1]
    value = told["signals"]["residual_rms"]["values"][-1][NUM_LAYERS - 1]
    assert float(found[4]) == pytest.approx(value, rel=0.005)


def test_a_tampered_model_is_not_as_usual_from_its_layer_on(
    observatory: Observatory, page: Page, tampered: Strike
) -> None:
    """The first thing on the page says so, since when, and names the layer that was struck."""
    page.set_default_timeout(TRAFFIC_MS)
    page.wait_for_selector("#headline[data-level=page]")
    page.wait_for_selector("#watchers .badge[data-state=page]:has-text('canary')")
    layers = ask(observatory, "status")["summary"]["layers"]

    assert tampered.layer in layers
    marked = page.eval_on_selector_all("#strip i[data-marked]", "all => all.map(e => e.title)")
    assert f"layer {tampered.layer}" in marked
    assert "ago" in page.inner_text("#since")
    page.wait_for_selector("#drift-figure rect[data-state=page]", state="attached")
    page.click("#causes tr:has(button) >> nth=0 >> button")
    page.wait_for_selector("#heat-readout:has-text('Layer ')")
