"""The document of a bundle, made from a project's rows."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from django.utils import timezone

from apps.artifacts.models import Artifact
from apps.bundles.sections import SECTIONS, Section
from apps.features.models import Feature
from apps.projects.models import Project
from apps.registry.models import LanguageModel
from microscope.params.bundles import BUNDLE_FORMAT, BUNDLE_VERSION

Rows = list[dict[str, Any]]


def listing_of(project: Project, *, recordings: bool) -> dict[str, Any]:
    """What is to be packed, and where its files are on this machine.

    Rows are written with their ids, which say how they hang together and nothing else. Without
    recordings the SAEs come alone. Rows whose job has not succeeded, and exports that may not leave, are
    counted in ``left_out``.
    """
    rows: dict[str, Rows] = {}
    known: dict[str, set[str]] = {}
    artifacts: list[Artifact] = []
    left_out: dict[str, int] = {}
    for section in SECTIONS:
        found, all_of_them = _section(section, project, known, recordings)
        rows[section.name] = [row for row, _ in found]
        known[section.name] = {row["id"] for row, _ in found}
        artifacts += [artifact for _, artifact in found if artifact is not None]
        if all_of_them > len(found):
            left_out[section.name] = all_of_them - len(found)
    document = {
        "format": BUNDLE_FORMAT,
        "version": BUNDLE_VERSION,
        "made_at": timezone.now().isoformat(),
        "made_with": importlib.metadata.version("interpretability-workbench"),
        "project": {"name": project.name, "description": project.description},
        "rows": rows,
        "features": _features(project, known["saes"]),
        "left_out": left_out,
        "artifacts": {str(a.pk): {"kind": a.kind, "files": a.files} for a in artifacts},
    }
    return {"document": document, "folders": {str(a.pk): str(Path(a.checkout())) for a in artifacts}}


def _section(
    section: Section, project: Project, known: dict[str, set[str]], recordings: bool
) -> tuple[list[tuple[dict[str, Any], Artifact | None]], int]:
    """Rows with their artifacts, and how many rows there are in all."""
    everything = section.rows(project)
    if section.name == "recordings" and not recordings:
        return [], everything.count()
    chosen = everything.filter(section.wanted)
    if section.files:
        chosen = chosen.select_related("artifact")
    found = []
    for row in chosen.iterator(chunk_size=500):
        plain: dict[str, Any] = {"id": str(row.pk), "created_at": row.created_at.isoformat()}
        plain |= {name: getattr(row, name) for name in section.columns}
        if section.name == "models" and row.source != LanguageModel.Source.HUB:
            plain["reference"] = Path(row.reference).name  # it is looked for by its name elsewhere
        if not _link(plain, row, section, known):
            continue
        for field in section.later:
            other = getattr(row, f"{field}_id")
            plain[field] = str(other) if other else None
        artifact = row.artifact if section.files else None
        if section.files:
            plain["artifact"] = str(artifact.pk) if artifact is not None else None
        found.append((plain, artifact))
    return found, everything.count()


def _link(plain: dict[str, Any], row: Any, section: Section, known: dict[str, set[str]]) -> bool:
    """Write the links; false when the row cannot be without one that stays behind."""
    for field, target in section.links.items():
        other = getattr(row, f"{field}_id")
        here = other is not None and str(other) in known[target]
        if not here and not section.model._meta.get_field(field).null:
            return False
        plain[field] = str(other) if here else None
    return True


def _features(project: Project, saes: set[str]) -> Rows:
    """What people have said about features; everything else is in the files of the analyses."""
    said = Feature.objects.filter(sae__project=project).exclude(label="", starred=False)
    values = said.order_by("sae", "index").values("sae_id", "index", "label", "starred")
    return [
        {"sae": str(v["sae_id"]), "index": v["index"], "label": v["label"], "starred": v["starred"]}
        for v in values
        if str(v["sae_id"]) in saes
    ]
