"""Invocations of sessions, in environments on a real store: the hazards of the door."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.core.clock import SystemClock
from service.core.cluster import PresenceRow
from service.core.errors import FORCE_DISCONNECT, UNSUBSCRIBE_SERVER
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    Handlers,
    PublishResult,
    RpcEvent,
    RpcResult,
)
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.people import ServerSubscribe
from service.core.ports import Claim, Posted
from service.core.sessions import Listed
from service.gateway.events import Kind
from service.stores.dynamodb.registry.presence import Presence
from tests.gateway.environments import Environment, Environments, token

CH = Channel("chat:x")


def subscribe(command: int, channel: str = CH, **options: Any) -> dict[str, Any]:
    return {"id": command, "subscribe": {"channel": channel, **options}}


def unsubscribe(command: int, channel: str = CH) -> dict[str, Any]:
    return {"id": command, "unsubscribe": {"channel": channel}}


async def test_nothing_is_posted_from_connect(one: Environment) -> None:
    await one.handle(Kind.CONNECT, "a")
    assert one.sockets.posts == 0


async def test_a_session_goes_on_in_another_environment(
    one: Environment, other: Environment
) -> None:
    reply = await one.connect("a")
    assert reply["connect"]["client"] == "a"
    assert reply["connect"]["ping"] == 300
    assert "pong" not in reply["connect"]
    await other.say("a", subscribe(2))
    assert other.sockets.take("a")[0]["id"] == 2
    await one.say("a", {"id": 3, "publish": {"channel": CH, "data": {"n": 1}}})
    found = one.sockets.take("a")
    assert {"id": 3, "publish": {}} in found
    assert [m["push"]["pub"]["offset"] for m in found if "push" in m] == [1]


async def test_frames_that_overtake_each_other(
    one: Environment, environments: Environments
) -> None:
    """Unsubscribe and subscribe again, handled the other way round."""
    await one.connect("a")
    await one.say("a", subscribe(2))
    await one.say("a", subscribe(4))
    await one.say("a", unsubscribe(3))
    assert [m.get("id") for m in one.sockets.take("a")] == [2, 4, 3]
    await one.publish(CH, 1)
    assert one.sockets.offsets("a", CH) == [1]


async def test_an_unsubscribe_that_overtakes_its_subscribe_leaves_a_tombstone(
    one: Environment,
) -> None:
    await one.connect("a")
    await one.say("a", unsubscribe(3))
    await one.say("a", subscribe(2))  # the client has given it up
    assert [m.get("id") for m in one.sockets.take("a")] == [3]
    await one.publish(CH, 1)
    assert one.sockets.take("a") == []
    await one.say("a", subscribe(4))
    await one.publish(CH, 2)
    assert one.sockets.offsets("a", CH) == [2]


async def test_a_subscribe_that_the_server_ends_while_it_is_under_way_is_answered(
    one: Environment, other: Environment
) -> None:
    """The server ends it under the command's own id, when only its record is there."""
    await one.connect("a")
    client = ClientId("a")
    rows = one.runtime.application.context.subscribers
    assert await rows.leave(CH, client, 2) is Claim.MINE
    await other.say("a", subscribe(2))
    [answer] = one.sockets.take("a")
    assert answer["id"] == 2
    assert answer["error"]["code"] == 100 and answer["error"]["temporary"]
    await one.publish(CH, 1)
    assert one.sockets.take("a") == []
    await one.say("a", subscribe(3))
    await one.publish(CH, 2)
    assert one.sockets.offsets("a", CH) == [2]


async def test_deltas_are_not_promised(one: Environment) -> None:
    await one.connect("a")
    await one.say("a", subscribe(2, delta="fossil"))
    assert "delta" not in one.sockets.take("a")[0]["subscribe"]
    await one.publish(CH, {"n": 1})
    assert one.sockets.take("a")[0]["push"]["pub"]["data"] == {"n": 1}


