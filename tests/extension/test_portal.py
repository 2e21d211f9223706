"""The package of docs/extending.md on a running portal: in the API, in the browser's forms, and live."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Open, Watched, browser, open_page  # noqa: F401 (fixtures)
from tests.e2e.reading import JOB, PROMPT, wait_for_bars
from tests.e2e.test_main_job import choose
from tests.running import Lab
from workbench.demo.portal import PortalError

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

PATH = "/lab_extras/dead-latents"


def test_its_endpoint_has_the_manners_of_the_portal(lab: Lab) -> None:
    address = f"{lab.site.url}/api/v1{PATH}"
    assert httpx.get(address).json()["errors"][0]["code"] == "not_authenticated"
    page = lab.alice.get(PATH)
    assert (page["count"], page["next"]) == (len(page["results"]), None)
    [row] = [row for row in page["results"] if row["id"] == lab.sae["id"]]  # other tests analyse SAEs, too
    assert row["latents"] == 96
    options = lab.alice.request("OPTIONS", f"/api/v1{PATH}")
    assert (options["name"], options["schema"]) == ("Dead Latents List", "/api/v1/schema/")
    schema = httpx.get(f"{lab.site.url}/api/v1/schema/?format=json").json()
    assert f"/api/v1{PATH}/{{id}}/label" in schema["paths"]

    label = f"{PATH}/{lab.sae['id']}/label"
    with pytest.raises(PortalError, match="label"):
        lab.alice.post(label, {})
    with pytest.raises(PortalError, match="not_found"):
        lab.site.person("mallory").post(label, {"label": "mine"})
    assert lab.alice.post(label, {"label": "dead"}) == row
    features = lab.alice.each("/features", sae=lab.sae["id"], dead="true")
    assert {feature["label"] for feature in features} <= {"dead"}


def test_the_api_checks_the_parameters_of_its_architecture(lab: Lab) -> None:
    body = {"recording": lab.recording["id"], "name": "too much"}
    with pytest.raises(PortalError, match="smooth_concavity"):
        lab.alice.post("/saes", {**body, "params": {"layer": 2, "arch": "smooth", "smooth_concavity": 101}})


def test_the_browser_offers_all_of_it(open_page: Open, lab: Lab) -> None:  # noqa: F811
    watched = open_page()
    watched.sign_in("alice")
    _train(watched, lab)
    _cap(watched, lab)


def _train(watched: Watched, lab: Lab) -> None:
    page = watched.page
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/saes?add=true")
    dialog = page.get_by_role("dialog")
    choose(page, dialog.get_by_role("combobox", name="Arch"), "smooth")
    for name, value in {"width": "64", "k": "8", "tokens": "20k", "batch_size": "200"}.items():
        dialog.locator(f"input[name={name}]").fill(value)
    dialog.get_by_role("button", name=re.compile("More settings")).click()
    expect(dialog.get_by_text("smooth: how little more large activations cost")).to_be_visible()
    dialog.locator("input[name=smooth_concavity]").fill("4")
    watched.shot("outside-architecture")
    dialog.get_by_test_id("train-submit").click()
    page.get_by_role("link", name="watch it").click()
    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "succeeded", timeout=JOB)
    rows = lab.alice.each("/saes", project=lab.project["id"])
    made = next(row for row in rows if row["architecture"] == "smooth")
    assert made["params"]["smooth_concavity"] == 4


def _cap(watched: Watched, lab: Lab) -> None:
    """Live: the resident model computes with the kind."""
    page = watched.page
    busiest = lab.alice.get("/features", sae=lab.sae["id"], ordering="-density")["results"][0]
    spread = lab.alice.get(f"/features/{busiest['id']}")["details"]["more"]["spread"]
    assert 0 < spread <= 1
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/features/{busiest['id']}")
    expect(page.get_by_test_id("analysis-spread")).to_contain_text("Spread")
    page.goto(f"{lab.site.url}/projects/{lab.project['id']}/lab?model={lab.model['id']}&add={busiest['id']}")
    page.get_by_test_id("prompt").fill(PROMPT)
    card = page.get_by_test_id("edit-card")
    choose(page, card.get_by_test_id("operation"), "Cap")
    card.get_by_test_id("strength").fill("-4")  # below zero it acts everywhere
    wait_for_bars(page, moved=True)
    watched.shot("outside-kind")
    card.get_by_test_id("strength").fill("100")
    wait_for_bars(page, moved=False)
