"""``make pictures``: the pages that README and docs show, taken from the demonstration's portal in light and dark.

Beside the pictures lies what they showed: each page's outline and a digest of the style sheets. The tests compare
both with the present pages, so a picture that no longer shows the product is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, expect, sync_playwright

from workbench.demo.patching import WORD_PROMPT
from workbench.demo.run import PROJECT, RECORDING, Demonstration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
SHOWN = FOLDER / "shown.json"
SCHEMES = ("light", "dark")
MAX_BYTES = 200_000
_SCALE, _QUALITY = 1.5, 82
_PATIENCE = 120_000  # milliseconds
_STYLES = ("theme.ts", "science/palette.ts", "**/*.css")
BROWSER_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@dataclass(frozen=True)
class Subjects:
    """What the pictures show, by id; ``names`` are the texts on the pages that somebody chose."""

    project: str
    sae: str
    training: str
    feature: str
    patch: str
    prompt: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A page: its address, what says that it is complete, how high it is, which part and elements are described."""

    path: Callable[[Subjects], str]
    ready: Callable[[Page], None]
    height: int
    part: str = "main"
    elements: str = (
        "h1, h2, h3, button:not(ul button, [data-testid=why-token]), a.mantine-Button-root, label, summary, th, dt, [role=tab], "
        "[role=combobox], figcaption span:first-child"
    )
    # What is only there for some results.
    sometimes: frozenset[str] = frozenset()


def _answered(page: Page) -> None:
    expect(page.get_by_test_id("prob-row").first).to_be_visible()
    expect(page.get_by_test_id("answer")).to_have_attribute("aria-busy", "false")
    page.wait_for_function(
        "() => [...document.querySelectorAll('[data-testid=prob-row]')]"
        ".some(row => row.dataset.base !== row.dataset.patched)"
    )
    expect(page.get_by_test_id("evidence-token").first).to_be_visible()


def _visible(test_id: str) -> Callable[[Page], None]:
    return lambda page: expect(page.get_by_test_id(test_id).first).to_be_visible()


def _certified(page: Page) -> None:
    expect(page.get_by_test_id("gates")).to_be_visible()
    page.get_by_test_id("export").first.scroll_into_view_if_needed()


PICTURES: Mapping[str, Picture] = {
    "lab": Picture(
        lambda on: f"/projects/{on.project}/lab?" + urlencode({"patch": on.patch, "prompt": on.prompt}),
        _answered,
        880,
    ),
    # What its boxes say depends on what the project holds.
    "home": Picture(lambda on: f"/projects/{on.project}", _visible("lineage"), 640, elements="h1, h2, h3"),
    "training": Picture(lambda on: f"/jobs/{on.training}", _visible("job-log"), 800),
    "report": Picture(
        lambda on: f"/projects/{on.project}/saes/{on.sae}",
        _visible("report"),
        900,
        sometimes=frozenset({"h3: k-sparse probing"}),
    ),
    "feature": Picture(lambda on: f"/projects/{on.project}/features/{on.feature}", _visible("example"), 900),
    "certificate": Picture(
        lambda on: f"/projects/{on.project}/patches?export={on.patch}", _certified, 1000, "[role=dialog]"
    ),
}


def photograph(shown: Demonstration) -> None:
    """Take the demonstration's patch out, so that there is a certificate to show, and take every picture."""
    facts, alice = shown.facts, shown.alice
    sae, patch = facts["sae"], facts["direction"] or facts["patch"]
    _certify(shown, patch)
    feature = patch["plan"]["edits"][0]["feature"]["index"]
    [row] = alice.each("/features", sae=sae["id"], index=feature)
    saes = [one["name"] for one in alice.each("/saes", project=facts["project"]["id"])]
    names = (PROJECT, RECORDING, *saes, patch["name"], sae["fingerprint"][:12])
    subjects = Subjects(
        facts["project"]["id"], sae["id"], sae["job"], row["id"], patch["id"], WORD_PROMPT, names
    )
    with shown.console.status("Taking the pictures"):
        take(shown.supervisor.url, "alice", shown.passwords["alice"], subjects)
    shown.console.print(f"The pictures are in {FOLDER.relative_to(ROOT)}.")


