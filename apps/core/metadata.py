"""What OPTIONS answers. The fields of every request and answer are in the schema, for those who may see them or not."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from rest_framework.metadata import BaseMetadata
from rest_framework.request import Request


class Metadata(BaseMetadata):
    """Name and methods of an address, the same for every view and every person."""

    def determine_metadata(self, request: Request, view: Any) -> dict[str, Any]:
        """``{name, methods, schema}``."""
        return {
            "name": view.get_view_name(),
            "methods": [method for method in view.allowed_methods if method != "OPTIONS"],
            "schema": reverse("schema"),
        }
