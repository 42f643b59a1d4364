"""An AG-UI agent that streams as fast as it is let: Falcon on stock Hypercorn.

    python benchmarks/sse_agent.py

Prints its address. ``forwardedProps`` of the input say how many deltas it sends, and
how many of them in one write.
"""

import asyncio
import json

import falcon.asgi
from hypercorn.asyncio import serve
from hypercorn.config import Config
from load import loop_factory

DELTA = json.dumps(
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "a word or two "}
)


def line(**fields):
    return f"data: {json.dumps(fields)}\n\n".encode()


async def events(asked):
    ids = {"threadId": asked["threadId"], "runId": asked["runId"]}
    props = asked["forwardedProps"]
    yield line(type="RUN_STARTED", **ids)
    yield line(type="TEXT_MESSAGE_START", messageId="m", role="assistant")
    left, delta = props["deltas"], f"data: {DELTA}\n\n".encode()
    while left:
        piece = min(left, props["write"])
        yield delta * piece
        left -= piece
    yield line(type="TEXT_MESSAGE_END", messageId="m")
    yield line(type="RUN_FINISHED", **ids)


class Run:
    async def on_post(self, req, resp):
        resp.content_type = "text/event-stream"
        resp.stream = events(await req.get_media())


async def main():
    app = falcon.asgi.App()
    app.add_route("/run", Run())
    config = Config()
    config.bind = ["127.0.0.1:0"]
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    config.create_sockets = lambda: sockets
    config.accesslog = config.errorlog = None
    print(f"http://127.0.0.1:{port}/run", flush=True)
    await serve(app, config)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