def _certify(shown: Demonstration, patch: dict[str, Any]) -> None:
    """Export the patch, unless that was done before, and wait for the measurement of the export."""
    alice = shown.alice
    made = next((one for one in alice.each("/exports", patch=patch["id"]) if one["certificate"]), None)
    if made is None:
        asked = alice.post(f"/patches/{patch['id']}/export", {"target": "bundle", "params": {}})
        shown.follow(asked["job"])
        made = alice.get(f"/exports/{asked['export']['id']}")
    shown.follow(alice.get(f"/jobs/{made['certificate']['job']}")["job"])


def take(url: str, username: str, password: str, subjects: Subjects, folder: Path = FOLDER) -> None:
    """Take every picture, and write down what it shows.

    Raises:
        RuntimeError: there is no Chromium, or a picture is larger than it may be.
    """
    outlines: dict[str, list[str]] = {}
    taken: dict[str, bytes] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(BROWSER_FLAGS))
        for scheme in SCHEMES:
            page = _signed_in(browser, scheme, url, username, password)
            for name, picture in PICTURES.items():
                show(page, url, picture, subjects)
                outlines[name] = outline(page, picture, subjects)
                taken[f"{name}-{scheme}.webp"] = _webp(page)
        browser.close()
    large = sorted(name for name, content in taken.items() if len(content) > MAX_BYTES)
    if large:
        raise RuntimeError(f"Pictures over {MAX_BYTES:,} bytes: {', '.join(large)}.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in taken.items():
        (folder / name).write_bytes(content)
    shown = {"styles": styles(), "outlines": outlines}
    (folder / SHOWN.name).write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show(page: Page, url: str, picture: Picture, subjects: Subjects) -> None:
    """Open the page of a picture and wait until everything is on it."""
    page.set_viewport_size({"width": 1280, "height": picture.height})
    page.goto(url + picture.path(subjects))
    picture.ready(page)
    page.wait_for_load_state("networkidle")
    page.wait_for_function("() => document.getAnimations().every(one => one.playState !== 'running')")


def outline(page: Page, picture: Picture, subjects: Subjects) -> list[str]:
    """The page's headings, controls and labels, each once, without numbers and names that somebody chose."""
    found: list[list[str]] = page.locator(picture.part).first.evaluate(
        """(part, elements) => [...part.querySelectorAll(elements)]
            .filter(one => one.checkVisibility() && one.closest('[aria-hidden=true]') === null)
            .map(one => [one.getAttribute('role') ?? one.tagName.toLowerCase(),
                one.getAttribute('aria-label') ?? (one.matches('button') && one.title || one.textContent)])""",
        picture.elements,
    )
    return sorted({f"{kind}: {_constant(text, subjects.names)}" for kind, text in found} - picture.sometimes)


def _constant(text: str, names: tuple[str, ...]) -> str:
    """What stays of a text when another project is shown."""
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "…")
    return re.sub(r"[\d.,]*\d(\s[kMG]?B\b)?", "#", " ".join(text.split()))


def styles() -> str:
    """A digest of everything that decides colours, type and spacing; comments and line breaks decide nothing."""
    source = ROOT / "frontend" / "src"
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _STYLES for file in source.glob(pattern)}):
        text = re.sub(
            r"/\*.*?\*/|^\s*//.*?$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        digest.update(f"{file.relative_to(source).as_posix()}\0{' '.join(text.split())}\0".encode())
    return digest.hexdigest()


def chromium() -> str:
    """The installed browser.

    Raises:
        RuntimeError: there is none.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise RuntimeError("Chromium is missing: sh scripts/ensure_chromium.sh")
    return found


def _signed_in(browser: Browser, scheme: str, url: str, username: str, password: str) -> Page:
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    context.set_default_timeout(_PATIENCE)
    expect.set_options(timeout=_PATIENCE)
    page = context.new_page()
    page.goto(url + "/login")
    page.get_by_test_id("username").fill(username)
    page.get_by_test_id("password").fill(password)
    page.get_by_test_id("submit").click()
    expect(page.get_by_test_id("user-menu")).to_have_text(username)
    return page


def _webp(page: Page) -> bytes:
    size = page.viewport_size
    assert size is not None
    part = {"x": 0, "y": 0, **size, "scale": _SCALE}
    session = page.context.new_cdp_session(page)
    shot = session.send("Page.captureScreenshot", {"format": "webp", "quality": _QUALITY, "clip": part})
    session.detach()
    return base64.b64decode(shot["data"])
