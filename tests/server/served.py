"""The application that the tests of the server serve, in a process of its own.

Usage: python -m tests.server.served '{"server": {...}}' [FAULT]
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import falcon
import falcon.asgi
import msgspec
import structlog

from service.core.errors import StartupError
from service.core.refusal_log import RefusalLog
from service.server import run, serve
from service.server.process import AGAIN
from service.settings import Settings


async def drive(make: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
    """Run the coroutines that *make* returns by hand, never in a task; None ends it."""
    finished = asyncio.get_running_loop().create_future()

    def step(coroutine: Coroutine[Any, Any, None] | None) -> None:
        while True:
            if coroutine is None:
                coroutine = make()
                if coroutine is None:
                    finished.set_result(None)
                    return
            try:
                future = coroutine.send(None)
            except StopIteration:
                coroutine = None
                continue
            if future is None:  # a bare yield: go on in the next round
                asyncio.get_running_loop().call_soon(step, coroutine)
            else:
                future._asyncio_future_blocking = False
                future.add_done_callback(partial(_resume, step, coroutine))
            return

    asyncio.get_running_loop().call_soon(step, None)
    await finished


def _resume(step: Callable[[Any], None], coroutine: Any, _: object) -> None:
    step(coroutine)


async def wait_for_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass


class Echo:
    """A receiver of messages that is busy while the peer does not read."""

    def __init__(
        self,
        write: Callable[[Any], Coroutine[Any, Any, None] | None],
        gone: Callable[[int], None],
    ) -> None:
        self._write = write
        self.gone = gone
        self._writing: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None

    def receive(self, message: str | bytes) -> None:
        waits = self._write(message)
        if waits is not None:
            self._writing = asyncio.get_running_loop().create_task(waits)

    def on_ready(self, callback: Callable[[], object]) -> None:
        def written(_: object) -> None:
            self._writing = None
            callback()

        assert self._writing is not None
        self._writing.add_done_callback(written)


class Sockets:
    """WebSockets that do what the path says, on the bare ASGI interface."""

    def __init__(self) -> None:
        self.open: dict[int, Any] = {}
        self.codes: list[int] = []

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["path"] == "/silent":
            await wait_for_disconnect(receive)
            return
        await send({"type": "websocket.accept"})
        if scope["path"] == "/handed":
            self.hand_over(scope["state"]["steadwire.frames"])
            return
        if scope["path"] == "/handed_late":
            transport = scope["state"]["steadwire.abort"].__self__.writer.transport
            while not transport.is_closing():  # until the very turn of the loss
                await asyncio.sleep(0)
            self.hand_over(scope["state"]["steadwire.frames"])
            return
        self.open[id(scope)] = send
        try:
            await getattr(self, "on_" + scope["path"][1:])(scope, receive, send)
        finally:
            del self.open[id(scope)]

    async def on_echo(self, scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({**message, "type": "websocket.send"})
        self.codes.append(message["code"])

    def hand_over(self, frames: Any) -> None:
        """Echo without ASGI, and without a task."""

        async def send(message: Any) -> None:
            await frames.close(message["code"], message["reason"])

        def gone(code: int) -> None:
            self.codes.append(code)
            del self.open[id(frames)]

        self.open[id(frames)] = send
        assert frames.hand_over(Echo(frames.write_message, gone))

    async def on_close(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 3501, "reason": "bad request"})

    async def on_return(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def on_abort(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["state"]["steadwire.abort"]()
        self.codes.append((await receive())["code"])

    async def on_flood(self, scope: Any, receive: Any, send: Any) -> None:
        """Write until it blocks for half a second, then close with 3008."""
        text = "x" * 60_000
        with contextlib.suppress(TimeoutError):
            while True:
                message = {"type": "websocket.send", "text": text}
                await asyncio.wait_for(send(message), 0.5)
        await send({"type": "websocket.close", "code": 3008, "reason": "slow"})
        self.codes.append((await receive())["code"])

    async def on_flood_for_ever(self, scope: Any, receive: Any, send: Any) -> None:
        """Write until the connection is gone, however long a write takes."""
        text = "x" * 60_000
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        while not gone.done():
            await send({"type": "websocket.send", "text": text})
            await asyncio.sleep(0)

    async def on_driven(self, scope: Any, receive: Any, send: Any) -> None:
        """Send as many messages as the first one says, by hand."""
        left = int((await receive())["text"])
        texts = (f"{n}:" + "y" * 60_000 for n in range(left))

        def make() -> Any:
            text = next(texts, None)
            return text and send({"type": "websocket.send", "text": text})

        await drive(make)
        await receive()


def kept() -> dict[str, int]:
    """Return how many there are of the objects that a handshake is made of."""
    gc.collect()
    found = Counter(type(each).__name__ for each in gc.get_objects())
    found["ended tasks"] = found["Task"] - len(asyncio.all_tasks())
    return {name: found[name] for name in ("ended tasks", "coroutine", "deque")}


class State:
    """The state of the server, for the tests to read over HTTP."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._requests = 0

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        connection = req.scope["state"]["steadwire.abort"].__self__
        raw = connection.writer.get_extra_info("socket")
        self._requests += 1
        resp.media = {
            "requests": self._requests,
            "open": len(self._sockets.open),
            "codes": self._sockets.codes,
            "tasks": len(asyncio.all_tasks()),
            "kept": kept() if req.query_string == "kept" else None,
            "send_buffer": raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            "no_delay": raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "user_timeout": raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        }


