"""Every page on a narrow screen and on a dark one, and the lab by touch."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import DESKTOP, PHONE, Open
from tests.e2e.reading import JOB, PROMPT, wait_for_bars
from tests.running import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(900)]


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
        "jobs": f"{project}/jobs",
        "job": f"/jobs/{lab.sae['job']}",
        "members": f"{project}/members",
    }


def settled(page: Page) -> None:
    """Nothing loads any more and a heading is there."""
    expect(page.get_by_role("heading").first).to_be_visible()
    page.wait_for_load_state("networkidle")


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
    watched = open_page(screen, color_scheme=scheme)
    watched.sign_in("alice")
    too_wide = {}
    for name, path in pages(lab).items():
        watched.page.goto(lab.site.url + path)
        settled(watched.page)
        watched.shot(f"{scheme}-{screen['width']}-{name}")
        too_wide[name] = overflow(watched.page)
    assert {name: found for name, found in too_wide.items() if found} == {}


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
