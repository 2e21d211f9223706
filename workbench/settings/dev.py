"""One machine: a generated secret, SQLite, an embedded broker. What ``make demo`` and ``make dev`` use."""

from workbench.settings.base import *  # noqa: F403
from workbench.settings.base import SECRET_KEY, WORKBENCH_DATA_DIR
from workbench.settings.env import generated_secret

for _folder in ("artifacts", "jobs", "models", "corpora", "run", "logs"):
    (WORKBENCH_DATA_DIR / _folder).mkdir(parents=True, exist_ok=True)

SECRET_KEY = SECRET_KEY or generated_secret(WORKBENCH_DATA_DIR / "secret_key")
