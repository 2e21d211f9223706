"""A whole project, and a single recording, out of the portal and in again, by mouse alone."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Open
from tests.e2e.reading import JOB
from tests.running import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]


def test_a_project_goes_out_and_comes_in(open_page: Open, lab: Lab, tmp_path: Path) -> None:
    watched = open_page()
    page = watched.page
    watched.sign_in("alice")
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/members")
    page.get_by_test_id("export-project-start").click()
    link = page.get_by_test_id("download-project").first
    expect(link).to_be_visible(timeout=JOB)
    watched.shot("project-export")
    with page.expect_download() as waiting:
        link.click()
    archive = tmp_path / "project.zip"
    waiting.value.save_as(archive)

    page.goto(lab.site.url)
    page.get_by_test_id("import-project").click()
    page.get_by_test_id("choose-files").set_input_files(archive)
    page.get_by_label("Name of the new project").fill("Laboratory, again")
    watched.shot("project-import")
    page.get_by_test_id("import-project-submit").click()
    expect(page).to_have_url(re.compile(r"/jobs/"))
    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "succeeded", timeout=JOB)

    page.goto(lab.site.url)
    page.get_by_text("Laboratory, again").click()
    expect(page.get_by_text(lab.sae["name"]).first).to_be_visible()
    watched.shot("project-imported")


def test_a_recording_goes_out_and_comes_in(open_page: Open, lab: Lab, tmp_path: Path) -> None:
    watched = open_page()
    page = watched.page
    watched.sign_in("alice")
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/recordings")
    card = page.get_by_test_id("recording-card").filter(has_text=lab.recording["name"])
    card.get_by_test_id("export-recording").click()
    link = card.get_by_test_id("download-export").first
    expect(link).to_be_visible(timeout=JOB)
    watched.shot("recording-export")
    with page.expect_download() as waiting:
        link.click()
    outer = tmp_path / "outer.zip"
    waiting.value.save_as(outer)
    with zipfile.ZipFile(outer) as archive:
        archive.extract("recording.zip", tmp_path)

    page.get_by_test_id("import-recording").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_test_id("choose-files").set_input_files(tmp_path / "recording.zip")
    dialog.get_by_label("Name").fill("Once more")
    watched.shot("recording-import")
    dialog.get_by_test_id("import-submit").click()
    expect(dialog).to_be_hidden()
    again = page.get_by_test_id("recording-card").filter(has_text="Once more")
    expect(again).to_have_attribute("data-state", "ready", timeout=JOB)
    watched.shot("recording-imported")
    [row] = [r for r in lab.alice.each("/recordings", project=lab.project["id"]) if r["name"] == "Once more"]
    assert row["fingerprint"] == lab.recording["fingerprint"]
    lab.alice.delete(f"/recordings/{row['id']}")
