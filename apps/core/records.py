"""The abstract base of every model with a public id."""

from __future__ import annotations

from django.db import models

from apps.core.ids import uuid7


class Record(models.Model):
    """A row with a UUIDv7 primary key and its time of creation."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(auto_now_add=True, editable=False)

    class Meta:
        abstract = True
