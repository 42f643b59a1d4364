"""A client that does not read costs itself its connection and others nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import framings
from tests.harness.raw import Closed, RawClient
from tests.harness.server import Server

framing = framings(slow=True)

MakeServer = Callable[..., Server]

MIB = 1024 * 1024

# Together 16.8 MB, over the 16 MiB that must be written; fewer than the 300 that one
# recovery may bring.
COUNT = 280
SIZE = 60_000
assert COUNT * SIZE > 16 * MIB

# Bytes of SO_RCVBUF of the slow client (the kernel doubles it).
SMALL_BUFFER = 16 * 1024


def payload(n: int) -> str:
    return f"{n:06d}" + chr(ord("a") + n % 26) * (SIZE - 6)


async def publish_all(api: Api, channel: str) -> list[float]:
    """Publish everything, and return when each was handed over."""
    times = []
    for n in range(1, COUNT + 1):
        times.append(time.monotonic())
        assert await api.publish(channel, payload(n)) == n
    return times


async def read_all(client: RawClient, channel: str) -> list[float]:
    """Read everything, hold it to the order, and return when each came."""
    times = []
    for n in range(1, COUNT + 1):
        (publication,) = await client.publications(channel, 1, within=30.0)
        times.append(time.monotonic())
        check(publication, n)
    return times


def check(publication: dict[str, Any], n: int) -> None:
    assert publication["offset"] == n
    assert publication["data"] == payload(n)


async def run_beside(
    server: Server, api: Api, channel: str, readers: int
) -> tuple[float, str]:
    """Publish to fast readers; return the 99th percentile of delays and the epoch."""
    clients = [await server.raw() for _ in range(readers)]
    positions = [await client.subscribe(channel) for client in clients]
    async with asyncio.timeout(60.0), asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_all(client, channel)) for client in clients]
        publishing = group.create_task(publish_all(api, channel))
    for client in clients:
        client.tcp.close()
    sent = publishing.result()
    delays = sorted(
        came - at
        for task in tasks
        for at, came in zip(sent, task.result(), strict=True)
    )
    return delays[len(delays) * 99 // 100], positions[0]["epoch"]


@pytest.mark.requirement("R24", "L21")
async def test_slow_client_that_resumes(
    make_server: MakeServer, channel: str, record_property: Callable[[str, Any], None]
) -> None:
    # A write may take long here: this test is about the queue, whatever the speed of
    # the machine. test_slow_client_that_never_reads has the default.
    server = await make_server({"STEADWIRE_CLIENT_WRITE_TIMEOUT": "60"}).start()
    async with server.api() as api:
        alone, _ = await run_beside(server, api, f"{channel}-alone", readers=5)

        slow = await server.raw(receive_buffer=SMALL_BUFFER)
        await slow.subscribe(channel)
        beside, epoch = await run_beside(server, api, channel, readers=5)
        # The others have everything, in order; the slow one has read nothing.
        assert slow.tcp.bytes_read < 1000
        record_property("p99 of deliveries without a slow client, s", alone)
        record_property("p99 of deliveries beside a slow client, s", beside)

        read = 0
        try:
            while True:
                (publication,) = await slow.publications(channel, 1)
                read += 1
                check(publication, read)
        except Closed as closed:
            assert (closed.code, closed.reason) == (3008, "slow")
        assert 0 < read < COUNT
        slow.tcp.close()

        async with await server.raw() as again:
            reply = await again.subscribe(
                channel, recover=True, offset=read, epoch=epoch
            )
            assert reply["was_recovering"] is True and reply["recovered"] is True
            assert reply["offset"] == read
            recovered = reply.get("publications", [])
            rest = COUNT - read - len(recovered)
            recovered += await again.publications(channel, rest)
            for n, publication in enumerate(recovered, read + 1):
                check(publication, n)
            assert await api.publish(channel, "live again") == COUNT + 1
            (live,) = await again.publications(channel, 1)
            assert (live["offset"], live["data"]) == (COUNT + 1, "live again")


@pytest.mark.requirement("R13")
@pytest.mark.parametrize(
    ("settings", "within"),
    [
        ({"STEADWIRE_SERVER_ABORT_TIMEOUT": "3"}, 8.0),
        pytest.param({}, 35.0, marks=pytest.mark.slow),
    ],
    ids=["three-seconds", "default"],
)
async def test_slow_client_that_never_reads(
    make_server: MakeServer, channel: str, settings: dict[str, str], within: float
) -> None:
    # A small cache, so that what is kept of the channel does not hide what is kept of
    # the client.
    cache = {"STEADWIRE_STORE_CACHE_SIZE": str(MIB)}
    server = await make_server({**cache, **settings}).start()
    async with server.api() as api:
        # The same load once without, so that the memory compared is of a warm server.
        for round_ in range(2):
            await run_beside(server, api, f"{channel}-warm-{round_}", readers=2)
        api.drop_connections()
        await until(server.connections, 0, 30.0)
        descriptors, memory = server.descriptors(), server.memory()

        slow = await server.raw(receive_buffer=SMALL_BUFFER)
        await slow.subscribe(channel)
        assert server.descriptors() == descriptors + 1
        await run_beside(server, api, channel, readers=2)
        stopped = time.monotonic()
        api.drop_connections()

        await until(server.descriptors, descriptors, within)
        assert server.connections() == 0
        left = stopped + within - time.monotonic()
        await until(lambda: server.memory() < memory + 4 * MIB, True, left)
        # It serves on.
        assert await api.publish(channel, "after") == COUNT + 1
        slow.tcp.close()


async def test_a_client_that_reads_a_trickle_is_closed(
    make_server: MakeServer, channel: str
) -> None:
    # It reads all the time, and takes nothing worth speaking of.
    server = await make_server({"STEADWIRE_SERVER_ABORT_TIMEOUT": "4"}).start()
    async with server.api() as api:
        slow = await server.raw(receive_buffer=SMALL_BUFFER)
        await slow.subscribe(channel)
        for n in range(1, 16):
            assert await api.publish(channel, payload(n)) == n
        reading = asyncio.create_task(trickle(slow))
        api.drop_connections()
        await until(server.connections, 0, 30.0)
        reading.cancel()
    await server.logged('"code": 3009')


async def trickle(client: RawClient) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(client.tcp.sock, 1):
        await asyncio.sleep(0.05)  # its pace, not a wait for something


async def until(look: Callable[[], Any], value: Any, within: float) -> None:
    """Look until *look* says *value*: the kernel tells nobody when it changes."""
    deadline = time.monotonic() + within
    while (seen := look()) != value:
        assert time.monotonic() < deadline, f"{seen}, not {value}, after {within} s"
        await asyncio.sleep(0.1)


async def test_publisher_is_not_held_up_by_its_own_slow_reader(
    server: Server, channel: str
) -> None:
    # One connection publishes and does not read the publications it also gets. Its
    # commands are read until its own queue is full; nobody else waits for it.
    async with await server.raw() as other, server.api() as api:
        await other.subscribe(channel)
        slow = await server.raw(receive_buffer=SMALL_BUFFER)
        await slow.subscribe(channel)
        await publish_all(api, f"{channel}-elsewhere")
        async with asyncio.TaskGroup() as group:
            group.create_task(publish_all(api, channel))
            group.create_task(read_all(other, channel))
        slow.tcp.close()
