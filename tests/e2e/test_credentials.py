"""Tickets, revocations and erasure on a running server, and what clients make of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.fixtures import server_with
from tests.harness.raw import Closed, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import connection, subscription
from tests.harness.tokens import settings as token_settings

ORIGIN = "https://chat.example"
NAMESPACES = [{"name": "room", "presence": True, "history_size": 50, "history_ttl": 60}]
CHAT = {
    "history_size": 100,
    "history_ttl": 60,
    "force_recovery": True,
    "presence": True,
    "allow_subscribe_for_client": True,
    "allow_publish_for_client": True,
    "allow_history_for_client": True,
}


SETTINGS = token_settings(
    STEADWIRE_SERVER_ORIGINS=json.dumps([ORIGIN, "https://other.example"]),
    STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(CHAT),
    STEADWIRE_CHANNELS_NAMESPACES=json.dumps(NAMESPACES),
    STEADWIRE_CONNECTIONS_USER_LIMIT="20",
    STEADWIRE_GATEWAY_SWEEP_INTERVAL="2",
)
server = server_with(SETTINGS)
# Others ask the dead process, too, for as long as it may live.
killed = server_with(SETTINGS)


async def ticket(api: Api, user: str, **fields: Any) -> str:
    result = await api.call("ticket", {"user": user, **fields})
    given: str = result["ticket"]
    return given


async def join(server: Server, token: str, origin: str | None = None) -> RawClient:
    headers = {} if origin is None else {"Origin": origin}
    client = await server.raw(connected=False, headers=headers)
    await client.connect(token=token)
    return client


async def outcome(server: Server, token: str, origin: str | None = None) -> object:
    """Return the code of the error, that of the close, or ``in``."""
    headers = {} if origin is None else {"Origin": origin}
    client = await server.raw(connected=False, headers=headers)
    try:
        reply = await client.request(connect={"token": token})
    except Closed as end:
        return f"closed {end.code}"
    finally:
        client.reset()
    return reply["error"]["code"] if "error" in reply else "in"


# --- tickets  # L14


async def test_a_ticket_lets_in_once_as_who_it_names(
    server: Server, api: Api, channel: str
) -> None:
    given = await ticket(
        api,
        "tina",
        info={"name": "Tina"},
        subs={channel: {"data": {"n": 1}}},
    )
    client = await server.raw(connected=False)
    reply = await client.request(connect={"token": given})
    assert "expires" not in reply["connect"]
    assert reply["connect"]["subs"][channel]["data"] == {"n": 1}
    present = (await api.call("presence", {"channel": channel}))["presence"]
    (who,) = present.values()
    assert (who["user"], who["conn_info"]) == ("tina", {"name": "Tina"})
    assert await outcome(server, given) == 109
    assert await outcome(server, given) == 109


@pytest.mark.requirement("L14")
async def test_of_many_who_show_a_ticket_one_is_let_in(
    server: Server, api: Api
) -> None:
    for _ in range(3):
        given = await ticket(api, "many")
        found = await asyncio.gather(*[outcome(server, given) for _ in range(12)])
        assert sorted(map(str, found)) == ["109"] * 11 + ["in"]


async def test_what_is_no_ticket_is_refused(server: Server, api: Api) -> None:
    given = await ticket(api, "u")
    assert await outcome(server, "tkt_" + "A" * 43) == 109
    wrong = ["tkt_", given[:-1], given + "A", given + " ", given.upper()]
    for each in [*wrong, given[4:], "Tkt_" + given[4:]]:
        assert await outcome(server, each) == "closed 3500", each
    assert await outcome(server, given) == "in"


@pytest.mark.requirement("L14")
async def test_a_ticket_is_bound_to_its_origin(server: Server, api: Api) -> None:
    for other in (None, "https://other.example"):
        given = await ticket(api, "u", origin=ORIGIN)
        assert await outcome(server, given, other) == "closed 3500"
        assert await outcome(server, given, ORIGIN) == 109  # used up
    assert await outcome(server, await ticket(api, "u", origin=ORIGIN), ORIGIN) == "in"
    assert await outcome(server, await ticket(api, "u"), ORIGIN) == "in"


async def test_a_ticket_s_time_is_over(server: Server, api: Api) -> None:
    given = await ticket(api, "u", ttl=1)
    answer = await api.call("ticket", {"user": "u", "ttl": 1})
    assert answer["expires_in"] == 1
    deadline = time.monotonic() + 1.1
    while time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert await outcome(server, given) == 109


async def test_a_connection_of_a_ticket_refreshes_with_another(
    server: Server, api: Api
) -> None:
    end = int(time.time()) + 100
    client = await server.raw(connected=False)
    given = await ticket(api, "tess", expire_at=end)
    reply = (await client.request(connect={"token": given}))["connect"]
    assert reply["expires"] is True and 90 <= reply["ttl"] <= 100
    more = await ticket(api, "tess", expire_at=end + 100)
    refreshed = (await client.request(refresh={"token": more}))["refresh"]
    assert 190 <= refreshed["ttl"] <= 200
    # A used one counts as an expired token, that of another user as an invalid one.
    used = await join(server, await ticket(api, "tess", expire_at=end))
    with pytest.raises(Closed) as closed:
        await used.request(refresh={"token": more})
    assert closed.value.code == 3005
    with pytest.raises(Closed) as closed:
        await client.request(refresh={"token": await ticket(api, "eve")})
    assert closed.value.code == 3500


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, 107),
        ({"user": "u", "ttl": 0}, 107),
        ({"user": "u", "ttl": 61}, 107),
        ({"user": "u", "info": "x" * 5000}, 107),
        ({"user": "u" * 601}, 107),
        ({"user": "u", "expire_at": 1000}, 107),
        ({"user": "u", "meta": [1]}, 107),
        ({"user": "u", "b64info": "!"}, 107),
        ({"user": "u", "channels": ["nowhere:x"]}, 102),
        ({"user": "u", "subs": {"ключ": {}}}, 107),
    ],
)
async def test_a_ticket_that_could_not_be_used_is_not_given(
    api: Api, body: dict[str, Any], code: int
) -> None:
    with pytest.raises(ApiError) as refused:
        await api.call("ticket", body)
    assert refused.value.code == code


# --- revocation


async def test_a_revoked_token_is_out_at_once_and_another_is_in(
    server: Server, api: Api
) -> None:
    token = connection("rita", jti="rita-1")
    client = await join(server, token)
    other = await join(server, connection("rita", jti="rita-2"))
    assert await api.call("revoke_token", {"uid": "rita-1"}) == {}
    assert len(await names(api, "rita")) == 1  # when that is answered, it is out
    assert (await client.closed()).code == 3005
    assert await outcome(server, token) == 109
    assert await outcome(server, connection("rita", jti="rita-3")) == "in"
    await other.publish("room-of-rita", {"n": 1})  # lives on


async def test_a_users_tokens_are_revoked_by_their_time(
    server: Server, api: Api
) -> None:
    now = int(time.time())
    old = connection("uma", iat=now - 100)
    unknown = connection("uma", iat=None)
    new = connection("uma", iat=now + 1)
    clients = [await join(server, each) for each in (old, unknown, new)]
    bystander = await join(server, connection("ulf", iat=now - 100))
    await api.call("invalidate_user_tokens", {"user": "uma", "issued_before": now})
    assert [(await one.closed()).code for one in clients[:2]] == [3005, 3005]
    assert await outcome(server, old) == 109
    assert await outcome(server, unknown) == 109
    assert await outcome(server, new) == "in"
    await clients[2].publish("room-of-uma", 1)
    await bystander.publish("room-of-uma", 1)
    # The same holds for refreshes and for subscription tokens.
    with pytest.raises(Closed) as closed:
        await clients[2].request(refresh={"token": old})
    assert closed.value.code == 3005
    fresh = await join(server, connection("uma", iat=now + 1))
    for iat, code in ((now - 100, 109), (now + 1, None)):
        request = {"channel": "$u", "token": subscription("uma", "$u", iat=iat)}
        reply = await fresh.request(subscribe=request)
        assert reply.get("error", {}).get("code") == code


async def test_revocations_outlive_the_process(killed: Server) -> None:
    token = connection("ruth", jti="ruth-1")
    async with killed.api() as api:
        given = await ticket(api, "ruth")
        await api.call("revoke_token", {"uid": "ruth-1"})
    await killed.restart()  # with SIGKILL
    assert await outcome(killed, token) == 109
    assert await outcome(killed, given) == "in"


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("revoke_token", {}),
        ("revoke_token", {"uid": ""}),
        ("revoke_token", {"uid": "x" * 1001}),
        ("revoke_token", {"uid": "x", "expire_at": 1000}),
        ("invalidate_user_tokens", {}),
        ("invalidate_user_tokens", {"user": "u", "issued_before": -1}),
        ("invalidate_user_tokens", {"user": "u", "expire_at": 1000}),
        ("erase", {}),
        ("erase", {"user": ""}),
    ],
)
async def test_what_would_do_nothing_is_refused(
    api: Api, method: str, body: dict[str, Any]
) -> None:
    with pytest.raises(ApiError) as refused:
        await api.call(method, body)
    assert refused.value.code == 107


async def names(api: Api, user: str) -> list[str]:
    """Return the connections of a user."""
    return [*(await api.call("connections", {"user": user}))["connections"]]


async def test_disconnect_unsubscribe_and_refresh_act_before_they_are_answered(
    server: Server, api: Api, channel: str
) -> None:
    client = await join(server, connection("dora"))
    await client.subscribe(channel)
    await api.call("unsubscribe", {"user": "dora", "channel": channel})
    assert await api.call("presence", {"channel": channel}) == {"presence": {}}
    push = await client.push()
    assert push["unsubscribe"]["code"] == 2000
    await api.call("refresh", {"user": "dora", "expired": True})
    assert await names(api, "dora") == []
    assert (await client.closed()).code == 3005
    client = await join(server, connection("dora"))
    await api.call("disconnect", {"user": "dora"})
    assert await names(api, "dora") == []
    assert (await client.closed()).code == 3503


@pytest.mark.parametrize("name", ["js-5.8.0", "python-0.7.0", "js-5.5.3"])
async def test_an_sdk_whose_token_is_revoked_gets_another(
    server: Server, api: Api, start_host: Callable[..., Awaitable[Any]], name: str
) -> None:
    user = f"sdk-{name}"
    host = await start_host(name)
    first = connection(user, jti=f"{user}-1")
    client = await SdkClient.create(
        host, server.url, token=first, get_token=[connection(user, jti=f"{user}-2")]
    )
    await client.connect()
    await api.call("revoke_token", {"uid": f"{user}-1"})
    await client.seen("connected", 2)
    assert client.events["disconnected"] == []
    assert len(client.events["get_token"]) == 1
    assert 3005 in [each["code"] for each in client.events["connecting"]]


@pytest.mark.parametrize("name", ["js-5.8.0", "python-0.7.0"])
async def test_an_sdk_comes_back_with_a_new_ticket(
    server: Server, api: Api, start_host: Callable[..., Awaitable[Any]], name: str
) -> None:
    user = f"ticket-{name}"
    host = await start_host(name)
    tickets = [await ticket(api, user) for _ in range(2)]
    client = await SdkClient.create(
        host, server.url, token=tickets[0], get_token=[tickets[1]]
    )
    await client.connect()
    body = {"user": user, "disconnect": {"code": 3000, "reason": "come back"}}
    await api.call("disconnect", body)
    await client.seen("connected", 2)
    assert len(client.events["get_token"]) == 1
    assert client.events["disconnected"] == []


# --- erasure


async def test_erasing_a_user(server: Server, api: Api, channel: str) -> None:
    mine = [await join(server, connection("eric")) for _ in range(2)]
    other = await join(server, connection("oda"))
    for client in (*mine, other):
        await client.subscribe(channel)
    await mine[0].publish(channel, {"secret": 1})
    await other.publish(channel, {"kept": 2})
    await mine[1].publish(channel, {"secret": 3})
    await api.publish(channel, {"of the server": 4})
    before = await api.history(channel, limit=-1)
    tickets = [await ticket(api, "eric") for _ in range(3)]

    body = {"user": "eric"}
    found = await api.call("erase", body)
    assert found == {"connections": 2, "tickets": 3, "publications": 0}
    assert [(await client.closed()).code for client in mine] == [3503, 3503]
    assert await outcome(server, tickets[0]) == 109
    present = (await api.call("presence", {"channel": channel}))["presence"]
    assert [one["user"] for one in present.values()] == ["oda"]
    assert await api.history(channel, limit=-1) == before

    found = await api.call("erase", {**body, "publications": True})
    assert found == {"connections": 0, "tickets": 0, "publications": 2}
    page = await api.history(channel, limit=-1)
    assert [(p["offset"], p["data"]) for p in page["publications"]] == [
        (1, None),
        (2, {"kept": 2}),
        (3, None),
        (4, {"of the server": 4}),
    ]
    assert (page["offset"], page["epoch"]) == (4, before["epoch"])
    assert ["info" in p for p in page["publications"]] == [False, True, False, False]
    # A recovery across them misses nothing: offsets stay dense.  # G2, G3
    late = await join(server, connection("late"))
    reply = await late.subscribe(channel, recover=True, offset=0, epoch=page["epoch"])
    assert reply["recovered"] is True
    assert [p["offset"] for p in reply["publications"]] == [1, 2, 3, 4]
    assert "eric" not in json.dumps(reply) and "secret" not in json.dumps(reply)
    assert await api.publish(channel, 5) == 5
    # It revokes nothing.
    assert await outcome(server, connection("eric")) == "in"


async def test_erasing_a_user_whose_connection_was_lost(
    server: Server, api: Api, channel: str
) -> None:
    client = await join(server, connection("lost"))
    await client.subscribe(channel)
    client.reset()
    deadline = time.monotonic() + 5
    while (await api.call("connections", {"user": "lost"}))["connections"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    # Others still see it, for it may be about to come back.
    stats = await api.call("presence_stats", {"channel": channel})
    assert stats == {"num_clients": 1, "num_users": 1}
    found = await api.call("erase", {"user": "lost"})
    assert found == {"connections": 0, "tickets": 0, "publications": 0}
    stats = await api.call("presence_stats", {"channel": channel})
    assert stats == {"num_clients": 0, "num_users": 0}


async def test_nothing_of_these_is_in_the_log(server: Server, api: Api) -> None:
    given = await ticket(api, "log", info={"pay": "load-of-the-log"})
    token = connection("log", jti="jti-of-the-log")
    for each in (given, token):
        await outcome(server, each)
        await outcome(server, each + "x")
    await api.call("revoke_token", {"uid": "jti-of-the-log"})
    # The last line comes after those of the calls before.
    await api.call("disconnect", {"user": "the last of the log"})
    await server.logged('"user": "the last of the log"')
    text = server.output()
    for secret in (given, given[4:], token, token.split(".")[2], "load-of-the-log"):
        assert secret not in text
    assert "jti-of-the-log" not in text
