"""The pictures of README and docs show the pages as they are now."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Open
from tests.e2e.reading import PROMPT
from tests.running import Lab
from workbench.demo import pictures
from workbench.demo.patching import add_edit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("servers"), pytest.mark.timeout(2700)]
AGAIN = "the pages changed since the pictures were taken: run `make pictures`, look at them, and commit them"


# What the shared laboratory has and the demo has not: a package's analysis, and adapters of other tests.
ONLY_HERE = ("h3: Spread", "combobox: LoRA: which adapter", "button: LoRA: add")


@pytest.fixture
def subjects(lab: Lab) -> Iterator[pictures.Subjects]:
    """A patch of the same kind as the one in the pictures, exported to the same target, and deleted in the end."""
    alice, sae = lab.alice, lab.sae
    feature = alice.get("/features", sae=sae["id"], ordering="-max_activation")["results"][0]
    edit = add_edit(sae, alice.get(f"/features/{feature['id']}"), 2.0)
    patch = alice.post("/patches", {"model": lab.model["id"], "name": "Pictured", "plan": {"edits": [edit]}})
    asked = alice.post(f"/patches/{patch['id']}/export", {"target": "bundle", "params": {}})
    alice.wait(asked["job"]["id"], lambda job: None)
    certificate = alice.get(f"/exports/{asked['export']['id']}")["certificate"]
    alice.wait(certificate["job"], lambda job: None)
    names = (lab.project["name"], lab.recording["name"], sae["name"], patch["name"])
    yield pictures.Subjects(
        lab.project["id"], sae["id"], sae["job"], feature["id"], patch["id"], PROMPT, names
    )
    alice.delete(f"/patches/{patch['id']}")


def test_the_pages_are_those_of_the_pictures(open_page: Open, lab: Lab, subjects: pictures.Subjects) -> None:
    stored = json.loads(pictures.SHOWN.read_text(encoding="utf-8"))["outlines"]
    assert stored.keys() == pictures.PICTURES.keys(), AGAIN
    watched = open_page()
    watched.sign_in("alice")
    changed = {}
    for name, picture in pictures.PICTURES.items():
        pictures.show(watched.page, lab.site.url, picture, subjects)
        watched.shot(f"pictured-{name}")
        shown = pictures.outline(watched.page, picture, subjects)
        now = {line for line in shown if not line.startswith(ONLY_HERE)}
        if now != set(stored[name]):
            changed[name] = {"new": sorted(now - set(stored[name])), "gone": sorted(set(stored[name]) - now)}
    assert changed == {}, AGAIN


def test_a_changed_page_would_be_noticed(open_page: Open) -> None:
    """Another heading, a control less, another label: each gives another outline; other numbers do not."""
    subjects = pictures.Subjects("p", "s", "t", "f", "q", "", ("TopK 96",))
    picture = pictures.PICTURES["lab"]
    page = open_page().page

    def outline(body: str) -> list[str]:
        page.set_content(f"<main>{body}</main>")
        return pictures.outline(page, picture, subjects)

    before = outline("<h1>TopK 96</h1><button>Save 3</button><label>Prompt</label>")
    assert before == ["button: Save #", "h1: …", "label: Prompt"]
    assert outline("<h1>TopK 96</h1><label>Prompt</label><button>Save 1,204.5</button>") == before
    assert outline("<h1>TopK 96</h1><button>Store 3</button><label>Prompt</label>") != before
    assert outline("<h1>TopK 96</h1><button>Save 3</button>") != before
