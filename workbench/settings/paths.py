"""Paths of folders."""

from __future__ import annotations

from pathlib import Path

from workbench.settings.env import env

BASE_DIR = Path(__file__).resolve().parents[2]

WORKBENCH_DATA_DIR = env.path(
    "WORKBENCH_DATA_DIR",
    BASE_DIR / "var",
    "Folder of the database, artifacts, job folders, models, sockets and logs.",
    shown="./var",
)
WORKBENCH_ARTIFACT_DIR = WORKBENCH_DATA_DIR / "artifacts"
WORKBENCH_JOB_DIR = WORKBENCH_DATA_DIR / "jobs"
WORKBENCH_RUN_DIR = WORKBENCH_DATA_DIR / "run"
WORKBENCH_LOG_DIR = WORKBENCH_DATA_DIR / "logs"
ACTIVATION_DATA_DIR = env.path(
    "ACTIVATION_DATA_DIR",
    WORKBENCH_ARTIFACT_DIR / "recording",
    "Where recordings are kept; they are the large files.",
    shown="artifacts/recording in the data folder",
)
SAE_CACHE_DIR = env.path(
    "SAE_CACHE_DIR",
    WORKBENCH_ARTIFACT_DIR / "sae",
    "Where trained SAEs are kept.",
    shown="artifacts/sae in the data folder",
)
WORKBENCH_MODEL_DIRS = env.paths(
    "WORKBENCH_MODEL_DIRS",
    (WORKBENCH_DATA_DIR / "models",),
    "Folders whose models everybody may add by path; other server paths are for staff.",
    shown="models in the data folder",
)
WORKBENCH_CORPUS_DIRS = env.paths(
    "WORKBENCH_CORPUS_DIRS",
    (WORKBENCH_DATA_DIR / "corpora",),
    "Folders whose subfolders and files are offered as built-in corpora.",
    shown="corpora in the data folder",
)
WORKBENCH_FRONTEND_DIR = env.path(
    "WORKBENCH_FRONTEND_DIR",
    BASE_DIR / "frontend" / "dist",
    "The built browser application.",
    shown="frontend/dist",
)
