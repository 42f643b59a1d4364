"""Who may connect at the gateway, and for how long: limits, revocations, expiry."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import product
from typing import Any

import pytest

from service.core.clock import SystemClock
from service.core.errors import PERMISSION_DENIED, TOO_MANY_REQUESTS, ReplyError
from service.core.hooks import ConnectEvent, ConnectResult, Handlers
from service.core.model import Channel, ClientId, RawJson, UserId
from service.gateway.events import Kind
from tests.gateway.environments import SECRET, Environment, Environments, token
from tests.server.running import until

CH = Channel("chat:x")


def subscribe(command: int) -> dict[str, Any]:
    return {"id": command, "subscribe": {"channel": CH}}


@pytest.mark.requirement("R12")
async def test_a_fourth_connection_closes_the_oldest(
    strict: list[Environment], environments: Environments
) -> None:
    sockets = environments.sockets
    for number in range(4):
        reply = await strict[number % 2].connect(f"c{number}", token=token())
        assert "connect" in reply
    assert sockets.closed == ["c0"]
    assert sockets.take("c0")[-1]["push"]["disconnect"]["code"] == 3504
    assert len(await strict[0].runtime.people.connections(UserId("ann"))) == 3


@pytest.mark.requirement("R12")
async def test_connects_of_one_user_at_once(
    strict: list[Environment], environments: Environments
) -> None:
    sockets = environments.sockets
    every = [(f"c{n}", each) for n, each in enumerate(strict * 6)]
    for client, each in every:
        await each.handle(Kind.CONNECT, client)
        sockets.messages[client] = []
    connect = {"id": 1, "connect": {"token": token()}}
    await asyncio.gather(*(each.say(client, connect) for client, each in every))
    left = await strict[0].runtime.people.connections(UserId("ann"))
    assert len(left) == 3
    assert len(sockets.closed) == 9
    assert {each.client for each in left}.isdisjoint(sockets.closed)


async def test_the_dead_keep_their_slots_until_their_pings_are_not_taken(
    environments: Environments,
) -> None:
    """Where nobody is evicted: no pong could tell who is dead."""
    one = await environments.open(
        SystemClock(),
        STEADWIRE_TOKEN_HMAC_SECRET_KEY=SECRET,
        STEADWIRE_CONNECTIONS_POLICY="reject",
    )
    for client in ("a", "b", "c"):
        await one.connect(client, token=token())
    one.sockets.closed.append("b")  # and no $disconnect ever tells so
    refused = await one.connect("d", token=token())
    assert refused["push"]["disconnect"]["code"] == 3504
    await one.runtime.application.sweep()
    assert "connect" in await one.connect("e", token=token())


async def test_the_limit_of_the_deployment(environments: Environments) -> None:
    settings = {
        "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
        "STEADWIRE_DYNAMODB_CLIENT_LIMIT": "2",
    }
    one, other = [await environments.open(SystemClock(), **settings) for _ in "ab"]
    await one.connect("a", token=token(sub="ann"))
    await other.connect("b", token=token(sub="bob"))
    refused = await one.connect("c", token=token(sub="eve"))
    assert refused["push"]["disconnect"]["code"] == 3013
    await one.handle(Kind.DISCONNECT, "a")
    assert "connect" in await other.connect("d", token=token(sub="eve"))


async def test_a_revoked_token_ends_at_the_next_frame_or_sweep(
    strict: list[Environment], environments: Environments
) -> None:
    one, other = strict[:2]
    sockets = environments.sockets
    for client in ("a", "b", "c"):
        await one.connect(client, token=token(sub=client, jti=client))
    end = time.time() + 600
    await other.base.revocations.revoke_token("a", end)
    await other.base.revocations.revoke_token("b", end)
    fresh = await environments.open(
        SystemClock(), STEADWIRE_TOKEN_HMAC_SECRET_KEY=SECRET
    )
    await fresh.say("a", subscribe(2))
    assert sockets.take("a")[-1]["push"]["disconnect"]["code"] == 3005
    await fresh.runtime.application.sweep()
    assert sockets.take("b")[-1]["push"]["disconnect"]["code"] == 3005
    assert sockets.closed == ["a", "b"]
    refused = await fresh.connect("d", token=token(sub="a", jti="a"))
    assert refused["error"]["code"] == 109


async def test_a_revoked_user_ends_at_once(
    strict: list[Environment], environments: Environments
) -> None:
    one, other = strict[:2]
    await one.connect("a", token=token())
    now = time.time()
    await other.base.revocations.revoke_user(UserId("ann"), now + 1, now + 600)
    await until(lambda: environments.sockets.closed == ["a"], 10.0, "a is closed")


async def test_an_expired_connection_ends(
    environments: Environments,
) -> None:
    clock = AheadClock()
    settings = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET}
    one = await environments.open(clock, **settings)
    await one.connect("a", token=token(exp=int(time.time()) + 60))
    await one.connect("b", token=token(exp=int(time.time()) + 60))
    refreshed = token(exp=int(time.time()) + 600, jti="two")
    await one.say("b", {"id": 2, "refresh": {"token": refreshed}})
    reply = one.sockets.take("b")[-1]
    assert reply["refresh"]["expires"]
    clock.ahead = 60 + 26
    await one.say("a", subscribe(2))
    assert one.sockets.take("a")[-1]["push"]["disconnect"]["code"] == 3005
    await one.say("b", subscribe(3))
    assert one.sockets.take("b")[-1]["id"] == 3
    listed = [
        each
        for part in range(64)
        for each in (await _sessions(one).listing(part)).admitted
    ]
    assert [each.client for each in listed] == ["b"]
    clock.ahead = 600 + 26
    assert 0 < listed[0].terms.end <= clock.wall() * 1000
    await one.runtime.people.look_after(ClientId("b"))
    assert environments.sockets.closed == ["a", "b"]


def _sessions(environment: Environment) -> Any:
    return environment.runtime.application.context.sessions


class AheadClock(SystemClock):
    """The system's clock, `ahead` of it by some seconds."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def wall(self) -> float:
        return super().wall() + self.ahead


