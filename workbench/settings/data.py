"""Database, files, broker, and how much may be uploaded."""

from __future__ import annotations

from typing import Any

from workbench.settings.env import artifact_storage, database_config, env
from workbench.settings.paths import WORKBENCH_DATA_DIR

DATABASES = {
    "default": database_config(
        env.text(
            "DATABASE_URL",
            f"sqlite:///{WORKBENCH_DATA_DIR / 'db.sqlite3'}",
            "`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`.",
            shown="db.sqlite3 in the data folder",
        )
    )
}
STORAGES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    **artifact_storage(
        env.text(
            "WORKBENCH_ARTIFACT_STORE",
            "",
            "Empty keeps files in the data folder; `s3://BUCKET/PREFIX` keeps them in S3 or a relative of it "
            "(keys in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`).",
        ),
        env.text("AWS_ENDPOINT_URL", "", "Address of the S3 service when it is not Amazon's."),
    ),
}
REDIS_URL = env.text(
    "REDIS_URL",
    "redis://127.0.0.1:6379/0",
    "Valkey or Redis: wake-ups and live updates only; it may be wiped at any time. `unix://PATH` works too.",
)
CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            # A server that stops answering must not hold up a job or a request that publishes.
            "hosts": [{"address": REDIS_URL, "socket_connect_timeout": 2, "socket_timeout": 5}],
            "prefix": "workbench",
        },
    }
}

WORKBENCH_UPLOAD_MAX_GB = env.integer(
    "WORKBENCH_UPLOAD_MAX_GB", 64, "Largest sum of one person's uploads that no job has taken over yet."
)
WORKBENCH_UPLOAD_CHUNK_MB = env.integer(
    "WORKBENCH_UPLOAD_CHUNK_MB", 16, "Largest piece of an upload in one request; bounds the server's memory."
)
# No request needs more than a piece of an upload.
WORKBENCH_BODY_BYTES = (WORKBENCH_UPLOAD_CHUNK_MB + 1) * 2**20
WORKBENCH_UPLOAD_SECONDS = env.seconds(
    "WORKBENCH_UPLOAD_SECONDS", 48 * 3600, "An upload nobody has continued for so long is removed."
)
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 2**20
FILE_UPLOAD_MAX_MEMORY_SIZE = 2**20
