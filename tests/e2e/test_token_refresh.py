"""Refreshes of tokens during streams, shutdowns, other refreshes and key set outages.

And the isolation of users with tokens, on real sockets. Nothing here waits for a clock
but for tokens that must expire.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.raw import Closed, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import connection, jwks, subscription
from tests.harness.tokens import settings as token_settings

Make = Callable[..., Awaitable[SdkClient]]

CHANNELS = {"history_size": 2000, "history_ttl": 60, "force_recovery": True}


server = server_with(
    token_settings(STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(CHANNELS))
)


async def enter(server: Server, user: str, channel: str = "") -> RawClient:
    client = await server.raw(connected=False)
    await client.connect(token=connection(user))
    if channel:
        await client.subscribe(channel, token=subscription(user, channel))
    return client


# --- streams


@pytest.mark.requirement("B21", "L15")
@pytest.mark.parametrize("what", ["refresh", "sub_refresh", "both"])
async def test_a_refresh_in_the_middle_of_a_stream_loses_and_doubles_nothing(
    server: Server, what: str
) -> None:
    # Refreshed without a pause while 1,000 publications come, or more until it has been
    # refreshed often enough.
    channel = f"$stream-{what}"
    client = await enter(server, "ann", channel)
    async with server.api() as api:

        async def publish() -> None:
            nonlocal total
            while total < 1000 * server.load or replies < 20 * server.load:
                numbers = range(total, total + 20)
                await asyncio.gather(*(api.publish(channel, n) for n in numbers))
                total += 20

        total = sent = replies = 0
        offsets: list[int] = []
        publishing = asyncio.create_task(publish())
        while len(offsets) < total or not publishing.done():
            if sent - replies < server.pipelined and not publishing.done():
                commands = []
                if what != "sub_refresh":
                    commands.append({"refresh": {"token": connection("ann")}})
                if what != "refresh":
                    token = subscription("ann", channel)
                    commands.append(
                        {"sub_refresh": {"channel": channel, "token": token}}
                    )
                await client.send(
                    *(
                        {"id": 1001 + sent + number, **command}
                        for number, command in enumerate(commands)
                    )
                )
                sent += len(commands)
            message = await client.message()
            if "push" in message:
                offsets.append(message["push"]["pub"]["offset"])
            else:
                replies += 1
                assert message["id"] == 1000 + replies, "refreshes out of order"
                [result] = (
                    message[m] for m in ("refresh", "sub_refresh") if m in message
                )
                assert result["expires"] is True and 3590 <= result["ttl"] <= 3600
        await publishing
    assert offsets == list(range(1, total + 1))


@pytest.mark.requirement("B17", "B21", "L15")
async def test_an_sdk_refreshes_in_the_middle_of_a_stream(
    server: Server, make_client: Make, request: pytest.FixtureRequest
) -> None:
    # Connection and subscription tokens of a second or two, renewed by the
    # SDK itself while 20 messages of 0.2 s come.
    sdk = request.node.callspec.params["make_client"]
    channel = f"$chat-{sdk}".replace(" ", "-")
    lives = [2.4 + n * 1.1 for n in range(6)]
    plan = [connection("ann", seconds=life) for life in lives]
    client = await make_client(
        server.url, token=plan[0], get_token=[*plan[1:], connection("ann")]
    )
    await client.connect()
    subs = [subscription("ann", channel, seconds=life) for life in lives]
    await client.subscribe(
        channel, token=subs[0], get_token=[*subs[1:], subscription("ann", channel)]
    )
    async with server.api() as api:
        for number in range(20):
            await api.publish(channel, number)
            await asyncio.sleep(0.2)
        await client.seen("publication", 20)
    assert client.offsets(channel) == list(range(1, 21))
    # At least twice each, and never with a new connection or subscription.
    assert len(client.events["get_token"]) >= 4
    assert len(client.events["connected"]) == 1
    assert len(client.events["subscribed"]) == 1


# --- many at once


@pytest.mark.requirement("B18", "B24")
@pytest.mark.parametrize("count", [10, 100])
async def test_many_connections_refresh_at_once(server: Server, count: int) -> None:
    clients = await asyncio.gather(*(enter(server, f"u{n}") for n in range(count)))
    replies = await asyncio.gather(
        *(
            client.request(refresh={"token": connection(f"u{n}")})
            for n, client in enumerate(clients)
        )
    )
    assert all(reply["refresh"]["expires"] is True for reply in replies)


@pytest.mark.requirement("B107")
async def test_one_connection_refreshes_ten_times_at_once(server: Server) -> None:
    client = await enter(server, "ann")
    seconds = range(600, 1100, 50)
    await client.send(
        *(
            {"id": 100 + n, "refresh": {"token": connection("ann", seconds=s + 49.5)}}
            for n, s in enumerate(seconds)
        )
    )
    replies = [await client.message() for _ in seconds]
    # In order, so the last one is the one that holds.
    assert [reply["id"] for reply in replies] == list(range(100, 110))
    left = [reply["refresh"]["ttl"] for reply in replies]
    assert [seconds - seconds % 50 for seconds in left] == list(seconds)


@pytest.mark.requirement("B20", "B107")
async def test_one_bad_refresh_among_many_harms_nobody_else(server: Server) -> None:
    clients = await asyncio.gather(*(enter(server, f"v{n}") for n in range(20)))
    tokens = [connection("eve" if n == 7 else f"v{n}") for n in range(20)]
    outcomes = await asyncio.gather(
        *(
            client.request(refresh={"token": token})
            for client, token in zip(clients, tokens, strict=True)
        ),
        return_exceptions=True,
    )
    ended = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Closed)]
    assert ended == [7]
    assert all("refresh" in o for n, o in enumerate(outcomes) if n != 7)  # type: ignore[operator]


# --- the key set


class Issuer:
    """Publishes keys, until it is told to be silent; *failing* answers are a 503."""

    def __init__(self) -> None:
        self.failing = 0
        self.silent = asyncio.Event()
        self.asked = asyncio.Event()
        self.requests = 0

    async def answer(self, _: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.asked.set()
        if self.silent.is_set():
            await asyncio.sleep(60)
        if self.requests <= self.failing:
            raise web.HTTPServiceUnavailable
        return web.json_response(jwks("k1"))


@pytest.fixture
async def issuer() -> AsyncIterator[tuple[Issuer, str]]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/jwks", issuer.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield issuer, f"http://127.0.0.1:{port}/jwks"
    await runner.cleanup()


@pytest.mark.requirement("B22", "B94")
async def test_keys_that_cannot_be_had_let_nobody_in_and_nobody_down(
    make_server: Callable[..., Server], issuer: tuple[Issuer, str], channel: str
) -> None:
    # New ones are refused; connected ones stay, until their own expiry.
    assert issuer
    server = await make_server(
        token_settings(
            STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT="http://127.0.0.1:1/jwks",
            STEADWIRE_CLIENT_EXPIRED_CLOSE_DELAY="0.5",
            STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(CHANNELS),
        )
    ).start()
    client = await server.raw(connected=False)
    reply = await client.connect(token=connection("ann", seconds=3.9))
    assert 1 <= reply["ttl"] <= 3
    await client.subscribe(channel, token=subscription("ann", channel))
    published = {"algorithm": "RS256", "kid": "k1"}
    temporary = {"code": 100, "message": "internal server error", "temporary": True}
    for _ in range(3):
        other = await server.raw(connected=False)
        refused = await other.request(connect={"token": connection("bob", **published)})
        assert refused["error"] == temporary
    # A refresh fails for now, and the connection goes on.
    refused = await client.request(refresh={"token": connection("ann", **published)})
    assert refused["error"] == temporary
    async with server.api() as api:
        await api.publish(channel, 1)
        assert (await api.call("info", {}))["nodes"][0]["num_clients"] == 1
    assert (await client.push())["pub"]["offset"] == 1
    assert (await client.closed()).code == 3005


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.requirement("R46", "B22")
async def test_keys_that_cannot_be_had_again_and_again_degrade(
    make_server: Callable[..., Server],
) -> None:
    """Although one token came; and that ends when they can be had, without another."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/jwks"
    server = await make_server(
        token_settings(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)
    ).start()
    client = await server.raw(connected=False)
    token = connection("ann", algorithm="RS256", kid="k1")
    reply = await client.request(connect={"token": token})
    assert reply["error"]["temporary"]

    async with server.api() as api:

        async def until(*checks: str) -> None:
            async with asyncio.timeout(50.0):
                while True:
                    ready = await api.request("GET", "/health/ready")
                    assert ready.status == 200  # never out of service for that
                    if tuple(ready.json.get("checks", ())) == checks:
                        return
                    await asyncio.sleep(0.2)  # between two looks

        await until("keys")

        async def publish(_: web.Request) -> web.Response:
            return web.json_response({"keys": []})

        app = web.Application()
        app.router.add_get("/jwks", publish)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await until()
        await runner.cleanup()


