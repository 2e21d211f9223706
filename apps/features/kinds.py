"""The job whose results live here: describing every feature of an SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import connection

from apps.artifacts import services as artifacts
from apps.artifacts.models import Artifact
from apps.core.errors import Refused
from apps.features.details import rows_of
from apps.features.models import Analysis, Feature
from apps.jobs.kinds import OUT, JobKind, engine
from apps.jobs.models import Job
from apps.saes.kinds import clone_sae_job, load_sae, sae_params
from microscope.params import AnalyseParams
from microscope.params.features import DETAILS

BATCH = 2000
_KEPT = ("id", "sae", "index", "label", "starred", "created_at")


def _prepare(job: Job, workdir: Path) -> dict[str, Any]:
    return {**job.params, **sae_params(load_sae(job)), "out": str(workdir / OUT)}


def _digest(job: Job, result: dict[str, Any], out: Path) -> list[Feature]:
    # Parsed before the transaction, which then only inserts: nobody else can write meanwhile on SQLite.
    path = out / DETAILS
    if not path.is_file():
        raise Refused("bad_analysis", f"The analysis left no {DETAILS}.")
    return list(rows_of(path, job.subject_id))


def _analysed(job: Job, result: dict[str, Any], rows: list[Feature]) -> None:
    assert job.artifact is not None
    manifest = result["analysis"]
    previous = Analysis.objects.select_related("artifact").filter(sae_id=job.subject_id).first()
    Analysis.objects.update_or_create(
        sae_id=job.subject_id,
        defaults={
            "job": job,
            "artifact": job.artifact,
            "n_features": len(rows),
            "dead": sum(row.dead for row in rows),
            "tokens": manifest["tokens"],
            "manifest": manifest,
        },
    )
    columns = [field.name for field in Feature._meta.concrete_fields if field.name not in _KEPT]
    Feature.objects.bulk_create(
        rows, batch_size=BATCH, update_conflicts=True, unique_fields=["sae", "index"], update_fields=columns
    )
    learn_what_is_common()
    if previous is not None:
        artifacts.delete_artifact(previous.artifact)


def learn_what_is_common() -> None:
    """Let SQLite look at how the features' values are spread, without which it chooses indexes blindly; PostgreSQL does
    so by itself.
    """
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {Feature._meta.db_table}")


ANALYSE = JobKind(
    name="analyse",
    title="Analyse features",
    params_type=AnalyseParams,
    command=engine("features"),
    prepare=_prepare,
    digest=_digest,
    on_success=_analysed,
    artifact=Artifact.Kind.ANALYSIS,
    clone=clone_sae_job("analyse", "Analyse features of"),
    hub=True,
)


KINDS = (ANALYSE,)
