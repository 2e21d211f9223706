"""Quotas, of which 0 means no limit and which staff change for single projects and people, and how often one may ask."""

from __future__ import annotations

from workbench.settings.env import env

WORKBENCH_QUOTAS: dict[str, dict[str, int]] = {
    "project": {
        "storage_bytes": env.integer("WORKBENCH_PROJECT_STORAGE_GB", 500, "Stored files per project.")
        * 2**30,
        "queued_jobs": env.integer("WORKBENCH_PROJECT_QUEUED_JOBS", 200, "Waiting jobs per project."),
        "running_jobs": env.integer("WORKBENCH_PROJECT_RUNNING_JOBS", 0, "Jobs a project has done at once."),
        "compute_seconds": 3600
        * env.integer("WORKBENCH_PROJECT_COMPUTE_HOURS", 0, "Hours of jobs per project in 30 days."),
        "live_sessions": env.integer("WORKBENCH_PROJECT_LIVE_SESSIONS", 200, "Live sessions per project."),
    },
    "user": {
        "storage_bytes": env.integer("WORKBENCH_USER_STORAGE_GB", 500, "Files stored by one person's jobs.")
        * 2**30,
        "queued_jobs": env.integer("WORKBENCH_USER_QUEUED_JOBS", 100, "Waiting jobs per person."),
        "running_jobs": env.integer("WORKBENCH_USER_RUNNING_JOBS", 0, "Jobs one person has done at once."),
        "compute_seconds": 3600
        * env.integer("WORKBENCH_USER_COMPUTE_HOURS", 0, "Hours of jobs per person in 30 days."),
        "live_sessions": env.integer("WORKBENCH_USER_LIVE_SESSIONS", 50, "Live sessions per person."),
    },
}

WORKBENCH_RATE_LIMIT = env.text(
    "WORKBENCH_RATE_LIMIT",
    "1200/minute",
    "Requests per person, or per API token, or per address of people who are not signed in.",
)
