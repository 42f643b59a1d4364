"""An ASGI application on uvicorn: /echo sends back what it is sent, /fan to all."""

import sys
from importlib.metadata import version

import uvicorn

fans = []


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    everybody = scope["path"] == "/fan"
    if everybody:
        fans.append(send)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            break
        answer = {"type": "websocket.send", "text": message["text"]}
        if everybody:
            for each in fans:
                await each(answer)
        else:
            await send(answer)
    if everybody:
        fans.remove(send)


if __name__ == "__main__":
    kind = sys.argv[2]  # of its WebSockets
    print(f"{version('uvicorn')}, {kind} {version(kind)}", flush=True)
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        ws=kind,
        lifespan="off",
        log_level="critical",
        backlog=4096,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
    )
