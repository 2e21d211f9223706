"""Rows and files for tests, one factory per model."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import factory
import msgspec
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.accounts.models import ApiToken, User
from apps.artifacts import storage
from apps.artifacts.models import Artifact, Upload
from apps.core.ids import uuid7
from apps.features.details import rows_of
from apps.features.models import Analysis, Feature
from apps.graphs.models import Graph, GraphComment
from apps.jobs.models import Job, Pipeline, WorkerNode
from apps.live.models import ResidentWorker
from apps.notifications.models import Delivery, Notification, Preference, Webhook
from apps.patches.models import Adapter, Certificate, Export, Patch, PatchVersion
from apps.projects.models import Invitation, Membership, Project, Quota, Role
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.saes.models import Evaluation, Sae
from microscope import graphs as g
from microscope.params import EditPlan

PASSWORD = "a long enough password"


class UserFactory(DjangoModelFactory):
    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"person{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.org")
    password = factory.django.Password(PASSWORD)


class ApiTokenFactory(DjangoModelFactory):
    """A token nobody knows the secret of; ``create_token`` makes usable ones."""

    class Meta:
        model = ApiToken

    user = factory.SubFactory(UserFactory)
    name = factory.Sequence(lambda n: f"token{n}")
    key = factory.Sequence(lambda n: f"{n:012d}")
    digest = "0" * 64
    scopes = factory.LazyFunction(lambda: ["read"])


class ProjectFactory(DjangoModelFactory):
    class Meta:
        model = Project

    name = factory.Sequence(lambda n: f"Project {n}")
    slug = factory.Sequence(lambda n: f"project-{n}")


class MembershipFactory(DjangoModelFactory):
    class Meta:
        model = Membership

    project = factory.SubFactory(ProjectFactory)
    user = factory.SubFactory(UserFactory)
    role = Role.OWNER


class InvitationFactory(DjangoModelFactory):
    """An invitation nobody knows the link of; ``invite`` makes usable ones."""

    class Meta:
        model = Invitation

    project = factory.SubFactory(ProjectFactory)
    email = factory.Sequence(lambda n: f"invited{n}@example.org")
    role = Role.EDITOR
    digest = factory.Sequence(lambda n: f"{n:064d}")


class QuotaFactory(DjangoModelFactory):
    class Meta:
        model = Quota


class ArtifactFactory(DjangoModelFactory):
    """Really writes its files; pass ``content={"name": b"…"}``."""

    class Meta:
        model = Artifact

    class Params:
        content: dict[str, bytes] = {"data.bin": bytes(range(256)) * 16}

    project = factory.SubFactory(ProjectFactory)
    kind = Artifact.Kind.OTHER
    path = factory.LazyFunction(lambda: f"00/{uuid7()}")

    @factory.lazy_attribute
    def files(self) -> list[dict[str, Any]]:
        folder = storage.root_of(self.kind) / self.path
        folder.mkdir(parents=True)
        for name, data in self.content.items():
            (folder / name).write_bytes(data)
        return storage.list_files(folder)

    bytes = factory.LazyAttribute(lambda artifact: sum(entry["bytes"] for entry in artifact.files))


class UploadFactory(DjangoModelFactory):
    """Announced; pass ``content`` for one that is there already."""

    class Meta:
        model = Upload
        skip_postgeneration_save = True

    created_by = factory.SubFactory(UserFactory)
    path = "data.bin"
    bytes = 10
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(hours=1))

    @factory.post_generation
    def content(self, create: bool, extracted: bytes | None, **kwargs: Any) -> None:
        storage.upload_root().mkdir(parents=True, exist_ok=True)
        self.local_path.write_bytes(extracted or b"")
        if extracted is not None:
            self.bytes = len(extracted)
            self.save()


class WorkerNodeFactory(DjangoModelFactory):
    class Meta:
        model = WorkerNode

    host = "test-host"
    pid = factory.Sequence(lambda n: 100_000 + n)
    process_started = 1.0


class LanguageModelFactory(DjangoModelFactory):
    class Meta:
        model = LanguageModel

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"model{n}")
    source = LanguageModel.Source.HUB
    reference = "owner/name"
    state = ResultState.READY
    facts = factory.LazyFunction(lambda: {"n_layers": 4, "d_model": 32, "family": "llama"})


class PipelineFactory(DjangoModelFactory):
    class Meta:
        model = Pipeline

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"pipeline{n}")


class JobFactory(DjangoModelFactory):
    """A queued probe about a model of its project."""

    class Meta:
        model = Job

    project = factory.SubFactory(ProjectFactory)
    kind = "probe"
    title = "Count"
    subject_type = "languagemodel"
    subject_id = factory.LazyFunction(uuid7)
    params = factory.LazyFunction(lambda: {"count": 10, "delay": 0.02, "stubborn": False, "behaviour": ""})


class CorpusFactory(DjangoModelFactory):
    class Meta:
        model = Corpus

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"corpus{n}")
    kind = Corpus.Kind.HUB_DATASET
    reference = "owner/texts"
    state = ResultState.READY


class RecordingFactory(DjangoModelFactory):
    class Meta:
        model = Recording

    model = factory.SubFactory(LanguageModelFactory)
    project = factory.SelfAttribute("model.project")
    corpus = factory.SubFactory(CorpusFactory, project=factory.SelfAttribute("..project"))
    name = factory.Sequence(lambda n: f"recording{n}")
    layers = factory.LazyFunction(lambda: [1, 2])
    sites = factory.LazyFunction(lambda: ["resid_post"])
    tokens = 1000
    state = ResultState.READY
    artifact = factory.SubFactory(
        ArtifactFactory, project=factory.SelfAttribute("..project"), kind="recording"
    )


class SaeFactory(DjangoModelFactory):
    class Meta:
        model = Sae

    recording = factory.SubFactory(RecordingFactory)
    project = factory.SelfAttribute("recording.project")
    model = factory.SelfAttribute("recording.model")
    name = factory.Sequence(lambda n: f"sae{n}")
    architecture = "topk"
    layer = 2
    site = "resid_post"
    width = 64
    k = 4
    state = ResultState.READY
    fingerprint = factory.LazyFunction(lambda: hashlib.sha256(uuid7().bytes).hexdigest()[:32])
    artifact = factory.SubFactory(ArtifactFactory, project=factory.SelfAttribute("..project"), kind="sae")


class EvaluationFactory(DjangoModelFactory):
    class Meta:
        model = Evaluation

    sae = factory.SubFactory(SaeFactory)
    metrics = factory.LazyFunction(lambda: {"fvu": 0.12, "l0": 32.0, "ce_recovered": None})
    goals = factory.LazyFunction(
        lambda: [{"name": "FVU", "value": 0.12, "limit": 0.15, "passed": True, "formula": "…"}]
    )
    artifact = factory.SubFactory(
        ArtifactFactory,
        project=factory.SelfAttribute("..sae.project"),
        kind="evaluation",
        content={"report.html": b"<h1>Report</h1>", "report.json": b"{}"},
    )


def details_line(index: int, **values: Any) -> dict[str, Any]:
    """A line of ``details.jsonl`` as the engine writes it."""
    density = values.get("density", (index * 37 % 101) / 1000)
    return {
        "index": index,
        "density": density,
        "firings": int(density * 1000),
        "max_activation": float(index % 13),
        "mean_activation": 0.5,
        "p999": float(index % 7),
        "dead": density == 0,
        "histogram": [1, 2, 3],
        "top_tokens": [{"token": index, "text": f" tok{index}", "mean": 1.0, "count": 2}],
        "promoted": [{"token": 7, "text": " Paris", "weight": 0.5}],
        "suppressed": [{"token": 8, "text": " Rome", "weight": -0.5}],
        "examples": [{"doc": 0, "pos": 3, "peak": 1, "max": 2.0, "texts": ["a", " b"], "values": [0.0, 2.0]}],
        "decoder_norm": 1.0,
        "encoder_decoder_cosine": 0.9,
        "decoder_neighbours": [{"index": (index + 1) % 12, "cosine": 0.5}],
        "partners": [{"index": (index + 2) % 12, "share": 0.25, "lift": 4.0}],
        **values,
    }


def details_file(n: int) -> bytes:
    """A whole ``details.jsonl``."""
    return b"".join(json.dumps(details_line(i)).encode() + b"\n" for i in range(n))


class AnalysisFactory(DjangoModelFactory):
    """With its features, read from a real details file."""

    class Meta:
        model = Analysis
        skip_postgeneration_save = True

    sae = factory.SubFactory(SaeFactory)
    n_features = 12
    dead = 1
    tokens = 1000
    manifest = factory.LazyFunction(lambda: {"tokens": 1000, "histogram_bins": 3})
    artifact = factory.SubFactory(
        ArtifactFactory,
        project=factory.SelfAttribute("..sae.project"),
        kind="analysis",
        content=factory.LazyFunction(lambda: {"details.jsonl": details_file(12)}),
    )

    @factory.post_generation
    def features(self, create: bool, extracted: Any, **kwargs: Any) -> None:
        Feature.objects.bulk_create(rows_of(Path(self.artifact.checkout() / "details.jsonl"), self.sae_id))


def plan_for(sae: Sae, index: int = 3, **values: Any) -> dict[str, Any]:
    """A plan with one edit of a feature."""
    edit = {
        "kind": "scale",
        "site": f"{sae.site}.{sae.layer}",
        "feature": {"sae": sae.fingerprint, "index": index},
        "strength": 0.5,
        **values,
    }
    return {"edits": [edit]}


def stored(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as a patch keeps it: complete, defaults included."""
    return json.loads(msgspec.json.encode(msgspec.convert(plan, type=EditPlan)))


