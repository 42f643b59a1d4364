"""Hooks in Python: an application of our own decides about clients."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server

INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}


server = server_with(app="tests.http.hooked:app")


async def enter(server: Server, user: str = "ann", **fields: Any) -> RawClient:
    client = await server.raw(connected=False)
    await client.connect(token=user, **fields)
    return client


async def test_connect_says_who_it_is(server: Server, channel: str) -> None:
    client = await server.raw(connected=False)
    reply = await client.connect(token="ann", data={"a": 1}, name="with-channel")
    assert reply["data"] == {"said": {"a": 1}}
    assert list(reply["subs"]) == ["own-ann"]
    await client.subscribe(channel)
    presence = (await client.request(presence={"channel": channel}))["presence"]
    (info,) = presence["presence"].values()
    assert (info["user"], info["conn_info"]) == ("ann", {"name": "ann"})


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ("refuse", {"code": 401, "message": 'not "you"\\'}),
        ("later", {"code": 402, "message": "later", "temporary": True}),
        ("crash", INTERNAL),
    ],
)
async def test_connect_refused(
    server: Server, token: str, error: dict[str, Any]
) -> None:
    client = await server.raw(connected=False)
    assert (await client.request(connect={"token": token}))["error"] == error
    if token == "crash":
        await server.logged("ZeroDivisionError")
    assert "what the hook saw" not in server.output()


async def test_connect_closed(server: Server) -> None:
    client = await server.raw(connected=False)
    await client.send({"id": 1, "connect": {"token": "close"}})
    closed = await client.closed()
    assert (closed.code, closed.reason) == (4501, "stay away")


async def test_subscribe(server: Server, channel: str) -> None:
    client = await enter(server)
    assert (await client.subscribe(channel))["data"] == {"hello": "ann"}
    reply = await client.request(subscribe={"channel": f"{channel}-forbidden"})
    assert reply["error"] == {"code": 103, "message": "permission denied"}
    reply = await client.request(subscribe={"channel": f"{channel}-crash"})
    assert reply["error"] == INTERNAL
    presence = (await client.request(presence={"channel": channel}))["presence"]
    (info,) = presence["presence"].values()
    assert info["chan_info"] == {"as": "ann"}


async def test_publish(server: Server, api: Api, channel: str) -> None:
    client = await enter(server)
    await client.subscribe(channel)
    await client.publish(channel, "plain")
    await client.publish(channel, "sign")
    await client.publish(channel, "fleeting")
    for data, code in (("swearing", 403), ("crash", 100)):
        command = {"channel": channel, "data": data}
        assert (await client.request(publish=command))["error"]["code"] == code
    seen = [each["data"] for each in await client.publications(channel, 3)]
    assert seen == ["plain", {"signed": "ann"}, "fleeting"]
    kept = [each["data"] for each in await api.whole_history(channel)]
    assert kept == ["plain", {"signed": "ann"}]


async def test_rpc_of_a_client(server: Server) -> None:
    client = await enter(server)
    reply = await client.request(rpc={"method": "echo", "data": [1, None]})
    assert reply["rpc"] == {"data": {"user": "ann", "data": [1, None]}}
    assert (await client.request(rpc={"method": "nothing"}))["rpc"] == {}
    refused = await client.request(rpc={"method": "refuse"})
    assert refused["error"] == {"code": 1999, "message": 'a "quoted" reason'}
    assert (await client.request(rpc={"method": "crash"}))["error"] == INTERNAL
    await client.send({"id": 9, "rpc": {"method": "close"}})
    assert (await client.closed()).code == 4000


async def test_rpc_of_the_server_api(api: Api, server: Server) -> None:
    body = {"method": "echo", "params": {"a": [1]}}
    assert await api.call("rpc", body) == {"data": {"user": "", "data": {"a": [1]}}}
    assert await api.call("rpc", {"method": "nothing"}) == {}
    for method, code in (
        ("refuse", 1999),
        ("close", 100),
        ("crash", 100),
    ):
        with pytest.raises(ApiError) as error:
            await api.call("rpc", {"method": method})
        assert error.value.code == code
    headers = {"X-API-Key": server.key, "X-Centrifugo-Error-Mode": "transport"}
    document = (await api.request("GET", "/api/openapi.json")).json
    documented = document["paths"]["/api/rpc"]["post"]["responses"]
    for method, status in (
        ("refuse", 400),
        ("refuse-102", 404),
        ("refuse-111", 429),
        ("refuse-112", 416),
        ("refuse-113", 409),
        ("refuse-400", 400),
        ("crash", 500),
    ):
        text = f'{{"method":"{method}"}}'.encode()
        response = await api.request("POST", "/api/rpc", text, headers)
        assert response.status == status
        assert str(status) in documented
    # The log has the type and the place of the failure, and not its text.
    await server.logged("ZeroDivisionError")
    assert "what the hook saw" not in server.output()


async def test_rpc_publishes_from_inside(server: Server, api: Api) -> None:
    client = await enter(server, "bob")
    subscriber = await enter(server)
    await subscriber.subscribe("from-inside")
    reply = await client.request(rpc={"method": "publish"})
    page = await api.history("from-inside")
    assert reply["rpc"]["data"] == {"offset": 1, "epoch": page["epoch"]}
    (publication,) = await subscriber.publications("from-inside", 1)
    assert publication == {"data": {"by": "bob"}, "offset": 1}


@pytest.mark.requirement("R19", "B45", "B46")
async def test_four_answers_that_are_stuck_hold_up_nobody(
    server: Server, api: Api, tmp_path: Path
) -> None:
    client, other = await enter(server), await enter(server, "bob")
    for number in range(4):
        await client.send(
            {"id": 100 + number, "rpc": {"method": "slow", "data": str(tmp_path / "x")}}
        )
    answered = []
    for _ in range(20):
        # Behind a function each of the four has an environment, which starts first.
        reply = await other.request(rpc={"method": "large"}, within=60.0)
        assert len(reply["rpc"]["data"]) == 1000
        assert (await api.call("rpc", {"method": "large"}))["data"][999] == "x" * 10
        answered.append(reply["id"])
    # All of that came before the second was over; then the error object has the ids.
    error = {"reason": "time", "limit": 1}
    stuck = [await client.message(60.0) for _ in range(4)]
    assert sorted(reply["id"] for reply in stuck) == [100, 101, 102, 103]
    for reply in stuck:
        assert reply["rpc"]["data"] == {"type": "state", "run_id": "r1", "error": error}
    (tmp_path / "x").touch()
    assert (await other.request(rpc={"method": "large"}))["rpc"]["data"]
    assert len(answered) == 20


async def test_an_answer_that_blocks_for_a_moment_is_complete(
    server: Server, tmp_path: Path
) -> None:
    client = await enter(server)
    path = tmp_path / "go"
    await client.send({"id": 100, "rpc": {"method": "slow", "data": str(path)}})
    begun = tmp_path / "go.begun"
    while not begun.exists():
        await asyncio.sleep(0.01)
    path.touch()
    reply = await client.message()
    assert (reply["id"], reply["rpc"]["data"]["agent"]) == (100, {"waited": True})
