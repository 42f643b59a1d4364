"""The server API as it looks on the wire: statuses, bodies, error objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.server import Server

BAD_REQUEST = {"error": {"code": 107, "message": "bad request"}}
UNKNOWN_CHANNEL = {"error": {"code": 102, "message": "unknown channel"}}


server = server_with(
    {
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([{"name": "plain"}]),
        "STEADWIRE_API_REQUEST_SIZE": "200000",
        "STEADWIRE_API_PUBLICATION_SIZE": "150000",
        "STEADWIRE_API_BATCH_SIZE": "100",
    }
)


async def answer(api: Api, method: str, body: Any) -> Any:
    response = await api.post(method, body)
    assert response.status == 200
    assert response.headers["content-type"].startswith("application/json")
    return response.json


# --- publish


@pytest.mark.requirement("B31")
async def test_publish_answers_with_the_position(api: Api, channel: str) -> None:
    first = await answer(api, "publish", {"channel": channel, "data": {"n": 1}})
    second = await answer(api, "publish", {"channel": channel, "data": {"n": 2}})
    epoch = first["result"]["epoch"]
    assert isinstance(epoch, str) and epoch not in ("", "_")
    assert first == {"result": {"offset": 1, "epoch": epoch}}
    assert second == {"result": {"offset": 2, "epoch": epoch}}


async def test_publish_without_history_answers_with_an_empty_result(
    api: Api, channel: str
) -> None:
    body = {"channel": f"plain:{channel}", "data": {"n": 1}}
    assert await answer(api, "publish", body) == {"result": {}}


async def test_publish_twice_with_one_idempotency_key(api: Api, channel: str) -> None:
    body = {"channel": channel, "data": 1, "idempotency_key": "k"}
    first = await answer(api, "publish", body)
    assert await answer(api, "publish", {**body, "data": 2}) == first
    third = await answer(api, "publish", {**body, "idempotency_key": "other"})
    assert third["result"]["offset"] == 2
    # Keys belong to a channel.
    other = await answer(api, "publish", {**body, "channel": f"{channel}-other"})
    assert other["result"]["offset"] == 1
    data = [publication["data"] for publication in await api.whole_history(channel)]
    assert data == [1, 1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": 1},
        {"channel": "", "data": 1},
        {"channel": "x" * 256, "data": 1},
        {"channel": "no-data"},
        {"channel": "tags", "data": 1, "tags": {"a": 1}},
    ],
    ids=["empty", "no-channel", "empty-channel", "long-channel", "no-data", "tags"],
)
async def test_publish_bad_requests(api: Api, body: dict[str, Any]) -> None:
    response = await api.post("publish", body)
    # A body of the right JSON and the wrong types may be called undecodable.
    if body.get("tags") and response.status == 400:
        return
    assert (response.status, response.json) == (200, BAD_REQUEST)


async def test_publish_to_an_unknown_namespace(api: Api) -> None:
    body = {"channel": "nowhere:x", "data": 1}
    assert await answer(api, "publish", body) == UNKNOWN_CHANNEL


async def test_payload_is_delivered_on_one_line(
    server: Server, api: Api, channel: str
) -> None:
    # Newlines between tokens are legal JSON and would end the message on the wire.
    text = json.dumps({"channel": channel, "data": {"a": [1, {"b": "c\nd"}]}}, indent=2)
    headers = {"X-API-Key": server.key, "Content-Type": "application/json"}
    async with await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        response = await api.request(
            "POST", "/api/publish", text.encode(), headers=headers
        )
        assert response.json["result"]["offset"] == 1
        (publication,) = await subscriber.publications(channel, 1)
    assert publication["data"] == {"a": [1, {"b": "c\nd"}]}


# --- broadcast


@pytest.mark.requirement("R17")
async def test_broadcast_answers_in_order(api: Api, channel: str) -> None:
    left, right = f"{channel}-left", f"{channel}-right"
    await api.publish(right, 0)
    body = {"channels": [left, "nowhere:x", right, "plain:x", ""], "data": {"n": 1}}
    responses = (await answer(api, "broadcast", body))["result"]["responses"]
    assert responses[0]["result"]["offset"] == 1 and responses[0]["result"]["epoch"]
    assert responses[1] == UNKNOWN_CHANNEL
    assert responses[2]["result"]["offset"] == 2 and responses[2]["result"]["epoch"]
    assert responses[3] == {"result": {}}
    assert responses[4] == BAD_REQUEST
    for channel_, count in ((left, 1), (right, 2)):
        stored = await api.whole_history(channel_)
        assert len(stored) == count
        assert stored[-1]["data"] == {"n": 1}


async def test_broadcast_twice_with_one_idempotency_key(api: Api, channel: str) -> None:
    channels = [f"{channel}-{n}" for n in range(3)]
    body = {"channels": channels, "data": 1, "idempotency_key": "k"}
    first = await answer(api, "broadcast", body)
    assert await answer(api, "broadcast", body) == first
    for name in channels:
        assert len(await api.whole_history(name)) == 1


@pytest.mark.parametrize(
    "body",
    [{"data": 1}, {"channels": [], "data": 1}, {"channels": ["a"]}],
    ids=["no-channels", "empty-channels", "no-data"],
)
async def test_broadcast_bad_requests(api: Api, body: dict[str, Any]) -> None:
    assert await answer(api, "broadcast", body) == BAD_REQUEST


# --- history


async def test_history_of_a_channel_nobody_published_to(api: Api, channel: str) -> None:
    first = (await answer(api, "history", {"channel": channel, "limit": -1}))["result"]
    assert first["publications"] == []
    assert first["offset"] == 0
    assert first["epoch"] not in ("", "_")
    assert (await api.history(channel, limit=-1)) == first
    result = await api.call("publish", {"channel": channel, "data": 1})
    assert result == {"offset": 1, "epoch": first["epoch"]}


async def test_history_shape(api: Api, channel: str) -> None:
    await api.publish(channel, {"n": 1}, tags={"a": "b"})
    await api.publish(channel, {"n": 2})
    page = (await answer(api, "history", {"channel": channel, "limit": -1}))["result"]
    assert page == {
        "publications": [
            {**page["publications"][0], "offset": 1, "data": {"n": 1}},
            {**page["publications"][1], "offset": 2, "data": {"n": 2}},
        ],
        "offset": 2,
        "epoch": page["epoch"],
    }
    assert page["publications"][0]["tags"] == {"a": "b"}
    assert "tags" not in page["publications"][1]
    assert "info" not in page["publications"][0]


async def test_history_without_a_limit_is_the_position_alone(
    api: Api, channel: str
) -> None:
    await api.publish(channel, 1)
    page = await api.history(channel)
    assert page.get("publications", []) == []
    assert page["offset"] == 1


async def test_history_shows_the_client_that_published(
    server: Server, api: Api, channel: str
) -> None:
    async with await server.raw(connected=False) as client:
        identity = (await client.connect())["client"]
        await client.publish(channel, "from a client")
    (publication,) = await api.whole_history(channel)
    assert publication["info"]["client"] == identity
    assert publication["data"] == "from a client"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, 107, "bad request"),
        ({"channel": "nowhere:x"}, 102, "unknown channel"),
        ({"channel": "plain:x", "limit": 1}, 108, "not available"),
        (
            {"channel": "x", "since": {"offset": 0, "epoch": "old"}, "limit": 1},
            112,
            "unrecoverable position",
        ),
        (
            {"channel": "x", "since": {"offset": 0, "epoch": ""}, "reverse": True},
            107,
            "bad request",
        ),
    ],
    ids=["no-channel", "namespace", "no-history", "epoch", "reverse-from-zero"],
)
async def test_history_refusals(
    api: Api, body: dict[str, Any], code: int, message: str
) -> None:
    expected = {"error": {"code": code, "message": message}}
    assert await answer(api, "history", body) == expected


# --- publish options


async def test_publish_base64(server: Server, api: Api, channel: str) -> None:
    async with await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        body = {"channel": channel, "data": "loses", "b64data": "eyJhIjogMX0="}
        assert (await answer(api, "publish", body))["result"]["offset"] == 1
        body = {"channels": [channel], "b64data": "WzEsCjJd"}  # with a raw newline
        await answer(api, "broadcast", body)
        one, two = await subscriber.publications(channel, 2)
    assert (one["data"], two["data"]) == ({"a": 1}, [1, 2])


@pytest.mark.parametrize("b64data", ["!", "eyJhIjogMX0", "eyJh", "/w==", "TmFO"])
async def test_publish_bad_base64(api: Api, b64data: str) -> None:
    body = {"channel": "x", "b64data": b64data}
    assert await answer(api, "publish", body) == BAD_REQUEST


async def test_publish_null_is_a_payload(api: Api, channel: str) -> None:
    assert await api.publish(channel, None) == 1
    (publication,) = await api.whole_history(channel)
    assert publication["data"] is None


async def test_publish_skipping_history(server: Server, api: Api, channel: str) -> None:
    async with await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        body = {"channel": channel, "data": 1, "skip_history": True, "delta": True}
        assert await answer(api, "publish", body) == {"result": {}}
        await api.publish(channel, 2)
        one, two = await subscriber.publications(channel, 2)
    assert one == {"data": 1}
    assert (two["data"], two["offset"]) == (2, 1)
    assert len(await api.whole_history(channel)) == 1


async def test_publish_versions(api: Api, channel: str) -> None:
    body = {"channel": channel, "data": "v2", "version": 2, "version_epoch": "a"}
    assert (await answer(api, "publish", body))["result"]["offset"] == 1
    for version, data in ((2, "again"), (1, "older")):
        await answer(api, "publish", {**body, "version": version, "data": data})
    await answer(api, "publish", {**body, "version": 3, "data": "v3"})
    await answer(api, "publish", {**body, "version": 1, "version_epoch": "b"})
    data = [publication["data"] for publication in await api.whole_history(channel)]
    assert data == ["v2", "v3", "v2"]


async def test_publish_at_and_over_the_payload_limit(api: Api, channel: str) -> None:
    largest = "x" * 149_998  # and two quotes
    assert await api.publish(channel, largest) == 1
    for body in (
        {"data": largest + "x"},
        {"data": largest, "tags": {"a": "b"}},
    ):
        assert await answer(api, "publish", {"channel": channel, **body}) == BAD_REQUEST
    assert len(await api.whole_history(channel)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"idempotency_key": "x" * 1025},
        {"idempotency_key": 1},
        {"version": -1},
        {"version": 2**53},
        {"version": 1.5},
        {"skip_history": "true"},
        {"tags": ["a"]},
        {"tags": {"a": None}},
        {"b64data": 1},
    ],
)
async def test_publish_wrong_types(api: Api, fields: dict[str, Any]) -> None:
    body = {"channel": "x", "data": 1, **fields}
    assert await answer(api, "publish", body) == BAD_REQUEST


async def test_null_is_as_good_as_absent(api: Api, channel: str) -> None:
    names = "b64data skip_history tags idempotency_key delta version version_epoch"
    nulls = dict.fromkeys(names.split())
    assert await api.publish(channel, 1, **nulls, unknown=[{}]) == 1
    page = await api.history(channel, limit=None, since=None, reverse=None)
    assert page["offset"] == 1


async def test_broadcast_to_more_than_the_limit(api: Api) -> None:
    body = {"channels": ["plain:x"] * 101, "data": 1}
    assert await answer(api, "broadcast", body) == BAD_REQUEST
    body = {"channels": ["plain:x"] * 100, "data": 1}
    assert len((await answer(api, "broadcast", body))["result"]["responses"]) == 100


# --- history_remove


async def test_history_remove_keeps_the_position(api: Api, channel: str) -> None:
    await api.publish(channel, 1)
    before = await api.history(channel)
    assert await answer(api, "history_remove", {"channel": channel}) == {"result": {}}
    page = await api.history(channel, limit=-1)
    assert page == {"publications": [], "offset": 1, "epoch": before["epoch"]}
    assert await api.publish(channel, 2) == 2
    for body, refusal in (
        ({}, 107),
        ({"channel": "nowhere:x"}, 102),
        ({"channel": "plain:x"}, 108),
    ):
        refused = await answer(api, "history_remove", body)
        assert refused["error"]["code"] == refusal


# --- rpc


async def test_rpc_without_a_handler(api: Api) -> None:
    expected = {"error": {"code": 108, "message": "not available"}}
    assert await answer(api, "rpc", {"method": "x", "params": {}}) == expected
    assert await answer(api, "rpc", {"method": ""}) == BAD_REQUEST
