"""The state of the installation for the first page of the administration."""

from __future__ import annotations

from django import template

from apps.api.state import Installation, look

register = template.Library()


@register.simple_tag
def installation() -> Installation:
    """How things are now."""
    return look()
