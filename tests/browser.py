"""A real Chromium for tests of the live page, which notes everything that a page may do wrong."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 60_000  # a busy machine is slow; a page that never gets there fails all the same
WIDE = {"width": 1280, "height": 900}


def executable() -> str:
    """The browser that `make tools` has found or installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "no Chromium on PATH: run `make tools`"
    return found


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser that draws in software, as on a machine without a GPU."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """What a page said and asked for, other than what it should."""

    home: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Note console errors and warnings, exceptions, and requests to other hosts."""
        page.on(
            "console",
            lambda said: (
                self.complaints.append(f"{said.type}: {said.text}")
                if said.type in {"error", "warning"}
                else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("request", lambda asked: self._ask(asked.url))

    def _ask(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.home).netloc:
            self.foreign.append(url)


@contextlib.contextmanager
def opened(
    browser: Browser, api_url: str, query: str = "", theme: str = "light"
) -> Iterator[tuple[Page, Seen]]:
    """The live page of a sidecar, once it has shown its first answer."""
    seen = Seen(api_url)
    page = browser.new_page(
        viewport=WIDE,  # type: ignore[arg-type]
        color_scheme=theme,  # type: ignore[arg-type]
        timezone_id="UTC",
    )
    page.set_default_timeout(PATIENCE_MS)
    seen.watch(page)
    try:
        page.goto(f"{api_url}/ui/{query}")
        page.wait_for_selector("#headline:not([data-level=unknown])")
        yield page, seen
    finally:
        page.close()