class PatchFactory(DjangoModelFactory):
    class Meta:
        model = Patch
        skip_postgeneration_save = True

    model = factory.SubFactory(LanguageModelFactory)
    project = factory.SelfAttribute("model.project")
    name = factory.Sequence(lambda n: f"patch{n}")
    plan = factory.LazyFunction(lambda: {"edits": [], "version": 1})

    @factory.post_generation
    def first_version(self, create: bool, extracted: Any, **kwargs: Any) -> None:
        PatchVersion.objects.create(
            patch=self, version=1, name=self.name, plan=self.plan, enabled=self.enabled, change="created"
        )


class WebhookFactory(DjangoModelFactory):
    class Meta:
        model = Webhook

    project = factory.SubFactory(ProjectFactory)
    url = "https://hooks.example.org/there"
    events = factory.LazyFunction(lambda: ["job.cancelled"])
    secret = "whsec_secret"
    enabled = False


class NotificationFactory(DjangoModelFactory):
    class Meta:
        model = Notification

    user = factory.SubFactory(UserFactory)
    kind = "job.failed"
    title = "It failed"


class PreferenceFactory(DjangoModelFactory):
    class Meta:
        model = Preference

    user = factory.SubFactory(UserFactory)


class DeliveryFactory(DjangoModelFactory):
    class Meta:
        model = Delivery

    webhook = factory.SubFactory(WebhookFactory)
    event = "ping"