@pytest.mark.slow
@pytest.mark.requirement("B22")
async def test_an_sdk_gets_in_once_the_keys_can_be_had_again(
    make_server: Callable[..., Server],
    issuer: tuple[Issuer, str],
    start_host: Callable[..., Any],
) -> None:
    source, url = issuer
    source.failing = 1
    server = await make_server(
        token_settings(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)
    ).start()
    token = connection("ann", algorithm="RS256", kid="k1")
    host = await start_host("js-5.8.0")
    client = await SdkClient.create(host, server.url, token=token)
    await client.connect(within=60.0)
    assert not client.events["disconnected"]  # which would be for good
    assert source.requests >= 2


@pytest.mark.requirement("B23")
async def test_a_shutdown_in_the_middle_of_a_refresh(
    make_server: Callable[..., Server], issuer: tuple[Issuer, str]
) -> None:
    source, url = issuer
    source.silent.set()
    server = await make_server(
        token_settings(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)
    ).start()
    client = await enter(server, "ann")
    token = connection("ann", algorithm="RS256", kid="k1")
    await client.send({"id": 9, "refresh": {"token": token}})
    async with asyncio.timeout(10):
        await source.asked.wait()
    status = await server.terminate()
    assert (await client.closed()).code == 3001
    assert status == 0
    # What was not decided is to be repeated elsewhere, or has no answer.
    temporary = {"code": 100, "message": "internal server error", "temporary": True}
    assert list(client.pushes) in ([], [{"id": 9, "error": temporary}])


