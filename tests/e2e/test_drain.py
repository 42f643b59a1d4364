"""The drain of a real server, and the hand-over of its file to the next one."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import framings
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import Server

framing = framings(slow=True)

MakeServer = Callable[..., Server]
WAITING = "waiting for the store: another process has it open"


async def readiness(api: Api) -> tuple[int, str]:
    response = await api.request("GET", "/health/ready")
    return response.status, response.json.get("reason", "")


async def until_drained(api: Api) -> None:
    async with asyncio.timeout(20):
        while (await api.call("drain", {}))["state"] != "drained":
            await asyncio.sleep(0.02)


async def codes(clients: list[RawClient]) -> list[int | None]:
    """Return the codes with which *clients* are closed; each takes its close frame."""

    async def one(client: RawClient) -> int | None:
        code = (await client.closed(within=20.0)).code
        client.tcp.close()
        return code

    return await asyncio.gather(*map(one, clients))


@pytest.mark.requirement("R49")
async def test_a_drain_that_the_api_begins(
    make_server: MakeServer, channel: str
) -> None:
    server = await make_server({"STEADWIRE_SERVER_DRAIN_TIME": "1"}).start()
    clients = [await server.raw() for _ in range(10)]
    silent = await server.raw(connected=False)
    async with server.api() as api:
        assert await readiness(api) == (200, "")
        told = await api.call("drain", {})
        assert told["state"] == "draining"
        assert 10 <= told["connections"] <= 11
        assert await readiness(api) == (503, "draining")
        with pytest.raises(HandshakeRefused) as refused:
            await server.raw()
        assert refused.value.status == 503
        assert "retry-after: 1" in refused.value.head.lower()
        # It does not end the process, nor the API.
        assert (await silent.closed()).code == 3001
        silent.tcp.close()
        assert set(await codes(clients)) == {3001}
        await until_drained(api)
        assert await api.call("drain", {}) == {"state": "drained", "connections": 0}
        assert await api.publish(channel, 1) == 1
        response = await api.request("GET", "/health/live")
        assert response.status == 200
    assert await server.terminate() == 0
    [begun] = [line for line in server.log() if line["event"] == "draining"]
    assert (begun["clients"], begun["seconds"]) == (10, 1.0)


@pytest.mark.requirement("R49")
async def test_while_the_drain_time_lasts_the_server_publishes_and_delivers(
    make_server: MakeServer, channel: str
) -> None:
    # A day: nobody is sent away in this test before the second signal.
    server = await make_server({"STEADWIRE_SERVER_DRAIN_TIME": "1d"}).start()
    client = await server.raw()
    await client.subscribe(channel)
    async with server.api() as api:
        server.process.send_signal(signal.SIGTERM)
        await server.logged('"draining"')
        assert await readiness(api) == (503, "draining")
        assert await api.publish(channel, {"n": 1}) == 1
        assert (await client.push())["pub"]["offset"] == 1
        refused = await client.request(subscribe={"channel": f"{channel}-new"})
        assert refused["error"]["code"] == 111
        assert refused["error"]["temporary"] is True
        assert "publish" in await client.request(
            publish={"channel": channel, "data": 2}
        )
        # Another drain changes nothing.
        again = await api.call("drain", {})
        assert again == {"state": "draining", "connections": 1}
    ending = asyncio.create_task(server.terminate())
    assert await codes([client]) == [3001]
    assert await ending == 0


@pytest.mark.requirement("R49")
async def test_a_publication_that_the_locked_store_holds_up_is_answered_first(
    make_server: MakeServer, channel: str
) -> None:
    server = await make_server({"STEADWIRE_STORE_LOCK_TIMEOUT": "10"}).start()
    client = await server.raw()
    await client.subscribe(channel)
    path = server.settings["STEADWIRE_STORE_PATH"]
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    await client.send({"id": 50, "publish": {"channel": channel, "data": {"n": 1}}})
    async with server.api() as api:
        # The session has it before the drain begins: the API is asked after it.
        while (await commands(api)) < 1:
            await asyncio.sleep(0.01)
        assert (await api.call("drain", {}))["connections"] == 1
        locker.execute("COMMIT")
        locker.close()
        messages = [await client.message() for _ in range(2)]
        assert {"id": 50, "publish": {}} in messages
        assert await codes([client]) == [3001]
        await until_drained(api)
        [kept] = await api.whole_history(channel)
        assert kept["data"] == {"n": 1}
    assert await server.terminate() == 0


async def commands(api: Api) -> float:
    response = await api.request("GET", "/metrics", headers={"X-API-Key": api.key})
    [line] = [
        line
        for line in response.body.decode().splitlines()
        if line.startswith('steadwire_commands_total{method="publish"}')
    ]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.requirement("R49")
async def test_the_next_server_waits_for_the_file_and_takes_it_over(
    make_server: MakeServer, channel: str
) -> None:
    old = await make_server().start()
    path = old.settings["STEADWIRE_STORE_PATH"]
    new = make_server({"STEADWIRE_STORE_PATH": path})
    new.spawn()
    await new.logged(WAITING)
    async with old.api() as api:
        assert [await api.publish(channel, n) for n in range(1, 4)] == [1, 2, 3]
    assert await old.terminate() == 0
    await asyncio.to_thread(new.wait_ready)
    async with new.api() as api:
        assert await api.publish(channel, 4) == 4
        kept = [each["data"] for each in await api.whole_history(channel)]
    assert kept == [1, 2, 3, 4]
    assert [line["path"] for line in new.log() if line["event"] == WAITING] == [path]


@pytest.mark.requirement("R49")
async def test_a_server_that_waits_for_the_file_ends_when_it_is_told(
    make_server: MakeServer, channel: str
) -> None:
    old = await make_server().start()
    new = make_server({"STEADWIRE_STORE_PATH": old.settings["STEADWIRE_STORE_PATH"]})
    new.spawn()
    await new.logged(WAITING)
    assert await new.terminate() == 0
    async with old.api() as api:
        assert await api.publish(channel, 1) == 1
