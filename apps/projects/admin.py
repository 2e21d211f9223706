"""Projects in the administration, with what they store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from apps.accounts.admin import UserAdmin
from apps.accounts.models import User
from apps.audit import services as audit
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, RecordAdmin
from apps.projects import quotas
from apps.projects.models import Invitation, Membership, Project, Quota


class MembershipInline(ReadOnlyInline):
    """Members of a project."""

    model = Membership
    fields = ("user", "role", "created_at")
    readonly_fields = fields


@admin.register(Project)
class ProjectAdmin(RecordAdmin):
    """Members and storage of every project."""

    list_display = ("name", "slug", "created_by", "member_count", "storage", "created_at")
    search_fields = ("name", "slug")
    inlines = (MembershipInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        """Projects with their number of members and stored bytes."""
        artifacts = apps.get_model("artifacts", "Artifact")._default_manager
        stored = artifacts.filter(project_id=OuterRef("pk")).values("project_id").annotate(n=Sum("bytes"))
        rows: QuerySet[Project] = super().get_queryset(request)
        return rows.annotate(
            n_members=Count("memberships"), n_bytes=Coalesce(Subquery(stored.values("n")), 0)
        )

    @admin.display(description="members", ordering="n_members")
    def member_count(self, project: Any) -> int:
        """How many belong to it."""
        return int(project.n_members)

    @admin.display(description="storage", ordering="n_bytes")
    def storage(self, project: Any) -> str:
        """How much its artifacts take."""
        return filesizeformat(project.n_bytes)


@admin.register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    """Who was invited where, and what became of it."""

    list_display = ("email", "project", "role", "state", "created_by", "accepted_by", "expires_at")
    list_filter = ("state",)
    list_select_related = ("project", "created_by", "accepted_by")
    search_fields = ("email", "project__name")
    exclude = ("digest",)


if TYPE_CHECKING:
    _QuotaAdmin = admin.ModelAdmin[Quota]
else:
    _QuotaAdmin = admin.ModelAdmin


@admin.register(Quota)
class QuotaAdmin(_QuotaAdmin):
    """Limits of single projects and people. What is left empty is the site's; 0 is no limit."""

    list_display = (
        "__str__",
        "storage_bytes",
        "queued_jobs",
        "running_jobs",
        "compute_seconds",
        "live_sessions",
    )
    list_select_related = ("project", "user")
    search_fields = ("project__name", "user__username")
    autocomplete_fields = ("project", "user")

    def save_model(self, request: HttpRequest, obj: Quota, form: Any, change: bool) -> None:
        """Save and audit."""
        super().save_model(request, obj, form, change)
        data = {
            name: form.cleaned_data[name] for name in form.changed_data if name not in ("project", "user")
        }
        audit.record(
            actor=request.user, action="quota.changed", target=obj, project_id=obj.project_id, data=data
        )

    def delete_model(self, request: HttpRequest, obj: Quota) -> None:
        """Back to the site's limits, audited."""
        audit.record(actor=request.user, action="quota.removed", target=obj, project_id=obj.project_id)
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Quota]) -> None:
        """One by one, so that each is audited."""
        for obj in queryset:
            self.delete_model(request, obj)


admin.site.unregister(User)  # accounts know nothing of quotas; here the page of a person gains what they use


@admin.register(User)
class MeteredUserAdmin(UserAdmin):
    """People, with what they use of their limits."""

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """The page of an existing person ends with their use."""
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj is None else (*fieldsets, ("Use and limits", {"fields": ("usage",)}))

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Use is measured, not entered; limits are changed among the quotas."""
        return (*super().get_readonly_fields(request, obj), "usage")

    @admin.display(description="in all projects")
    def usage(self, person: User) -> SafeString:
        """One line for every resource."""
        rows = quotas.usage_of(quotas.Holder("user", person.pk))
        return format_html_join("", "<div>{}: {}</div>", ((row["title"], _use(row)) for row in rows))


def _use(row: dict[str, Any]) -> str:
    used, limit = (_amount(row[key], row["unit"]) for key in ("used", "limit"))
    unit = row["unit"] if row["unit"] not in ("bytes", "seconds") else ""
    return f"{used} of {limit} {unit}".rstrip() if row["limit"] else f"{used}, no limit"


def _amount(value: int, unit: str) -> str:
    match unit:
        case "bytes":
            return filesizeformat(value)
        case "seconds":
            return f"{value // 3600}:{value // 60 % 60:02}:{value % 60:02} h"
    return f"{value:,}"