class ExportFactory(DjangoModelFactory):
    """A finished export that has not been measured."""

    class Meta:
        model = Export

    patch = factory.SubFactory(PatchFactory)
    project = factory.SelfAttribute("patch.project")
    patch_version = 1
    plan = factory.SelfAttribute("patch.plan")
    fingerprint = "f" * 32
    target = "merged"
    grade = "exact"
    state = ResultState.READY
    artifact = factory.SubFactory(
        ArtifactFactory,
        project=factory.SelfAttribute("..project"),
        kind="patch_export",
        content={"model.safetensors": b"weights", "export.json": b"{}"},
    )


def gates(*, passed: bool) -> list[dict[str, Any]]:
    """Gates of a certificate, one of them failed or not."""
    kl = 0.001 if passed else 0.3
    return [
        {"name": "Same logits", "value": 1e-6, "limit": 1e-4, "passed": True, "formula": "…"},
        {"name": "Collateral", "value": kl, "limit": 0.02, "passed": passed, "formula": "…"},
    ]


class CertificateFactory(DjangoModelFactory):
    """A finished certificate; ``passed=False`` for one that blocks."""

    class Meta:
        model = Certificate

    export = factory.SubFactory(ExportFactory)
    passed = True
    state = ResultState.READY
    report = factory.LazyAttribute(lambda c: {"gates": gates(passed=c.passed), "passed": c.passed})
    artifact = factory.SubFactory(
        ArtifactFactory,
        project=factory.SelfAttribute("..export.project"),
        kind="certificate",
        content={"certificate.json": b"{}", "certificate.html": b"<h1>Certificate</h1>"},
    )


