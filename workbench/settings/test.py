"""Tests: an in-memory channel layer, quick passwords, a database and files that vanish."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Set before base is read, so that nothing of a test run lands in a developer's data folder. Servers
# started by a test are given the folder of their test.
if "WORKBENCH_DATA_DIR" not in os.environ:
    os.environ["WORKBENCH_DATA_DIR"] = tempfile.mkdtemp(prefix="workbench-test-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_DATA_DIR"], ignore_errors=True)

from workbench.settings.base import *  # noqa: F403
from workbench.settings.base import DATABASES, INSTALLED_APPS, WORKBENCH_DATA_DIR, env

SECRET_KEY = "only-for-tests-" + "x" * 40
Path(WORKBENCH_DATA_DIR).mkdir(parents=True, exist_ok=True)

# A file, because threads of one test share it; SQLite in memory locks whole tables between threads.
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["TEST"] = {"NAME": str(WORKBENCH_DATA_DIR / "test.sqlite3")}

if not env.flag("WORKBENCH_TEST_SERVERS", False, "Set by fault tests: real broker, real channel layer."):
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
INSTALLED_APPS = [*INSTALLED_APPS, "tests.probe"]
# Looking files up when they are asked for: tests make many clients and ask for few files.
WHITENOISE_AUTOREFRESH = True
