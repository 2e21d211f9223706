"""Celery, jobs, resident models, and what they may call."""

from __future__ import annotations

import sys

from workbench.settings.data import REDIS_URL
from workbench.settings.env import broker_url, env

CELERY = {
    "broker_url": broker_url(REDIS_URL),
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "health_check_interval": 15,
        # Twice at once, when the broker is away: a request that sends a wake-up must not wait for it.
        "max_retries": 1,
        "interval_start": 0,
    },
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": False,
    "task_default_queue": "jobs",
    "worker_prefetch_multiplier": 1,
    # One job at a time, supervised from the worker's own process: its child does the work, so a pool
    # process would only stand between them and outlive a worker that is killed.
    "worker_pool": "solo",
    "worker_concurrency": 1,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "beat_scheduler": "workbench.beat:Scheduler",
    "beat_max_loop_interval": 10,  # seconds; it shows that it lives at least that often
    "imports": ["worker.tasks"],
    "timezone": "UTC",
}


WORKBENCH_ENGINE_PYTHON = env.text(
    "WORKBENCH_ENGINE_PYTHON",
    sys.executable,
    "Python that has torch and `microscope`: it runs jobs and resident models.",
    shown="the same Python",
)
WORKBENCH_LEASE_SECONDS = env.seconds(
    "WORKBENCH_LEASE_SECONDS", 30, "A job whose worker has been silent for so long is given to another."
)
WORKBENCH_HEARTBEAT_SECONDS = env.seconds(
    "WORKBENCH_HEARTBEAT_SECONDS", 5, "How often a worker renews its lease."
)
WORKBENCH_REAP_SECONDS = env.seconds(
    "WORKBENCH_REAP_SECONDS", 10, "How often workers look for lost jobs and forgotten wake-ups."
)
WORKBENCH_WAKEUP_SECONDS = env.seconds(
    "WORKBENCH_WAKEUP_SECONDS",
    15,
    "A queued job that an idle worker has not taken for so long is announced again.",
)
WORKBENCH_CANCEL_GRACE_SECONDS = env.seconds(
    "WORKBENCH_CANCEL_GRACE_SECONDS",
    5,
    "A cancelled job gets so long to stop by itself, then as long after SIGTERM, then SIGKILL.",
)
WORKBENCH_MAX_ATTEMPTS = env.integer(
    "WORKBENCH_MAX_ATTEMPTS", 3, "How often a job is started before a lost worker counts as failure."
)
WORKBENCH_JOB_SECONDS = env.seconds(
    "WORKBENCH_JOB_SECONDS",
    14 * 24 * 3600,
    "A job that works for longer is asked to stop and fails; started again, training and recording go on from there.",
)
WORKBENCH_JOB_MEMORY_MB = env.integer(
    "WORKBENCH_JOB_MEMORY_MB",
    0,
    "What the processes of a job may take in memory together, MiB; 0: nine tenths of what the machine or container has.",
)
WORKBENCH_JOB_FILE_GB = env.integer(
    "WORKBENCH_JOB_FILE_GB", 1024, "Largest file that a job may write, GiB; 0: any size."
)
WORKBENCH_IMPORT_SECONDS = env.seconds(
    "WORKBENCH_IMPORT_SECONDS",
    2 * 3600,
    "A job that looks at a model or takes files of others in and works for longer is asked to stop and fails.",
)
WORKBENCH_IMPORT_MEMORY_MB = env.integer(
    "WORKBENCH_IMPORT_MEMORY_MB",
    4096,
    "What a job that reads or packs files and loads no model may take in memory, MiB; the system refuses it more.",
)
WORKBENCH_IMPORT_FILE_GB = env.integer(
    "WORKBENCH_IMPORT_FILE_GB",
    128,
    "Largest file that a job may write that takes files of others in, GiB; 0: any size.",
)
WORKBENCH_CHILD_ENVIRONMENT = env.words(
    "WORKBENCH_CHILD_ENVIRONMENT",
    (),
    "Names of further environment variables that jobs and resident models get; they run models of others, so none that "
    "holds a secret.",
)
WORKBENCH_RESIDENT_START_SECONDS = env.seconds(
    "WORKBENCH_RESIDENT_START_SECONDS", 900, "A model that has not loaded after so long counts as failed."
)
WORKBENCH_RESIDENT_IDLE_MINUTES = env.integer(
    "WORKBENCH_RESIDENT_IDLE_MINUTES",
    0,
    "A model that nobody has asked anything for so long is taken out of memory; 0 keeps it.",
)
WORKBENCH_RESIDENT_CACHE_MB = env.integer(
    "WORKBENCH_RESIDENT_CACHE_MB", 2048, "What the live sessions of one model may keep in memory, MiB."
)
WORKBENCH_RESIDENT_SAE_MB = env.integer(
    "WORKBENCH_RESIDENT_SAE_MB",
    4096,
    "What the SAEs and adapters attached to one model may take in memory, MiB.",
)
WORKBENCH_RESIDENT_HOST = env.text(
    "WORKBENCH_RESIDENT_HOST",
    "",
    "Address of this model host as other machines reach it. Models then listen there over TCP, and both "
    "ends need WORKBENCH_RESIDENT_TOKEN; without it they listen on sockets of this machine alone.",
)
WORKBENCH_WEBHOOK_PRIVATE = env.flag(
    "WORKBENCH_WEBHOOK_PRIVATE",
    False,
    "Let webhooks call private, loopback and link-local addresses; whoever owns a project can then reach them.",
)

# Read by the engine; named here so that the reference lists them.
HF_TOKEN = env.secret(
    "HF_TOKEN",
    "",
    "Hugging Face token for gated models; told only to processes that may have to fetch one, never stored.",
)
CUDA_VISIBLE_DEVICES = env.text("CUDA_VISIBLE_DEVICES", "", "GPUs that jobs and models may use.")
