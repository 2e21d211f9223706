"""SAEs in the administration."""

from __future__ import annotations

from django.contrib import admin

from apps.core.admin import RecordAdmin
from apps.saes.models import Evaluation, Sae


@admin.register(Sae)
class SaeAdmin(RecordAdmin):
    """SAEs of all projects."""

    list_display = (
        "name",
        "project",
        "recording",
        "architecture",
        "layer",
        "width",
        "k",
        "state",
        "created_at",
    )
    list_filter = ("state", "architecture", "project")
    list_select_related = ("project", "recording")
    search_fields = ("name", "fingerprint")


@admin.register(Evaluation)
class EvaluationAdmin(RecordAdmin):
    """Evaluations of all SAEs."""

    list_display = ("sae", "fvu", "created_at")
    list_select_related = ("sae",)
    search_fields = ("sae__name",)

    @admin.display(description="FVU")
    def fvu(self, evaluation: Evaluation) -> str:
        """The headline number."""
        value = evaluation.metrics.get("fvu")
        return "" if value is None else f"{value:.4f}"
