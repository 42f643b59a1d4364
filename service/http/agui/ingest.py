"""``/api/runs/{thread}/{run}/events`` and ``…/control``: an agent pushes its events.

The agent sends them in one long request while it writes, as NDJSON or as server-sent
events. Each has a number, from 1 (the RUN_STARTED) without a hole: the first of a
request has that of ``?from=`` (1 without it), or each has it as its ``id:``. What is
stored already is passed over, so an agent that was cut off repeats what it is not sure
of. Every answer says ``next``, the number that is expected then.

The run's lease begins anew with each byte, a comment or an empty line among them. While
the store takes no more, the body is not read: there is no buffer.

Invariants, on the event loop:

P1 One request at a time writes a run; a newer one ends an older one, and waits for what
   that had on its way, before it counts what is stored.
P2 ``next`` is 1 more than the events of the run that are committed.
P3 The end of a request ends no run, however it came.

Interleavings that could break them, each a test in tests/e2e/test_ingest.py: a
second request while the first is silent, and while it starts the run; a cancel while
the agent is silent; a cut within a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import falcon
import falcon.asgi
import msgspec

from service.agents.errors import Refused, RunExists
from service.agents.events import EVENT_SIZE, read_event
from service.agents.writer import RunWriter
from service.auth.api_keys import Scope
from service.core.errors import PERMISSION_DENIED, CodecError, ReplyError
from service.core.event_stream import EVENT_STREAM, EventStreamReader
from service.http.agui.errors import answers_errors, failure, failure_of
from service.http.api.keys import ApiKeys
from service.http.asgi import RECEIVER, Receiver
from service.runtime import Runtime

__all__ = ["Control", "Ingest"]

_NDJSON: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl"}
)
_STREAM = "steadwire.stream"
_WAIT = 30.0  # s that a question about a run may wait
_LOOK = 1.0  # s between looks at a run that another process writes


class _Numbered(NamedTuple):
    """An event of a body; *number* is None where the sender gave none."""

    number: int | None
    text: str | bytes


class _Lines:
    """Reads NDJSON; empty lines are signs of life."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[_Numbered]:
        """Take the next bytes; return the events that they complete.

        Raises:
            CodecError: A line is too long.
        """
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest = bytearray(rest)
        else:
            self._rest += rest
        if len(self._rest) > self._limit:
            raise CodecError(f"a line of more than {self._limit} bytes")
        return [_Numbered(None, line) for line in lines if line.strip()]

    def end(self) -> list[_Numbered]:
        """Return the event that has no line's end, if there is one."""
        rest = bytes(self._rest)
        return [_Numbered(None, rest)] if rest.strip() else []


class _EventStream:
    """Reads server-sent events, with their numbers as ids."""

    def __init__(self, limit: int) -> None:
        self._reader = EventStreamReader(limit)
        self._last = ""

    def feed(self, piece: bytes) -> list[_Numbered]:
        """As `_Lines.feed`."""
        found = []
        for event in self._reader.feed(piece):
            fresh = event.id != self._last and event.id.isascii() and event.id.isdigit()
            self._last = event.id
            number = int(event.id[:16]) if fresh else None
            found.append(_Numbered(number, event.data))
        return found

    def end(self) -> list[_Numbered]:
        """Return nothing: an event without its end is dropped."""
        return []


class _Push:
    """One request that writes a run.

    Attributes:
        superseded: Set when a newer request takes its place.
        over: Set when it has nothing on its way any more.
    """

    def __init__(self) -> None:
        self.superseded = asyncio.Event()
        self.over = asyncio.Event()


