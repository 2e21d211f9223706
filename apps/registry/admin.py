"""Models, corpora and recordings in the administration."""

from __future__ import annotations

from django.contrib import admin

from apps.core.admin import ReadOnlyInline, RecordAdmin
from apps.registry.models import Corpus, LanguageModel, Recording, RecordingPart


@admin.register(LanguageModel)
class LanguageModelAdmin(RecordAdmin):
    """Models of all projects."""

    list_display = ("name", "project", "source", "reference", "dtype", "state", "wanted_loaded", "created_at")
    list_filter = ("state", "source", "wanted_loaded", "project")
    list_select_related = ("project",)
    search_fields = ("name", "reference")


@admin.register(Corpus)
class CorpusAdmin(RecordAdmin):
    """Texts of all projects."""

    list_display = ("name", "project", "kind", "reference", "bytes", "documents", "state", "created_at")
    list_filter = ("state", "kind", "project")
    list_select_related = ("project",)
    search_fields = ("name", "reference")


class RecordingPartInline(ReadOnlyInline):
    """The texts a recording mixes."""

    model = RecordingPart
    fields = ("position", "corpus", "weight")
    readonly_fields = fields


@admin.register(Recording)
class RecordingAdmin(RecordAdmin):
    """Recordings of all projects."""

    list_display = ("name", "project", "model", "corpus", "layers", "sites", "tokens", "state", "created_at")
    list_filter = ("state", "project")
    list_select_related = ("project", "model", "corpus")
    search_fields = ("name", "fingerprint")
    inlines = (RecordingPartInline,)
