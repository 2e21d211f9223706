"""The main job as a newcomer does it: everything through the browser, on real servers and a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import Open, Watched
from tests.e2e.reading import JOB, PROMPT, wait_for_bars
from tests.running import Site, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]


def texts(site: Site, target: Path) -> Path:
    """The offered corpus as one file to upload."""
    documents = sorted((site.folder / "corpora" / "words").glob("*.txt"))
    target.write_text("".join(json.dumps({"text": d.read_text()}) + "\n" for d in documents))
    return target


def choose(page: Page, select: Locator, option: str) -> None:
    select.click()
    page.get_by_role("option", name=option, exact=True).click()


def progress_seen(page: Page) -> list[float]:
    """What the page showed of the running job until it was over, in the order it showed it."""
    seen: Any = page.evaluate(
        """limit => new Promise((resolve, reject) => {
            const seen = [];
            const started = Date.now();
            const look = () => {
                const bar = document.querySelector('[data-testid=job-progress]');
                const done = bar ? Number(bar.dataset.done) : null;
                if (done !== null && seen.at(-1) !== done) seen.push(done);
                const state = document.querySelector('[data-testid=job]')?.dataset.state;
                if (['succeeded', 'failed', 'cancelled'].includes(state)) resolve(seen);
                else if (Date.now() - started > limit) reject(new Error(`still ${state}`));
                else setTimeout(look, 50);
            };
            look();
        })""",
        JOB,
    )
    return [float(done) for done in seen]


def test_from_sign_in_to_a_patch_and_out(open_page: Open, site: Site, tmp_path: Path) -> None:
    watched = open_page()
    page = watched.page
    _sign_in(watched)
    home = _project(watched)
    _model(watched)
    _recording(watched, texts(site, tmp_path / "speeches.jsonl"))
    _training(watched)
    _measure(watched)
    index = _feature(watched)
    _patch(watched, index)

    page.goto(home)
    expect(page.get_by_text("Louder").first).to_be_visible()
    watched.shot("home-filled")
    page.get_by_test_id("user-menu").click()
    # From here on nobody is signed in: the answers to signing out itself and to pages asking on are 401.
    watched.excuse(401, "/_allauth/browser/v1/auth/session")
    watched.excuse(401, "/api/v1/")
    page.get_by_test_id("sign-out").click()
    expect(page.get_by_test_id("login-form")).to_be_visible()
    page.goto(home)
    expect(page.get_by_test_id("login-form")).to_be_visible()
    assert "/login" in page.url


def _sign_in(watched: Watched) -> None:
    page = watched.page
    watched.site.person("nina")
    page.goto(watched.site.url)
    expect(page.get_by_test_id("login-form")).to_be_visible()
    page.get_by_test_id("username").fill("nina")
    page.get_by_test_id("password").fill("not the password")
    watched.excuse(400, "/auth/login")
    page.get_by_test_id("submit").click()
    expect(page.get_by_role("alert")).to_be_visible()
    watched.shot("login-refused")
    watched.sign_in("nina")


def _project(watched: Watched) -> str:
    page = watched.page
    page.get_by_test_id("new-project").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("First steps")
    watched.shot("new-project")
    dialog.get_by_role("button", name="Make project").click()
    page.wait_for_url(re.compile(r"/projects/[0-9a-f-]{36}/?$"))
    expect(page.get_by_text("1. Add a model")).to_be_visible()
    watched.shot("home-empty")
    return page.url


def _nav(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Project").get_by_role("link", name=name).click()


def _model(watched: Watched) -> None:
    page = watched.page
    _nav(page, "Models")
    page.get_by_test_id("add-model").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Folder", exact=True).click()
    watched.excuse(422, "/api/v1/models")
    dialog.get_by_test_id("model-reference").fill("no-such-folder")
    dialog.get_by_test_id("model-submit").click()
    expect(dialog.get_by_text("There is no folder 'no-such-folder'.")).to_be_visible()
    dialog.get_by_test_id("model-reference").fill("tiny")
    watched.shot("add-model")
    dialog.get_by_test_id("model-submit").click()
    expect(page.get_by_test_id("model-card")).to_have_attribute("data-state", "ready", timeout=JOB)
    watched.shot("models")


def _recording(watched: Watched, file: Path) -> None:
    page = watched.page
    _nav(page, "Recordings")
    page.get_by_test_id("add-corpus").first.click()
    dialog = page.get_by_role("dialog")
    page.locator("input[type=file]").set_input_files(file)
    dialog.get_by_label("Name").fill("speeches")
    watched.shot("add-corpus")
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(dialog).to_be_hidden()
    page.get_by_role("tab", name="Corpora").click()
    expect(page.get_by_test_id("corpus-row")).to_have_attribute("data-state", "ready", timeout=JOB)
    watched.shot("corpora")
    page.get_by_role("tab", name="Recordings").click()
    page.get_by_test_id("new-recording").first.click()
    dialog = page.get_by_role("dialog")
    for layer in ("1", "2"):
        dialog.get_by_role("group", name="Blocks").get_by_text(layer, exact=True).click()
    for name, value in (("tokens", "4000"), ("context_length", "32"), ("held_out", "0.2")):
        dialog.locator(f"input[name={name}]").fill(value)
    watched.shot("new-recording")
    dialog.get_by_test_id("recording-submit").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_test_id("recording-card")).to_have_attribute("data-state", "ready", timeout=JOB)
    watched.shot("recordings")


def _training(watched: Watched) -> None:
    page = watched.page
    page.get_by_test_id("recording-card").get_by_role("link", name="Train an SAE").click()
    dialog = page.get_by_role("dialog")
    choose(page, dialog.get_by_role("combobox", name="Reads"), "resid_post.2: residual stream after block 2")
    for name, value in (("width", "96"), ("k", "8"), ("tokens", "400k"), ("batch_size", "200")):
        dialog.locator(f"input[name={name}]").fill(value)
    watched.shot("train")
    dialog.get_by_test_id("train-submit").click()
    page.get_by_role("link", name="watch it").click()
    expect(page.get_by_test_id("job")).to_be_visible()
    seen = progress_seen(page)
    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "succeeded")
    between = [done for done in seen if 0 < done < 400_000]
    assert len(between) >= 2, seen  # it was watched live
    assert between == sorted(between)
    watched.shot("job")


def _measure(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("link", name="the SAE").click()
    page.get_by_test_id("evaluate").click()
    expect(page.get_by_test_id("evaluate")).to_be_disabled()
    page.get_by_test_id("analyse").click()
    expect(page.get_by_test_id("report")).to_be_visible(timeout=JOB)
    expect(page.get_by_test_id("goal").first).to_be_visible()
    expect(page.get_by_test_id("browse-features")).to_be_visible(timeout=JOB)
    watched.shot("sae")


def _feature(watched: Watched) -> int:
    page = watched.page
    page.get_by_test_id("browse-features").click()
    row = page.get_by_test_id("feature-row").first
    expect(row).to_be_visible()
    watched.shot("features")
    index = int(row.get_attribute("data-index") or "")
    row.click()
    expect(page.get_by_role("heading", name=f"Feature {index}")).to_be_visible()
    expect(page.get_by_test_id("example").first).to_be_visible()
    expect(page.get_by_test_id("promoted").or_(page.get_by_test_id("promotes"))).to_be_visible()
    watched.shot("feature")
    return index


def _patch(watched: Watched, index: int) -> None:
    page = watched.page
    page.get_by_test_id("add-to-patch").click()
    page.get_by_test_id("load-model").click()
    expect(page.get_by_test_id("live-state")).to_have_attribute("data-resident", "ready", timeout=JOB)
    page.get_by_test_id("prompt").fill(PROMPT)
    card = page.get_by_test_id("edit-card")
    expect(card).to_have_attribute("data-index", str(index))
    choose(page, card.get_by_test_id("operation"), "Add")
    card.get_by_test_id("strength").fill("4")
    wait_for_bars(page, moved=True)
    watched.shot("lab")

    page.get_by_test_id("patch-name-input").fill("Louder")
    page.get_by_test_id("save-patch").click()
    expect(page.get_by_test_id("patch-name")).to_have_text("Louder")
    expect(page.get_by_test_id("patch-version")).to_contain_text("version 1, saved")
    patched = wait_for_bars(page, moved=True)
    toggle = page.get_by_test_id("patch-toggle")
    toggle.uncheck(force=True)
    base = wait_for_bars(page, moved=False)
    toggle.check(force=True)
    again = wait_for_bars(page, moved=True)
    assert again == patched
    assert {token: values[0] for token, values in patched.items() if token in base} == {
        token: values[0] for token, values in base.items() if token in patched
    }

    card.get_by_test_id("strength").fill("2")
    expect(page.get_by_test_id("patch-version")).to_contain_text("changed since")
    wait_for(lambda: wait_for_bars(page, moved=True) != patched, 120, "for the changed strength")
    page.get_by_test_id("undo").click()
    wait_for(lambda: wait_for_bars(page, moved=True) == patched, 120, "for the undone state")
    expect(page.get_by_test_id("patch-version")).to_contain_text("saved")
    page.reload()  # all of it is in the address and on the server
    expect(page.get_by_test_id("edit-card")).to_have_attribute("data-index", str(index))
    wait_for_bars(page, moved=True)
    _nav(page, "Patches")
    expect(page.get_by_test_id("patch-row")).to_have_attribute("data-enabled", "true")
    watched.shot("patches")
