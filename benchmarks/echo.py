"""Rivals of bench_server: bare Falcon applications on the same Hypercorn.

``echo.py stock|adapted``: Hypercorn as it is installed, or with our connection and
stream classes. ``/echo`` is exactly ``await ws.send_text(await ws.receive_text())``;
``/fan`` sends what one client says to all the others, one after the other.
"""

import asyncio
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import falcon.asgi
import hypercorn.asyncio
from hypercorn.config import Config
from load import loop_factory


class Echo:
    async def on_websocket(self, req, ws):
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except falcon.WebSocketDisconnected:
            pass


class Fan:
    def __init__(self):
        self.sockets = []

    async def on_websocket(self, req, ws):
        await ws.accept()
        self.sockets.append(ws)
        try:
            while True:
                text = await ws.receive_text()
                for one in self.sockets:
                    await one.send_text(text)
        except falcon.WebSocketDisconnected:
            self.sockets.remove(ws)


async def main():
    app = falcon.asgi.App()
    app.ws_options.max_receive_queue = 0
    app.add_route("/echo", Echo())
    app.add_route("/fan", Fan())
    if sys.argv[1] == "adapted":
        from service.core.refusal_log import RefusalLog
        from service.server import install
        from service.settings import Settings

        install(Settings(), RefusalLog())
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    print(f"http://127.0.0.1:{port}", flush=True)
    await hypercorn.asyncio.serve(app, config)


with asyncio.Runner(loop_factory=loop_factory()) as runner:
    runner.run(main())