class Pieces:
    """An answer whose second part follows when the process shuts down."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        connection = req.scope["state"]["steadwire.abort"].__self__

        async def parts() -> AsyncIterator[bytes]:
            yield b"one,"
            while not connection.draining:
                await asyncio.sleep(0)  # to end before Hypercorn ends connections
            yield b"two"

        resp.set_header("content-length", "7")
        resp.stream = parts()


class Lifespan:
    """Falcon's middleware for the lifespan, with the fault that was asked for."""

    def __init__(self, application: App) -> None:
        self._application = application

    async def process_startup(self, scope: Any, event: Any) -> None:
        try:
            if self._application.fault == "start":
                raise StartupError("the store is\nin use")
            if self._application.fault == "slow start":
                say("starting")
                await asyncio.sleep(0.5)
            if self._application.fault == "bug":
                raise KeyError("nobody expected this")
        except Exception as error:
            self._application.startup_error = error
            raise

    async def process_shutdown(self, scope: Any, event: Any) -> None:
        say("store closed")


class App:
    """The contract that `service.server.serve` expects."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.startup_error: BaseException | None = None
        self.refusals = RefusalLog()
        self.sockets = Sockets()
        self.hurry = asyncio.Event()
        self._falcon = falcon.asgi.App(middleware=[Lifespan(self)])
        self._falcon.add_route("/", State(self.sockets))
        self._falcon.add_route("/parts", Pieces())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self.sockets.serve(scope, receive, send)
        elif scope["type"] == "lifespan" and self.fault == "raise":
            raise RuntimeError("no lifespan here")
        else:
            await self._falcon(scope, receive, send)

    async def send_away(self) -> None:
        say(f"sending away {len(self.sockets.open)}")
        await self.hurry.wait()
        say("sent away")

    async def drain(self) -> None:
        say(f"draining {len(self.sockets.open)}")
        if self.fault == "drain":
            await asyncio.Event().wait()
        if self.fault == "hang":
            time.sleep(60)
        if self.fault == "broken":
            raise OSError("disk full")
        close = {"type": "websocket.close", "code": 3001, "reason": "shutdown"}
        for send in list(self.sockets.open.values()):
            await send(close)
        # Longer than the clients take, so that the lifespan has to wait for it.
        await asyncio.sleep(0.1)
        say("drained")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = msgspec.convert(json.loads(sys.argv[1]), Settings)
    if sys.argv[2:] == ["asyncio"]:
        sys.modules["uvloop"] = None  # type: ignore[assignment]  # not to be found
    app = App(sys.argv[2] if len(sys.argv) > 2 else "")
    worker = app.fault == "worker"

    def ready(addresses: list[str]) -> None:
        say("ready " + " ".join(addresses))

    try:
        run(
            serve(
                app,
                settings,
                ready=ready,
                signals=(signal.SIGTERM,)
                if worker
                else (signal.SIGTERM, signal.SIGINT),
                again=(AGAIN,) if worker else (),
                send_away=app.send_away,
                hurry=app.hurry.set,
                drain=app.drain,
            )
        )
    except StartupError as error:
        print("steadwire:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
