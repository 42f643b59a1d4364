"""A thread's events over HTTP/2: streams of one connection, cut and resumed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx
import pytest

from service.core.event_stream import EventStreamReader
from tests.harness.agents import (
    Agent,
    Answer,
    Event,
    Viewing,
    agent_settings,
    run_input,
    said,
)
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.server import Server
from tests.harness.sockets import TcpClient

PORT = free_port()
WORDS = [f"{number}é " for number in range(40)]

server = server_with({**agent_settings(PORT), "STEADWIRE_SERVER_CLEARTEXT_HTTP2": "1"})


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Connect, over HTTP/2 alone."""
    base, one = f"http://127.0.0.1:{server.port}", httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=base,
        http1=False,
        http2=True,
        limits=one,
        timeout=30.0,
        trust_env=False,
    ) as client:
        yield client


@asynccontextmanager
async def events_of(
    client: httpx.AsyncClient, thread: str, last: int
) -> AsyncIterator[Viewing]:
    """Open a stream, which ends with its connection: httpx resets none."""
    headers = {"Last-Event-ID": str(last)}
    path = f"/agui/threads/{thread}/events"
    async with client.stream("GET", path, headers=headers) as response:
        assert response.http_version == "HTTP/2"
        assert response.status_code == 200
        yield Viewing(response)


async def next_of(view: Viewing) -> Event:
    event = await view.next()
    assert event is not None
    return event


@pytest.fixture
async def in_step() -> AsyncIterator[asyncio.Semaphore]:
    """Run an agent that says one event for each release."""
    may = asyncio.Semaphore(2)  # the start, which the service makes, and one more

    async def script(answer: Answer) -> None:
        for event in said("r1", WORDS, answer.input["threadId"]):
            await may.acquire()
            await answer.send(event)

    async with Agent.start(PORT) as agent:
        agent.script = script
        yield may


async def begin(client: httpx.AsyncClient, thread: str) -> None:
    """Start the run; leave its stream after its first event."""
    asked = run_input(thread, "r1")
    async with client.stream("POST", "/agui/helper", json=asked) as response:
        assert response.http_version == "HTTP/2"
        await next_of(Viewing(response))


class Multiplexed:
    """One connection of the library h2, whose streams are reset at will."""

    def __init__(self, tcp: TcpClient, port: int) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration())
        self._tcp = tcp
        self._port = port
        self._readers: dict[int, EventStreamReader] = {}
        self._found: dict[int, list[Event]] = {}

    async def begin(self) -> None:
        self.h2.initiate_connection()
        await self._flush()

    async def open(self, thread: str, last: int) -> int:
        """Ask for a thread's events; return the stream."""
        stream = self.h2.get_next_available_stream_id()
        fields = {
            ":method": "GET",
            ":scheme": "http",
            ":path": f"/agui/threads/{thread}/events",
            ":authority": f"127.0.0.1:{self._port}",
            "last-event-id": str(last),
        }
        self._readers[stream] = EventStreamReader(2**20)
        self._found[stream] = []
        self.h2.send_headers(stream, list(fields.items()), end_stream=True)
        await self._flush()
        return stream

    async def next(self, stream: int) -> Event:
        while not self._found[stream]:
            await self._read()
        return self._found[stream].pop(0)

    async def reset(self, stream: int) -> None:
        del self._readers[stream]
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        await self._flush()

    async def _flush(self) -> None:
        await self._tcp.send(self.h2.data_to_send())

    async def _read(self) -> None:
        async with asyncio.timeout(30):
            data = await asyncio.get_running_loop().sock_recv(self._tcp.sock, 65536)
        assert data, "the connection has ended"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers)[b":status"] == b"200"
            elif isinstance(event, h2.events.DataReceived):
                stream, size = event.stream_id, event.flow_controlled_length
                if stream in self._readers:
                    self.h2.acknowledge_received_data(size, stream)
                    for one in self._readers[stream].feed(event.data):
                        found = Event(int(one.id), json.loads(one.data))
                        self._found[stream].append(found)
        await self._flush()


async def test_a_stream_that_is_cut_between_each_two_events_resumes(
    in_step: asyncio.Semaphore, server: Server, thread: str
) -> None:
    """Streams begin and end on a connection on which another one goes on."""
    wanted = said("r1", WORDS, thread)
    async with connected(server) as client:
        await begin(client, thread)
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        connection = Multiplexed(tcp, server.port)
        await connection.begin()
        beside = await connection.open(thread, 0)
        found: list[Event] = []
        while len(found) < len(wanted):
            stream = await connection.open(thread, found[-1].id if found else 0)
            found.append(await connection.next(stream))
            await connection.reset(stream)
            assert await connection.next(beside) == found[-1]
            in_step.release()
    assert [event.fields for event in found] == wanted
    assert [event.id for event in found] == list(range(1, len(wanted) + 1))


async def test_connections_that_are_cut_resume_each_of_their_streams(
    in_step: asyncio.Semaphore, server: Server, thread: str
) -> None:
    """Eight viewers on a connection, which is dropped after every fifth event."""
    wanted = said("r1", WORDS, thread)
    async with connected(server) as client:
        await begin(client, thread)
    for _ in wanted:
        in_step.release()
    found: list[list[Event]] = [[] for _ in range(8)]
    while len(found[0]) < len(wanted):
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connected(server))
            views = [
                await stack.enter_async_context(events_of(client, thread, len(each)))
                for each in found
            ]
            for _ in range(min(5, len(wanted) - len(found[0]))):
                for view, each in zip(views, found, strict=True):
                    each.append(await next_of(view))
    for each in found:
        assert [event.fields for event in each] == wanted
        assert [event.id for event in each] == list(range(1, len(wanted) + 1))
    # What was left is forgotten.
    async with asyncio.timeout(30):
        while "steadwire_streams 0" not in await metrics(server):
            await asyncio.sleep(0.02)


async def metrics(server: Server) -> str:
    async with server.api() as api:
        headers = {"X-API-Key": server.key}
        return (await api.request("GET", "/metrics", headers=headers)).body.decode()