def document_for(model: LanguageModel, sae: Sae | None = None, **values: Any) -> g.Graph:
    """A small sound graph: a token explained by one feature of the SAE, or by the embedding alone."""
    parent = f"{sae.site}.{sae.layer}:3@0" if sae is not None else ""
    nodes = [g.Node(id="target", kind="target", layer=4, position=1, value=2.0)]
    edges, saes = [], []
    if sae is not None:
        site = f"{sae.site}.{sae.layer}"
        saes = [
            g.GraphSae(
                fingerprint=sae.fingerprint, name=sae.name, site=site, site_out=site, n_latents=sae.width
            )
        ]
        nodes.append(
            g.Node(
                id=parent,
                kind="feature",
                layer=sae.layer,
                position=0,
                site=site,
                sae=sae.fingerprint,
                index=3,
                hop=1,
                activation=1.5,
                value=1.5,
            )
        )
        edges = [
            g.Edge(
                parent=parent,
                child="target",
                attribution=0.5,
                hop=1,
                verified=True,
                verdict="causal",
                measured=0.4,
                parts=(g.Part(kind="mlp", layer=sae.layer + 1, attribution=0.5),),
            )
        ]
    return g.Graph(
        **{
            "model": model.name,
            "model_fingerprint": model.fingerprint or "f" * 32,
            "prompt": "one two",
            "tokens": (g.GraphToken(token=1, text="one"), g.GraphToken(token=2, text=" two")),
            "target": g.GraphTarget(kind="token", token=7, position=1),
            "n_layers": 4,
            "saes": tuple(saes),
            "nodes": tuple(nodes),
            "edges": tuple(edges),
            "components": (g.Component(kind="embedding", attribution=2.0),),
            "completeness": 1.0,
            "summary": g.Summary(depth=len(edges), measured=len(edges), verified=len(edges)),
            **values,
        }
    )


class GraphFactory(DjangoModelFactory):
    """A finished graph with its document."""

    class Meta:
        model = Graph
        skip_postgeneration_save = True

    class Params:
        sae = None

    model = factory.SubFactory(LanguageModelFactory)
    project = factory.SelfAttribute("model.project")
    name = factory.Sequence(lambda n: f"graph{n}")
    source = Graph.Source.LIVE
    state = ResultState.READY
    prompt = "one two"
    target = factory.LazyFunction(
        lambda: msgspec.to_builtins(g.GraphTarget(kind="token", token=7, position=1))
    )
    saes = factory.LazyAttribute(lambda row: [row.sae.fingerprint] if row.sae is not None else [])
    artifact = factory.SubFactory(
        ArtifactFactory,
        project=factory.SelfAttribute("..project"),
        kind="graph",
        content=factory.LazyAttribute(
            lambda artifact: {
                "graph.json": msgspec.json.encode(
                    document_for(artifact.factory_parent.model, artifact.factory_parent.sae)
                )
            }
        ),
    )

    @factory.post_generation
    def comments(self, create: bool, extracted: Any, **kwargs: Any) -> None:
        GraphComment.objects.create(graph=self, text="Look at this", author=kwargs.get("author"))


class AdapterFactory(DjangoModelFactory):
    class Meta:
        model = Adapter

    model = factory.SubFactory(LanguageModelFactory)
    project = factory.SelfAttribute("model.project")
    name = factory.Sequence(lambda n: f"adapter{n}")
    state = ResultState.READY
    fingerprint = factory.LazyFunction(lambda: hashlib.sha256(uuid7().bytes).hexdigest()[:32])
    artifact = factory.SubFactory(ArtifactFactory, project=factory.SelfAttribute("..project"), kind="adapter")


class ResidentWorkerFactory(DjangoModelFactory):
    class Meta:
        model = ResidentWorker

    model = factory.SubFactory(LanguageModelFactory)
    state = ResidentWorker.State.STOPPED
    heartbeat_at = factory.LazyFunction(timezone.now)
