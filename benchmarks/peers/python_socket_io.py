"""python-socketio on uvicorn: "echo" goes back to its sender, "fan" to all."""

import sys
from importlib.metadata import version

import socketio
import uvicorn

server = socketio.AsyncServer(
    async_mode="asgi", transports=["websocket"], ping_interval=300
)


@server.event
async def echo(sid, data):
    await server.emit("echo", data, to=sid)


@server.event
async def fan(sid, data):
    await server.emit("fan", data)


if __name__ == "__main__":
    print(f"{version('python-socketio')}, uvicorn {version('uvicorn')}", flush=True)
    uvicorn.run(
        socketio.ASGIApp(server),
        port=int(sys.argv[1]),
        loop="uvloop",
        log_level="critical",
        backlog=4096,
        ws_ping_interval=None,
    )