class _Resource:
    def __init__(self, runtime: Runtime, keys: ApiKeys) -> None:
        self._runtime = runtime
        self._threads = runtime.threads
        self._keys = keys

    async def _authorise(
        self, req: falcon.asgi.Request, thread: str, scope: Scope
    ) -> None:
        """Return if the caller may.

        Raises:
            HTTPStatus: 401.
            ReplyError: 103, or 107 and 108 from the thread.
        """
        key = await self._keys.authenticate(req)
        if key is None:
            raise falcon.HTTPStatus(401)
        channel = self._threads.channel_of(thread)
        self._runtime.permissions.rules(channel)
        namespace = channel.partition(":")[0]
        allowed = key.allows(scope)
        if scope is Scope.PUBLISH:
            allowed = allowed and key.may_publish(namespace)
        if not allowed:
            raise ReplyError(PERMISSION_DENIED)

    async def _state(self, thread: str, run: str) -> dict[str, object]:
        """Return what is stored of a run, in the words of the answers.

        Raises:
            StoreError: The read failed.
        """
        opened = await self._threads.open(thread)
        known = opened.fold.runs.get(run)
        if known is None:
            return {"next": 1, "live": False, "cancelled": False, "outcome": ""}
        if not known.end:
            count = opened.fold.offset - known.start + 1
            return {"next": count + 1, "live": True, "cancelled": False, "outcome": ""}
        outcome = await self._outcome(thread, known.end)
        return {
            "next": known.end - known.start + 2,
            "live": False,
            "cancelled": outcome == "cancelled",
            "outcome": outcome,
        }

    async def _outcome(self, thread: str, offset: int) -> str:
        """Return how a run ended: ``finished``, ``cancelled``, or an error's code."""
        channel = self._threads.channel_of(thread)
        rules = self._runtime.permissions.rules(channel)
        page = await self._runtime.store.read(channel, rules.history, offset - 1, 1)
        event = read_event(page.publications[0].data) if page.publications else None
        if event is None:
            return "finished"  # it was trimmed, or erased
        if event.type == "RUN_ERROR":
            return str(event.fields.get("code") or "error")
        kind = (event.fields.get("outcome") or {}).get("type")
        return "cancelled" if kind == "cancelled" else "finished"


class Ingest(_Resource):
    """``/api/runs/{thread}/{run}/events``."""

    def __init__(self, runtime: Runtime, keys: ApiKeys) -> None:
        super().__init__(runtime, keys)
        self._pushes: dict[tuple[str, str], _Push] = {}

    @answers_errors
    async def on_post(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        thread: str,
        run: str,
    ) -> None:
        """Take events until the body ends, the run does, or one is refused."""
        await self._authorise(req, thread, Scope.PUBLISH)
        kind = (req.content_type or "").partition(";")[0].strip().lower()
        reader: _Lines | _EventStream
        if kind == EVENT_STREAM:
            reader = _EventStream(EVENT_SIZE + 1024)
        elif kind in _NDJSON:
            reader = _Lines(EVENT_SIZE)
        else:
            words = f"the body is {EVENT_STREAM} or application/x-ndjson"
            raise failure(415, "media_type", words)
        first = req.get_param_as_int("from", min_value=1, default=1)
        state: dict[str, Any] = req.scope.get("state") or {}
        if _STREAM in state:
            state[_STREAM]()
        push, key = _Push(), (thread, run)
        older = self._pushes.get(key)
        self._pushes[key] = push
        try:
            if older is not None:
                older.superseded.set()
                await older.over.wait()
            task = _Taking(self, req, thread, run, reader, first, push)
            await task.take()
        finally:
            push.over.set()
            if self._pushes.get(key) is push:
                del self._pushes[key]
        receiver: Receiver = req.scope[RECEIVER]
        if receiver.gone:
            return  # nobody reads an answer
        found = await self._state(thread, run)
        if task.refused is not None:
            answer = failure_of(task.refused, found)
            if isinstance(task.refused, falcon.HTTPStatus):
                answer = failure(409, "gap", "an event was left out", more=found)
            raise answer or task.refused
        resp.content_type = falcon.MEDIA_JSON
        resp.text = msgspec.json.encode(found).decode()


