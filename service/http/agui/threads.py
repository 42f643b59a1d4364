"""``/agui/threads/{thread}/events`` and ``…/snapshot``: what a thread shows.

| request | the stream begins with |
|---|---|
| ``Last-Event-ID: n`` or ``?after=n`` | the event after *n*, as it was sent |
| ``?from=now`` | a prelude: what a client must know to understand the next event |
| neither | the whole thread, compacted |

Each begin is a stream that AG-UI's own clients accept. The events of a compacted thread
and of a prelude have no ids but the last: a client that is cut among them begins anew.
"""

from __future__ import annotations

from typing import Any

import falcon
import falcon.asgi
import msgspec

from service.agents.fold import Snapshot
from service.agents.thread import Thread
from service.connections.streams import Stream
from service.core.errors import BAD_REQUEST, TOO_MANY_REQUESTS, ReplyError
from service.core.event_stream import EVENT_STREAM, event_bytes
from service.core.model import Position, RawJson
from service.http.agui.access import Access, Visitor
from service.http.agui.errors import answers_errors
from service.http.agui.viewer import BEGIN, Viewer
from service.http.asgi import RECEIVER, Receiver
from service.runtime import Runtime

__all__ = ["Events", "SnapshotResource", "Viewers"]

_PROGRESS = "steadwire.progress"
_STREAM = "steadwire.stream"
_OFFSET_LENGTH = 16  # digits


class Viewers:
    """Opens the streams of viewers; counts how they ended.

    Attributes:
        outcomes: Streams that have ended, by `Viewer.outcome`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.outcomes: dict[str, int] = {}
        self._runtime = runtime

    async def open(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        visitor: Visitor,
        thread: Thread,
        after: Position,
        *,
        end: float,
        begin: bytes = b"",
        live: bool,
        once: bool,
    ) -> None:
        """Let *resp* be a stream of a thread's events.

        Args:
            req: The request, whose body was read.
            resp: Its answer.
            visitor: Who views.
            thread: The thread.
            after: The position after which events follow.
            end: When the visitor's right ends, as `Clock.now`.
            begin: What comes before them.
            live: Whether a run lives there.
            once: End with the first terminal event.

        Raises:
            ReplyError: 111, temporary: the client has too many streams.
            Gone: The history does not have the event after the position.
            StoreError: The read failed; the fault is transient.
        """
        runtime = self._runtime
        settings, clock = runtime.settings.client, runtime.clock
        state: dict[str, Any] = req.scope.get("state") or {}
        receiver: Receiver = req.scope[RECEIVER]
        age = settings.max_age * (1.0 - 0.05 * runtime.context.rng.random())
        viewer: Viewer | None = None

        def told() -> None:
            if viewer is not None:
                viewer.end()

        stream = Stream(
            visitor.identity.user,
            thread.channel,
            visitor.address,
            visitor.token_id,
            visitor.issued_at,
            told,
        )
        runtime.streams.open(stream, min(end, clock.now() + age))

        def closed(ended: Viewer) -> None:
            receiver.stop_watching()
            runtime.streams.close(stream)
            outcomes = self.outcomes
            outcomes[ended.outcome] = outcomes.get(ended.outcome, 0) + 1

        viewer = Viewer(
            BEGIN + begin,
            runtime.threads.follow(thread, after),
            clock,
            live=live,
            once=once,
            write_timeout=settings.write_timeout,
            progress=state.get(_PROGRESS),
            closed=closed,
        )
        try:
            await viewer.prepare()
        except BaseException:
            await viewer.close()
            raise
        if _STREAM in state:
            state[_STREAM]()
        receiver.watch(lambda: viewer.end("gone"))
        resp.content_type = EVENT_STREAM
        resp.set_header("X-Accel-Buffering", "no")  # nginx
        resp.stream = viewer


class _Resource:
    """What the resources of a thread share."""

    def __init__(self, runtime: Runtime, access: Access) -> None:
        self._runtime = runtime
        self._access = access

    @answers_errors
    async def on_options(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, thread: str
    ) -> None:
        """Answer a browser that asks what a page may send."""
        self._access.preflight(req, resp, "GET")

    async def _enter(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, thread: str
    ) -> tuple[Visitor, float]:
        visitor = await self._access.enter(req, resp)
        channel = self._runtime.threads.channel_of(thread)
        return visitor, await self._access.may_view(visitor, channel)


class Events(_Resource):
    """``/agui/threads/{thread}/events``: the thread as server-sent events."""

    def __init__(self, runtime: Runtime, access: Access, viewers: Viewers) -> None:
        super().__init__(runtime, access)
        self._viewers = viewers

    @answers_errors
    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, thread: str
    ) -> None:
        """Stream the events, until the client or its right ends."""
        after = _position(req)
        visitor, end = await self._enter(req, resp, thread)
        opened = await self._runtime.threads.open(thread)
        begin = b""
        if after is None:
            now = req.get_param("from") == "now"
            first = await (opened.prelude() if now else opened.snapshot())
            begin = _begin(first)
            after = Position(first.offset, first.epoch)
            live = bool(first.live)
        else:
            live = bool(opened.fold.live)
        await self._viewers.open(
            req,
            resp,
            visitor,
            opened,
            after,
            end=end,
            begin=begin,
            live=live,
            once=False,
        )


class SnapshotResource(_Resource):
    """``/agui/threads/{thread}/snapshot``: the thread so far, compacted."""

    @answers_errors
    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, thread: str
    ) -> None:
        """Answer with the events, and the position after which the rest follows."""
        await self._enter(req, resp, thread)
        if self._runtime.shedding.refuses_read():
            raise ReplyError(TOO_MANY_REQUESTS)
        opened = await self._runtime.threads.open(thread)
        resp.content_type = falcon.MEDIA_JSON
        resp.text = _answer(thread, await opened.snapshot())


def _answer(thread: str, found: Snapshot) -> RawJson:
    fields = {
        "threadId": thread,
        "offset": found.offset,
        "epoch": found.epoch,
        "live": found.live,
        "complete": found.complete,
        "events": [msgspec.Raw(text.encode()) for text in found.events],
    }
    return RawJson(msgspec.json.encode(fields).decode())


def _begin(found: Snapshot) -> bytes:
    if not found.events:
        return b""
    *others, last = found.events
    pieces = [event_bytes(text) for text in others]
    return b"".join([*pieces, event_bytes(last, str(found.offset))])


def _position(req: falcon.asgi.Request) -> Position | None:
    """Return the position that a client comes back with; None for a new one.

    Raises:
        ReplyError: 107, it is not a number.
    """
    text = req.get_header("last-event-id") or req.get_param("after")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _OFFSET_LENGTH):
        raise ReplyError(BAD_REQUEST)
    return Position(int(text), req.get_param("epoch") or "")
