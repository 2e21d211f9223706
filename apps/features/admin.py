"""Features in the administration."""

from __future__ import annotations

from django.contrib import admin

from apps.core.admin import RecordAdmin
from apps.features.models import Analysis, Feature


@admin.register(Analysis)
class AnalysisAdmin(RecordAdmin):
    """Analyses of all SAEs."""

    list_display = ("sae", "n_features", "dead", "tokens", "created_at")
    list_select_related = ("sae",)


@admin.register(Feature)
class FeatureAdmin(RecordAdmin):
    """Features people named or starred, of all SAEs."""

    list_display = ("index", "sae", "label", "starred", "density", "max_activation", "dead")
    list_filter = ("starred", "dead", ("sae", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("sae",)
    search_fields = ("label",)
