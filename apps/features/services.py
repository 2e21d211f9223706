"""Analysing SAEs, naming features."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from apps.audit import services as audit
from apps.core.etags import lock_unchanged
from apps.features.models import Feature
from apps.jobs.models import Job
from apps.projects.policies import Action, require
from apps.registry.models import Recording
from apps.saes.models import Sae
from apps.saes.services import start_sae_job


def start_analysis(
    *,
    actor: Any,
    sae: Sae,
    params: dict[str, Any],
    recording: Recording | None = None,
    idempotency_key: str = "",
    **chain: Any,
) -> Job:
    """Describe every feature of an SAE; labels and stars of an earlier analysis stay.

    Args:
        chain: ``after`` and ``pipeline`` as in :func:`apps.saes.services.start_sae_job`.

    Raises:
        Refused: ``sae_not_ready``.
        MicroscopeError: ``bad_parameters``.
    """
    return start_sae_job(
        actor=actor,
        sae=sae,
        kind="analyse",
        title="Analyse features of",
        params=params,
        recording=recording,
        idempotency_key=idempotency_key,
        **chain,
    )


@transaction.atomic
def update_feature(
    *, actor: Any, feature: Feature, changes: dict[str, Any], made_from: str | None = None
) -> Feature:
    """Label or star a feature.

    Args:
        made_from: the ETag the changes were made from.

    Raises:
        Conflict: somebody changed it since.
    """
    project_id = feature.sae.project_id
    require(actor, Action.EDIT, project_id)
    feature = lock_unchanged(feature, made_from)
    before = {name: getattr(feature, name) for name in changes}
    for name, value in changes.items():
        setattr(feature, name, value)
    feature.save(update_fields=list(changes))
    audit.record(
        actor=actor,
        action="feature.changed",
        target=feature,
        project_id=project_id,
        data={"before": before, "after": dict(changes)},
    )
    return feature
