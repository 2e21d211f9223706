"""What every list and the home page have in common: a constant number of queries, and nothing foreign."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.graphs.models import GraphComment
from apps.jobs.models import JobEvent
from apps.patches.models import PatchVersion
from tests import factories as f

pytestmark = pytest.mark.postgres

LISTS = [
    "projects",
    "jobs",
    "models",
    "corpora",
    "recordings",
    "saes",
    "evaluations",
    "patches",
    "graphs",
    "features",
]


def grow(world) -> None:
    """Three more of everything."""
    for _ in range(3):
        f.MembershipFactory(user=world.people["editor"])
        f.JobFactory(project=world.project, created_by=f.UserFactory(), worker=None)
        model = f.LanguageModelFactory(project=world.project)
        f.ResidentWorkerFactory(model=model)
        recording = f.RecordingFactory(model=model)
        sae = f.SaeFactory(recording=recording)
        f.EvaluationFactory(sae=sae)
        f.AnalysisFactory(sae=sae)
        patch = f.PatchFactory(model=model, plan=f.stored(f.plan_for(sae)), created_by=f.UserFactory())
        f.ExportFactory(patch=patch)
        f.AdapterFactory(model=model)
        f.GraphFactory(model=model, sae=sae, created_by=f.UserFactory())
        f.JobFactory(project=world.project, subject_id=sae.pk)


def queries(client, url: str) -> int:
    """Queries of a list that has been asked for before: the first request of a test also looks up the site's own things,
    and the first one after a change of the queue forecasts it.
    """
    client.get(url)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        response = client.get(url)
    assert response.status_code == 200
    # PostgreSQL is asked for the time once in a few seconds, whichever request comes then.
    return sum("clock_timestamp" not in query["sql"] for query in captured)


@pytest.mark.parametrize("person", ["viewer", "staff"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_cost_the_same_however_long(name, person, world, client_of) -> None:
    url = f"/api/v1/{name}?sae={world.sae.pk}" if name == "features" else f"/api/v1/{name}"
    client = client_of(person)
    before = queries(client, url)
    grow(world)
    assert queries(client, url) == before
    assert before <= 10


# Lists that belong to one thing or one person, below /api/v1.
OF_ONE = {
    "adapters": lambda w: "adapters",
    "exports": lambda w: "exports",
    "pipelines": lambda w: "pipelines",
    "notifications": lambda w: "notifications",
    "tokens": lambda w: "tokens",
    "uploads": lambda w: "uploads",
    "webhooks": lambda w: "webhooks",
    "deliveries": lambda w: f"webhooks/{w.webhook.pk}/deliveries",
    "members": lambda w: f"projects/{w.project.pk}/members",
    "invitations": lambda w: f"projects/{w.project.pk}/invitations",
    "versions": lambda w: f"patches/{w.patch.pk}/versions",
    "comments": lambda w: f"graphs/{w.graph.pk}/comments",
    "events": lambda w: f"jobs/{w.job.pk}/events",
}


def grow_of_one(world, start: int) -> None:
    """Two more of each, about different things and by different people."""
    owner = world.people["owner"]
    for number in (start, start + 1):
        model = f.LanguageModelFactory(project=world.project)
        f.AdapterFactory(model=model)
        patch = f.PatchFactory(model=model, created_by=f.UserFactory())
        f.CertificateFactory(export=f.ExportFactory(patch=patch, gate="passed"))
        pipeline = f.PipelineFactory(project=world.project, created_by=f.UserFactory())
        f.JobFactory(project=world.project, pipeline=pipeline, created_by=f.UserFactory())
        f.NotificationFactory(user=owner, project=f.MembershipFactory(user=owner).project)
        f.ApiTokenFactory(user=owner, project=world.project)
        f.UploadFactory(created_by=owner)
        f.WebhookFactory(project=world.project, created_by=f.UserFactory())
        f.DeliveryFactory(webhook=world.webhook)
        f.MembershipFactory(project=world.project)
        f.InvitationFactory(project=world.project, created_by=f.UserFactory())
        PatchVersion.objects.create(
            patch=world.patch,
            version=number,
            name="n",
            plan=world.patch.plan,
            enabled=False,
            change="updated",
            author=f.UserFactory(),
        )
        GraphComment.objects.create(graph=world.graph, text="Look", author=f.UserFactory())
        JobEvent.objects.create(job=world.job, seq=number, kind=JobEvent.Kind.LOG, message="x")


@pytest.mark.parametrize("name", OF_ONE)
def test_lists_of_one_thing_cost_the_same_however_long(name, world, client_of) -> None:
    url, client = f"/api/v1/{OF_ONE[name](world)}", client_of("owner")
    grow_of_one(world, 50)
    before, rows = queries(client, url), length(client, url)
    grow_of_one(world, 60)
    assert queries(client, url) == before
    assert length(client, url) >= rows + 2
    assert before <= 10


def length(client, url: str) -> int:
    answer = client.get(url).json()
    return len(answer if isinstance(answer, list) else answer.get("results", answer.get("events")))


def test_every_list_is_counted(world, client_of) -> None:
    """Guard of the tests above: a list of the schema that neither names."""
    schema = json.loads((Path(__file__).parents[2] / "apps/api/openapi.json").read_text(encoding="utf-8"))
    lists = {
        path.removeprefix("/api/v1/")
        for path, methods in schema["paths"].items()
        if "get" in methods and is_list(methods["get"], schema)
    }
    named = {*LISTS, *(OF_ONE[name](world) for name in OF_ONE)}
    known = {re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "{id}", name) for name in named}
    # No rows of the database: kinds of jobs and files on the disk; and one line per resource.
    assert lists - known == {
        "job-kinds",
        "edit-kinds",
        "corpora/builtin",
        "me/usage",
        "projects/{id}/usage",
        "patches/{id}/targets",
    }


def is_list(operation, schema) -> bool:
    """Whether it answers with a list, or with a page of one."""
    content = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema", {})
    if "$ref" in content:
        content = schema["components"]["schemas"][content["$ref"].rpartition("/")[2]]
    return content.get("type") == "array" or "results" in content.get("properties", {})


def test_home_page_costs_the_same_however_large(world, editor) -> None:
    url = f"/api/v1/projects/{world.project.pk}/lineage"
    before = queries(editor, url)
    grow(world)
    assert queries(editor, url) == before


def test_lineage_is_one_picture(world, foreign, editor) -> None:
    picture = editor.get(f"/api/v1/projects/{world.project.pk}/lineage").json()
    nodes = {node["id"]: node for node in picture["nodes"]}
    assert {node["type"] for node in nodes.values()} == {
        "model",
        "corpus",
        "recording",
        "sae",
        "evaluation",
        "analysis",
        "adapter",
        "graph",
        "patch",
        "export",
    }
    edges = {(edge["source"], edge["target"]) for edge in picture["edges"]}
    chain = [world.model, world.recording, world.sae, world.patch, world.blocked]
    for source, target in itertools.pairwise(chain):
        assert (str(source.pk), str(target.pk)) in edges
    assert (str(world.sae.pk), str(world.evaluation.pk)) in edges
    assert (str(world.sae.pk), str(world.graph.pk)) in edges
    assert all(source in nodes and target in nodes for source, target in edges)
    assert nodes[str(world.evaluation.pk)]["numbers"]["fvu"] == 0.12
    assert nodes[str(world.evaluation.pk)]["numbers"]["goals_passed"] == 1
    assert (str(world.model.pk), str(world.adapter.pk)) in edges
    assert nodes[str(world.blocked.pk)]["numbers"]["gate"] == "blocked"
    foreign_ids = {str(getattr(foreign, name).pk) for name in ("model", "sae", "patch")}
    assert not foreign_ids & set(nodes)


def test_lineage_shows_the_newest_export_of_each_target_and_where_adapters_go(world, editor) -> None:
    adapted = {"edits": [{"kind": "lora", "adapter": world.adapter.fingerprint, "strength": 0.5}]}
    patch = editor.post(
        "/api/v1/patches", {"model": str(world.model.pk), "name": "adapted", "plan": adapted}, format="json"
    ).json()
    older = f.ExportFactory(patch=world.patch, target="bundle")
    newer = f.ExportFactory(patch=world.patch, target="bundle")
    picture = editor.get(f"/api/v1/projects/{world.project.pk}/lineage").json()
    edges = {(edge["source"], edge["target"]) for edge in picture["edges"]}
    assert (str(world.adapter.pk), patch["id"]) in edges
    assert (str(world.patch.pk), str(newer.pk)) in edges
    assert str(older.pk) not in {node["id"] for node in picture["nodes"]}


def test_lineage_shows_the_newest_job(world, editor) -> None:
    editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {})
    newest = editor.post(f"/api/v1/saes/{world.sae.pk}/analyse", {}).json()["job"]["id"]
    picture = editor.get(f"/api/v1/projects/{world.project.pk}/lineage").json()
    node = next(node for node in picture["nodes"] if node["id"] == str(world.sae.pk))
    assert (node["job"]["id"], node["job"]["state"]) == (newest, "queued")


@pytest.mark.parametrize("name", [n for n in LISTS if n not in ("features", "projects")])
def test_project_filter(name, world, client_of) -> None:
    staff = client_of("staff")
    other = f.ProjectFactory()
    assert staff.get(f"/api/v1/{name}", {"project": str(other.pk)}).json()["count"] == 0
    assert staff.get(f"/api/v1/{name}", {"project": str(world.project.pk)}).json()["count"] >= 1
    assert staff.get(f"/api/v1/{name}", {"project": "x"}).status_code == 400


@pytest.mark.parametrize("name", LISTS)
def test_pages_have_a_limit(name, world, editor) -> None:
    sae = {"sae": str(world.sae.pk)} if name == "features" else {}
    one = editor.get(f"/api/v1/{name}", {**sae, "page_size": 1}).json()
    assert len(one["results"]) == 1


def test_unknown_addresses_and_ids(editor) -> None:
    for url in ("/api/v1/nothing", "/api/v1/models/1", "/api/v1/models/x/load", "/api/v2/models"):
        response = editor.get(url)
        assert response.status_code == 404
        assert response.json()["errors"][0]["code"] == "not_found"
    wrong = editor.put("/api/v1/models", {})
    assert (wrong.status_code, wrong.json()["errors"][0]["hint"]) == (405, "")


def test_health(client, db) -> None:
    answer = client.get("/api/v1/healthz")
    assert answer.status_code == 200
    assert answer.json()["database"] is True
    assert (answer.json()["status"], answer.json()["workers"]) == ("degraded", 0)
