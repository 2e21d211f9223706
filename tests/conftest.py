"""Fixtures of the portal's tests."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Read when huggingface_hub is imported: no test asks the Hub, or waits for an answer from it.
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.running import Lab, lab, site  # noqa: F401 (fixtures)

# The same examples on every machine; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("steady", derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("explore")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# What may be skipped.
pytest_plugins = ["tests.skips"]

PEOPLE = ("anonymous", "outsider", "viewer", "editor", "owner", "staff")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember failures for :func:`lab_as_it_was`."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def lab_as_it_was(request):
    """A failed test leaves the shared lab usable for the next."""
    yield
    made = request.node.funcargs.get("lab")
    if isinstance(made, Lab) and request.node.stash.get(FAILED, False):
        made.mend()


@pytest.fixture
def files(settings):
    """Every folder of the portal, below one that vanishes with the test."""
    with tempfile.TemporaryDirectory(prefix="workbench-files-") as folder:
        yield place_files(Path(folder), settings)


def place_files(tmp_path: Path, settings: Any) -> Path:
    """Point the settings at a folder and offer one built-in corpus."""
    settings.WORKBENCH_DATA_DIR = tmp_path
    settings.WORKBENCH_ARTIFACT_DIR = tmp_path / "artifacts"
    settings.WORKBENCH_JOB_DIR = tmp_path / "jobs"
    settings.WORKBENCH_RUN_DIR = tmp_path / "run"
    settings.WORKBENCH_LOG_DIR = tmp_path / "logs"
    settings.ACTIVATION_DATA_DIR = tmp_path / "artifacts" / "recording"
    settings.SAE_CACHE_DIR = tmp_path / "artifacts" / "sae"
    settings.WORKBENCH_MODEL_DIRS = (tmp_path / "models",)
    settings.WORKBENCH_CORPUS_DIRS = (tmp_path / "corpora",)
    (tmp_path / "models").mkdir()
    (tmp_path / "corpora" / "words").mkdir(parents=True)
    (tmp_path / "corpora" / "words" / "a.txt").write_text("some text")
    return tmp_path


@dataclasses.dataclass
class World:
    """One project with one of everything, and people around it."""

    project: Any
    people: dict[str, Any]
    model: Any
    corpus: Any
    recording: Any
    sae: Any
    evaluation: Any
    analysis: Any
    feature: Any
    patch: Any
    job: Any
    failed_job: Any
    artifact: Any
    upload: Any
    export: Any
    blocked: Any
    adapter: Any
    graph: Any
    comment: Any
    guest: Any
    token: Any
    pipeline: Any
    broken_pipeline: Any
    webhook: Any
    delivery: Any
    invitation: Any


@pytest.fixture
def make_world(db, files):
    """Builds worlds."""
    return build_world


@pytest.fixture
def world(make_world) -> World:
    """One world."""
    return make_world()


@pytest.fixture
def foreign(make_world) -> World:
    """Another one, to which nobody of the first belongs."""
    return make_world()


def build_world() -> World:
    from django.utils import timezone

    from apps.accounts.secrets import digest_of
    from tests import factories as f

    project = f.ProjectFactory()
    people: dict[str, Any] = {"anonymous": None, "outsider": f.UserFactory()}
    for role in ("viewer", "editor", "owner"):
        people[role] = f.MembershipFactory(project=project, role=role).user
    people["staff"] = f.UserFactory(is_staff=True, is_superuser=True)
    model = f.LanguageModelFactory(project=project)
    corpus = f.CorpusFactory(project=project)
    recording = f.RecordingFactory(model=model, corpus=corpus)
    sae = f.SaeFactory(recording=recording)
    evaluation = f.EvaluationFactory(sae=sae)
    analysis = f.AnalysisFactory(sae=sae)
    webhook = f.WebhookFactory(project=project, created_by=people["owner"], enabled=True)
    pipeline = f.PipelineFactory(project=project, created_by=people["owner"])
    broken_pipeline = f.PipelineFactory(project=project, created_by=people["owner"])
    job = f.JobFactory(project=project, created_by=people["owner"], pipeline=pipeline)
    failed_job = f.JobFactory(
        project=project,
        created_by=people["owner"],
        pipeline=broken_pipeline,
        state="failed",
        finished_at=timezone.now(),
        error_code="x",
    )
    patch = f.PatchFactory(model=model, plan=f.stored(f.plan_for(sae)))
    export = f.ExportFactory(patch=patch, gate="passed", recording=recording)
    f.CertificateFactory(export=export)
    graph = f.GraphFactory(model=model, sae=sae, created_by=people["owner"], comments__author=people["owner"])
    blocked = f.ExportFactory(patch=patch, gate="blocked", recording=recording)
    f.CertificateFactory(export=blocked, passed=False)
    return World(
        project=project,
        people=people,
        model=model,
        corpus=corpus,
        recording=recording,
        sae=sae,
        evaluation=evaluation,
        analysis=analysis,
        feature=sae.features.get(index=3),
        patch=patch,
        job=job,
        failed_job=failed_job,
        pipeline=pipeline,
        broken_pipeline=broken_pipeline,
        webhook=webhook,
        delivery=f.DeliveryFactory(webhook=webhook, state="failed"),
        artifact=evaluation.artifact,
        upload=f.UploadFactory(created_by=people["owner"]),
        export=export,
        blocked=blocked,
        adapter=f.AdapterFactory(model=model),
        graph=graph,
        comment=graph.comments.get(),
        guest=f.MembershipFactory(project=project, role="viewer").user,
        token=f.ApiTokenFactory(user=people["owner"]),
        invitation=f.InvitationFactory(project=project, digest=digest_of(f"link-{project.pk}")),
    )


@pytest.fixture
def client_of(world):
    """A signed-in API client by the name of the person."""
    from rest_framework.test import APIClient

    def make(person: str | Any) -> APIClient:
        user = world.people[person] if isinstance(person, str) else person
        client = APIClient()
        if user is not None:
            client.force_login(user)
        return client

    return make


@pytest.fixture
def client_with():
    """An API client with a token, which it makes: for a user, with scopes, bound to a project if wanted."""
    from rest_framework.test import APIClient

    from apps.accounts.tokens import create_token

    def make(user: Any, *scopes: str, project: Any = None) -> APIClient:
        token, secret = create_token(
            actor=user, name="t", scopes=scopes, project_id=project.pk if project is not None else None
        )
        client = APIClient(headers={"Authorization": f"Bearer {secret}"})
        client.token = token
        return client

    return make


@pytest.fixture
def editor(client_of):
    """The editor's client."""
    return client_of("editor")
