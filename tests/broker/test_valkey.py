"""The broker on a real server: confirmation, loss, return, and messages of others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import redis.asyncio

from service.broker import valkey as module
from service.broker.hints import Hints
from service.broker.valkey import ValkeyBroker
from service.core.clock import SystemClock
from service.core.errors import StartupError
from service.core.model import Channel, Position, Publication, RawJson
from service.core.ports import Committed
from service.settings import BrokerSettings, Secret
from tests.faultproxy import FaultProxy
from tests.harness.valkey import Valkey

ROOM = Channel("room")

Make = Callable[..., Awaitable["Node"]]


class Node:
    """A process: its broker, and what its listener was told, in order."""

    def __init__(self, url: str, key: str = Valkey.key) -> None:
        self.broker = ValkeyBroker(
            BrokerSettings(url=Secret(url), key=Secret(key)),
            f"node{random.random()}",
            SystemClock(),
            random.Random(1),
        )
        self.log: list[tuple[object, ...]] = []
        self._changed = asyncio.Condition()

    def _note(self, *what: object) -> None:
        self.log.append(what)

    def told(self, batch: Sequence[Committed]) -> None:
        for one in batch:
            self._note("told", one.channel, one.publication.offset)

    def moved(self, channel: Channel, top: Position) -> None:
        self._note("moved", channel, top.offset)

    def look(self, channel: Channel) -> None:
        self._note("look", channel)

    def confirmed(self, channel: Channel) -> None:
        self._note("confirmed", channel)

    def lost(self) -> None:
        self._note("lost")

    async def until(self, *what: object, count: int = 1) -> None:
        async with asyncio.timeout(60):
            while self.log.count(what) < count:
                await asyncio.sleep(0.01)

    async def reached(self) -> None:
        async with asyncio.timeout(60):
            while self.broker.fault() is not None:
                await asyncio.sleep(0.01)

    def publish(self, offset: int, channel: Channel = ROOM) -> None:
        publication = Publication(offset, RawJson("1"))
        self.broker.publish([Committed(channel, publication, "e" if offset else "")])


@pytest.fixture
async def make(valkey: Valkey) -> AsyncIterator[Make]:
    made: list[Node] = []

    async def make(url: str = "", *, reached: bool = True, **options: str) -> Node:
        node = Node(url or valkey.url, **options)
        made.append(node)
        await node.broker.start(node, "table")
        if reached:
            await node.reached()
        return node

    yield make
    for node in made:
        await node.broker.close()


async def test_what_one_publishes_the_other_is_told(make: Make) -> None:
    one, other = await make(), await make()
    other.broker.follow(ROOM)
    await other.until("confirmed", ROOM)
    for offset in (1, 2, 0):
        one.publish(offset)
    other.publish(3)  # its own: it knows
    one.publish(1, Channel("elsewhere"))
    one.publish(4)
    await other.until("told", ROOM, 4)
    told = [what[2] for what in other.log if what[0] == "told"]
    assert told == [1, 2, 0, 4]
    other.broker.unfollow(ROOM)
    other.broker.follow(ROOM)
    await other.until("confirmed", ROOM, count=2)
    assert one.log == []
    assert other.broker.received >= 4 and other.broker.refused == 0


@pytest.mark.requirement("R42")
async def test_a_signal_is_heard_by_others_and_a_forged_one_by_nobody(
    make: Make, valkey: Valkey
) -> None:
    one, other = await make(), await make()
    for node in (one, other):
        node.broker.on_signal(lambda *what, node=node: node.log.append(what))
        node.broker.follow(ROOM)
        await node.until("confirmed", ROOM)
    forger = Hints("f" * 32, "forger", "table", SystemClock())
    topic = Hints(Valkey.key, "topics", "table", SystemClock()).topic("channel", ROOM)
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.execute_command("SPUBLISH", topic, forger.of_signal(topic, "forged"))
    await client.aclose()
    await other.until("look", ROOM)
    one.broker.signal(ROOM, "text")
    await other.until(ROOM, "text")
    assert other.log == [("confirmed", ROOM), ("look", ROOM), (ROOM, "text")]
    assert (ROOM, "text") not in one.log


async def test_a_server_that_is_down_is_not_an_error(make: Make) -> None:
    node = await make("redis://127.0.0.1:1", reached=False)
    node.broker.follow(ROOM)
    node.publish(1)
    assert node.broker.fault() is not None
    await node.broker.close()
    await node.broker.close()
    assert node.log == []


async def test_a_url_that_is_none_is_refused_at_the_start() -> None:
    node = Node("nonsense://x")
    with pytest.raises(StartupError):
        await node.broker.start(node, "table")


async def test_after_a_restart_all_is_confirmed_again_and_what_was_missed_is_told(
    make: Make,
) -> None:
    own = Valkey().start()
    try:
        one, other = await make(own.url), await make(own.url)
        channels = [Channel(f"c{n}") for n in range(600)]  # more than one command
        for channel in channels:
            other.broker.follow(channel)
        for channel in channels:
            await other.until("confirmed", channel)
        own.kill()
        await other.until("lost")
        await one.until("lost")
        one.publish(7, channels[0])  # nobody is told yet
        own.start()
        for channel in channels:
            await other.until("confirmed", channel, count=2)
        await one.reached()
        one.publish(8, channels[0])
        await other.until("told", channels[0], 8)
    finally:
        own.kill()


async def test_a_cut_that_nobody_is_told_of_is_noticed(
    make: Make, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    async with FaultProxy(valkey.port) as proxy:
        one, other = await make(), await make(f"redis://127.0.0.1:{proxy.port}")
        other.broker.follow(ROOM)
        await other.until("confirmed", ROOM)
        proxy.black_hole()
        await other.until("lost")
        other.publish(5)
        one.broker.follow(ROOM)
        await one.until("confirmed", ROOM)
        proxy.resume()
        await other.until("confirmed", ROOM, count=2)
        await one.until("moved", ROOM, 5)  # what was missed comes as a position


async def test_messages_of_others_cause_one_look_and_nothing_else(
    make: Make, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DOUBT", 3600.0)
    one, other = await make(), await make()
    stranger = await make(key="the key of somebody else, 32 bytes")
    other.broker.follow(ROOM)
    stranger.broker.follow(ROOM)
    await other.until("confirmed", ROOM)
    await stranger.until("confirmed", ROOM)
    topic = Hints(Valkey.key, "x", "table", SystemClock()).topic("channel", ROOM)
    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        for junk in (b"", b"x" * 100, b"y" * 100_000):
            await client.execute_command("SPUBLISH", topic, junk)
    one.publish(1)
    await other.until("told", ROOM, 1)
    assert other.broker.refused == 3
    assert [what for what in other.log if what[0] == "look"] == [("look", ROOM)]
    assert all(what[0] == "confirmed" for what in stranger.log)


async def test_a_notice_is_heard_by_all_and_after_each_loss(make: Make) -> None:
    own = Valkey().start()
    try:
        heard: list[int] = []
        one = Node(own.url)
        one.broker.hear("node1", lambda: heard.append(1))  # before the start
        await one.broker.start(one, "table")
        other = await make(own.url)
        await one.reached()

        async def until(count: int) -> None:
            async with asyncio.timeout(60):
                while len(heard) < count:
                    await asyncio.sleep(0.01)

        await until(1)  # some may have been lost before
        other.broker.notify("node1")
        await until(2)
        one.broker.notify("node1")
        await until(3)
        own.kill()
        await one.until("lost")
        own.start()
        await until(4)
        await one.broker.close()
    finally:
        own.kill()


async def test_a_message_reaches_one_process_or_its_sender_is_told(
    make: Make, valkey: Valkey
) -> None:
    async def mail(**options: str) -> Node:
        node = Node(valkey.url, **options)
        node.broker.receive(lambda sender, data: node.log.append((sender, data)))
        await node.broker.start(node, "table")
        await node.reached()
        return node

    one, other = await make(), await mail()
    try:
        failed: list[bool] = []
        count = 0
        async with asyncio.timeout(60):
            while not other.log:  # until it has subscribed
                count += 1
                name = other.broker.name
                one.broker.send(name, str(count).encode(), failed.append)
                await asyncio.sleep(0.01)
        assert other.log[0] == (one.broker.name, str(len(failed) + 1).encode())
        told: list[bool] = []
        one.broker.send("nobody", b"x", told.append)
        async with asyncio.timeout(60):
            while not told:
                await asyncio.sleep(0.01)
        assert told == [False] and not any(failed)
        forger = Hints("another key, of thirty-two bytes", "x", "table", SystemClock())
        topic = Hints(Valkey.key, "x", "table", SystemClock()).topic(
            "process", other.broker.name
        )
        async with redis.asyncio.Redis.from_url(valkey.url) as client:
            forged = forger.of_message(topic, b"forged")
            await client.execute_command("SPUBLISH", topic, forged)
        async with asyncio.timeout(60):
            while not other.broker.refused:
                await asyncio.sleep(0.01)
        assert b"forged" not in [what[1] for what in other.log]
    finally:
        await other.broker.close()
