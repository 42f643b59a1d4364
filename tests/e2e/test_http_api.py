"""The server API as it looks on the wire: statuses, bodies, error objects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.server import Server

BAD_REQUEST = {"error": {"code": 107, "message": "bad request"}}
UNKNOWN_CHANNEL = {"error": {"code": 102, "message": "unknown channel"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([{"name": "plain"}]),
        "STEADWIRE_API_REQUEST_SIZE": "200000",
    }
    server = Server(tmp_path_factory.mktemp("server"), settings)
    try:
        yield server.start_blocking()
    finally:
        server.close()


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


async def answer(api: Api, method: str, body: Any) -> Any:
    response = await api.post(method, body)
    assert response.status == 200
    assert response.headers["content-type"].startswith("application/json")
    return response.json


# --- publish


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


# --- what is the same for all


@pytest.mark.parametrize("method", ["publish", "broadcast", "history"])
@pytest.mark.parametrize("key", [None, "", "wrong", "key-of-the-test"])
async def test_wrong_key_is_401_without_a_body(
    api: Api, method: str, key: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["X-API-Key"] = key
    # A body that could not be decoded: the key is looked at first.
    for body in (b'{"channel":"a","channels":["a"],"data":1}', b"{"):
        response = await api.request("POST", f"/api/{method}", body, headers=headers)
        assert (response.status, response.body) == (401, b"")


@pytest.mark.parametrize("method", ["publish", "broadcast", "history"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b'{"channel":"a","data":NaN}', b"\xff\xfe", b"{}{}"],
    ids=["empty", "cut", "list", "string", "nan", "utf8", "two"],
)
async def test_undecodable_body_is_400(
    server: Server, api: Api, method: str, body: bytes
) -> None:
    headers = {"X-API-Key": server.key, "Content-Type": "application/json"}
    response = await api.request("POST", f"/api/{method}", body, headers=headers)
    assert response.status == 400
    # And the connection can go on.
    assert await api.publish("after-a-bad-body", 1) >= 1


async def test_body_over_the_limit_is_413(api: Api, channel: str) -> None:
    response = await api.post("publish", {"channel": channel, "data": "x" * 200_001})
    assert response.status == 413
    api.drop_connections()  # the rest of the body is not read, so it cannot go on
    assert await api.publish(channel, "x" * 100_000) == 1


async def test_unknown_method_and_wrong_verb(server: Server, api: Api) -> None:
    assert (await api.post("nothing", {})).status == 404
    headers = {"X-API-Key": server.key}
    response = await api.request("GET", "/api/publish", headers=headers)
    assert response.status == 405
