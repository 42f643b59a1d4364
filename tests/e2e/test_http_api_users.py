"""The server API on the live connections of a user."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server

NAMESPACES = [
    {"name": "plain"},
    {"name": "open", "history_size": 10, "history_ttl": 60, "presence": True},
]


server = server_with(
    {"STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES)},
    app="tests.http.hooked:app",
)


@pytest.fixture
def user(channel: str) -> str:
    """Return a user that no other test has."""
    return f"user-{channel}"


async def enter(server: Server, user: str) -> tuple[RawClient, str]:
    """Connect as *user*; return the connection and its id."""
    client = await server.raw(connected=False)
    return client, (await client.connect(token=user))["client"]


async def refused(api: Api, method: str, body: Any) -> int:
    with pytest.raises(ApiError) as error:
        await api.call(method, body)
    return error.value.code


# --- subscribe


@pytest.mark.requirement("R40")
async def test_subscribe_pushes_and_delivers(
    server: Server, api: Api, user: str, channel: str
) -> None:
    await api.publish(channel, "before")
    client, _ = await enter(server, user)
    body = {"user": user, "channel": channel, "data": {"a": 1}, "info": {"b": 2}}
    assert await api.call("subscribe", body) == {}
    push = await client.push()
    assert push == {
        "channel": channel,
        "subscribe": {
            "recoverable": True,
            "positioned": True,
            "epoch": push["subscribe"]["epoch"],
            "offset": 1,
            "data": {"a": 1},
        },
    }
    await api.publish(channel, "after")
    (publication,) = await client.publications(channel, 1)
    assert (publication["offset"], publication["data"]) == (2, "after")
    presence = await api.call("presence", {"channel": channel})
    ((identity, info),) = presence["presence"].items()
    assert info == {
        "user": user,
        "client": identity,
        "conn_info": {"name": user},
        "chan_info": {"b": 2},
    }
    # Once more is nothing more.
    assert await api.call("subscribe", body) == {}
    await api.publish(channel, "once")
    (publication,) = await client.publications(channel, 1)
    assert publication["data"] == "once"


async def test_subscribe_in_base64_and_from_a_position(
    server: Server, api: Api, user: str, channel: str
) -> None:
    for number in range(3):
        await api.publish(channel, number)
    epoch = (await api.history(channel))["epoch"]
    client, _ = await enter(server, user)
    body = {
        "user": user,
        "channel": channel,
        "b64data": "eyJhIjoxfQ==",
        "recover_since": {"offset": 1, "epoch": epoch},
    }
    await api.call("subscribe", body)
    subscribed = (await client.push())["subscribe"]
    assert subscribed["data"] == {"a": 1}
    assert subscribed["recovered"] and subscribed["offset"] == 1
    # As pushes: no SDK looks for publications in a subscribe push.
    assert "publications" not in subscribed
    await api.publish(channel, 3)
    found = await client.publications(channel, 3)
    assert [each["data"] for each in found] == [1, 2, 3]
    assert [each["offset"] for each in found] == [2, 3, 4]


async def test_subscribe_overrides_the_namespace(
    server: Server, api: Api, user: str, channel: str
) -> None:
    client, _ = await enter(server, user)
    channel = f"open:{channel}"
    override = {
        "presence": {"value": False},
        "force_recovery": {"value": True},
        "join_leave": {"value": True},
        "force_push_join_leave": {"value": True},
    }
    body = {"user": user, "channel": channel, "override": override}
    await api.call("subscribe", body)
    subscribed = (await client.push())["subscribe"]
    assert subscribed["recoverable"] is True
    assert (await client.push())["join"]["info"]["user"] == user
    assert await api.call("presence", {"channel": channel}) == {"presence": {}}


@pytest.mark.requirement("R40")
async def test_subscribe_reaches_one_client_or_all(
    server: Server, api: Api, user: str, channel: str
) -> None:
    first, _ = await enter(server, user)
    second, second_id = await enter(server, user)
    stranger, _ = await enter(server, f"{user}-stranger")
    body = {"user": user, "channel": channel, "client": second_id}
    await api.call("subscribe", body)
    assert "subscribe" in await second.push()
    await api.call("subscribe", {"user": user, "channel": f"{channel}-all"})
    assert (await first.push())["channel"] == f"{channel}-all"
    assert (await second.push())["channel"] == f"{channel}-all"
    await api.call("subscribe", {**body, "user": f"{user}-stranger"})
    await api.call("subscribe", {**body, "session": "s", "client": ""})
    # Pushes that were sent would be here before this reply.
    assert "error" not in await stranger.request(rpc={"method": "echo"})
    assert not stranger.pushes and not first.pushes


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"channel": "nowhere:x"}, 102),
        ({"channel": ""}, 107),
        ({"channel": "ключ"}, 107),
        ({"user": None}, 107),
        ({"channel": "x", "expire_at": -1}, 107),
        ({"channel": "x", "b64data": "eyJ"}, 107),
        ({"channel": "x", "b64info": "e30"}, 107),
    ],
)
async def test_subscribe_refusals(api: Api, fields: dict[str, Any], code: int) -> None:
    assert await refused(api, "subscribe", {"user": "u", **fields}) == code


async def test_subscribe_over_the_channel_limit_is_not_called_a_success(
    server: Server, api: Api, user: str, channel: str
) -> None:
    client, _ = await enter(server, user)
    commands = [
        {"subscribe": {"user": user, "channel": f"plain:{channel}-{number}"}}
        for number in range(128)
    ]
    response = await api.post("batch", {"commands": commands}, within=60.0)
    assert response.json == {"replies": [{"subscribe": {}}] * 128}
    assert await refused(api, "subscribe", {"user": user, "channel": channel}) == 106
    pushed = [(await client.push())["channel"] for _ in range(128)]
    assert len(set(pushed)) == 128


# --- unsubscribe


async def test_unsubscribe_pushes_2000_and_ends_delivery(
    server: Server, api: Api, user: str, channel: str
) -> None:
    client, _ = await enter(server, user)
    other, _ = await enter(server, f"{user}-other")
    await client.subscribe(channel)
    await other.subscribe(channel)
    body = {"user": user, "channel": channel}
    assert await api.call("unsubscribe", body) == {}
    await api.publish(channel, 1)
    assert await client.push() == {
        "channel": channel,
        "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
    }
    assert len(await other.publications(channel, 1)) == 1
    assert await api.call("unsubscribe", body) == {}  # it is not there any more
    await client.request(rpc={"method": "echo"})
    assert not client.pushes


async def test_unsubscribe_while_the_subscribe_is_under_way(
    server: Server, api: Api, user: str, channel: str
) -> None:
    # The hook answers later than the frame is read: whichever way the two meet, the
    # client is not left in the channel, or it was let in after.
    client, _ = await enter(server, user)
    async with asyncio.TaskGroup() as group:
        subscribing = group.create_task(client.request(subscribe={"channel": channel}))
        group.create_task(api.call("unsubscribe", {"user": user, "channel": channel}))
    assert "error" not in subscribing.result()
    pushed = bool(client.pushes)
    reply = await client.request(subscribe={"channel": channel})
    pushed = pushed or bool(client.pushes)
    assert ("error" not in reply) is pushed


async def test_unsubscribe_refusals(api: Api) -> None:
    assert await refused(api, "unsubscribe", {"user": "u", "channel": "nope:x"}) == 102
    assert await refused(api, "unsubscribe", {"user": "u"}) == 107
    assert await refused(api, "unsubscribe", {"channel": "c"}) == 107


# --- disconnect


async def test_disconnect_closes_with_3503(server: Server, api: Api, user: str) -> None:
    first, _ = await enter(server, user)
    second, _ = await enter(server, user)
    other, _ = await enter(server, f"{user}-other")
    assert await api.call("disconnect", {"user": user}) == {}
    for client in (first, second):
        closed = await client.closed()
        assert (closed.code, closed.reason) == (3503, "force disconnect")
    assert "error" not in await other.request(rpc={"method": "echo"})


async def test_disconnect_with_own_code_and_whitelist(
    server: Server, api: Api, user: str
) -> None:
    first, first_id = await enter(server, user)
    second, _ = await enter(server, user)
    body = {
        "user": user,
        "whitelist": [first_id],
        "disconnect": {"code": 4242, "reason": "plain wörds"},
    }
    assert await api.call("disconnect", body) == {}
    closed = await second.closed()
    assert (closed.code, closed.reason) == (4242, "plain wörds")
    assert "error" not in await first.request(rpc={"method": "echo"})
    await api.call("disconnect", {"user": user, "client": first_id})
    assert (await first.closed()).code == 3503


@pytest.mark.parametrize(
    "disconnect",
    [
        {"code": 2999, "reason": "no"},
        {"code": 5000, "reason": "no"},
        {"code": 1000, "reason": "no"},
        {"code": 4000, "reason": "123"},
        {"code": 4000, "reason": "true"},
        {"code": 4000, "reason": '"quoted"'},
        {"code": 4000, "reason": "two\nlines"},
        {"code": 4000, "reason": "x" * 124},
        {"code": 4000, "reason": "ß" * 62},
        {"code": "4000", "reason": "no"},
        {"code": -1, "reason": "no"},
        {"reason": "no code"},
    ],
)
async def test_disconnect_with_what_clients_would_misread(
    server: Server, api: Api, user: str, disconnect: dict[str, Any]
) -> None:
    client, _ = await enter(server, user)
    body = {"user": user, "disconnect": disconnect}
    assert await refused(api, "disconnect", body) == 107
    assert "error" not in await client.request(rpc={"method": "echo"})


async def test_disconnect_with_the_longest_reason(
    server: Server, api: Api, user: str
) -> None:
    client, _ = await enter(server, user)
    reason = "ß" * 61 + "x"  # 123 bytes
    disconnect = {"code": 3000, "reason": reason}
    await api.call("disconnect", {"user": user, "disconnect": disconnect})
    closed = await client.closed()
    assert (closed.code, closed.reason) == (3000, reason)


async def test_disconnect_of_nobody_succeeds_and_without_user_does_not(
    api: Api,
) -> None:
    assert await api.call("disconnect", {"user": "nobody"}) == {}
    assert await refused(api, "disconnect", {}) == 107


# --- refresh


async def test_refresh_expired_closes_with_3005(
    server: Server, api: Api, user: str
) -> None:
    client, _ = await enter(server, user)
    assert await api.call("refresh", {"user": user, "expired": True}) == {}
    closed = await client.closed()
    assert (closed.code, closed.reason) == (3005, "connection expired")


async def test_refresh_in_the_past_closes_and_in_the_future_does_not(
    server: Server, api: Api, user: str
) -> None:
    first, first_id = await enter(server, user)
    second, second_id = await enter(server, user)
    future = int(time.time()) + 3600
    body = {"user": user, "client": first_id, "expire_at": future, "info": {"a": 1}}
    assert await api.call("refresh", body) == {}
    assert await api.call("refresh", {"user": user, "client": first_id}) == {}
    past = {"user": user, "client": second_id, "expire_at": int(time.time()) - 1}
    assert await api.call("refresh", past) == {}
    assert (await second.closed()).code == 3005
    assert "error" not in await first.request(rpc={"method": "echo"})


async def test_refresh_refusals(api: Api) -> None:
    assert await refused(api, "refresh", {"expired": True}) == 107
    assert await refused(api, "refresh", {"user": "u", "expired": 1}) == 107
    assert await refused(api, "refresh", {"user": "u", "expire_at": -1}) == 107


# --- presence, channels, info


async def test_presence_and_its_counts(
    server: Server, api: Api, user: str, channel: str
) -> None:
    assert await api.call("presence", {"channel": channel}) == {"presence": {}}
    stats = await api.call("presence_stats", {"channel": channel})
    assert stats == {"num_clients": 0, "num_users": 0}
    ids = set()
    for name in (user, user, f"{user}-2"):
        client, identity = await enter(server, name)
        await client.subscribe(channel)
        ids.add(identity)
    presence = (await api.call("presence", {"channel": channel}))["presence"]
    assert set(presence) == ids
    assert {info["user"] for info in presence.values()} == {user, f"{user}-2"}
    stats = await api.call("presence_stats", {"channel": channel})
    assert stats == {"num_clients": 3, "num_users": 2}
    for method in ("presence", "presence_stats"):
        assert await refused(api, method, {"channel": "plain:x"}) == 108
        assert await refused(api, method, {"channel": "nowhere:x"}) == 102
        assert await refused(api, method, {}) == 107


async def test_channels_by_pattern(
    server: Server, api: Api, user: str, channel: str
) -> None:
    clients = [(await enter(server, user))[0] for _ in range(2)]
    names = [f"{channel}-a1", f"{channel}-b2", f"open:{channel}"]
    for name in names:
        await clients[0].subscribe(name)
    await clients[1].subscribe(names[0])

    async def found(pattern: str) -> dict[str, int]:
        answer = await api.call("channels", {"pattern": pattern})
        return {name: one["num_clients"] for name, one in answer["channels"].items()}

    assert await found(f"{channel}-*") == {names[0]: 2, names[1]: 1}
    assert await found(f"*{channel}") == {names[2]: 1}
    assert await found(f"{channel}-?[12]") == {names[0]: 2, names[1]: 1}
    assert await found(f"{channel}-{{a1,c3}}") == {names[0]: 2}
    assert await found(f"{channel}-[!a]*") == {names[1]: 1}
    assert await found("nothing-like-it") == {}
    everything = (await api.call("channels", {}))["channels"]
    assert set(names) <= set(everything)
    assert await refused(api, "channels", {"pattern": "[a"}) == 107
    assert await refused(api, "channels", {"pattern": 1}) == 107


async def test_info_counts(server: Server, user: str, channel: str, api: Api) -> None:
    before = (await api.call("info", {}))["nodes"][0]
    client, _ = await enter(server, user)
    await client.subscribe(channel)
    (node,) = (await api.call("info", {}))["nodes"]
    assert node["uid"] == before["uid"] and node["name"] and node["version"]
    assert node["uptime"] >= before["uptime"] >= 0
    assert node["num_clients"] >= 1 and node["num_users"] >= 1
    assert node["num_subs"] >= 1 and node["num_channels"] >= 1
