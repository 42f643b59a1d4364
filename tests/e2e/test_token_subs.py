"""Server-side subscriptions: from tokens, from the API, personal channels, their ends.

On a real server: what a token's `channels` and `subs` give, what comes back with
`connect.subs`, and what the server API changes of live connections.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import connection, subscription
from tests.harness.tokens import settings as token_settings

Make = Callable[..., Awaitable[SdkClient]]

CHANNELS = {
    "history_size": 100,
    "history_ttl": 60,
    "force_recovery": True,
    "presence": True,
    "allow_presence_for_subscriber": True,
}


server = server_with(
    token_settings(
        STEADWIRE_ENVIRONMENT="production",
        STEADWIRE_CLIENT_EXPIRED_CLOSE_DELAY="0.5",
        STEADWIRE_CLIENT_EXPIRED_SUB_CLOSE_DELAY="0.5",
        STEADWIRE_GATEWAY_SWEEP_INTERVAL="2",
        STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(CHANNELS),
        STEADWIRE_CLIENT_USER_PERSONAL_CHANNEL='{"enabled": true}',
    )
)


async def test_production_starts_with_keys(server: Server) -> None:
    client = await server.raw(connected=False)
    reply = await client.connect(token=connection("first"))
    assert list(reply["subs"]) == ["#first"]


async def test_without_a_key_of_the_api_the_start_says_so(make_server: Any) -> None:
    server = make_server(
        token_settings(STEADWIRE_ENVIRONMENT="production", STEADWIRE_API_KEY="")
    )
    await server.start()
    assert "The server API refuses everybody: set api.key" in server.output()
    assert "curl" not in server.output()


async def test_a_token_subscribes_with_options(server: Server) -> None:
    subs = {
        "a": {"info": {"role": 1}, "data": {"hello": 1}},
        "b": {"override": {"presence": {"value": False}}},
    }
    client = await server.raw(connected=False)
    reply = await client.connect(token=connection("tom", subs=subs, info={"n": "T"}))
    assert sorted(reply["subs"]) == ["#tom", "a", "b"]
    assert reply["subs"]["a"]["data"] == {"hello": 1}
    here = (await client.request(presence={"channel": "a"}))["presence"]["presence"]
    [info] = here.values()
    assert (info["conn_info"], info["chan_info"]) == ({"n": "T"}, {"role": 1})
    hidden = await client.request(presence={"channel": "b"})
    assert hidden["presence"] == {"presence": {}}


@pytest.mark.requirement("R40")
async def test_a_server_side_subscription_recovers(server: Server) -> None:
    client = await server.raw(connected=False)
    token = connection("una", channels=["news"])
    first = await client.connect(token=token)
    position = first["subs"]["news"]
    client.reset()
    async with server.api() as api:
        await api.publish("news", 1)
        await api.publish("news", 2)
    again = await server.raw(connected=False)
    asked = {"recover": True, "offset": position["offset"], "epoch": position["epoch"]}
    # It cannot recover channels to which its token does not subscribe it.
    subs = {"news": asked, "$secret": asked, "#other": asked}
    reply = await again.connect(token=token, subs=subs)
    assert sorted(reply["subs"]) == ["#una", "news"]
    news = reply["subs"]["news"]
    assert news["recovered"] is True
    assert [p["data"] for p in news["publications"]] == [1, 2]


@pytest.mark.parametrize("user", ["a,b", "x#42", "ключ", "y" * 255])
async def test_users_that_cannot_have_a_channel_of_their_own(
    server: Server, user: str
) -> None:
    client = await server.raw(connected=False)
    refused = await client.request(connect={"token": connection(user)})
    assert refused["error"]["code"] == 107


@pytest.mark.requirement("B2", "L3")
async def test_nobody_else_hears_a_personal_channel(server: Server) -> None:
    clients = {}
    for user in ("p1", "p2", ""):
        clients[user] = await server.raw(connected=False)
        reply = await clients[user].connect(token=connection(user))
        assert list(reply.get("subs", {})) == ([f"#{user}"] if user else [])
    for user in ("p2", ""):
        refused = await clients[user].request(subscribe={"channel": "#p1"})
        assert refused["error"]["code"] == 103
    async with server.api() as api:
        await api.publish("#p1", "for p1")
        await api.publish("#p2", "for p2")
    assert (await clients["p1"].push())["pub"]["data"] == "for p1"
    assert (await clients["p2"].push())["pub"]["data"] == "for p2"


async def test_a_refresh_shows_what_the_token_says(server: Server) -> None:
    client = await server.raw(connected=False)
    await client.connect(token=connection("vic", info={"n": 1}, channels=["c"]))
    token = connection("vic", info={"n": 2}, channels=["c"])
    await client.request(refresh={"token": token})
    here = (await client.request(presence={"channel": "c"}))["presence"]["presence"]
    assert [info["conn_info"] for info in here.values()] == [{"n": 2}]
    async with server.api() as api:
        await api.call("refresh", {"user": "vic", "info": {"n": 3}})
    here = (await client.request(presence={"channel": "c"}))["presence"]["presence"]
    assert [info["conn_info"] for info in here.values()] == [{"n": 3}]


async def test_a_refresh_ends_subscriptions_that_its_token_does_not_list(
    server: Server,
) -> None:
    client = await server.raw(connected=False)
    first = connection("yan", channels=["kept", "gone", "mine"])
    reply = await client.connect(token=first)
    assert sorted(reply["subs"]) == ["#yan", "gone", "kept", "mine"]
    async with server.api() as api:
        await api.call("subscribe", {"user": "yan", "channel": "of-api"})
        assert "subscribe" in await client.push()
        # Subscribed again by the server API: that is not the token's any more.
        await api.call("unsubscribe", {"user": "yan", "channel": "mine"})
        await api.call("subscribe", {"user": "yan", "channel": "mine"})
        assert "unsubscribe" in await client.push()
        assert "subscribe" in await client.push()
    await client.subscribe("asked", token=subscription("yan", "asked"))
    subs = {"kept": {}, "new": {}}
    for _ in range(2):  # the second changes nothing
        result = await client.request(refresh={"token": connection("yan", subs=subs)})
        assert "error" not in result
    push = await client.push()
    assert push == {
        "channel": "gone",
        "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
    }
    assert not client.pushes
    async with server.api() as api:
        found = await api.call("connections", {"user": "yan"})
        assert len(found["connections"]) == 1
        for channel in ("gone", "kept", "mine", "of-api", "asked", "#yan"):
            await api.publish(channel, channel)
    for channel in ("kept", "mine", "of-api", "asked", "#yan"):
        push = await client.push()
        assert (push["channel"], push["pub"]["data"]) == (channel, channel)
    # A token that lists nothing ends the rest of what a token gave.
    await client.request(refresh={"token": connection("yan")})
    push = await client.push()
    assert (push["channel"], push["unsubscribe"]["code"]) == ("kept", 2000)
    async with server.api() as api:
        await api.publish("mine", 1)
    assert (await client.push())["channel"] == "mine"


async def test_the_api_lets_connections_expire(server: Server) -> None:
    client = await server.raw(connected=False)
    await client.connect(token=connection("wes"))
    async with server.api() as api:
        soon = int(time.time()) + 2
        await api.call("refresh", {"user": "wes", "expire_at": soon})
        assert (await client.closed()).code == 3005
    assert time.time() >= soon  # not before its time


async def test_the_api_subscribes_until_a_time(server: Server) -> None:
    client = await server.raw(connected=False)
    await client.connect(token=connection("xan"))
    async with server.api() as api:
        soon = int(time.time()) + 2
        body = {"user": "xan", "channel": "until", "expire_at": soon}
        await api.call("subscribe", body)
        assert (await client.push())["subscribe"]["positioned"] is True
        await api.publish("until", 1)
        assert (await client.push())["pub"]["data"] == 1
        assert (await client.closed()).code == 3006


async def test_a_subscription_that_was_taken_back_does_not_end_anything(
    server: Server,
) -> None:
    client = await server.raw(connected=False)
    await client.connect(token=connection("yan"))
    async with server.api() as api:
        soon = int(time.time()) + 1
        body = {"user": "yan", "channel": "until", "expire_at": soon}
        await api.call("subscribe", body)
        await api.call("unsubscribe", {"user": "yan", "channel": "until"})
        other = await server.raw(connected=False)
        await other.connect(token=connection("yan2", seconds=1.5))
        # Another connection's end, which is later, is the clock here.
        assert (await other.closed()).code == 3005
        await api.publish("#yan", "still here")
    assert "subscribe" in await client.push()
    assert (await client.push())["unsubscribe"]["code"] == 2000
    assert (await client.push())["pub"]["data"] == "still here"


async def test_an_sdk_recovers_what_the_server_subscribed(
    server: Server, make_client: Make, request: pytest.FixtureRequest
) -> None:
    sdk = request.node.callspec.params["make_client"].replace(" ", "-")
    channel, user = f"feed-{sdk}", f"zoe-{sdk}"
    token = connection(user, channels=[channel])
    client = await make_client(server.url, token=token, min_delay=0.5, max_delay=1.0)
    await client.connect()
    await client.seen("server_subscribed", 2)
    async with server.api() as api:
        await api.publish(channel, 1)
        await client.seen("server_publication", 1)
        await client.cut()
        await client.seen("connecting", 2)
        for number in (2, 3, 4):
            await api.publish(channel, number)
        await client.seen("server_publication", 4)
        await api.publish(channel, 5)
        await client.seen("server_publication", 5)
    heard = [event["data"] for event in client.events["server_publication"]]
    assert heard == [1, 2, 3, 4, 5]


async def test_a_subscription_of_a_personal_channel_by_token_is_its_owner_s(
    server: Server,
) -> None:
    # A token decides alone; the issuer's word is what counts.
    client = await server.raw(connected=False)
    await client.connect(token=connection("u8"))
    result: dict[str, Any] = await client.subscribe(
        "#u9", token=subscription("u8", "#u9")
    )
    assert result["expires"] is True
    await asyncio.sleep(0)
