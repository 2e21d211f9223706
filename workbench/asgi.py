"""The ASGI application: Django for HTTP, Channels for WebSockets."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")

# Django must be set up before anything that imports models.
http = get_asgi_application()

from channels.routing import ProtocolTypeRouter  # noqa: E402

from workbench.routing import websocket  # noqa: E402

application = ProtocolTypeRouter({"http": http, "websocket": websocket})
