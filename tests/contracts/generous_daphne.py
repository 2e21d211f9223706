"""The web server's WebSockets around an application that answers every frame with a mebibyte."""

import sys
from typing import Any

from workbench import web_sockets
from workbench.web_sockets import BackpressureFactory, BackpressureServer

web_sockets.STALL_SECONDS = float(sys.argv[2])
web_sockets.server.WebSocketFactory = BackpressureFactory
ended = 0


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Say ``ended`` and the number of connections that are over, or a lot."""
    global ended
    assert scope["type"] == "websocket"
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.disconnect":
            ended += 1
            return
        elif message["text"] == "ended":
            await send({"type": "websocket.send", "text": str(ended)})
        else:
            await send({"type": "websocket.send", "text": "x" * 2**20})


BackpressureServer(application, endpoints=[f"unix:{sys.argv[1]}"], signal_handlers=False).run()