async def test_frames_of_one_client_at_once(
    one: Environment, other: Environment
) -> None:
    await one.connect("a")
    channels = [f"chat:{number}" for number in range(8)]
    await asyncio.gather(
        *(
            (one, other)[number % 2].say("a", subscribe(number + 2, channel))
            for number, channel in enumerate(channels)
        )
    )
    assert {m["id"] for m in one.sockets.take("a")} == set(range(2, 10))
    await asyncio.gather(*(other.publish(channel, 1) for channel in channels))
    for channel in channels:
        assert one.sockets.offsets("a", channel) == [1]


async def test_a_pong_is_not_looked_at(one: Environment) -> None:
    await one.connect("a")
    posts = one.sockets.posts
    await one.handle(Kind.MESSAGE, "a", "{}")
    await one.say("a", {}, {"id": 2, "history": {"channel": CH}})
    assert one.sockets.posts == posts + 1
    assert one.sockets.closed == []


async def test_a_recovery_in_pieces(one: Environment, other: Environment) -> None:
    await one.publish(CH, *({"n": n, "text": "x" * 1500} for n in range(1, 101)))
    await other.connect("a")
    sizes: list[int] = []

    async def measure(client: str, text: str) -> None:
        sizes.append(len(text))

    other.sockets.on_post = measure
    await other.say("a", subscribe(2, recover=True, offset=0, epoch=""))
    first = other.sockets.messages["a"][0]["subscribe"]
    assert first["recovered"] and first["offset"] == 0
    assert other.sockets.offsets("a", CH) == list(range(1, 101))
    assert max(sizes) < 32 * 1024
    assert len(sizes) >= 7
    await one.publish(CH, {"n": 101})
    assert other.sockets.offsets("a", CH) == list(range(1, 102))


async def test_a_piece_that_is_not_delivered_closes_the_connection(
    one: Environment, environments: Environments
) -> None:
    await one.publish(CH, *("x" * 20_000 for _ in range(4)))
    await one.connect("a")

    async def fail(client: str, text: str) -> Posted | None:
        return Posted.UNKNOWN if '"offset":3' in text else None

    one.sockets.on_post = fail
    await one.say("a", subscribe(2, recover=True, offset=0, epoch=""))
    assert one.sockets.closed == ["a"]
    last = one.sockets.messages["a"][-1]
    assert last["push"]["disconnect"]["code"] == 3010
    left = [item["pk"]["S"] for item in await environments.items()]
    assert not [key for key in left if key.endswith("#a") or key == f"S#{CH}"]


async def test_a_reply_of_unknown_outcome_closes_the_connection(
    one: Environment,
) -> None:
    await one.connect("a")

    async def fail(client: str, text: str) -> Posted | None:
        return Posted.UNKNOWN if '"subscribe"' in text else None

    one.sockets.on_post = fail
    await one.say("a", subscribe(2))
    assert one.sockets.closed == ["a"]


async def test_the_acknowledgement_of_a_publish_may_be_lost(one: Environment) -> None:
    await one.connect("a")
    await one.connect("b")
    await one.say("b", subscribe(2))

    async def fail(client: str, text: str) -> Posted | None:
        return Posted.UNKNOWN if '"publish"' in text else None

    one.sockets.on_post = fail
    await one.say("a", {"id": 2, "publish": {"channel": CH, "data": 1}})
    assert one.sockets.closed == []
    assert one.sockets.offsets("b", CH) == [1]


async def test_a_message_of_nobody_closes_the_connection(one: Environment) -> None:
    one.sockets.messages["a"] = []
    await one.say("a", {"id": 1, "connect": {}})
    assert one.sockets.closed == ["a"]


async def test_a_disconnect_before_the_connect_command(
    one: Environment, environments: Environments
) -> None:
    await one.handle(Kind.CONNECT, "a")
    one.sockets.messages["a"] = []
    await one.handle(Kind.DISCONNECT, "a")
    await one.say("a", {"id": 1, "connect": {}})
    assert one.sockets.closed == ["a"]
    assert await _kept(environments) == set()


