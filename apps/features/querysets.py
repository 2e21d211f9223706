"""Which features a user may see, and how they are searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db.models import Q

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.features.models import Analysis, Feature  # noqa: F401


class AnalysisQuerySet(InProject["Analysis"]):
    """Analyses of SAEs of projects."""

    project_path = "sae__project"


class FeatureQuerySet(InProject["Feature"]):
    """Features of SAEs of projects."""

    project_path = "sae__project"

    def matching(self, text: str) -> Self:
        """Features with the text in their label, the tokens they fire on, or those they promote."""
        return self.filter(
            Q(label__icontains=text) | Q(top_tokens_text__icontains=text) | Q(promoted_text__icontains=text)
        )
