"""Which SAEs and evaluations a user may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db.models import Prefetch

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.saes.models import Evaluation, Sae  # noqa: F401


class SaeQuerySet(InProject["Sae"]):
    """SAEs of projects."""

    def for_display(self) -> Self:
        """With what a list shows, the newest evaluation and the analysis."""
        from apps.saes.models import Evaluation

        newest = Evaluation.objects.order_by("-id")
        return self.select_related("model", "recording", "artifact", "analysis").prefetch_related(
            Prefetch("evaluations", queryset=newest, to_attr="evaluations_newest_first")
        )


class EvaluationQuerySet(InProject["Evaluation"]):
    """Evaluations of SAEs of projects."""

    project_path = "sae__project"
