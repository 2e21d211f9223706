"""Rows of a new project, made from the document of a bundle. Nothing in the document is trusted."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import JSONField, Model

from apps.artifacts import services as artifacts
from apps.artifacts.models import Artifact
from apps.bundles.sections import SECTIONS, Section
from apps.core.errors import MicroscopeError, Refused
from apps.core.ids import uuid7
from apps.features.details import rows_of
from apps.features.models import Analysis, Feature
from apps.graphs.documents import DOCUMENT, columns_of, read_file
from apps.graphs.models import Graph
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.registry import references
from apps.registry.models import LanguageModel, ResultState
from microscope.params import EditPlan
from microscope.params.features import DETAILS, AddedAnalysis

_BATCH = 2000


class Row(msgspec.Struct, frozen=True):
    """What every row has."""

    id: str
    created_at: datetime


class Said(msgspec.Struct, frozen=True):
    """What people have said about a feature."""

    sae: str
    index: int
    label: str
    starred: bool


class Described(msgspec.Struct, frozen=True):
    """The project as it was."""

    name: str
    description: str = ""


class Added(msgspec.Struct, frozen=True):
    """The part of an analysis's manifest that is shown."""

    analyses: list[AddedAnalysis] = []


class Listed(msgspec.Struct, frozen=True):
    """Files of an artifact, checked by the job that unpacked them."""

    kind: str
    files: list[dict[str, Any]]


class Document(msgspec.Struct, frozen=True):
    """The parts of ``bundle.json`` that make rows."""

    project: Described
    rows: dict[str, list[dict[str, Any]]]
    artifacts: dict[str, Listed]
    features: list[Said] = []
    left_out: dict[str, int] = {}


@dataclasses.dataclass
class Restored:
    """Everything that will be inserted, with new ids; nothing is in the database yet.

    ``files`` are the names, kinds, paths and listings of folders, ``files_of`` the name of a row's folder.
    """

    description: str
    rows: list[tuple[Section, Model, datetime]]
    later: list[tuple[Model, str, UUID]]
    features: dict[UUID, list[Feature]]
    files: list[tuple[UUID, str, Path, list[dict[str, Any]]]]
    files_of: dict[UUID, UUID]
    warnings: list[str]


def read(job: Job, folder: Path) -> Restored:
    """Make rows of an unpacked bundle.

    Raises:
        Refused: ``bad_bundle``.
    """
    try:
        document = msgspec.json.decode((folder / "bundle.json").read_bytes(), type=Document)
        return _Reader(job, folder, document).read()
    except (msgspec.MsgspecError, ValidationError, KeyError, ValueError, TypeError) as error:
        said = "; ".join(error.messages) if isinstance(error, ValidationError) else str(error)
        raise _bad(said) from error


def _bad(reason: str) -> Refused:
    return Refused("bad_bundle", f"This is no sound project bundle: {reason[:300]}.", "Export it again.")


def _check(row: Model) -> None:
    """Lengths, choices and types of a row's own columns; its links are made here and need no check."""
    left = set()
    for field in row._meta.concrete_fields:
        if isinstance(field, JSONField):
            usual, value = field.get_default(), getattr(row, field.name)
            if usual is not None and not isinstance(value, type(usual)):
                raise _bad(f"{field.name} is no {type(usual).__name__}")
        if isinstance(field, JSONField) or field.is_relation:
            left.add(field.name)
    row.full_clean(exclude=left, validate_unique=False, validate_constraints=False)


