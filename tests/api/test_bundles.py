"""What a stranger may write into a bundle, and what never gets into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apps.bundles import restoring
from apps.bundles.document import listing_of
from apps.bundles.sections import SECTIONS
from apps.core.errors import Refused
from apps.graphs.models import Graph, GraphComment
from apps.jobs.models import Job
from apps.registry.models import LanguageModel, Recording, RecordingPart
from apps.saes.models import Sae
from tests.factories import CorpusFactory, ProjectFactory, document_for


@pytest.fixture
def document(world) -> dict[str, Any]:
    listing = listing_of(world.project, recordings=True)
    return json.loads(json.dumps(listing["document"], default=str))


@pytest.fixture
def job(world) -> Job:
    """An import into a project of its own."""
    project = ProjectFactory()
    return Job(project=project, created_by=world.people["owner"], kind="import_project")


def read(job: Job, folder: Path, document: dict[str, Any]) -> restoring.Restored:
    if isinstance(document["rows"], dict):
        document["rows"]["analyses"] = []  # made of files, which this folder has none of
        document["rows"]["graphs"], document["rows"]["graph_comments"] = [], []
    (folder / "bundle.json").write_text(json.dumps(document))
    return restoring.read(job, folder)


def test_it_has_what_is_ready_and_says_what_it_leaves_out(world, document) -> None:
    names = {name: len(found) for name, found in document["rows"].items()}
    assert names["models"] == names["saes"] == names["recordings"] == names["patches"] == 1
    # one export is held back by its gate here, and must not leave by this way
    assert document["left_out"]["exports"] == 1
    assert {row["gate"] for row in document["rows"]["exports"]} <= {"passed", "overridden"}
    assert "password" not in json.dumps(document)


def test_a_model_that_is_a_file_goes_by_its_name(world) -> None:
    """Where it is on this server is nothing to others, who look for it in folders of their own."""
    world.model.source, world.model.reference = "folder", "/srv/lab/models/tiny"
    world.model.save()
    [row] = listing_of(world.project, recordings=True)["document"]["rows"]["models"]
    assert row["reference"] == "tiny"
    world.model.source, world.model.reference = "hub", "owner/tiny"
    world.model.save()
    [row] = listing_of(world.project, recordings=True)["document"]["rows"]["models"]
    assert row["reference"] == "owner/tiny"


# Columns that do not travel: who and when belong to the instance, and some follow from the rest.
STAY = {"id", "created_at", "updated_at", "created_by", "author", "job", "state", "project", "artifact"}
STAY |= {"wanted_loaded", "load_asked_at", "overridden_by", "overridden_at", "host"}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_column_travels_or_is_known_to_stay(section) -> None:
    columns = {field.name for field in section.model._meta.concrete_fields}
    assert columns - STAY == {*section.columns, *section.links, *section.later}


def test_a_recording_of_several_texts_keeps_their_shares(world, job, tmp_path) -> None:
    other = CorpusFactory(project=world.project)
    shares = [(world.corpus, 0.7), (other, 0.3)]
    for position, (corpus, weight) in enumerate(shares):
        RecordingPart.objects.create(
            recording=world.recording, corpus=corpus, weight=weight, position=position
        )
    listing = listing_of(world.project, recordings=True)
    restored = read(job, tmp_path, json.loads(json.dumps(listing["document"], default=str)))
    parts = [row for _, row, _ in restored.rows if isinstance(row, RecordingPart)]
    [recording] = [row for _, row, _ in restored.rows if isinstance(row, Recording)]
    assert [(p.position, p.weight, p.recording_id) for p in parts] == [
        (position, weight, recording.pk) for position, (_, weight) in enumerate(shares)
    ]


def test_a_model_that_came_without_its_file_is_found_once_it_is_there(world, settings) -> None:
    model = LanguageModel(source="folder", reference="brought-later")
    assert model.locate() == "brought-later"
    (settings.WORKBENCH_MODEL_DIRS[0] / "brought-later").mkdir()
    assert model.locate() == str(settings.WORKBENCH_MODEL_DIRS[0] / "brought-later")


def test_without_recordings_the_saes_come_alone(world) -> None:
    document = listing_of(world.project, recordings=False)["document"]
    assert document["rows"]["recordings"] == []
    assert document["rows"]["saes"][0]["recording"] is None
    assert "recording" not in {a["kind"] for a in document["artifacts"].values()}


def test_ids_are_new_and_hang_together(job, document, tmp_path) -> None:
    restored = read(job, tmp_path, document)
    made = {type(row): row for _, row, _ in restored.rows}
    assert str(made[Sae].pk) != document["rows"]["saes"][0]["id"]
    assert made[Sae].model_id == made[LanguageModel].pk
    assert made[Sae].project_id == job.project_id
    assert made[LanguageModel].created_by_id == job.created_by_id


def test_a_path_of_the_other_server_is_looked_for_here_and_never_believed(
    job, document, tmp_path, settings
) -> None:
    document["rows"]["models"][0] |= {"source": "folder", "reference": "/etc"}
    restored = read(job, tmp_path, document)
    [model] = [row for _, row, _ in restored.rows if isinstance(row, LanguageModel)]
    assert model.reference == "etc"
    assert any("is not on this server" in said for said in restored.warnings)
    (settings.WORKBENCH_MODEL_DIRS[0] / "tiny").mkdir()
    document["rows"]["models"][0] |= {"reference": "/another/server/tiny"}
    [model] = [row for _, row, _ in read(job, tmp_path, document).rows if isinstance(row, LanguageModel)]
    assert model.reference == str((settings.WORKBENCH_MODEL_DIRS[0] / "tiny").resolve())


def _another_row(document: dict[str, Any]) -> None:
    document["rows"]["saes"].append(document["rows"]["saes"][0])


def _foreign_link(document: dict[str, Any]) -> None:
    document["rows"]["saes"][0]["model"] = "01900000-0000-7000-8000-000000000000"


def _no_link(document: dict[str, Any]) -> None:
    del document["rows"]["saes"][0]["width"]


def _wrong_type(document: dict[str, Any]) -> None:
    document["rows"]["saes"][0]["width"] = "wide"


def _wrong_plan(document: dict[str, Any]) -> None:
    document["rows"]["patches"][0]["plan"] = {"edits": [{"kind": "scale", "strength": "much"}]}


def _shared_files(document: dict[str, Any]) -> None:
    document["rows"]["recordings"][0]["artifact"] = document["rows"]["saes"][0]["artifact"]


def _unknown_files(document: dict[str, Any]) -> None:
    document["artifacts"][document["rows"]["saes"][0]["artifact"]]["kind"] = "rootkit"


def _wrong_json(document: dict[str, Any]) -> None:
    document["rows"]["saes"][0]["params"] = ["a", "list"]


def _no_rows(document: dict[str, Any]) -> None:
    document["rows"] = []


def _long_name(document: dict[str, Any]) -> None:
    document["rows"]["saes"][0]["name"] = "x" * 500


def _bad_hub_id(document: dict[str, Any]) -> None:
    document["rows"]["models"][0] |= {"source": "hub", "reference": "../../etc"}


@pytest.mark.parametrize(
    "damage",
    [
        _another_row,
        _foreign_link,
        _no_link,
        _wrong_type,
        _wrong_plan,
        _shared_files,
        _unknown_files,
        _no_rows,
        _wrong_json,
        _long_name,
        _bad_hub_id,
    ],
)
def test_a_document_that_is_not_sound_is_refused(job, document, tmp_path, damage) -> None:
    damage(document)
    with pytest.raises(Refused) as refused:
        read(job, tmp_path, document)
    assert refused.value.code in ("bad_bundle", "bad_hub_id")
    assert Sae.objects.filter(project_id=job.project_id).count() == 0


@pytest.mark.parametrize("analyses", [5, ["spread"], [{"name": "spread"}]])
def test_what_pages_of_features_show_of_an_analysis_is_checked(job, document, tmp_path, analyses) -> None:
    document["rows"]["analyses"][0]["manifest"] |= {"analyses": analyses}
    (tmp_path / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(Refused, match="analyses") as refused:
        restoring.read(job, tmp_path)
    assert refused.value.code == "bad_bundle"


def _with_graph(world, document: dict[str, Any], folder: Path, content: bytes) -> None:
    document["rows"]["analyses"] = []
    place = folder / "artifacts" / document["rows"]["graphs"][0]["artifact"]
    place.mkdir(parents=True)
    (place / "graph.json").write_bytes(content)
    document["rows"]["graphs"][0] |= {"depth": 9, "verified": 9, "prompt": "another"}
    (folder / "bundle.json").write_text(json.dumps(document))


def test_a_graph_comes_back_with_its_comments_and_says_what_its_file_says(
    world, job, document, tmp_path
) -> None:
    """Headline figures are not believed: they are made of the file."""
    _with_graph(world, document, tmp_path, msgspec.json.encode(document_for(world.model, world.sae)))
    restored = restoring.read(job, tmp_path)
    rows = {type(row): row for _, row, _ in restored.rows}
    graph = rows[Graph]
    assert (graph.name, graph.depth, graph.verified, graph.prompt) == (world.graph.name, 1, 1, "one two")
    assert graph.model_id == rows[LanguageModel].pk
    assert rows[GraphComment].graph_id == graph.pk
    assert rows[GraphComment].text == world.comment.text


def test_a_graph_whose_file_is_none_is_refused(world, job, document, tmp_path) -> None:
    _with_graph(world, document, tmp_path, b'{"format": "something else"}')
    with pytest.raises(Refused) as refused:
        restoring.read(job, tmp_path)
    assert refused.value.code == "bad_graph"
