"""Orders of events against the real server: in each, nothing is lost.

Where the server decides the order, each test makes many tries and holds every one to
what must be true in any order; exact orders are played in tests/transports.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server

TTL = 0.4  # s
LONGER = 5.0  # s, where that was over too early

NAMESPACES = json.dumps(
    [
        {
            "name": "brief",
            "history_size": 100,
            "history_ttl": TTL,
            "force_recovery": True,
        },
        {
            "name": "longer",
            "history_size": 100,
            "history_ttl": LONGER,
            "force_recovery": True,
        },
        {
            "name": "small",
            "history_size": 5,
            "history_ttl": 60,
            "force_recovery": True,
        },
        {
            "name": "room",
            "presence": True,
            "join_leave": True,
            "force_push_join_leave": True,
        },
    ]
)


server = server_with({"STEADWIRE_CHANNELS_NAMESPACES": NAMESPACES})


class Stays:
    """Checks what one client is sent of one channel against G3, message by message."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.inside = False
        self.expected = 0
        self.replies: list[int] = []

    def take(self, message: dict[str, Any]) -> None:
        push = message.get("push", {})
        if "subscribe" in message:
            assert not self.inside
            result = message["subscribe"]
            self.inside = True
            self.expected = result["offset"] + 1
            for publication in result.get("publications", ()):
                assert result["recovered"] is True
                self._took(publication)
        elif "unsubscribe" in message:
            self.inside = False
        elif "pub" in push:
            assert push["channel"] == self.channel
            assert self.inside, "a push outside of the subscription"
            self._took(push["pub"])
        if "id" in message:
            assert "error" not in message, message
            self.replies.append(message["id"])

    def _took(self, publication: dict[str, Any]) -> None:
        assert publication["offset"] == self.expected
        assert publication["data"] == self.expected
        self.expected += 1


async def publish(server: Server, channel: str, count: int) -> None:
    """Publish 1 … *count* in order, as fast as they are answered."""
    async with server.api() as api:
        for number in range(1, count + 1):
            assert await api.publish(channel, number) == number


async def read_until(
    client: RawClient, stays: Stays, *, reply: int | None = None, offset: int = 0
) -> None:
    while (
        reply is not None and reply not in stays.replies
    ) or stays.expected <= offset:
        stays.take(await client.message())


@pytest.mark.requirement("R45")
async def test_publish_during_subscribe(server: Server, channel: str) -> None:
    share = max(server.load, 0.3)
    total = round(400 * share)
    publisher = asyncio.create_task(publish(server, channel, total))

    async def follow(late: float) -> None:
        await asyncio.sleep(late)
        async with await server.raw() as client:
            stays = Stays(channel)
            ask = {"channel": channel, "recover": True, "offset": 0}
            await client.send({"id": 9, "subscribe": ask})
            await read_until(client, stays, reply=9, offset=total)

    # Short waits spread the subscribes over the time of the publishes.
    followers = range(round(20 * share))
    await asyncio.gather(*(follow(number * 0.01) for number in followers))
    await publisher


async def test_subscribe_and_unsubscribe_pipelined_ten_times(
    server: Server, channel: str
) -> None:
    publisher = asyncio.create_task(publish(server, channel, 200))
    async with await server.raw() as client:
        stays = Stays(channel)
        position = 0
        for first in range(10, 210, 20):
            commands: list[dict[str, Any]] = []
            for number in range(first, first + 20, 2):
                ask = {"channel": channel, "recover": True, "offset": position}
                commands.append({"id": number, "subscribe": ask})
                commands.append({"id": number + 1, "unsubscribe": {"channel": channel}})
            await client.send(*commands)
            await read_until(client, stays, reply=first + 19)
        assert stays.replies == list(range(10, 210))
        assert not stays.inside
        await client.send(
            {"id": 999, "subscribe": {"channel": channel, "recover": True}}
        )
        await read_until(client, stays, reply=999, offset=200)
    await publisher


async def test_unsubscribe_stops_the_delivery_at_once(
    server: Server, channel: str
) -> None:
    # While publications arrive, and while a recovery of several pieces goes on.
    async with server.api() as api:
        body = {"data": {"x": "x" * 60_000}}
        for _ in range(20):
            await api.call("publish", {"channel": channel, **body})
        async with await server.raw() as client:
            for number in range(10, 50, 2):
                ask = {"channel": channel, "recover": True, "offset": 0}
                await client.send({"id": number, "subscribe": ask})
                await client.send(
                    {"id": number + 1, "unsubscribe": {"channel": channel}}
                )
                await api.call("publish", {"channel": channel, "data": number})
                offsets: list[int] = []
                while True:
                    message = await client.message()
                    if message.get("id") == number:
                        found = message["subscribe"].get("publications", [])
                        offsets += [p["offset"] for p in found]
                    elif message.get("id") == number + 1:
                        break
                    else:
                        offsets.append(message["push"]["pub"]["offset"])
                assert offsets == list(range(1, len(offsets) + 1))
                await api.call("publish", {"channel": channel, "data": number})
                reply = await client.request(rpc={})
                assert reply["error"]["code"] == 108
                assert not client.pushes, "something came after the unsubscribe"


