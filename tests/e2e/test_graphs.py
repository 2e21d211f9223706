"""Provenance graphs in the browser: one is made live, read, pinned, kept, found again, taken out; a broken file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import DESKTOP, PHONE, Open
from tests.e2e.reading import JOB, PROMPT, wait_for_bars
from tests.running import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]

NAME = "Why it goes on so"


def address(lab: Lab, path: str = "") -> str:
    return f"{lab.site.url}/projects/{lab.project['id']}/graphs{path}"


def test_a_graph_is_made_live_kept_and_found_again(open_page: Open, lab: Lab) -> None:
    watched = open_page()
    watched.sign_in("alice")
    page = watched.page
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/lab?model={lab.model['id']}")
    page.get_by_test_id("prompt").fill(PROMPT)
    wait_for_bars(page, moved=False)
    page.get_by_test_id("why-token").first.click()
    page.get_by_test_id("why-this").click()
    progress = page.get_by_test_id("graph-progress")
    expect(progress).to_have_attribute("data-ended", "done", timeout=JOB)
    figures = page.get_by_test_id("graph-figures")
    assert float(figures.get_attribute("data-completeness") or 0) == pytest.approx(1, abs=1e-4)
    walk_and_pin(page)
    explained = pinned(page)
    assert 0 < explained < 1
    watched.shot("graph-live")
    ask_a_head(page)
    watched.shot("graph-attended")
    assert watched.barriers() == []

    page.get_by_test_id("graph-name").fill(NAME)
    page.get_by_test_id("graph-save").click()
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    where = page.url

    other = open_page(PHONE, color_scheme="dark")
    other.sign_in("alice")
    page = other.page
    page.goto(where)
    assert pinned(page) == pytest.approx(explained), "pins are kept with the graph"
    read_on_a_phone(page)
    other.shot("graph-saved")
    assert other.barriers() == []
    take_out(page)
    page.get_by_label(f"Delete {NAME}").click()
    page.get_by_role("button", name=f"Delete {NAME}").click()
    expect(page.get_by_role("heading", name="Graphs")).to_be_visible()
    assert [row["name"] for row in lab.alice.each("/graphs", project=lab.project["id"])] == []


def walk_and_pin(page: Page) -> None:
    """From the target down to a node by keys, which is pinned; its card opens, and the way back to the lab is there."""
    page.get_by_test_id("graph-canvas").focus()
    spoken = page.get_by_test_id("graph-spoken")
    page.keyboard.press("ArrowDown")
    expect(spoken).to_contain_text("the target")
    for _ in range(6):  # until a feature: errors and constants lie among them
        page.keyboard.press("ArrowDown")
        panel = page.get_by_test_id("node-panel")
        expect(panel).to_be_visible()
        if ":error" not in (node := panel.get_attribute("data-node") or "") and ":bias" not in node:
            break
        page.keyboard.press("ArrowRight")
    page.keyboard.press("p")
    expect(page.get_by_test_id("pinned")).not_to_have_attribute("data-count", "0")
    page.keyboard.press("Enter")
    expect(page.locator("#graph-detail")).to_be_focused()
    expect(page.get_by_test_id("pin")).to_have_attribute("aria-pressed", "true")


def ask_a_head(page: Page) -> None:
    """Why a head attends: its score splits into what is at the query and at the key."""
    page.get_by_test_id("graph-components").get_by_test_id("row-action").first.click()
    expect(page.get_by_test_id("attended")).to_have_attribute("data-ready", "true")
    for end in ("query-contributors", "key-contributors"):
        expect(page.get_by_test_id(end).get_by_role("listitem").first).to_be_visible()


def pinned(page: Page) -> float:
    """The completeness of what is pinned, once the worker has said it."""
    shown = page.get_by_test_id("pinned-completeness")
    expect(shown).to_contain_text("%")
    return float(shown.get_attribute("data-value") or "nan")


def read_on_a_phone(page: Page) -> None:
    """The table says what the picture shows; nothing is wider than the screen; a comment stays."""
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_test_id("edge-row").first).to_be_visible()
    width = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width <= 0
    page.get_by_text("Picture", exact=True).click()
    page.get_by_test_id("comment-text").fill("Look at the errors first.")
    page.get_by_test_id("comment-add").click()
    expect(page.get_by_test_id("graph-comment")).to_contain_text("Look at the errors first.")


def take_out(page: Page) -> None:
    """As JSON of two kinds and as pictures, which hold what is drawn."""
    count = page.get_by_test_id("graph-picture").get_attribute("data-nodes")
    with page.expect_download() as started:
        page.get_by_test_id("export-microscope").click()
    document = json.loads(Path(started.value.path()).read_text(encoding="utf-8"))
    assert document["format"] == "microscope-graph"
    assert document["prompt"] == PROMPT
    with page.expect_download() as started:
        page.get_by_test_id("export-attribution_graph").click()
    assert json.loads(Path(started.value.path()).read_text(encoding="utf-8"))["metadata"]["prompt"] == PROMPT
    with page.expect_download() as started:
        page.get_by_test_id("export-svg").click()
    svg = Path(started.value.path()).read_text(encoding="utf-8")
    assert svg.count("<text") > int(count or 0) > 1
    with page.expect_download() as started:
        page.get_by_test_id("export-png").click()
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_feature_leads_to_its_graph_and_a_node_to_the_lab(open_page: Open, lab: Lab) -> None:
    watched = open_page(DESKTOP)
    watched.sign_in("alice")
    page = watched.page
    strongest = lab.alice.get("/features", sae=lab.sae["id"], ordering="-max_activation")["results"][0]
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/features/{strongest['id']}")
    page.get_by_test_id("feature-to-graph").click()
    expect(page.get_by_test_id("graph-progress")).to_have_attribute("data-ended", "done", timeout=JOB)
    expect(page.get_by_test_id("missing-saes")).to_contain_text("No SAE of this model lies below block 2")
    expect(page.get_by_test_id("graph-components")).to_be_visible()

    page.get_by_test_id("another-target").click()
    page.get_by_test_id("target-token").first.click()
    expect(page.get_by_test_id("graph-progress")).to_have_attribute("data-ended", "done", timeout=JOB)
    walk_and_pin(page)
    index = page.get_by_test_id("node-panel").get_attribute("data-node") or ""
    page.get_by_test_id("node-to-lab").click()
    card = page.get_by_test_id("edit-card")
    expect(card).to_have_attribute("data-kind", "ablate")
    expect(card).to_have_attribute("data-index", index.split(":")[1].split("@")[0])
    expect(card).to_contain_text(f"at token {index.split('@')[1]}")


def test_a_broken_file_is_refused_with_the_reason(open_page: Open, lab: Lab, tmp_path: Path) -> None:
    watched = open_page()
    watched.sign_in("alice")
    watched.excuse(422, "/graphs/import")
    page = watched.page
    page.goto(address(lab, "?import=true"))
    dialog = page.get_by_role("dialog")
    files = {"torn.json": '{"nodes": [', "strange.json": '{"nodes": "none", "links": 5}'}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        dialog.get_by_test_id("choose-files").set_input_files(tmp_path / name)
        dialog.get_by_test_id("import-graph").click()
        expect(dialog.get_by_test_id("error")).to_contain_text("Bringing the graph in failed")
    watched.shot("graph-refused")
    assert watched.barriers() == []
    assert lab.alice.get("/graphs", project=lab.project["id"])["results"] == []
