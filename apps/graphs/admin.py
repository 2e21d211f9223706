"""Graphs in the administration."""

from __future__ import annotations

from django.contrib import admin

from apps.core.admin import ReadOnlyInline, RecordAdmin
from apps.graphs.models import Graph, GraphComment


class GraphCommentInline(ReadOnlyInline):
    """Comments on a graph."""

    model = GraphComment
    fields = ("author", "text", "created_at")
    readonly_fields = fields


@admin.register(Graph)
class GraphAdmin(RecordAdmin):
    """Graphs of all projects."""

    list_display = ("name", "project", "model", "source", "state", "depth", "verified", "created_by")
    list_filter = ("source", "state", "project")
    list_select_related = ("project", "model", "created_by")
    search_fields = ("name", "prompt")
    inlines = (GraphCommentInline,)
