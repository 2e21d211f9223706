"""Every page on a narrow screen and on a dark one, and the lab by touch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import DESKTOP, PHONE, Open
from tests.e2e.reading import JOB, PROMPT, wait_for_bars
from tests.running import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]


def pages(lab: Lab) -> dict[str, str]:
    """An address of every page, and a test id or a heading that says it is there."""
    project = f"/projects/{lab.project['id']}"
    sae = f"{project}/saes/{lab.sae['id']}"
    listed = lab.alice.get("/features", sae=lab.sae["id"], ordering="-max_activation")
    feature = listed["results"][0]["id"]
    return {
        "projects": "/",
        "home": project,
        "models": f"{project}/models",
        "models-add": f"{project}/models?add=true",
        "recordings": f"{project}/recordings",
        "recordings-add": f"{project}/recordings?add=true",
        "saes": f"{project}/saes",
        "saes-add": f"{project}/saes?add=true",
        "sae": sae,
        "features": f"{sae}/features",
        "feature": f"{project}/features/{feature}",
        "lab": f"{project}/lab?add={feature}",
        "patches": f"{project}/patches",
        "graphs": f"{project}/graphs",
        "graphs-import": f"{project}/graphs?import=true",
        "jobs": f"{project}/jobs",
        "job": f"/jobs/{lab.sae['job']}",
        "members": f"{project}/members",
        "corpora-add": f"{project}/recordings?corpus=true",
        "recordings-import": f"{project}/recordings?import=true",
        "saes-import": f"{sae.rsplit('/', 1)[0]}/import",
        "adapters-add": f"{project}/patches?add=true",
        "profile": "/profile",
    }


def rename_recording(page: Page) -> None:
    page.get_by_test_id("recording-card").first.get_by_test_id("rename").click()


def rename_corpus(page: Page) -> None:
    page.get_by_role("tab", name="Corpora").click()
    page.get_by_role("table").get_by_test_id("rename").first.click()


def rename_first(page: Page) -> None:
    page.get_by_test_id("rename").first.click()


# Forms that a click opens, by the page they are on.
RENAMES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "rename-recording": ("recordings", rename_recording),
    "rename-corpus": ("recordings", rename_corpus),
    "rename-sae": ("sae", rename_first),
    "rename-model": ("models", rename_first),
}


def settled(page: Page) -> None:
    """Nothing loads any more, a heading is there, and nothing is fading in."""
    expect(page.get_by_role("heading").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.wait_for_function("() => document.getAnimations().every(one => one.playState !== 'running')")


def overflow(page: Page) -> list[str]:
    """Elements that make the page wider than the screen."""
    found: list[str] = page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            return [...document.querySelectorAll('body *')]
                .filter(one => one.getBoundingClientRect().right > width + 1)
                .map(one => `${one.tagName} ${one.className} ${one.textContent.slice(0, 40)}`);
        }"""
    )
    return found


@pytest.mark.parametrize(
    ("screen", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")], ids=["phone-light", "desktop-dark"]
)
def test_every_page_fits_and_complains_of_nothing(
    open_page: Open, lab: Lab, screen: dict[str, int], scheme: str
) -> None:
    """With their forms open; every one is also free of what axe knows to keep people out."""
    watched = open_page(screen, color_scheme=scheme)
    watched.sign_in("alice")
    page, addresses = watched.page, pages(lab)
    too_wide, barriers = {}, {}

    def look(name: str) -> None:
        settled(page)
        watched.shot(f"{scheme}-{screen['width']}-{name}")
        too_wide[name], barriers[name] = overflow(page), watched.barriers()

    for name, path in addresses.items():
        page.goto(lab.site.url + path)
        look(name)
    for name, (place, unfold) in RENAMES.items():
        page.goto(lab.site.url + addresses[place])
        unfold(page)
        expect(page.get_by_role("textbox", name="Name")).to_be_visible()
        look(name)
    assert {name: found for name, found in too_wide.items() if found} == {}
    assert {name: found for name, found in barriers.items() if found} == {}


def test_buttons_stay_in_their_boxes(open_page: Open, lab: Lab) -> None:
    """On the home of a project, whose columns are narrow before there is room for none beside another."""
    watched = open_page()
    watched.sign_in("alice")
    page = watched.page
    for width in (1020, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(lab.site.url + pages(lab)["home"])
        settled(page)
        sticking_out = page.evaluate(
            """() => [...document.querySelectorAll('[data-testid=lineage] section a, [data-testid=lineage] dd')]
                .filter(one => one.getBoundingClientRect().right > one.closest('section').getBoundingClientRect().right + 1
                    || one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline')
                .map(one => one.textContent)"""
        )
        assert sticking_out == [], width


def test_the_lab_works_on_a_phone(open_page: Open, lab: Lab) -> None:
    watched = open_page(PHONE, has_touch=True)
    watched.sign_in("alice")
    page = watched.page
    page.goto(lab.site.url + pages(lab)["lab"])
    expect(page.get_by_test_id("live-state")).to_have_attribute("data-resident", "ready", timeout=JOB)
    page.get_by_test_id("prompt").fill(PROMPT)
    expect(page.get_by_test_id("picker-match").first).to_be_visible()
    page.get_by_test_id("picker-match").first.tap()
    expect(page.get_by_test_id("edit-card")).to_have_count(2)
    wait_for_bars(page, moved=True)
    page.get_by_test_id("mute").last.tap()
    page.get_by_test_id("mute").first.tap()
    wait_for_bars(page, moved=False)


def test_death_of_the_model_is_shown_and_healed(open_page: Open, lab: Lab) -> None:
    watched = open_page()
    watched.sign_in("alice")
    page = watched.page
    page.goto(lab.site.url + pages(lab)["lab"])
    live = page.get_by_test_id("live-state")
    expect(live).to_have_attribute("data-resident", "ready", timeout=JOB)
    page.get_by_test_id("prompt").fill(PROMPT)
    page.get_by_test_id("picker-match").first.click()
    expect(page.get_by_test_id("edit-card")).to_have_count(2)
    # The answer to both edits, not to the first alone.
    expect(page.get_by_test_id("stale")).to_have_attribute("data-stale", "false")
    before = wait_for_bars(page, moved=True)

    lab.site.resident(lab.model).kill()
    # Looked for on every frame: the state may be over before Playwright asks again.
    page.wait_for_function(
        "() => document.querySelector('[data-testid=live-state]').dataset.resident === 'lost'"
    )
    watched.shot("lab-lost")
    expect(page.get_by_test_id("edit-card")).to_have_count(2)  # nothing typed or chosen is gone
    expect(live).to_have_attribute("data-resident", "ready", timeout=JOB)
    page.wait_for_function(
        "count => document.querySelectorAll('[data-testid=prob-row]').length === count", arg=len(before)
    )
    assert wait_for_bars(page, moved=True) == before
