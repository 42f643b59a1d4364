"""What a gateway cannot keep of the contract, and what happens there instead.

docs/serverless.md has the list. The suite of the local mode runs there too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.agents import said
from tests.harness.api import Api, ApiError
from tests.harness.backends import GATEWAYS, Backend
from tests.harness.fixtures import server_with
from tests.harness.gateway import GatewayServer
from tests.harness.raw import Closed, HandshakeRefused, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import connection
from tests.harness.tokens import settings as token_settings
from tests.server.running import until

NAMESPACES = [
    {
        "name": "who",
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "history_size": 10,
        "history_ttl": "60s",
    }
]
LIMIT = 12

server = server_with(
    {
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES),
        "STEADWIRE_CONNECTIONS_PARKED": "60",
    }
)

# Of clients with tokens, and a limit of the deployment.
members = server_with(
    token_settings(
        STEADWIRE_DYNAMODB_CLIENT_LIMIT=str(LIMIT),
        STEADWIRE_GATEWAY_SWEEP_INTERVAL="1",
        # Environments of a function have to start first.
        STEADWIRE_CLIENT_STALE_TIMEOUT="60",
    )
)


@pytest.fixture(
    scope="module",
    params=["http_proxy", pytest.param("lambda", marks=pytest.mark.slow)],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    return GATEWAYS[request.param]


async def test_a_frame_over_32_kib_closes_with_1009(
    server: Server, channel: str
) -> None:
    async with await server.raw() as client:
        await client.publish(channel, "x" * 32_000)
        text = json.dumps(
            {"id": 9, "publish": {"channel": channel, "data": "x" * 32 * 1024}}
        )
        await client.send_text(text)
        assert (await client.closed()).code == 1009


async def test_what_the_gateway_cannot_write_is_refused_at_publish(
    server: Server, api: Api, channel: str
) -> None:
    """And what it can is written: in frames of 32 KiB, and whole."""
    async with await server.raw() as client:
        await client.subscribe(channel)
        await api.publish(channel, "x" * 118 * 1024)
        with pytest.raises(ApiError) as refused:
            await api.publish(channel, "x" * 121 * 1024)
        assert refused.value.code == 107
        await api.publish(channel, "after")
        first, second = await client.publications(channel, 2)
    assert (len(first["data"]), first["offset"]) == (118 * 1024, 1)
    assert (second["data"], second["offset"]) == ("after", 2)


async def test_protobuf_is_refused_before_the_socket_is_open(server: Server) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        offer = {"Sec-WebSocket-Protocol": "centrifuge-protobuf"}
        await server.raw(connected=False, headers=offer)
    assert refused.value.status == 400


async def test_extensions_are_declined(server: Server) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with await server.raw(headers=offer) as client:
        assert "sec-websocket-extensions" not in client.headers


async def test_the_log_has_no_steps_of_connections(server: Server) -> None:
    async with await server.raw(connected=False) as client:
        name = (await client.connect())["client"]
        await client.send_text("no command")
        await client.closed()
    await server.logged(name)
    found = [line["event"] for line in server.log() if name in line.values()]
    assert found == ["authentication"]


async def test_there_are_no_pongs(server: Server) -> None:
    async with await server.raw(connected=False) as client:
        reply = await client.request(connect={})
        assert reply["connect"]["ping"] == 300
        assert "pong" not in reply["connect"]
        # One that comes all the same is not an error.
        await client.send_text("{}")
        assert await client.publish("any", 1) == {}


async def test_a_close_is_a_push_and_then_1000(server: Server) -> None:
    async with await server.raw() as client:
        client.at_gateway = False  # show what comes
        await client.send_text("no command")
        assert await client.message() == {
            "push": {"disconnect": {"code": 3501, "reason": "bad request"}}
        }
        assert (await client.closed()).code == 1000


async def test_a_client_hears_its_own_publication_after_the_reply(
    server: Server, channel: str
) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        await client.send({"id": 9, "publish": {"channel": channel, "data": 1}})
        assert await client.message() == {"id": 9, "publish": {}}
        assert "pub" in (await client.message())["push"]


async def test_pipelined_publishes_are_dense_in_any_order(
    server: Server, channel: str
) -> None:
    async with await server.raw() as publisher, await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        for number in range(20):  # a frame each
            await publisher.send(
                {"id": 100 + number, "publish": {"channel": channel, "data": number}}
            )
        found = await subscriber.publications(channel, 20, within=40.0)
    assert [each["offset"] for each in found] == list(range(1, 21))
    assert sorted(each["data"] for each in found) == list(range(20))


async def test_a_lost_connection_leaves_presence_at_once(
    server: Server, api: Api, channel: str
) -> None:
    channel = f"who:{channel}"

    async def present() -> int:
        found = await api.call("presence_stats", {"channel": channel})
        return int(found["num_clients"])

    client = await server.raw()
    await client.subscribe(channel)
    assert await present() == 1

    async def nobody() -> bool:
        return await present() == 0

    client.reset()
    await until(nobody, 40.0, "it left, sooner than after a grace")


@pytest.mark.parametrize("sdk", ["js-5.5.3", "python-0.4.4"])
async def test_an_old_sdk_that_subscribes_again_loses_nothing(
    server: Server, api: Api, start_host: Callable[..., Any], channel: str, sdk: str
) -> None:
    """It may be shown a publication of that moment twice."""
    client = await SdkClient.create(await start_host(sdk), server.url)
    await client.connect()
    await client.subscribe(channel)
    for number in range(1, 6):
        await client.do("unsubscribe", channel=channel)
        await client.do("subscribe", channel=channel)
        await client.seen("subscribed", number + 1)
        await api.publish(channel, number)
    await client.until(lambda: 5 in client.offsets(channel), "the last")
    seen = dict.fromkeys(client.offsets(channel))
    assert list(seen) == [1, 2, 3, 4, 5]


async def test_an_event_of_a_run_is_held_to_what_the_gateway_writes(
    server: Server, thread: str
) -> None:
    run = said("r1", ["x" * 118 * 1024, "x" * 121 * 1024], thread)
    url = f"/api/runs/{thread}/r1/events"
    headers = {"Content-Type": "application/x-ndjson", "X-API-Key": server.key}
    async with await server.raw() as viewer, server.api() as api:
        await viewer.subscribe(f"thread:{thread}")
        body = "".join(f"{json.dumps(each)}\n" for each in run[:3]).encode()
        answer = await api.request("POST", url, body, headers)
        assert answer.status == 200
        body = json.dumps(run[3]).encode() + b"\n"
        answer = await api.request("POST", f"{url}?from=4", body, headers)
        assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")
        found = await viewer.publications(f"thread:{thread}", 3)
    assert [each["data"] for each in found] == run[:3]


async def test_a_run_that_is_pushed_has_a_snapshot_at_a_server_of_the_deployment(
    server: Server, thread: str
) -> None:
    run = said("r1", ["one ", "two ", "three"], thread)
    url = f"/api/runs/{thread}/r1/events"
    headers = {"Content-Type": "application/x-ndjson", "X-API-Key": server.key}
    async with await server.raw() as viewer, server.api() as api:
        await viewer.subscribe(f"thread:{thread}")
        body = "".join(f"{json.dumps(each)}\n" for each in run).encode()
        assert (await api.request("POST", url, body, headers)).status == 200
        found = await viewer.publications(f"thread:{thread}", len(run))
        answer = await api.request("GET", f"/agui/threads/{thread}/snapshot")
    assert [each["data"] for each in found] == run
    snapshot = answer.json
    # The three pieces of the text are one there.
    texts = [each["delta"] for each in snapshot["events"] if "delta" in each]
    assert texts == ["one two three"]
    assert (snapshot["offset"], snapshot["live"]) == (len(run), "")


async def test_commands_of_threads_are_not_there(server: Server, thread: str) -> None:
    async with await server.raw() as client:
        for method in ("typing", "run.cancel"):
            asked = {"method": method, "data": {"thread": thread, "run": "r"}}
            assert (await client.request(rpc=asked))["error"]["code"] == 108


async def test_a_second_subscribe_begins_anew(
    server: Server, api: Api, channel: str
) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        await client.subscribe(channel)
        await api.publish(channel, 1)
        await client.publish(channel, 2)
        found = await client.publications(channel, 2)
    assert [each["offset"] for each in found] == [1, 2]


async def listens(client: RawClient, channel: str) -> None:
    """Subscribe, and wait until the client hears joins.

    That begins a moment after the reply, when its row becomes active. Only then is it
    posted what has been published since, and that for certain: the channel has history.
    """
    await client.subscribe(channel)
    await client.publish(channel, 0)
    await client.publications(channel, 1)


async def test_a_client_hears_the_joins_of_others_alone(
    server: Server, channel: str
) -> None:
    channel = f"who:{channel}"
    async with await server.raw() as one, await server.raw() as two:
        await listens(one, channel)
        await two.subscribe(channel)
        assert "join" in await one.push()
        await two.request(unsubscribe={"channel": channel})
        assert "leave" in await one.push()
        assert not two.pushes and not one.pushes


@pytest.mark.slow
async def test_joins_and_leaves_go_out_one_by_one(server: Server, channel: str) -> None:
    channel = f"who:{channel}"
    async with await server.raw() as one, await server.raw() as two:
        await listens(one, channel)
        for _ in range(5):
            await two.subscribe(channel)
            # It is told when the row is active, which is after the reply.
            assert "join" in await one.push()
            await two.request(unsubscribe={"channel": channel})
            assert "leave" in await one.push()


@pytest.mark.slow
async def test_the_end_of_a_server_closes_no_connection(
    own_server: Server, channel: str
) -> None:
    async with await own_server.raw() as client:
        await client.subscribe(channel)
        assert await own_server.terminate() == 0
        await own_server.start()
        await client.publish(channel, 1)
        (publication,) = await client.publications(channel, 1)
        assert (publication["offset"], publication["data"]) == (1, 1)


async def test_the_servers_of_a_deployment_do_not_list_its_channels(
    server: Server, api: Api, channel: str
) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        listed = await api.call("channels", {"pattern": channel})
        assert listed["channels"] == {}
        node = (await api.call("info", {}))["nodes"][0]
        assert (node["num_clients"], node["num_channels"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lambda"], indirect=True, scope="module")
async def test_what_hooks_a_function_asks_in_vain_is_in_its_log_alone(
    make_server: Callable[..., Server],
) -> None:
    """No server has asked, so that each says that it is well."""
    nowhere = {"STEADWIRE_PROXY_CONNECT": "http://127.0.0.1:1/connect"}
    server = await make_server(nowhere).start()
    for _ in range(3):
        async with await server.raw(connected=False) as client:
            reply = await client.request(connect={}, within=60.0)
        assert reply["error"]["code"] == 100
    await server.logged("a hook's endpoint failed", 3)
    async with server.api() as api:
        ready = await api.request("GET", "/health/ready")
    assert ready.json == {"status": "ready"}


async def test_connections_without_a_user_are_in_no_list(
    server: Server, api: Api, channel: str
) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        body = {"user": "", "channel": channel}
        assert await api.call("unsubscribe", body) == {}
        await api.publish(channel, 1)
        assert (await client.publications(channel, 1))[0]["offset"] == 1


@pytest.mark.slow
async def test_the_fourth_connection_of_a_user_closes_the_one_that_connected_first(
    members: Server,
) -> None:
    clients = [await _enter(members, "ann") for _ in range(3)]
    for client in clients:
        # So the first is not the one that was silent for longest.
        await client.request(rpc={"method": "none"})
    clients.append(await _enter(members, "ann"))
    assert (await clients[0].closed()).code == 3504
    for client in clients[1:]:
        assert "error" in await client.request(rpc={"method": "none"})  # it is open
        client.reset()


@pytest.mark.slow
async def test_a_revoked_token_ends_its_connection_with_a_sweep(
    members: Server,
) -> None:
    """Although its client sends nothing, and others of its user stay."""
    revoked = await _enter(members, "bob", jti="revoked")
    other = await _enter(members, "bob", jti="another")
    async with members.api() as api:
        await api.call("revoke_token", {"uid": "revoked"})
    assert (await revoked.closed()).code == 3005
    assert "error" in await other.request(rpc={"method": "none"})  # it is open
    other.reset()


@pytest.mark.slow
@pytest.mark.parametrize("sdk", ["js-5.8.0", "js-5.5.3", "python-0.7.0"])
async def test_sdks_come_back_after_a_close_that_is_told_by_a_push(
    members: Server, start_host: Callable[..., Any], sdk: str
) -> None:
    """All but python-0.4.4, which waits for its own task."""
    (await _enter(members, "bob")).reset()  # which may wait for an environment
    client = await SdkClient.create(
        await start_host(sdk), members.url, token=connection("bob")
    )
    await client.connect()
    async with members.api() as api:
        told = {"code": 3010, "reason": "come back"}
        await api.call("disconnect", {"user": "bob", "disconnect": told})
    await client.seen("connected", 2)
    assert [each["code"] for each in client.events["connecting"]][1:] == [3010]
    await client.disconnect()


@pytest.mark.slow
@pytest.mark.requirement("R3")
async def test_the_limit_of_the_deployment_holds_whoever_comes_at_once(
    members: Server, start_host: Callable[..., Any]
) -> None:
    async with members.api() as api:

        async def nobody() -> bool:
            # Those of other tests have left, whatever the gateway has told.
            for user in ("ann", "bob"):
                await api.call("disconnect", {"user": user})
            found = [
                await api.call("connections", {"user": user}) for user in ("ann", "bob")
            ]
            return not any(each["connections"] for each in found)

        await until(nobody, 30.0, "nobody is connected")

    async def outcome(number: int) -> RawClient | int:
        try:
            return await _enter(members, f"user{number}")
        except Closed as closed:
            assert closed.code is not None
            return closed.code

    found = await asyncio.gather(*map(outcome, range(2 * LIMIT)))
    inside = [each for each in found if isinstance(each, RawClient)]
    assert len(inside) == LIMIT
    assert [each for each in found if isinstance(each, int)] == [3013] * LIMIT
    # An SDK that is refused comes back until there is room.
    host = await start_host("js-5.8.0")
    late = await SdkClient.create(host, members.url, token=connection("late"))
    await late.do("connect")
    for client in inside:
        client.reset()
    await late.seen("connected", 1, within=20.0)
    await late.disconnect()


async def _enter(server: Server, user: str, **claims: Any) -> RawClient:
    client = await server.raw(connected=False, within=60.0)
    token = connection(user, **claims)
    reply = await client.request(within=60.0, connect={"token": token})
    assert reply["connect"]["client"]
    return client


async def test_a_socket_that_does_not_connect_is_closed_by_the_sweep(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(
        {
            "STEADWIRE_CLIENT_STALE_TIMEOUT": "0.5",
            "STEADWIRE_GATEWAY_SWEEP_INTERVAL": "0.5",
            "STEADWIRE_GATEWAY_PING_INTERVAL": "2",
        }
    ).start()
    assert isinstance(server, GatewayServer)
    async with await server.raw(connected=False) as stale, await server.raw() as here:
        assert (await stale.closed()).code == 3502
        frame = await here.frame()
        assert frame.payload == b"{}"  # a ping