async def test_a_thawed_process_calls_a_table_that_had_failed_before(
    environments: Environments,
) -> None:
    clock = AheadClock()
    one = await environments.open(clock)
    store: Any = one.base.store
    breaker = store.client.breaker
    for _ in range(3):
        breaker.failed("gone")
    one.runtime.thawed()
    assert not breaker.closed  # it stood still for too short a time
    clock.ahead = 60
    one.runtime.thawed()
    assert (await one.handle(Kind.CONNECT, "a")).status == 200


async def test_a_refresh_shows_what_the_token_says(
    strict: list[Environment], environments: Environments
) -> None:
    one, other = strict[:2]
    end = int(time.time()) + 600
    claims = {"exp": end, "channels": ["plain:x"]}
    await one.connect("a", token=token(info={"n": 1}, **claims))
    refreshed = token(info={"n": 2}, **claims)
    await other.say("a", {"id": 3, "refresh": {"token": refreshed}})
    context = one.runtime.application.context
    [row] = await context.subscribers.rows(Channel("plain:x"))
    assert json.loads(row.info)["conn_info"] == {"n": 2}


async def test_a_refresh_by_the_server_api_is_stored(
    strict: list[Environment],
) -> None:
    """Its client is sent nothing that would have to be posted."""
    one, other = strict[:2]
    await one.connect("a", token=token(channels=["plain:x"]))
    end = round(time.time()) + 600
    user, sessions = UserId("ann"), _sessions(one)
    await other.runtime.people.refresh(user, float(end), RawJson('{"n":2}'))
    assert one.sockets.take("a") == []
    stored = await sessions.load(ClientId("a"))
    record = json.loads(stored.record)
    assert record["conn_info"] == '{"n":2}' and record["end"] >= end * 1000
    [row] = await one.runtime.application.context.subscribers.rows(Channel("plain:x"))
    assert json.loads(row.info)["conn_info"] == {"n": 2}
    listed = [
        each for part in range(64) for each in (await sessions.listing(part)).admitted
    ]
    assert [each.terms.end for each in listed] == [record["end"]]


