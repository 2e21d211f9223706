"""What of a project goes into a bundle: one section per kind of row, in the order in which they can be made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from django.db.models import Model, Q, QuerySet

from apps.features.models import Analysis
from apps.graphs.models import Graph, GraphComment
from apps.patches.models import Adapter, Certificate, Export, Gate, Patch, PatchVersion
from apps.projects.models import Project
from apps.registry.models import Corpus, LanguageModel, Recording, RecordingPart, ResultState
from apps.saes.models import Evaluation, Sae


@dataclasses.dataclass(frozen=True)
class Section:
    """One kind of row.

    Args:
        name: its key in the document.
        model: the table.
        project: the way from a row to its project.
        columns: what is written as it is.
        links: foreign keys to rows of earlier sections, by field.
        wanted: which rows go along; the others are counted.
        files: whether the row has an artifact.
        later: foreign keys to rows of later sections, set when those are there.
    """

    name: str
    model: type[Model]
    columns: tuple[str, ...]
    project: str = "project"
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wanted: Q = dataclasses.field(default_factory=Q)
    files: bool = True
    later: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def rows(self, project: Project) -> QuerySet[Any]:
        """The project's rows, oldest first."""
        manager: Any = self.model._default_manager
        found: QuerySet[Any] = manager.filter(**{self.project: project}).order_by("id")
        return found

    @property
    def in_project(self) -> bool:
        """Whether the row names its project itself."""
        return self.project == "project"

    @property
    def has_state(self) -> bool:
        """Whether a job fills the row in."""
        return any(field.name == "state" for field in self.model._meta.concrete_fields)

    @property
    def has_maker(self) -> bool:
        """Whether the row says who made it."""
        return any(field.name == "created_by" for field in self.model._meta.concrete_fields)


_READY = Q(state=ResultState.READY)
_OUT = Q(gate__in=(Gate.PASSED, Gate.OVERRIDDEN))

SECTIONS = (
    Section(
        "models",
        LanguageModel,
        ("name", "source", "reference", "revision", "dtype", "facts", "fingerprint"),
        wanted=_READY,
        files=False,
    ),
    Section(
        "corpora", Corpus, ("name", "kind", "reference", "text_field", "bytes", "documents"), wanted=_READY
    ),
    Section(
        "recordings",
        Recording,
        ("name", "layers", "sites", "tokens", "summary", "fingerprint"),
        links={"model": "models", "corpus": "corpora"},
        wanted=_READY,
    ),
    Section(
        "mixtures",
        RecordingPart,
        ("weight", "position"),
        project="recording__project",
        links={"recording": "recordings", "corpus": "corpora"},
        files=False,
    ),
    Section(
        "saes",
        Sae,
        ("name", "architecture", "layer", "site", "width", "k", "params", "summary", "fingerprint"),
        links={"model": "models", "recording": "recordings"},
        wanted=_READY,
    ),
    Section(
        "evaluations",
        Evaluation,
        ("metrics", "goals", "details"),
        project="sae__project",
        links={"sae": "saes"},
    ),
    Section(
        "analyses",
        Analysis,
        ("n_features", "dead", "tokens", "manifest"),
        project="sae__project",
        links={"sae": "saes"},
    ),
    Section(
        "adapters",
        Adapter,
        ("name", "fingerprint", "summary"),
        links={"model": "models"},
        wanted=_READY,
        later={"patch": "patches"},
    ),
    Section(
        "patches",
        Patch,
        ("name", "description", "plan", "enabled", "version", "fingerprint"),
        links={"model": "models"},
        files=False,
    ),
    Section(
        "versions",
        PatchVersion,
        ("version", "name", "description", "plan", "enabled", "fingerprint", "change"),
        project="patch__project",
        links={"patch": "patches"},
        files=False,
    ),
    Section(
        "graphs",
        Graph,
        (
            *("name", "note", "source", "prompt", "target", "saes", "view"),
            *("depth", "verified", "nodes", "edges", "completeness", "spearman"),
        ),
        links={"model": "models"},
        wanted=_READY,
    ),
    Section(
        "graph_comments",
        GraphComment,
        ("text",),
        project="graph__project",
        links={"graph": "graphs"},
        files=False,
    ),
    # What its gate holds back here must not leave by this way either.
    Section(
        "exports",
        Export,
        (
            *("patch_version", "plan", "fingerprint", "target", "grade"),
            *("params", "manifest", "gate", "override_reason"),
        ),
        links={"patch": "patches", "recording": "recordings"},
        wanted=_READY & _OUT,
    ),
    Section(
        "certificates",
        Certificate,
        ("passed", "report", "params"),
        project="export__project",
        links={"export": "exports"},
        wanted=_READY,
    ),
)