class _Reader:
    def __init__(self, job: Job, folder: Path, document: Document) -> None:
        self.job, self.folder, self.document = job, folder, document
        self.ids: dict[str, dict[str, UUID]] = {}
        self.artifact_ids = {key: uuid7() for key in document.artifacts}
        self.unused = set(document.artifacts)
        self.found = Restored(document.project.description[:4000], [], [], {}, [], {}, [])

    def read(self) -> Restored:
        for section in SECTIONS:
            self.ids[section.name] = {}
            for plain in self.document.rows.get(section.name, []):
                self._row(section, plain)
        for section in SECTIONS:
            for plain in self.document.rows.get(section.name, []) if section.later else ():
                self._later(section, plain)
        self._files()
        self._describe()
        for section_name, count in sorted(self.document.left_out.items()):
            self.found.warnings.append(f"{count} of the {section_name} had been left out of the bundle.")
        return self.found

    def _row(self, section: Section, plain: dict[str, Any]) -> None:
        head = msgspec.convert({k: plain[k] for k in ("id", "created_at")}, Row)
        if head.id in self.ids[section.name]:
            raise _bad(f"two rows of {section.name} have one id")
        values: dict[str, Any] = {name: plain[name] for name in section.columns}
        for field, target in section.links.items():
            wanted = plain.get(field)
            values[f"{field}_id"] = None if wanted is None else self.ids[target][wanted]
        if section.in_project:
            values["project_id"] = self.job.project_id
        if section.has_state:
            values["state"] = ResultState.READY
        if section.has_maker:
            values["created_by_id"] = self.job.created_by_id
        if section.model is LanguageModel:
            self._place(values)
        if "plan" in values:
            msgspec.convert(values["plan"], EditPlan)
        if section.model is Analysis:
            msgspec.convert(values["manifest"], Added)
        row = section.model(**values)
        folder = self._artifact(plain.get("artifact")) if section.files else None
        if folder is not None:
            self.found.files_of[row.pk] = folder
        _check(row)
        self.ids[section.name][head.id] = row.pk
        self.found.rows.append((section, row, head.created_at))

    def _later(self, section: Section, plain: dict[str, Any]) -> None:
        mine = self.ids[section.name][plain["id"]]
        row = next(row for _, row, _ in self.found.rows if row.pk == mine)
        for field, target in section.later.items():
            if plain.get(field) is not None:
                self.found.later.append((row, field, self.ids[target][plain[field]]))

    def _artifact(self, key: str | None) -> UUID | None:
        if key is None:
            return None
        if key not in self.unused:
            raise _bad("two rows share their files, or the files are not listed")
        self.unused.discard(key)
        return self.artifact_ids[key]

    def _place(self, values: dict[str, Any]) -> None:
        """Where the model is here: a bundle may name a Hub id, but no path that its importer could not name."""
        if values["source"] == LanguageModel.Source.HUB:
            references.check_hub_id(values["reference"])
            references.check_revision(values["revision"])
            return
        name = Path(str(values["reference"])).name
        try:
            values["reference"] = references.check_path(
                name,
                roots=settings.WORKBENCH_MODEL_DIRS,
                anywhere=False,
                want_file=values["source"] == LanguageModel.Source.GGUF,
            )
        except MicroscopeError:
            values["reference"] = name
            self.found.warnings.append(
                f"The model “{values['name']}” ({name}) is not on this server: put it below "
                f"{', '.join(map(str, settings.WORKBENCH_MODEL_DIRS))} to use it."
            )

    def _files(self) -> None:
        for key, listed in self.document.artifacts.items():
            if key in self.unused:
                continue
            if listed.kind not in Artifact.Kind.values:
                raise _bad(f"there are no files of the kind '{listed.kind[:40]}'")
            folder = self.folder / "artifacts" / key
            self.found.files.append((self.artifact_ids[key], listed.kind, folder, listed.files))

    def _describe(self) -> None:
        """Feature rows, from the files of the analyses and what people have said; graphs by their files."""
        said: dict[tuple[UUID, int], Said] = {}
        for one in self.document.features:
            said[self.ids["saes"][one.sae], one.index] = one
        folder_of = {name: folder for name, _, folder, _ in self.found.files}
        for _section, row, _ in self.found.rows:
            if isinstance(row, Graph):
                document = read_file(folder_of[self.found.files_of[row.pk]] / DOCUMENT)
                for column, value in columns_of(document).items():
                    setattr(row, column, value)  # what its file says, whatever the bundle does
            if not isinstance(row, Analysis):
                continue
            details = folder_of[self.found.files_of[row.pk]] / DETAILS
            features = list(rows_of(details, row.sae_id))
            for feature in features:
                words = said.get((row.sae_id, feature.index))
                if words is not None:
                    feature.label, feature.starred = words.label[:200], words.starred
            self.found.features[row.sae_id] = features


def insert(job: Job, restored: Restored) -> None:
    """Write everything. Call inside the transaction that ends the job; it may be tried again."""
    made: dict[UUID, UUID] = {}
    for name, kind, folder, files in restored.files:
        # An attempt to commit that the database refused may have moved the folder already.
        artifacts.uncommit_folder(kind=kind, name=name, source=folder)
        artifact = artifacts.commit_folder(
            project_id=job.project_id, kind=kind, source=folder, name=name, files=files
        )
        made[name] = artifact.pk
    for section, row, created_at in restored.rows:
        if section.files and row.pk in restored.files_of:
            row.artifact_id = made[restored.files_of[row.pk]]  # type: ignore[attr-defined]
        row.save(force_insert=True)
        manager: Any = section.model._default_manager
        manager.filter(pk=row.pk).update(created_at=created_at)
    for row, field, other in restored.later:
        manager = type(row)._default_manager
        manager.filter(pk=row.pk).update(**{f"{field}_id": other})
    for features in restored.features.values():
        Feature.objects.bulk_create(features, batch_size=_BATCH)
    if restored.description:
        Project.objects.filter(pk=job.project_id, description="").update(description=restored.description)
