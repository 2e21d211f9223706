"""Which graphs a user may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db.models import Count, OuterRef, Subquery
from django.db.models.functions import Coalesce

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.graphs.models import Graph, GraphComment  # noqa: F401


class GraphQuerySet(InProject["Graph"]):
    """Graphs of projects."""

    def for_display(self) -> Self:
        """With what a list names, and without what only the page of one graph shows."""
        from apps.graphs.models import GraphComment

        said = GraphComment.objects.filter(graph=OuterRef("pk")).order_by().values("graph")
        counted = Subquery(said.annotate(n=Count("pk")).values("n"))
        shown = self.select_related("model", "created_by", "job").defer("view")
        return shown.annotate(n_comments=Coalesce(counted, 0))


class GraphCommentQuerySet(InProject["GraphComment"]):
    """Comments on graphs of projects."""

    project_path = "graph__project"
