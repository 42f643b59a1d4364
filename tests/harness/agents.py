"""Agents that speak AG-UI, in the test's event loop, and viewers of their runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
from aiohttp import web

from service.core.event_stream import EventStreamReader
from tests.harness.server import Server

__all__ = [
    "Agent",
    "Answer",
    "Event",
    "Viewing",
    "agent_settings",
    "run_input",
    "said",
    "text_of",
    "viewing",
]

Fields = dict[str, Any]
Script = Callable[["Answer"], Awaitable[None]]


def agent_settings(port: int, **fields: Any) -> dict[str, str]:
    """Return the settings of a server that has an agent ``helper`` at a port."""
    agent = {"name": "helper", "url": f"http://127.0.0.1:{port}/run", **fields}
    return {"STEADWIRE_AGENTS": json.dumps([agent])}


def run_input(thread: str, run: str, **fields: Any) -> Fields:
    """Return a RunAgentInput as clients of AG-UI send it."""
    return {
        "threadId": thread,
        "runId": run,
        "state": {},
        "messages": [],
        "tools": [],
        "context": [],
        "forwardedProps": {},
        **fields,
    }


def said(run: str, words: list[str], thread: str) -> list[Fields]:
    """Return the events of a run that says *words* in one message."""
    message = f"m-{run}"
    return [
        {"type": "RUN_STARTED", "threadId": thread, "runId": run},
        {"type": "TEXT_MESSAGE_START", "messageId": message, "role": "assistant"},
        *[
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": word}
            for word in words
        ],
        {"type": "TEXT_MESSAGE_END", "messageId": message},
        {"type": "RUN_FINISHED", "threadId": thread, "runId": run},
    ]


class Answer:
    """The agent's answer to one request.

    Attributes:
        input: The RunAgentInput.
        headers: Of the request.
        closed: Set when the other side has closed it.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self.input: Fields = {}
        self.headers = request.headers
        self.closed = asyncio.Event()
        self._request = request
        self._response = response

    async def send(self, *events: Fields) -> None:
        """Send events."""
        for event in events:
            await self.write(f"data: {json.dumps(event)}\n\n".encode())

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        await self._response.write(data)

    async def cut(self) -> None:
        """Drop the connection."""
        assert self._request.transport is not None
        self._request.transport.abort()

    async def silence(self) -> None:
        """Wait until the other side has closed it."""
        await self.closed.wait()


class Agent:
    """An HTTP server that answers each run with a script.

    Attributes:
        port: Where it is.
        script: What it does; set it before a run.
        answers: All requests so far.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.script: Script | None = None
        self.status = 200
        self.content_type = "text/event-stream"
        self.answers: list[Answer] = []

    @classmethod
    @asynccontextmanager
    async def start(cls, port: int) -> AsyncIterator[Agent]:
        """Start it."""
        agent = cls(port)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/run", agent._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        try:
            yield agent
        finally:
            await runner.cleanup()

    def says(self, *words: str) -> None:
        """Let it answer each run with one message."""

        async def script(answer: Answer) -> None:
            asked = answer.input
            events = said(asked["runId"], list(words), asked["threadId"])
            await answer.send(*events)

        self.script = script

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.status != 200:
            return web.Response(status=self.status)
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        answer = Answer(request, response)
        answer.input = await request.json()
        self.answers.append(answer)
        await response.prepare(request)
        assert self.script is not None
        try:
            await self.script(answer)
        except (ConnectionResetError, asyncio.CancelledError):
            answer.closed.set()
            raise
        return response


class Event(NamedTuple):
    """An event that a viewer was handed; *id* is 0 where it has none."""

    id: int
    fields: Fields

    @property
    def type(self) -> str:
        return str(self.fields["type"])


class Viewing:
    """A stream of events, read as it comes.

    Attributes:
        response: Its head.
        comments: Signs of life so far.
        bytes: Received so far.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.comments = 0
        self.bytes = 0
        self._reader = EventStreamReader(2**24)
        self._pieces = response.aiter_raw()
        self._found: list[Event] = []
        self._last = ""

    async def next(self) -> Event | None:
        """Return the next event; None at the end of the stream."""
        while not self._found:
            piece = await anext(self._pieces, None)
            if piece is None:
                return None
            self.bytes += len(piece)
            self.comments += piece.count(b"\n:\n\n") + piece.startswith(b":\n\n")
            for id, data in [(e.id, e.data) for e in self._reader.feed(piece)]:
                fresh, self._last = id != self._last, id
                self._found.append(Event(int(id) if fresh else 0, json.loads(data)))
        return self._found.pop(0)

    async def all(self) -> list[Event]:
        """Return the events until the stream ends."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    async def until(self, kind: str) -> list[Event]:
        """Return the events up to one of a type."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
            if event.type == kind:
                return found
        raise AssertionError(f"the stream ended before {kind}: {found}")

    @property
    def json(self) -> Any:
        """The body of a refusal, which was read."""
        return json.loads(self.response.content)


@asynccontextmanager
async def viewing(
    server: Server,
    path: str,
    *,
    method: str = "GET",
    token: str = "",
    **options: Any,
) -> AsyncIterator[Viewing]:
    """Open a stream of a server's; leave it to drop the connection."""
    headers = {**({"Authorization": f"Bearer {token}"} if token else {})}
    headers |= options.pop("headers", {})
    base = f"http://127.0.0.1:{server.port}"
    async with (
        httpx.AsyncClient(base_url=base, timeout=30.0, trust_env=False) as client,
        client.stream(method, path, headers=headers, **options) as response,
    ):
        if response.status_code != 200:
            await response.aread()
        yield Viewing(response)


def text_of(events: list[Event]) -> dict[str, str]:
    """Return the texts of messages, by their ids."""
    texts: dict[str, str] = {}
    for _, fields in events:
        if fields["type"] == "TEXT_MESSAGE_CONTENT":
            message = fields["messageId"]
            texts[message] = texts.get(message, "") + fields["delta"]
        elif fields["type"] == "MESSAGES_SNAPSHOT":
            for each in fields["messages"]:
                texts[each["id"]] = each.get("content") or ""
    return texts
