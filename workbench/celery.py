"""Where Celery's commands find the application. Start a compute worker with ``celery -A workbench worker``."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")

from apps.core.broker import app

__all__ = ["app"]
