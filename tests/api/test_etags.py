"""Two people change the same thing: the slower one is told, whatever it is."""

from __future__ import annotations

import pytest

from apps.audit.models import AuditEvent
from tests.factories import CorpusFactory, GraphFactory, LanguageModelFactory, RecordingFactory, SaeFactory

# What is edited, by whom, and two changes of it.
EDITED = {
    "projects": ("project", "owner", {"name": "one"}, {"description": "two"}),
    "webhooks": ("webhook", "owner", {"enabled": False}, {"events": ["job.failed"]}),
    "models": ("model", "editor", {"name": "one"}, {"name": "two"}),
    "corpora": ("corpus", "editor", {"name": "one"}, {"name": "two"}),
    "recordings": ("recording", "editor", {"name": "one"}, {"name": "two"}),
    "saes": ("sae", "editor", {"name": "one"}, {"name": "two"}),
    "features": ("feature", "editor", {"label": "one"}, {"starred": True}),
    "graphs": ("graph", "editor", {"name": "one"}, {"view": {"pins": ["target"]}}),
    "patches": ("patch", "editor", {"name": "one"}, {"description": "two"}),
}


NAMESAKES = {
    "models": lambda w: LanguageModelFactory(project=w.project, name="theirs"),
    "corpora": lambda w: CorpusFactory(project=w.project, name="theirs"),
    "recordings": lambda w: RecordingFactory(model=w.model, corpus=w.corpus, name="theirs"),
    "saes": lambda w: SaeFactory(recording=w.recording, name="theirs"),
    "graphs": lambda w: GraphFactory(model=w.model, name="theirs"),
}


def error(response) -> dict:
    return response.json()["errors"][0]


@pytest.mark.parametrize("path", EDITED)
def test_the_slower_one_is_told(world, client_of, path) -> None:
    thing, person, first, second = EDITED[path]
    client, url = client_of(person), f"/api/v1/{path}/{getattr(world, thing).pk}"
    before = client.get(url)
    etag = before["ETag"]
    assert etag[0] == etag[-1] == '"'
    changed = client.patch(url, first, headers={"If-Match": etag})
    assert changed.status_code == 200, changed.content
    newest = changed["ETag"]
    assert newest != etag
    stale = client.patch(url, second, headers={"If-Match": etag})
    assert (stale.status_code, error(stale)["code"], stale["ETag"]) == (412, "version_conflict", newest)
    assert client.get(url)["ETag"] == newest, "the stale change left nothing behind"
    weak = client.patch(
        url, second, headers={"If-Match": f"W/{newest}"}
    )  # as a compressing proxy hands it on
    assert weak.status_code == 200, weak.content
    assert client.patch(url, first).status_code == 200, "without the header the last one wins"
    assert client.patch(url, second, headers={"If-Match": "*"}).status_code == 200
    for nonsense in ("abc", '"', '"a b"', "1"):
        refused = client.patch(url, second, headers={"If-Match": nonsense})
        assert (refused.status_code, error(refused)["code"]) == (400, "bad_if_match")


@pytest.mark.parametrize("path", ["models", "corpora", "recordings", "saes", "projects", "features"])
def test_lists_say_the_same_and_machines_change_nothing_about_it(world, client_of, path) -> None:
    thing = EDITED[path][0]
    client, row = client_of("owner"), getattr(world, thing)
    etag = client.get(f"/api/v1/{path}/{row.pk}")["ETag"]
    listed = client.get(f"/api/v1/{path}", {"sae": str(world.sae.pk)} if path == "features" else {})
    shown = {one["id"]: one["etag"] for one in listed.json()["results"]}
    assert shown[str(row.pk)] == etag
    if path in ("recordings", "saes"):
        type(row).objects.filter(pk=row.pk).update(summary={"seconds": 3})
        assert client.get(f"/api/v1/{path}/{row.pk}")["ETag"] == etag


@pytest.mark.parametrize("path", ["models", "corpora", "recordings", "saes"])
def test_names_are_changed_and_taken_ones_refused(world, editor, path) -> None:
    row = getattr(world, EDITED[path][0])
    type(row).objects.filter(pk=row.pk).update(name="mine")
    NAMESAKES[path](world)
    url = f"/api/v1/{path}/{row.pk}"
    refused = editor.patch(url, {"name": "theirs"})
    assert (refused.status_code, error(refused)["code"]) == (400, "name_taken")
    assert editor.patch(url, {"name": ""}).status_code == 400
    assert editor.patch(url, {"name": "ours"}).json()["name"] == "ours"
    event = AuditEvent.objects.get(action__endswith=".renamed", target_id=row.pk)
    assert event.data == {"before": "mine", "after": "ours"}