@pytest.mark.slow
@pytest.mark.requirement("R38")
async def test_fifty_users_with_three_sockets_each_hear_their_own_alone(
    strict: list[Environment], environments: Environments
) -> None:
    sockets = environments.sockets
    clients = [(f"user{n}", f"user{n}-{m}") for n in range(50) for m in range(3)]

    async def enter(number: int, user: str, client: str) -> None:
        one = strict[number % 2]
        await one.connect(client, token=token(sub=user, channels=[f"chat:{user}"]))

    for start in range(0, len(clients), 10):
        await asyncio.gather(
            *(
                enter(start + n, user, client)
                for n, (user, client) in enumerate(clients[start : start + 10])
            )
        )
    assert sockets.closed == []
    # No more at once than threads: a call that waits for one for 4 s fails.
    for number, start in product(range(4), range(0, 50, 10)):
        await asyncio.gather(
            *(
                strict[(n + number) % 2].publish(f"chat:user{n}", [f"user{n}", number])
                for n in range(start, start + 10)
            )
        )
    for user, client in clients:
        found = [message["push"] for message in sockets.messages[client]]
        assert {push["channel"] for push in found} == {f"chat:{user}"}
        assert [push["pub"]["data"] for push in found] == [
            [user, number] for number in range(4)
        ]


@pytest.mark.slow
async def test_one_thread_for_the_table_is_enough(environments: Environments) -> None:
    """No call in a thread waits for another thread: all would fail in time."""
    one = await environments.open(SystemClock(), STEADWIRE_DYNAMODB_CONNECTIONS="1")
    sockets = environments.sockets
    clients = [f"client{n}" for n in range(6)]
    for client in clients:
        await one.connect(client)
    subscribe = {"id": 2, "subscribe": {"channel": "chat:all"}}
    await asyncio.gather(*(one.say(client, subscribe) for client in clients))
    publish = {"id": 3, "publish": {"channel": "chat:all", "data": 0}}
    await asyncio.gather(*(one.say(client, publish) for client in clients))
    for client in clients:
        assert sockets.offsets(client, "chat:all") == [1, 2, 3, 4, 5, 6]
    await asyncio.gather(*(one.handle(Kind.DISCONNECT, each) for each in clients))
    assert sockets.closed == []
    assert [each for each in await environments.items() if "book" in each] == []


@pytest.mark.requirement("B100", "B104")
async def test_refused_credentials_are_not_looked_at_again(
    environments: Environments,
) -> None:
    """In the process that refused them; others, and valid ones, are looked at."""
    asked: list[str] = []

    async def decide(event: ConnectEvent) -> ConnectResult:
        asked.append(event.token)
        if event.token == "good":
            return ConnectResult(user="ann")
        raise ReplyError(PERMISSION_DENIED)

    one = await environments.open(
        SystemClock(),
        Handlers(connect=decide),
        STEADWIRE_LIMITS_FAILURES_PER_ADDRESS="2",
    )

    async def code(client: str, token: str) -> int:
        found: int = (await one.connect(client, token=token))["error"]["code"]
        return found

    denied, busy = PERMISSION_DENIED.code, TOO_MANY_REQUESTS.code
    found = [await code(f"c{n}", "bad") for n in range(4)]
    assert found == [denied, denied, busy, busy]
    assert [await code("d", "other"), await code("e", "other")] == [denied, busy]
    assert "connect" in await one.connect("f", token="good")
    assert asked == ["bad", "bad", "other", "good"]
    assert one.refusals.counts == {"failures": 1, "blocked": 3}