@pytest.mark.requirement("R50", "B63")
async def test_history_expires_between_disconnect_and_recovery(server: Server) -> None:
    if await expired(server, "brief:expiring", TTL):
        return
    async with asyncio.timeout(100):
        for attempt in itertools.count():
            if await expired(server, f"longer:expiring-{attempt}", LONGER):
                return


async def expired(server: Server, channel: str, ttl: float) -> bool:
    """Recover before the history has expired, and after; return whether that was so.

    On a machine that stalls it may have expired before its time.
    """
    async with server.api() as api:
        async with await server.raw() as client:
            epoch = (await client.subscribe(channel))["epoch"]
            await api.publish(channel, 1)
            await client.publications(channel, 1)
        published = time.monotonic()
        for number in (2, 3):
            await api.publish(channel, number)
        position = {"recover": True, "offset": 1, "epoch": epoch}
        async with await server.raw() as client:
            result = await client.subscribe(channel, **position)
            if time.monotonic() - published >= ttl:
                return False
            assert result["recovered"] is True
            assert [p["data"] for p in result["publications"]] == [2, 3]
        await asyncio.sleep(ttl + 0.1)  # what is tested is that this time passes
        async with await server.raw() as client:
            result = await client.subscribe(channel, **position)
            assert result["was_recovering"] is True
            assert "recovered" not in result
            assert "publications" not in result
            assert (result["offset"], result["epoch"]) == (3, epoch)
            published = time.monotonic()
            assert await api.publish(channel, 4) == 4
            [publication] = await client.publications(channel, 1)
            assert publication["offset"] == 4
        async with await server.raw() as client:  # it knew all that there was
            result = await client.subscribe(channel, **{**position, "offset": 3})
            if time.monotonic() - published >= ttl:
                return False
            assert result["recovered"] is True
            assert [p["offset"] for p in result["publications"]] == [4]
    return True


@pytest.mark.requirement("B70")
async def test_history_is_outgrown_between_disconnect_and_recovery(
    server: Server,
) -> None:
    channel = "small:outgrown"
    async with server.api() as api:
        for number in range(1, 11):
            await api.publish(channel, number)
    for offset, recovered in ((4, None), (5, 5), (9, 1), (10, 0), (11, None)):
        async with await server.raw() as client:
            result = await client.subscribe(channel, recover=True, offset=offset)
            if recovered is None:
                assert "recovered" not in result
                assert result["offset"] == 10
            else:
                assert result["recovered"] is True
                assert result["offset"] == offset
                assert len(result.get("publications", [])) == recovered


async def test_flag_bit_2_refuses_what_is_not_recovered(server: Server) -> None:
    channel = "small:refused"
    async with server.api() as api:
        for number in range(1, 11):
            await api.publish(channel, number)
    async with await server.raw() as client:
        ask = {"channel": channel, "recover": True, "offset": 1, "flag": 3}
        reply = await client.request(subscribe=ask)
        assert reply["error"] == {"code": 112, "message": "unrecoverable position"}
        assert "subscribe" in await client.request(subscribe={"channel": channel})


@pytest.mark.requirement("B81")
async def test_two_connections_of_one_user(server: Server) -> None:
    channel = "room:two"
    async with await server.raw() as one, await server.raw() as two:
        await one.subscribe(channel)
        assert "join" in await one.push()  # its own
        await two.subscribe(channel)
        assert "join" in await one.push()
        reply = await one.request(presence_stats={"channel": channel})
        assert reply["presence_stats"] == {"num_clients": 2, "num_users": 1}
        two.reset()
        push = await one.push()
        assert "leave" in push
        reply = await one.request(presence={"channel": channel})
        assert len(reply["presence"]["presence"]) == 1
        await one.publish(channel, 1)
        await one.publications(channel, 1)


@pytest.mark.requirement("B65", "B78")
async def test_a_client_that_comes_back_before_its_old_connection_is_gone(
    server: Server, channel: str
) -> None:
    # A reconnect through another network: the server still believes in the first.
    async with server.api() as api, await server.raw() as old:
        await old.subscribe(channel)
        await api.publish(channel, 1)
        await old.publications(channel, 1)
        async with await server.raw() as new:
            result = await new.subscribe(channel, recover=True, offset=1)
            assert result["recovered"] is True
            await api.publish(channel, 2)
            [seen] = await new.publications(channel, 1)
            [also] = await old.publications(channel, 1)
            assert seen["offset"] == also["offset"] == 2