async def _kept(environments: Environments) -> set[str]:
    """Return the partitions of the table that say anything of connections."""
    items = await environments.items()
    # A list of nobody's connections is left to its time to live.
    keys = {item["pk"]["S"] for item in items if item.get("conns") != {"M": {}}}
    return {key for key in keys if not key.startswith(("G#", "DEPLOYMENT", "H#", "L#"))}


async def test_a_disconnect_leaves_nothing(
    one: Environment, environments: Environments
) -> None:
    await one.connect("a")
    await one.say("a", subscribe(2), subscribe(3, "plain:y"))
    await one.handle(Kind.DISCONNECT, "a")
    await one.handle(Kind.DISCONNECT, "a")
    assert await _kept(environments) == set()


async def test_connections_to_the_gateway_are_closed_with_the_process(
    environments: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    asked, closed = asyncio.Event(), asyncio.Event()

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while await reader.readline() not in (b"\r\n", b""):
            pass
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        one = await environments.open(
            SystemClock(),
            posts=True,
            STEADWIRE_GATEWAY_ENDPOINT=f"http://127.0.0.1:{port}/prod",
        )
        await one.runtime.posts.delete(ClientId("a"))
        assert asked.is_set() and not closed.is_set()
        await one.close()
        async with asyncio.timeout(10):
            await closed.wait()


async def test_a_frame_that_is_not_json_closes(one: Environment) -> None:
    await one.connect("a")
    await one.handle(Kind.MESSAGE, "a", "hello")
    assert one.sockets.messages["a"][-1]["push"]["disconnect"]["code"] == 3501
    assert one.sockets.closed == ["a"]


async def test_joins_and_leaves(one: Environment) -> None:
    channel = "plain:x"
    for client in ("a", "b"):
        await one.connect(client)
    await one.say("a", subscribe(2, channel, join_leave=True))
    one.sockets.take("a")
    await one.say("b", subscribe(2, channel))
    [joined] = one.sockets.take("a")
    assert joined["push"]["join"]["info"]["client"] == "b"
    await one.say("a", {"id": 3, "presence": {"channel": channel}})
    [present] = one.sockets.take("a")
    assert sorted(present["presence"]["presence"]) == ["a", "b"]
    await one.publish(channel, {"n": 1})
    [pushed] = one.sockets.take("a")
    assert pushed["push"]["pub"]["data"] == {"n": 1}
    await one.handle(Kind.DISCONNECT, "b")
    [left] = one.sockets.take("a")
    assert left["push"]["leave"]["info"]["client"] == "b"
    await one.say("a", {"id": 4, "presence_stats": {"channel": channel}})
    [stats] = one.sockets.take("a")
    assert stats["presence_stats"]["num_clients"] == 1


async def test_presence_shows_the_subscribers_of_resident_servers(
    one: Environment,
) -> None:
    channel = Channel("plain:x")
    await one.connect("a")
    await one.say("a", subscribe(2, channel))
    one.sockets.take("a")
    lost, info = RawJson('{"client":"lost"}'), RawJson('{"client":"here"}')
    shown = PresenceRow(channel, ClientId("here"), UserId("u"), "node", info, 2)
    replaced = shown._replace(client=ClientId("lost"), info=lost, joined=1, lost=1)
    hidden = shown._replace(client=ClientId("no"), present=False)
    presence = Presence(one.base.store.client, one.base.clock, 86400.0)
    now = round(one.base.clock.wall() * 1000)
    await presence.enter(
        [
            row._replace(joined=now + row.joined, lost=row.lost and now + row.lost)
            for row in (shown, replaced, hidden)
        ]
    )
    await one.say("a", {"id": 3, "presence": {"channel": channel}})
    [present] = one.sockets.take("a")
    assert sorted(present["presence"]["presence"]) == ["a", "here"]


async def test_what_the_server_does_to_a_user(
    one: Environment, other: Environment
) -> None:
    people, user = one.runtime.people, UserId("")
    await other.connect("a")
    await people.subscribe(ServerSubscribe(user=user, channel=CH, client="a"))
    [pushed] = one.sockets.take("a")
    assert pushed["push"]["channel"] == CH and "subscribe" in pushed["push"]
    await other.publish(CH, 1)
    assert one.sockets.offsets("a", CH) == [1]
    one.sockets.take("a")
    await people.unsubscribe(user, CH, UNSUBSCRIBE_SERVER, client="a")
    [ended] = one.sockets.take("a")
    assert ended["push"]["unsubscribe"]["code"] == 2000
    await other.publish(CH, 2)
    assert one.sockets.take("a") == []
    await people.subscribe(ServerSubscribe(user=user, channel=CH, client="a"))
    assert "subscribe" in one.sockets.take("a")[0]["push"]
    assert await people.disconnect(user, FORCE_DISCONNECT, client="a") == 1
    assert one.sockets.take("a")[0]["push"]["disconnect"]["code"] == 3503
    assert one.sockets.closed == ["a"]


async def test_server_side_subscriptions_of_a_token(
    strict: list[Environment], environments: Environments
) -> None:
    one, other = strict[:2]
    await other.publish(CH, *range(3))
    reply = await one.connect("a", token=token(channels=[CH, "plain:x"]))
    subs = reply["connect"]["subs"]
    assert subs[CH]["offset"] == 3 and subs[CH]["recoverable"]
    assert "plain:x" in subs
    epoch = subs[CH]["epoch"]
    await other.publish(CH, 3)
    assert one.sockets.offsets("a", CH) == [4]
    await one.say("a", subscribe(2))
    assert one.sockets.take("a")[-1]["error"]["code"] == 105
    await other.publish(CH, 4, 5)
    one.sockets.closed.append("a")
    reply = await one.connect(
        "b",
        token=token(channels=[CH]),
        subs={CH: {"recover": True, "offset": 4, "epoch": epoch}},
    )
    found = reply["connect"]["subs"][CH]
    assert found["recovered"]
    assert [each["offset"] for each in found["publications"]] == [5, 6]


async def test_a_thawed_environment_reads_the_time_anew(
    one: Environment, other: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.publish(CH, 1)
    await one.connect("a")
    await one.say("a", subscribe(2))
    history = one.base.permissions.rules(CH).history
    assert (await one.base.store.read(CH, history, None, 0)).top.offset == 1
    # Two hours in which its monotonic clock stood still.
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    assert one.base.clock.wall() < real() + 60
    one.runtime.thawed()
    assert one.base.clock.wall() > real() + 7000
    monkeypatch.undo()
    one.runtime.thawed()
    await other.publish(CH, 2)
    one.runtime.thawed()
    await one.say("a", {"id": 3, "history": {"channel": CH, "limit": 0}})
    assert one.sockets.take("a")[-1]["history"]["offset"] == 2


async def test_a_subscribe_on_a_connection_that_has_a_row_waits_for_the_holder(
    one: Environment, other: Environment
) -> None:
    """Old SDKs subscribe again on the same connection when a reply is late."""
    await one.connect("a")
    await one.say("a", subscribe(2))
    epoch = one.sockets.take("a")[0]["subscribe"]["epoch"]
    reached, go = asyncio.Event(), asyncio.Event()

    async def slow(client: str, text: str) -> None:
        if '"pub"' in text:
            reached.set()
            await go.wait()

    one.sockets.on_post = slow
    publishing = asyncio.create_task(other.publish(CH, 1))
    await reached.wait()
    again = asyncio.create_task(
        one.say("a", subscribe(3, recover=True, offset=0, epoch=epoch))
    )
    while await _states(one) != ["W"]:
        assert not again.done()
    go.set()
    await asyncio.gather(publishing, again)
    found = one.sockets.take("a")
    # The push was on its way before the reply, which the client's new state covers.
    assert [m.get("id") or m["push"]["pub"]["offset"] for m in found] == [1, 3]
    await other.publish(CH, 2)
    assert one.sockets.offsets("a", CH) == [2]


async def _states(environment: Environment) -> list[str]:
    rows = await environment.runtime.application.context.subscribers.rows(CH)
    return [row.state.value for row in rows]


async def test_connections_of_a_restored_table_are_closed(
    one: Environment, environments: Environments
) -> None:
    await one.connect("a")
    await one.connect("b")
    for client in ("a", "b"):
        await environments.client.call(
            "update_item",
            {
                "TableName": environments.table.table,
                "Key": {"pk": {"S": f"C#{client}"}, "sk": {"S": "SESSION"}},
                "UpdateExpression": "SET #table = :other",
                "ExpressionAttributeNames": {"#table": "table"},
                "ExpressionAttributeValues": {":other": {"S": "the original"}},
            },
        )
    await one.say("a", subscribe(2))
    await one.runtime.upkeep.look_after([Listed(ClientId("b"), 0)])
    for client in ("a", "b"):
        assert one.sockets.take(client)[-1]["push"]["disconnect"]["code"] == 3010
    assert await _kept(environments) == set()


async def test_hooks(environments: Environments) -> None:
    asked: list[Any] = []

    async def connect(event: ConnectEvent) -> ConnectResult:
        asked.append(event)
        return ConnectResult(user="ann", data={"hello": 1})

    async def rpc(event: RpcEvent) -> RpcResult:
        return RpcResult(data=[event.method, event.user])

    async def publish(event: Any) -> PublishResult:
        return PublishResult(data={"changed": True})

    handlers = Handlers(connect=connect, rpc=rpc, publish=publish)
    one = await environments.open(SystemClock(), handlers)
    reply = await one.connect("a", data={"in": 1})
    assert reply["connect"]["data"] == {"hello": 1}
    assert asked[0].origin == "https://page"
    await one.say("a", {"id": 2, "rpc": {"method": "m", "data": {}}})
    assert one.sockets.take("a")[-1]["rpc"]["data"] == ["m", "ann"]
    await one.say("a", subscribe(3))
    await one.say("a", {"id": 4, "publish": {"channel": CH, "data": {}}})
    pushed = [m["push"]["pub"] for m in one.sockets.take("a") if "push" in m]
    assert pushed[0]["data"] == {"changed": True}


async def test_a_refused_connect_leaves_nothing(
    strict: list[Environment], environments: Environments
) -> None:
    expired = token(exp=int(time.time()) - 10)
    refused = await strict[0].connect("a", token=expired)
    assert refused["error"]["code"] == 109
    assert await _kept(environments) == set()
    refused = await strict[0].connect("b", token="not a token")
    assert refused["push"]["disconnect"]["code"] == 3500
    assert await _kept(environments) == set()


async def test_what_is_too_large_for_the_gateway_is_refused(one: Environment) -> None:
    with pytest.raises(AssertionError, match="no more than 122880 bytes"):
        await one.publish(CH, "x" * 123_000)
    await one.connect("a")
    await one.say("a", {"id": 5, "publish": {"channel": CH, "data": "x" * 123_000}})
    assert one.sockets.take("a")[-1]["error"]["code"] == 107
    await one.say("a", subscribe(6))
    await one.publish(CH, *("x" * 110_000 for _ in range(3)))
    assert one.sockets.offsets("a", CH) == [1, 2, 3]
    one.sockets.take("a")
    await one.say("a", {"id": 7, "history": {"channel": CH, "limit": 3}})
    [reply] = one.sockets.take("a")
    assert len(reply["history"]["publications"]) == 1


async def test_nothing_goes_on_after_an_invocation(
    one: Environment, other: Environment
) -> None:
    """An environment is frozen then."""
    await one.connect("a")
    await one.say("a", subscribe(2), subscribe(3, "plain:x"))
    await other.connect("b")
    await other.say("b", subscribe(2))
    await one.say("a", {"id": 4, "publish": {"channel": CH, "data": 1}})
    assert one.sockets.offsets("b", CH) == [1]
    await one.say("a", {"id": 5, "history": {"channel": CH, "limit": 1}})
    await one.handle(Kind.DISCONNECT, "b")
    assert asyncio.all_tasks() == {asyncio.current_task()}
