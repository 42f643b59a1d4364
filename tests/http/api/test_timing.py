"""Methods of the server API at moments that a running server does not hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest

from service.agents.threads import Threads
from service.auth.revocations import Revocations
from service.auth.tickets import Tickets
from service.connections import people
from service.connections.cluster_channels import ClusterChannels
from service.connections.loop_monitor import LoopMonitor
from service.connections.node_figures import NodeFigures
from service.connections.overload import Overload
from service.connections.people import LocalPeople
from service.connections.streams import Streams
from service.core.errors import ReplyError, StoreUnavailable
from service.core.health import Checks
from service.core.hooks import ConnectEvent, ConnectResult, Handlers
from service.foundation import NodeInfo
from service.http.api.calls import call
from service.http.api.context import ApiContext
from service.http.api.methods import METHODS
from service.runtime import Runtime
from service.settings import ChannelOptions, StoreSettings
from service.stores.sqlite.store import SqliteStore
from service.transports.handshake_gate import HandshakeGate
from tests.clock import VirtualClock
from tests.world.loop import FakeSocket, LoopWorld, settings

# No pings to answer.
UNTIMED = {"ping_interval": 86400.0, "heartbeat_timeout": 864000.0}


class Caller:
    """Calls methods on a world without a server."""

    def __init__(self, world: LoopWorld) -> None:
        context = world.context
        streams = Streams(world.clock, limit=9, user_limit=9, address_limit=9)
        state = SqliteStore(StoreSettings(path=":memory:"), world.clock).state
        threads = Threads(
            SqliteStore(StoreSettings(path=":memory:"), world.clock),
            world.hub,
            world.clock,
            world.spawn,
            node="uid",
            namespace="",
            options=ChannelOptions(),
            lease=30.0,
            shared=False,
        )
        runtime = Runtime(
            settings=world.settings,
            clock=world.clock,
            node=NodeInfo("uid", "name", "test", 0.0),
            metrics=context.metrics,
            checks=Checks(),
            store=world.store,
            hub=world.hub,
            delivery=world.hub,
            people=LocalPeople(
                world.registry, context.grace_period, world.clock, streams
            ),
            cluster=None,
            channels=ClusterChannels(world.hub, None),
            figures=NodeFigures(
                uid="uid",
                name="name",
                version="test",
                started=0.0,
                connections=world.registry,
                hub=world.hub,
                clock=world.clock,
            ),
            encoder=context.encoder,
            permissions=context.permissions,
            handlers=context.handlers,
            tickets=Tickets(state, world.clock, Random(1)),
            revocations=Revocations(
                state,
                world.clock,
                spawn=world.spawn,
                on_revoked=print,
                on_failure=print,
            ),
            connections=world.registry,
            limits=context.limits,
            liveness_stats=context.liveness_stats,
            grace_period=context.grace_period,
            reaper=world.reaper,
            drain=world.drain,
            streams=streams,
            gate=HandshakeGate(world.settings, world.clock, world.shedding),
            shedding=world.shedding,
            loop_monitor=LoopMonitor(
                world.registry,
                context.metrics,
                world.clock,
                context.rng,
                Overload(
                    world.settings.overload,
                    world.shedding,
                    queued=lambda: 0,
                    appends=lambda: 0.0,
                ),
            ),
            context=context,
            threads=threads,
        )
        self._context = ApiContext(runtime)

    async def call(self, name: str, **fields: Any) -> Any:
        [method] = [each for each in METHODS if each.name == name]
        text = await call(method, self._context, msgspec.json.encode(fields))
        return msgspec.json.decode(text)

    async def refused(self, name: str, **fields: Any) -> int:
        with pytest.raises(ReplyError) as refusal:
            await self.call(name, **fields)
        return refusal.value.error.code


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def world(clock: VirtualClock) -> AsyncIterator[LoopWorld]:
    world = LoopWorld(settings(UNTIMED), clock)
    await world.start()
    yield world
    await world.stop()


async def reading(world: LoopWorld) -> None:
    """Wait until a read waits at the gate."""
    async with asyncio.timeout(10):
        while not world.store.waiting:
            await asyncio.sleep(0)


def pushes(socket: FakeSocket) -> list[str]:
    found = [each["push"] for each in socket.messages if "push" in each]
    return [kind for push in found for kind in push if kind != "channel"]


async def test_subscribe_answers_when_the_client_is_subscribed(
    world: LoopWorld,
) -> None:
    api = Caller(world)
    _, socket = await world.connect()
    world.store.gate.clear()
    call = asyncio.create_task(api.call("subscribe", user="", channel="c"))
    await reading(world)
    assert not call.done() and pushes(socket) == []
    world.store.gate.set()
    assert await call == {}
    assert pushes(socket) == ["subscribe"]


async def test_subscribe_that_the_store_fails_is_not_called_a_success(
    world: LoopWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Caller(world)
    _, socket = await world.connect()
    world.store.gate.clear()  # nothing comes from memory

    async def read(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("locked")

    monkeypatch.setattr(world.store, "read", read)
    assert await api.refused("subscribe", user="", channel="c") == 100
    assert pushes(socket) == []


async def test_subscribe_that_takes_too_long_is_100_unless_the_client_has_gone(
    world: LoopWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "TIMEOUT", 0.01)
    api = Caller(world)
    connection, _ = await world.connect()
    world.store.gate.clear()
    assert await api.refused("subscribe", user="", channel="c") == 100
    call = asyncio.create_task(api.call("subscribe", user="", channel="d"))
    await reading(world)
    connection.gone()
    assert await call == {}


async def test_unsubscribe_during_a_subscribe_ends_it_once_it_is_there(
    world: LoopWorld,
) -> None:
    api = Caller(world)
    connection, socket = await world.connect()
    world.store.gate.clear()
    connection.receive('{"id":2,"subscribe":{"channel":"c"}}')
    await reading(world)
    assert await api.call("unsubscribe", user="", channel="c") == {}
    assert pushes(socket) == []
    world.store.gate.set()
    assert "subscribe" in await socket.reply(2)
    assert pushes(socket) == ["unsubscribe"]
    await world.publish("c")
    await world.quiet()
    assert pushes(socket) == ["unsubscribe"]
    assert world.subscriptions == 0
    connection.receive('{"id":3,"subscribe":{"channel":"c"}}')
    assert "subscribe" in await socket.reply(3)


async def test_methods_leave_a_connection_alone_that_is_closing(
    world: LoopWorld,
) -> None:
    api = Caller(world)
    _, socket = await world.connect("c")
    socket.stop_reading()
    assert await api.call("disconnect", user="") == {}
    for method, fields in (
        ("subscribe", {"channel": "d"}),
        ("unsubscribe", {"channel": "c"}),
        ("refresh", {"expired": True}),
        ("disconnect", {"disconnect": {"code": 4000, "reason": "later"}}),
    ):
        assert await api.call(method, user="", **fields) == {}
    socket.read_on()
    await socket.until(lambda: bool(socket.closes))
    assert socket.closes == [3503]
    assert pushes(socket) == []
    assert world.subscriptions == 0


async def test_refresh_closes_25_seconds_after_the_expiry(
    world: LoopWorld, clock: VirtualClock
) -> None:
    api = Caller(world)
    _, socket = await world.connect()
    at = int(clock.wall()) + 100
    left = at - clock.wall()
    await api.call("refresh", user="", expire_at=at)
    clock.advance(left + 24.9)
    assert socket.closes == []
    clock.advance(0.2)
    await socket.until(lambda: bool(socket.closes))
    assert socket.closes == [3005]


async def test_refresh_without_expiry_takes_it_away(
    world: LoopWorld, clock: VirtualClock
) -> None:
    api = Caller(world)
    _, socket = await world.connect()
    await api.call("refresh", user="", expire_at=int(clock.wall()) + 1)
    await api.call("refresh", user="")
    clock.advance(1000.0)
    await world.quiet()
    assert socket.closes == []


async def test_fault_nobody_expected_is_100(
    world: LoopWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts() -> dict[str, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(world.hub, "counts", counts)
    api = Caller(world)
    assert await api.refused("channels") == 100
    assert await api.refused("info") == 100


async def test_connect_hook_sets_an_expiry(clock: VirtualClock) -> None:
    async def connect(event: ConnectEvent) -> ConnectResult:
        return ConnectResult(user="ann", expire_at=clock.wall() + 10)

    hooks = Handlers(connect=connect)
    world = LoopWorld(settings(UNTIMED), clock, hooks)
    await world.start()
    _, socket = await world.connect()
    await world.quiet()
    clock.advance(34.9)
    assert socket.closes == []
    clock.advance(0.2)
    await socket.until(lambda: bool(socket.closes))
    assert socket.closes == [3005]
    await world.stop()