async def test_a_key_of_the_issuer_s(
    make_server: Callable[..., Server], issuer: tuple[Issuer, str]
) -> None:
    source, url = issuer
    server = await make_server(
        token_settings(STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=url)
    ).start()
    clients = [await server.raw(connected=False) for _ in range(10)]
    token = connection("ann", algorithm="RS256", kid="k1")
    replies = await asyncio.gather(*(c.connect(token=token) for c in clients[:3]))
    assert all(reply["expires"] for reply in replies)
    assert source.requests == 1


# --- isolation


@pytest.mark.requirement("R38", "R39", "B29")
async def test_fifty_users_with_three_sockets_each_hear_their_own_alone(
    server: Server,
) -> None:
    # 50 users, 3 sockets, 100 messages; identity comes from the token alone.
    count = round(100 * server.load)
    users = [f"user{n}" for n in range(50)]
    sockets: dict[str, list[RawClient]] = {}

    async def open_all(user: str) -> None:
        sockets[user] = [await enter(server, user, f"$of-{user}") for _ in range(3)]

    await asyncio.gather(*(open_all(user) for user in users))
    async with server.api() as api:
        for number in range(count):
            await asyncio.gather(
                *(api.publish(f"$of-{user}", [user, number]) for user in users)
            )

    async def heard(user: str, client: RawClient) -> None:
        publications = await client.publications(f"$of-{user}", count)
        assert [p["data"] for p in publications] == [[user, n] for n in range(count)]
        # Nothing else is on its way: the reply to a command is the next message.
        reply = await client.request(unsubscribe={"channel": "$none"})
        assert reply["unsubscribe"] == {} and not client.pushes

    await asyncio.gather(
        *(heard(user, client) for user in users for client in sockets[user])
    )
