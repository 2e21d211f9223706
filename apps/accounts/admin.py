"""People in the administration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.accounts.models import ApiToken, User
from apps.accounts.services import end_sessions
from apps.accounts.tokens import revoke_token
from apps.audit import services as audit
from apps.core.admin import ReadOnlyAdmin

admin.site.unregister(Group)

if TYPE_CHECKING:
    _UserAdmin = DjangoUserAdmin[User]
else:
    _UserAdmin = DjangoUserAdmin


@admin.register(User)
class UserAdmin(_UserAdmin):
    """Add people, reset passwords, switch accounts off."""

    list_display = ("username", "email", "is_active", "is_staff", "last_login", "date_joined")
    list_filter = ("is_active", "is_staff")
    add_fieldsets = (
        (
            None,
            {
                "classes": ("wide",),
                "fields": ("username", "email", "usable_password", "password1", "password2"),
            },
        ),
    )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save, audit, and end the live connections of an account that was switched off."""
        super().save_model(request, obj, form, change)
        action = "user.changed" if change else "user.created"
        fields = [name for name in form.changed_data if "password" not in name]
        audit.record(actor=request.user, action=action, target=obj, data={"fields": fields})
        if "is_active" in form.changed_data:
            end_sessions(obj)


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """API tokens of everybody; a leaked one can be ended here."""

    list_display = ("name", "key", "user", "scopes", "project", "last_used_at", "expires_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    list_select_related = ("user", "project")
    search_fields = ("name", "key", "user__username")
    exclude = ("digest",)
    actions = ("revoke",)

    @admin.action(description="Revoke")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        """End the tokens and the connections opened with them."""
        for token in queryset:
            revoke_token(actor=cast("User", request.user), token=token)
