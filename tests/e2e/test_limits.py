"""Limits of connections on real sockets: never one more, however they come."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.metrics import scrape
from tests.harness.raw import CLOSE, Closed, RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection, settings

PROBE = 1.0  # s


evicting = server_with(
    settings(STEADWIRE_CONNECTIONS_LIMIT="100", STEADWIRE_CONNECTIONS_PROBE_TIMEOUT="2")
)


rejecting = server_with(
    settings(
        STEADWIRE_CONNECTIONS_POLICY="reject",
        STEADWIRE_CONNECTIONS_PROBE_TIMEOUT=str(PROBE),
    )
)


# What development has by default.
unlimited = server_with(settings(STEADWIRE_CONNECTIONS_USER_LIMIT="0"))


class Temporary(Exception):
    """A connect failed with an error for which clients come again."""


async def enter(server: Server, user: str) -> tuple[RawClient, int | None]:
    """Connect as *user*; return the code of the close if that was the answer.

    Where it did not get its turn in the time of a call it comes again, as SDKs do.
    """
    while True:
        client = await server.raw(connected=False, within=60.0)
        try:
            return await ask(client, user)
        except Temporary:
            client.reset()


async def ask(client: RawClient, user: str) -> tuple[RawClient, int | None]:
    await client.send({"id": 1, "connect": {"token": connection(user)}})
    try:
        reply = await client.message(60.0)
    except Closed as closed:
        return client, closed.code
    if "error" in reply:
        assert reply["error"]["temporary"], reply
        raise Temporary
    assert reply["connect"]["client"]
    return client, None


class Living:
    """Reads and pongs for clients until they are closed."""

    def __init__(self) -> None:
        self.codes: Counter[int | None] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, client: RawClient) -> None:
        self._tasks.append(asyncio.create_task(self._live(client)))

    async def _live(self, client: RawClient) -> None:
        self.codes[(await client.closed(within=600.0)).code] += 1

    @property
    def alive(self) -> int:
        return sum(not task.done() for task in self._tasks)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def connected(server: Server, user: str) -> int:
    async with server.api() as api:
        found = await api.call("connections", {"user": user})
        return len(found["connections"])


@pytest.mark.requirement("R2", "B16", "B81")
async def test_fifty_connects_of_one_user_leave_three(evicting: Server) -> None:
    asked = await asyncio.gather(*(enter(evicting, "ann") for _ in range(50)))
    living = Living()
    for client, code in asked:
        assert code in (None, 3504)
        if code is None:
            living.add(client)
    async with asyncio.timeout(30):
        while living.alive > 3:
            await asyncio.sleep(0.02)
    assert await connected(evicting, "ann") == 3
    refused = sum(code == 3504 for _, code in asked)
    assert refused + living.codes[3504] == 47
    assert set(living.codes) <= {3504}
    await living.stop()


@pytest.mark.requirement("R3", "B16")
async def test_five_hundred_connects_leave_a_hundred(evicting: Server) -> None:
    # Three may be left of the test before.
    async with evicting.api() as api:
        await api.call("disconnect", {"user": "ann"})
    living = Living()

    async def one(user: str) -> int | None:
        client, code = await enter(evicting, user)
        if code is None:
            living.add(client)
        return code

    codes = Counter(await asyncio.gather(*(one(f"user{n}") for n in range(500))))
    # On a machine that stalls for a whole probe, living connections may look dead.
    dead = living.codes[3012]
    assert codes == {None: 100 + dead, 3013: 400 - dead}
    assert living.alive == 100
    async with evicting.api() as api, asyncio.timeout(20):
        while await counted(api) != (100, 100):  # a process sees old figures of others
            await asyncio.sleep(0.05)
    await living.stop()


async def counted(api: Api) -> tuple[int, int]:
    nodes = (await api.call("info", {}))["nodes"]
    return sum(n["num_clients"] for n in nodes), sum(n["num_users"] for n in nodes)


@pytest.mark.requirement("B83", "L10")
@pytest.mark.parametrize("dead", [1, 3])
async def test_the_dead_lock_nobody_out_for_longer_than_one_probe(
    rejecting: Server,
    dead: int,
) -> None:
    user = f"lost{dead}"
    loop = asyncio.get_running_loop()
    living = Living()
    async with FaultProxy(rejecting.port, seed=1) as proxy:
        for _ in range(dead):
            lost = await RawClient.open(proxy.port, within=60.0)
            assert (await ask(lost, user))[1] is None
        for _ in range(3 - dead):
            client, code = await enter(rejecting, user)
            assert code is None
            living.add(client)
        proxy.black_hole()
        started = loop.time()
        client, code = await enter(rejecting, user)
        assert code is None, "locked out by its own dead connections"
        assert loop.time() - started >= PROBE - 0.01
        assert living.alive == 3 - dead
        assert await connected(rejecting, user) == 4 - dead
        living.add(client)
    await living.stop()


@pytest.mark.requirement("R2")
async def test_three_that_live_keep_a_fourth_out(rejecting: Server) -> None:
    living = Living()
    for _ in range(3):
        client, code = await enter(rejecting, "eve")
        assert code is None
        living.add(client)
    _, code = await enter(rejecting, "eve")
    assert code == 3504
    assert living.alive == 3
    await living.stop()


async def test_a_developer_opens_a_fourth_tab(unlimited: Server) -> None:
    tabs = [(await enter(unlimited, "dev"))[0] for _ in range(8)]
    for tab in tabs:
        await tab.request(subscribe={"channel": "ch"})  # it raises if it was closed
        tab.reset()


single = server_with(settings(STEADWIRE_CONNECTIONS_LIMIT="1"))


@pytest.mark.parametrize("make_client", ["js-5.8.0", "python-0.7.0"], indirect=True)
@pytest.mark.requirement("R3")
async def test_an_sdk_that_is_refused_comes_back_until_there_is_room(
    single: Server, make_client: Any
) -> None:
    # The hint that SDKs know is the code: they come back from all below 3500.
    inside, code = await enter(single, "ann")
    assert code is None
    client = await make_client(single.url, token=connection("bob"))
    async with asyncio.timeout(10), single.api() as api:
        before = (await scrape(api))["admissions_refused_total{process}"]
        await client.do("connect")
        # Not every SDK tells its application.
        while (await scrape(api))["admissions_refused_total{process}"] == before:
            await asyncio.sleep(0.02)
    await inside.send_frame(CLOSE, (1000).to_bytes(2, "big"))
    assert (await inside.closed()).code == 1000
    inside.tcp.close()
    await client.seen("connected", 1, within=20.0)
    assert client.events["disconnected"] == []
    await client.disconnect()