class _Taking:
    """Takes the events of one request.

    Attributes:
        refused: Why an event was refused; None if none was.
    """

    def __init__(
        self,
        ingest: Ingest,
        req: falcon.asgi.Request,
        thread: str,
        run: str,
        reader: _Lines | _EventStream,
        first: int,
        push: _Push,
    ) -> None:
        self.refused: Exception | None = None
        self._threads = ingest._threads
        self._req = req
        self._thread = thread
        self._run = run
        self._reader = reader
        self._number = first
        self._push = push
        self._writer: RunWriter | None = None
        self._have = 0
        self._last: asyncio.Future[int] | None = None

    async def take(self) -> None:
        """Take them; return when what was taken is committed or lost."""
        try:
            await self._resume()
            await self._read()
        except (Refused, CodecError, falcon.HTTPStatus) as refusal:
            over = self._writer is not None and self._writer.over
            if isinstance(refusal, CodecError):
                refusal = Refused("too_large", str(refusal))
            if not over and not isinstance(refusal, RunExists):
                self.refused = refusal
        if self._last is not None:
            await asyncio.wait([self._last])
        if self._writer is not None and self._writer.over:
            await self._writer.ended.wait()

    async def _resume(self) -> None:
        try:
            self._writer = await self._threads.resume(self._thread, self._run)
        except Refused:
            found = await self._threads.open(self._thread)
            known = found.fold.runs.get(self._run)
            if known is not None:
                raise RunExists(self._run, known.start, live=False) from None
            return
        self._have = self._writer.offset - self._writer.start + 1

    async def _read(self) -> None:
        body = aiter(self._req.stream)
        receiver: Receiver = self._req.scope[RECEIVER]
        while (piece := await self._next(body)) is not None:
            if self._writer is not None:
                self._writer.touch()
            for event in self._reader.feed(piece):
                await self._put(event)
            if self._is_over:
                return
        if not receiver.gone and not self._is_over:
            for event in self._reader.end():
                await self._put(event)

    @property
    def _is_over(self) -> bool:
        return self._push.superseded.is_set() or (
            self._writer is not None and self._writer.over
        )

    async def _next(self, body: AsyncIterator[bytes]) -> bytes | None:
        """Return the next piece; None at the end, and if the run ends before it."""
        reading = asyncio.ensure_future(anext(body, None))
        ends = [asyncio.ensure_future(self._push.superseded.wait())]
        if self._writer is not None:
            ends.append(asyncio.ensure_future(self._writer.ended.wait()))
        try:
            await asyncio.wait([reading, *ends], return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            for each in (reading, *ends):
                each.cancel()

    async def _put(self, event: _Numbered) -> None:
        """Take one event, unless it is stored already.

        Raises:
            Refused: The event, or the start of the run, is refused.
            HTTPStatus: An event was left out before it.
        """
        if event.number is not None:
            self._number = event.number
        if self._is_over:
            return
        if self._number > self._have + 1:
            raise failure(409, "gap", "an event was left out")
        if self._number == self._have + 1:
            if self._writer is None:
                self._writer = await self._threads.start(
                    self._thread, self._run, writes="push", started=event.text
                )
            else:
                if _starts(event.text):
                    raise Refused("wrong_order", "RUN_STARTED is the first event")
                self._last = await self._writer.put(event.text)
            self._have += 1
        self._number += 1


def _starts(text: str | bytes) -> bool:
    data = text.encode() if isinstance(text, str) else text
    if b'"RUN_STARTED"' not in data:
        return False
    event = read_event(data.decode(errors="replace"))
    return event is not None and event.type == "RUN_STARTED"


class Control(_Resource):
    """``/api/runs/{thread}/{run}/control``."""

    @answers_errors
    async def on_get(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        thread: str,
        run: str,
    ) -> None:
        """Say whether the run lives; with ``?wait=`` seconds, not before it has ended.

        An agent that is busy elsewhere learns here that somebody cancelled.
        """
        await self._authorise(req, thread, Scope.PUBLISH)
        wait = req.get_param_as_float("wait", min_value=0.0, default=0.0)
        clock = self._runtime.clock
        until = clock.now() + min(wait, _WAIT)
        found = await self._state(thread, run)
        while found["live"] and clock.now() < until:
            writer = self._threads.writer(thread)
            left = until - clock.now()
            try:
                async with asyncio.timeout(left if writer is not None else _LOOK):
                    if writer is not None and writer.run == run:
                        await writer.ended.wait()
                    else:
                        await asyncio.sleep(min(left, _LOOK))
            except TimeoutError:
                pass
            found = await self._state(thread, run)
        resp.content_type = falcon.MEDIA_JSON
        resp.text = msgspec.json.encode(found).decode()
