"""What people do every day beside the main job: a pipeline in one go, its notification, the use of limits, API tokens."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Open
from tests.e2e.reading import JOB
from tests.running import Lab, Site

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]

STEPS = ["trace", "train", "evaluate", "analyse"]


def test_four_steps_in_one_go_and_the_bell_tells_when_they_are_done(open_page: Open, lab: Lab) -> None:
    watched = open_page()
    page = watched.page
    watched.sign_in("alice")
    lab.alice.post("/notifications/mark-read")
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/jobs")
    page.get_by_test_id("new-pipeline").click()
    dialog = page.get_by_role("dialog")
    record, train = (dialog.get_by_role("group", name=name, exact=True) for name in ("Record", "Train"))
    for fields, values in (
        (record, {"tokens": "4000", "context_length": "32", "held_out": "0.2"}),
        (train, {"width": "96", "k": "8", "tokens": "20k", "batch_size": "200"}),
    ):
        for name, value in values.items():
            fields.locator(f"input[name={name}]").fill(value)
    dialog.get_by_label("Name", exact=True).fill("In one go")
    watched.shot("new-pipeline")
    dialog.get_by_test_id("pipeline-submit").click()
    expect(dialog).to_be_hidden()

    # The list shows the newest first, and each step by itself when it is over.
    analysed = page.locator("[data-testid=job-row][data-kind=analyse]").first
    analysed.get_by_role("link").first.click()
    steps = page.get_by_test_id("pipeline")
    expect(steps).to_contain_text("Part of “In one go”")
    expect(steps.get_by_role("listitem")).to_have_count(len(STEPS))
    expect(steps.locator("[data-testid=state][data-state=succeeded]")).to_have_count(
        len(STEPS), timeout=len(STEPS) * JOB
    )
    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "succeeded")
    watched.shot("pipeline-done")

    bell = page.get_by_test_id("bell")
    expect(bell).not_to_have_attribute("data-unread", "0")
    bell.click()
    newest = page.get_by_test_id("notification").first
    expect(newest).to_contain_text("In one go: all 4 steps are done")
    watched.shot("bell")
    page.get_by_test_id("mark-all-read").click()
    expect(bell).to_have_attribute("data-unread", "0")
    newest.get_by_role("link").click()
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f-]{36}"))

    made = {row["name"]: row for row in lab.alice.each("/saes", project=lab.project["id"])}["In one go"]
    assert (made["state"], made["width"]) == ("ready", 96)
    assert made["evaluation"]["metrics"]["fvu"] < 1
    lab.alice.delete(f"/saes/{made['id']}")
    lab.alice.delete(f"/recordings/{made['recording']}")


def test_the_project_says_what_it_uses(open_page: Open, lab: Lab) -> None:
    watched = open_page()
    watched.sign_in("alice")
    watched.page.goto(f"{lab.site.url}/projects/{lab.project['id']}")
    rows = watched.page.get_by_test_id("usage-row")
    expect(rows).to_have_count(3)
    shown = {row.get_attribute("data-resource"): row.inner_text() for row in rows.all()}
    assert {*shown} == {"storage_bytes", "compute_seconds", "live_sessions"}
    used = {row["resource"]: row for row in lab.alice.get(f"/projects/{lab.project['id']}/usage")}
    assert used["storage_bytes"]["used"] > 0
    assert used["compute_seconds"]["used"] > 0
    assert f"of {used['live_sessions']['limit']}" in shown["live_sessions"]
    watched.shot("home-usage")


def test_people_see_what_they_use(open_page: Open, lab: Lab) -> None:
    watched = open_page()
    watched.sign_in("alice")
    watched.page.goto(f"{lab.site.url}/profile")
    rows = watched.page.get_by_test_id("my-usage").get_by_test_id("usage-row")
    expect(rows).to_have_count(5)
    shown = {row.get_attribute("data-resource"): row.inner_text() for row in rows.all()}
    used = {row["resource"]: row for row in lab.alice.get("/me/usage")}
    assert {*shown} == {*used}
    assert used["storage_bytes"]["used"] > 0
    assert f"of {used['live_sessions']['limit']}" in shown["live_sessions"]
    assert f"of {used['queued_jobs']['limit']}" in shown["queued_jobs"]


def test_a_token_is_shown_once_and_works_until_it_is_revoked(open_page: Open, site: Site) -> None:
    watched = open_page()
    page = watched.page
    watched.sign_in("toni")
    page.goto(f"{site.url}/profile")
    page.get_by_test_id("new-token").click()
    form = page.get_by_test_id("token-form")
    form.get_by_label("What it is for").fill("a notebook")
    form.get_by_label("jobs", exact=True).check()
    form.get_by_role("button", name="Make token").click()

    def status(secret: str) -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.get(f"{site.url}/api/v1/projects", headers=headers, timeout=60).status_code

    def shown() -> str:
        secret = page.get_by_test_id("token-secret").inner_text().strip()
        page.get_by_role("button", name="Done").click()
        expect(page.get_by_test_id("token-secret")).to_have_count(0)
        return secret

    first = shown()
    row = page.get_by_test_id("token-row")
    expect(row).to_contain_text("a notebook")
    expect(row).to_contain_text("jobs")
    expect(row).not_to_contain_text(first)
    assert status(first) == 200
    page.reload()
    expect(row).not_to_contain_text("never")  # it was used, and it ends
    watched.shot("tokens")

    row.get_by_role("button", name="New secret").click()
    row.get_by_role("button", name="End the old secret").click()
    second = shown()
    assert (status(first), status(second)) == (401, 200)
    row.get_by_role("button", name="Revoke a notebook").click()
    row.get_by_role("button", name="Revoke for good").click()
    expect(row).to_have_count(0)
    assert status(second) == 401
