"""Debian's Chromium on the running portal. Whatever the browser complains about fails the test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect, sync_playwright

from tests.running import PASSWORD, ROOT, Site

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # milliseconds; the machine may be busy
AXE = ROOT / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 380, "height": 780}

# The question who is signed in is answered with 401 when nobody is; Chromium reports that as an error.
NOBODY = re.compile(r"error: Failed to load resource: .*\b401\b.*/api/v1/me\)$")


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "Chromium is missing: sh scripts/ensure_chromium.sh"
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser per module: Playwright's event loop must be gone before other tests start theirs."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield made
        made.close()


class Watched:
    """A page and what it complained about."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page, self.site = page, site
        self.complaints: list[str] = []
        self.excused = [NOBODY]
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        complaint = f"{message.type}: {message.text} ({message.location.get('url', '')})"
        if message.type in ("error", "warning") and not any(
            known.search(complaint) for known in self.excused
        ):
            self.complaints.append(complaint)

    def excuse(self, status: int, path: str) -> None:
        """A refusal that the test provokes."""
        self.excused.append(re.compile(rf"error: Failed to load resource: .*\b{status}\b.*{path}"))

    def _response(self, response: Response) -> None:
        if response.status >= 500:
            self.complaints.append(f"{response.status} {response.request.method} {response.url}")

    def shot(self, name: str) -> None:
        """Keep a picture, if somebody wants to look: SCREENSHOTS names the folder."""
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def barriers(self) -> list[str]:
        """What axe finds on the page as it stands that breaks a rule of WCAG 2.2, level AA."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[str] = self.page.evaluate(
            """async tags => (await axe.run({ runOnly: tags })).violations.flatMap(({ id, nodes }) =>
                nodes.map(node => `${id}: ${node.html.slice(0, 200)} ${node.failureSummary.slice(0, 300)}`))""",
            WCAG,
        )
        return found

    def sign_in(self, name: str) -> None:
        """Through the form."""
        self.site.person(name)
        self.page.goto(self.site.url + "/login")
        self.page.get_by_test_id("username").fill(name)
        self.page.get_by_test_id("password").fill(PASSWORD)
        self.page.get_by_test_id("submit").click()
        expect(self.page.get_by_test_id("user-menu")).to_have_text(name)


Open = Callable[..., Watched]


@pytest.fixture
def open_page(browser: Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens pages of fresh browser profiles; at the end none may have complained."""
    opened: list[Watched] = []
    with contextlib.ExitStack() as stack:

        def make(viewport: dict[str, Any] = DESKTOP, **options: Any) -> Watched:
            context = browser.new_context(viewport=viewport, locale="en-GB", timezone_id="UTC", **options)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE)
            opened.append(Watched(context.new_page(), site))
            return opened[-1]

        yield make
        complaints = [complaint for watched in opened for complaint in watched.complaints]
    assert complaints == []
