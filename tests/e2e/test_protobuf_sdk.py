"""Official SDKs that speak protobuf, beside others that speak JSON.

All use one server, whose hooks name the users; each test runs for each SDK.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import SDKS
from tests.e2e.test_sdk import PAYLOADS
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.sdk import SdkClient, SdkError
from tests.harness.server import Server

Make = Callable[..., Awaitable[SdkClient]]

SEEN = {"name": "seen", "presence": True, "join_leave": True}
PLAIN = {"name": "plain", "presence": False}


server = server_with(
    {"STEADWIRE_CHANNELS_NAMESPACES": json.dumps([SEEN, PLAIN])},
    app="tests.http.hooked:app",
)


@pytest.fixture(params=SDKS)
async def make(
    request: pytest.FixtureRequest,
    start_host: Callable[..., Any],
    server: Server,
) -> Make:
    """Connect clients of one SDK, by name of their user."""
    host = await start_host(request.param)

    async def make(user: str, *, protobuf: bool = True, **options: Any) -> SdkClient:
        client = await SdkClient.create(
            host, server.url, token=user, protobuf=protobuf, **options
        )
        await client.connect()
        return client

    return make


async def test_both_kinds_publish_and_hear_the_same(
    make: Make, server: Server, api: Api, channel: str
) -> None:
    binary, text = await make("ann"), await make("bob", protobuf=False)
    for client in (binary, text):
        subscribed = await client.subscribe(channel)
        assert subscribed["data"] == {"hello": "ann" if client is binary else "bob"}
    sent: list[Any] = []
    for payload in PAYLOADS:
        await binary.publish(channel, payload)
        await text.publish(channel, payload)
        sent += [payload, payload]
    big = {"long": "ü" * 50_000}  # each frame here has 64 KiB, if it can
    await api.publish(channel, big, tags={"k": "größer", '"': ""})
    sent.append(big)
    for client in (binary, text):
        await client.seen("publication", len(sent))
        assert [p["data"] for p in client.publications(channel)] == sent
        assert client.offsets(channel) == list(range(1, len(sent) + 1))
    assert binary.publications(channel) == text.publications(channel)
    assert binary.publications(channel)[-1]["tags"] == {"k": "größer", '"': ""}
    infos = [event["info"] for event in binary.events["publication"]]
    assert infos == [event["info"] for event in text.events["publication"]]
    assert [info and info["user"] for info in infos[:2]] == ["ann", "bob"]

    first, second = [
        await client.history(channel, limit=5, since={"offset": 2, "epoch": ""})
        for client in (binary, text)
    ]
    assert [p["data"] for p in first["publications"]] == sent[2:7]
    assert first["offset"] == len(sent)
    assert (first["publications"], first["epoch"]) == (
        second["publications"],
        second["epoch"],
    )
    since = {"offset": 4, "epoch": first["epoch"]}
    back = await binary.history(channel, limit=2, since=since, reverse=True)
    assert [p["data"] for p in back["publications"]] == [sent[2], sent[1]]


async def test_presence_and_those_who_come_and_go(make: Make, channel: str) -> None:
    watcher = await make("ann")
    channel = f"seen:{channel}"
    await watcher.subscribe(channel, join_leave=True)
    guest = await make("bob", protobuf=False)
    await guest.subscribe(channel)
    other = await make("bob")
    await other.subscribe(channel)
    await watcher.seen("join", 3)  # its own is the first
    found = await watcher.presence(channel)
    assert found == await guest.presence(channel)
    names = {client.events["connected"][0]["id"]: client for client in (guest, other)}
    (own,) = found.keys() - names.keys()
    for name, info in found.items():
        user = "ann" if name == own else "bob"
        assert info == {
            "user": user,
            "client": name,
            "conn_info": {"name": user},
            "chan_info": {"as": user},
        }
    assert await watcher.presence_stats(channel) == {"clients": 3, "users": 2}
    await guest.unsubscribe(channel)
    await other.disconnect()
    await watcher.seen("leave", 2)
    for kind in ("join", "leave"):
        seen = watcher.events[kind][-2:]
        assert [event["info"]["client"] for event in seen] == list(names)
        assert {event["info"]["user"] for event in seen} == {"bob"}


async def test_connect_rpc_and_refusals(make: Make, channel: str) -> None:
    data = {"größe": [1.5, None, "😀"]}
    client = await make("ann", data=data)
    assert client.events["connected"][0]["data"] == {"said": data}
    assert await client.rpc("echo", data) == {"user": "ann", "data": data}
    assert await client.rpc("nothing", 1) is None
    for call, code, message in (
        (client.rpc("refuse", {}), 1999, 'a "quoted" reason'),
        (client.rpc("crash", {}), 100, "internal server error"),
        (client.publish(channel, "swearing"), 403, "mind your language"),
        (client.history("nowhere:x"), 102, "unknown channel"),
        (client.presence("plain:x"), 108, "not available"),
    ):
        with pytest.raises(SdkError) as refusal:
            await call
        assert (refusal.value.code, refusal.value.message) == (code, message)
    await client.do("subscribe", channel=f"{channel}-forbidden")
    (event,) = await client.seen("unsubscribed", 1)
    assert (event["code"], event["reason"]) == (103, "permission denied")
    # And it is as good as before.
    assert await client.rpc("echo", None) == {"user": "ann", "data": None}


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [("refuse", 401, 'not "you"\\'), ("close", 4501, "stay away")],
)
async def test_a_connect_that_is_refused(
    server: Server,
    make: Make,
    start_host: Callable[..., Any],
    token: str,
    code: int,
    reason: str,
) -> None:
    host = (await make("ann")).host
    client = await SdkClient.create(host, server.url, token=token, protobuf=True)
    await client.do("connect")
    (event,) = await client.seen("disconnected", 1)
    assert (event["code"], event["reason"]) == (code, reason)


async def test_server_side_subscriptions(make: Make, api: Api, channel: str) -> None:
    user = f"ss-{channel}"
    own = f"own-{user}"
    await api.publish(own, "before")
    client = await make(user, name="with-channel")
    (subscribed,) = await client.seen("server_subscribed", 1)
    assert (subscribed["channel"], subscribed["offset"]) == (own, 1)
    await api.publish(own, "now")
    (publication,) = await client.seen("server_publication", 1)
    assert (publication["data"], publication["offset"]) == ("now", 2)

    if client.host.name == "python-0.4.4":
        return  # it does not know what follows

    # One more while it is connected, and gone again.
    target = {"user": user, "channel": channel}
    await api.call("subscribe", {**target, "data": {"a": 1}})
    (_, added) = await client.seen("server_subscribed", 2)
    assert (added["channel"], added["data"]) == (channel, {"a": 1})
    await api.publish(channel, {"on": channel})
    (_, heard) = await client.seen("server_publication", 2)
    assert (heard["channel"], heard["data"]) == (channel, {"on": channel})
    await api.call("unsubscribe", target)
    (gone,) = await client.seen("server_unsubscribed", 1)
    assert gone["channel"] == channel

    # Recovered with the connection.
    await client.cut()
    await api.publish(own, "meanwhile")
    await client.seen("connected", 2)
    await api.publish(own, "after")
    await client.seen("server_publication", 4)
    heard_all = client.events["server_publication"]
    own_offsets = [e["offset"] for e in heard_all if e["channel"] == own]
    assert own_offsets == [2, 3, 4]


async def test_unsubscribed_disconnected_and_back(
    make: Make, api: Api, channel: str
) -> None:
    user = f"away-{channel}"
    client = await make(user)
    await client.subscribe(channel)
    await api.publish(channel, 1)
    await client.seen("publication", 1)
    await api.call("unsubscribe", {"user": user, "channel": channel})
    (event,) = await client.seen("unsubscribed", 1)
    assert (event["code"], event["reason"]) == (2000, "server unsubscribe")
    await api.publish(channel, 2)
    await client.subscribe(channel)
    await client.seen("publication", 2)

    again = {"code": 4100, "reason": "go round"}
    await api.call("disconnect", {"user": user, "disconnect": again})
    await api.publish(channel, 3)
    (_, connecting) = await client.seen("connecting", 2)
    assert (connecting["code"], connecting["reason"]) == (4100, "go round")
    await client.seen("publication", 3)
    assert client.offsets(channel) == [1, 2, 3]

    await api.call("disconnect", {"user": user})
    (event,) = await client.seen("disconnected", 1)
    assert (event["code"], event["reason"]) == (3503, "force disconnect")


async def test_the_server_api_says_what_a_client_speaks(
    make: Make, api: Api, channel: str
) -> None:
    user = f"who-{channel}"
    clients = [await make(user), await make(user, protobuf=False)]
    answer = await api.call("connections", {"user": user})
    spoken = {name: one["protocol"] for name, one in answer["connections"].items()}
    ids = [client.events["connected"][0]["id"] for client in clients]
    assert spoken == dict(zip(ids, ["protobuf", "json"], strict=True))


async def test_a_server_that_dies_and_comes_back(
    make_server: Callable[..., Server], start_host: Callable[..., Any], channel: str
) -> None:
    server = make_server().start_blocking()
    clients = []
    for sdk in SDKS:
        host = await start_host(sdk)
        for protobuf in (True, False):
            client = await SdkClient.create(host, server.url, protobuf=protobuf)
            await client.connect()
            await client.subscribe(channel)
            clients.append(client)
    async with server.api() as api:
        for number in range(5):
            await api.publish(channel, {"n": number})
        await asyncio.gather(*(client.seen("publication", 5) for client in clients))
        server.kill9()
        await server.start()
        api.drop_connections()
        for number in range(5, 10):
            await api.publish(channel, {"n": number})
    for client in clients:
        await client.seen("publication", 10, within=20)
        assert [p["data"]["n"] for p in client.publications(channel)] == [*range(10)]
        assert client.offsets(channel) == list(range(1, 11))
        (_, again) = client.events["subscribed"]
        assert again["recovered"] is True


async def test_subscribed_by_the_server_from_a_position(
    make: Make, api: Api, channel: str
) -> None:
    for number in range(3):
        await api.publish(channel, number)
    user = f"since-{channel}"
    for protobuf in (True, False):
        client = await make(f"{user}-{protobuf}", protobuf=protobuf)
        if client.host.name == "python-0.4.4":
            return  # it does not know of such subscriptions
        body = {"user": f"{user}-{protobuf}", "channel": channel}
        since = {"offset": 1, "epoch": ""}
        await api.call("subscribe", {**body, "recover_since": since})
        await client.seen("server_publication", 2)
        seen = client.events["server_publication"]
        assert [(e["offset"], e["data"]) for e in seen] == [(2, 1), (3, 2)]
