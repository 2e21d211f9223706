"""The ASGI application: Django for HTTP, Channels for WebSockets."""

from __future__ import annotations

import gc
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")

# Django must be set up before anything that imports models.
django.setup(set_prefix=False)

from channels.routing import ProtocolTypeRouter  # noqa: E402

import workbench.urls  # noqa: E402, F401 (else the first request would wait for it)
from workbench.http import Handler  # noqa: E402
from workbench.routing import websocket  # noqa: E402

application = ProtocolTypeRouter({"http": Handler(), "websocket": websocket})

# What is there now stays. Left out of count, it no longer delays that what requests leave behind is collected.
gc.collect()
gc.freeze()
