"""Settings shared by every environment, by subject. Every variable is read through ``env``, which documents it."""

from __future__ import annotations

from workbench.logs import logging_config
from workbench.settings.api import *  # noqa: F403
from workbench.settings.data import *  # noqa: F403
from workbench.settings.env import env as env
from workbench.settings.jobs import *  # noqa: F403
from workbench.settings.limits import *  # noqa: F403
from workbench.settings.paths import *  # noqa: F403
from workbench.settings.people import *  # noqa: F403
from workbench.settings.site import *  # noqa: F403

# For `manage.py settings_reference`, which prints every variable that is read here.
ENVIRONMENT = env

LOGGING = logging_config(
    level=env.text("WORKBENCH_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR."),
    json=env.text("WORKBENCH_LOG_FORMAT", "console", "`console` for people, `json` for machines.") == "json",
)
