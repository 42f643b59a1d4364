"""The server API as it looks on the wire: batches, error modes, keys, statuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.raw import RawClient
from tests.harness.server import API_KEY, Server
from tests.harness.sockets import TcpClient

METHODS = (
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "connections",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "rpc",
    "ticket",
    "revoke_token",
    "invalidate_user_tokens",
    "erase",
    "batch",
)

BAD_REQUEST = {"error": {"code": 107, "message": "bad request"}}
UNKNOWN_CHANNEL = {"error": {"code": 102, "message": "unknown channel"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([{"name": "plain"}]),
        "STEADWIRE_API_REQUEST_SIZE": "200000",
        "STEADWIRE_API_PUBLICATION_SIZE": "150000",
        "STEADWIRE_API_BATCH_SIZE": "100",
    }
    server = Server(tmp_path_factory.mktemp("server"), settings)
    try:
        yield server.start_blocking()
    finally:
        server.close()


async def answer(api: Api, method: str, body: Any) -> Any:
    response = await api.post(method, body)
    assert response.status == 200
    assert response.headers["content-type"].startswith("application/json")
    return response.json


# --- batch


@pytest.mark.parametrize("parallel", [False, True])
async def test_batch_answers_in_order(api: Api, channel: str, parallel: bool) -> None:
    channel = f"{channel}-{parallel}"
    commands = [
        {"publish": {"channel": channel, "data": 1}},
        {"publish": {"channel": "nowhere:x", "data": 1}},
        {"broadcast": {"channels": [f"{channel}-2", ""], "data": {"b": 2}}},
        {"nonsense": {}},
        {"batch": {"commands": []}},
        {"history": {"channel": f"{channel}-3"}},
        {"presence_stats": {"channel": channel}},
        {"publish": None},
        {"publish": {"channel": 1}},
    ]
    response = await api.post("batch", {"commands": commands, "parallel": parallel})
    assert response.status == 200
    not_found = {"error": {"code": 104, "message": "method not found"}}
    replies = response.json["replies"]
    assert list(response.json) == ["replies"]
    assert replies[0]["publish"]["offset"] == 1
    assert replies[1] == UNKNOWN_CHANNEL
    first, second = replies[2]["broadcast"]["responses"]
    assert first["result"]["offset"] == 1 and second == BAD_REQUEST
    assert replies[3:5] == [not_found, not_found]
    assert replies[5]["history"]["publications"] == []
    assert replies[6] == {"presence_stats": {"num_clients": 0, "num_users": 0}}
    assert replies[7:] == [BAD_REQUEST, BAD_REQUEST]


async def test_batch_in_sequence_publishes_in_order(api: Api, channel: str) -> None:
    commands = [{"publish": {"channel": channel, "data": n}} for n in range(100)]
    replies = (await api.post("batch", {"commands": commands})).json["replies"]
    assert [reply["publish"]["offset"] for reply in replies] == list(range(1, 101))
    data = [publication["data"] for publication in await api.whole_history(channel)]
    assert data == list(range(100))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"commands": {}},
        {"commands": [1]},
        {"commands": [{}]},
        {"commands": [{"publish": {}, "info": {}}]},
        {"commands": [{"info": {}}] * 101},
    ],
)
async def test_batch_bad_requests(api: Api, body: dict[str, Any]) -> None:
    assert await answer(api, "batch", body) == BAD_REQUEST


# --- the transport error mode


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("publish", {"channel": "nowhere:x", "data": 1}, 404, 102),
        ("publish", {"channel": "x"}, 400, 107),
        ("presence", {"channel": "plain:x"}, 400, 108),
        ("rpc", {"method": "x"}, 400, 108),
        ("history", {"channel": "x", "since": {"epoch": "old"}}, 416, 112),
    ],
)
async def test_transport_mode_by_header(
    server: Server, api: Api, method: str, body: Any, status: int, code: int
) -> None:
    headers = {"X-API-Key": server.key, "X-Centrifugo-Error-Mode": "transport"}
    text = json.dumps(body).encode()
    response = await api.request("POST", f"/api/{method}", text, headers)
    assert response.status == status
    assert response.json == {"code": code, "message": response.json["message"]}
    assert response.headers["content-type"].startswith("application/json")
    for other in ({}, {"X-Centrifugo-Error-Mode": "other"}):
        headers = {"X-API-Key": server.key, **other}
        response = await api.request("POST", f"/api/{method}", text, headers)
        assert (response.status, response.json["error"]["code"]) == (200, code)


async def test_transport_mode_changes_no_success(server: Server, api: Api) -> None:
    headers = {"X-API-Key": server.key, "X-Centrifugo-Error-Mode": "transport"}
    response = await api.request("POST", "/api/info", b"{}", headers)
    assert (response.status, list(response.json)) == (200, ["result"])
    text = b'{"commands":[{"publish":{}}]}'
    response = await api.request("POST", "/api/batch", text, headers)
    assert (response.status, response.json) == (200, {"replies": [BAD_REQUEST]})


async def test_transport_mode_by_setting(make_server: Callable[..., Server]) -> None:
    server = make_server({"STEADWIRE_API_ERROR_MODE": "transport"})
    await server.start()
    async with server.api() as api:
        response = await api.post("publish", {"channel": "nowhere:x", "data": 1})
        assert response.status == 404
        assert response.json == {"code": 102, "message": "unknown channel"}


# --- the key


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"X-API-Key": API_KEY}, "", 200),
        ({"Authorization": f"apikey {API_KEY}"}, "", 200),
        ({"Authorization": f"APIKey {API_KEY}"}, "", 200),
        ({}, f"?api_key={API_KEY}", 200),
        ({}, f"?x=1&api_key={API_KEY}", 200),
        ({"Authorization": f"Bearer {API_KEY}"}, "", 401),
        ({"Authorization": API_KEY}, "", 401),
        ({"Authorization": "apikey"}, "", 401),
        ({}, "?api_key=", 401),
        ({}, "?api_key=wrong", 401),
        ({"X-API-Key": "schl\u00fcssel"}, "", 401),
        ({"X-API-Key": "wrong"}, f"?api_key={API_KEY}", 401),
    ],
)
async def test_three_forms_of_the_key(
    api: Api, headers: dict[str, str], query: str, status: int
) -> None:
    response = await api.request("POST", f"/api/info{query}", b"{}", headers)
    assert response.status == status
    if status == 401:
        assert response.body == b""


# --- what is the same for all


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
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
    assert (response.status, response.body) == (413, b"")
    assert response.headers["connection"] == "close"
    api.drop_connections()  # the rest of the body is not read, so it cannot go on
    assert await api.publish(channel, "x" * 100_000) == 1


async def test_unknown_method_and_wrong_verb(server: Server, api: Api) -> None:
    for method in ("nothing", "", "publish/x", "map_publish"):
        assert (await api.post(method, {})).status == 404
    headers = {"X-API-Key": server.key}
    for method in METHODS:
        for verb in ("GET", "PUT", "DELETE", "PATCH"):
            response = await api.request(verb, f"/api/{method}", headers=headers)
            assert response.status == 405
            assert "POST" in response.headers["allow"]
    response = await api.request("POST", "/api/openapi.json", b"{}", headers)
    assert response.status == 405


async def test_body_in_chunks_over_the_limit_is_413(server: Server) -> None:
    tcp = await TcpClient.connect(server.port)
    head = (
        "POST /api/publish HTTP/1.1\r\nHost: localhost\r\n"
        f"X-API-Key: {server.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    await tcp.send(head.encode() + chunk * 4)
    assert (await tcp.read_until(b"\r\n")).startswith(b"HTTP/1.1 413 ")
    tcp.close()


async def test_a_broadcast_larger_than_the_stores_queue_is_published(
    tmp_path: Any,
) -> None:
    settings = {"STEADWIRE_STORE_QUEUE_SIZE": str(8 * 1024 * 1024)}
    server = Server(tmp_path, settings)
    try:
        server.start_blocking()
        async with server.api() as api:
            channels = [f"wide-{number}" for number in range(400)]
            body = {"channels": channels, "data": "x" * 30_000}
            responses = (await answer(api, "broadcast", body))["result"]["responses"]
            assert [one["result"]["offset"] for one in responses] == [1] * 400
    finally:
        server.close()


async def test_a_batch_stops_where_its_replies_get_too_large(tmp_path: Any) -> None:
    server = Server(tmp_path, {"STEADWIRE_API_BATCH_SIZE": "100"})
    try:
        server.start_blocking()
        async with server.api() as api:
            for _ in range(8):
                await api.publish("large", "x" * 450_000)
            history = {"history": {"channel": "large", "limit": -1}}
            body = {"commands": [history] * 20}
            replies = (await answer(api, "batch", body))["replies"]
        assert len(replies) == 20
        kept = [reply for reply in replies if "history" in reply]
        assert 4 <= len(kept) < 20
        assert replies[: len(kept)] == kept
        refused = {"error": {"code": 106, "message": "limit exceeded"}}
        assert replies[len(kept) :] == [refused] * (20 - len(kept))
    finally:
        server.close()


@pytest.mark.requirement("R29", "R32")
async def test_the_pings_of_a_connection_are_measured(tmp_path: Any) -> None:
    settings = {
        "STEADWIRE_CLIENT_PING_INTERVAL": "1",
        "STEADWIRE_CLIENT_PONG_TIMEOUT": "0.9",
    }
    server = Server(tmp_path, settings)
    try:
        server.start_blocking()
        async with server.api() as api, await RawClient.open(server.port) as client:
            await client.connect()
            await client.subscribe("pinged")
            [before] = (await answer(api, "connections", {"user": ""}))["result"][
                "connections"
            ].values()
            assert "rtt" not in before  # no ping yet
            status = before["status"]
            assert 0 <= status.pop("idle") <= status.pop("silent")
            assert status == {
                "level": "healthy",
                "pending_pings": 0,
                "queued_bytes": 0,
                "messages_sent": 2,
                "in_flight": False,
            }
            while (await client.frame()).payload != b"{}":
                pass
            await client.send_text("{}")
            assert (await client.request(rpc={}))["error"]["code"] == 108  # after it
            found = (await answer(api, "connections", {"user": ""}))["result"]
            [one] = found["connections"].values()
            assert one["state"] == {"channels": {"pinged": {}}}
            rtt = one["rtt"]
            assert rtt["samples"] >= 1
            assert 0 < rtt["median"] < 0.9
            assert 0 < rtt["smoothed"] < 0.9
            assert (rtt["rejected"], rtt["clock_skew_corrections"]) == (0, 0)
            [node] = (await answer(api, "info", {}))["result"]["nodes"]
            items = node["metrics"]["items"]
            assert items["rtt.connections"] == 1
            assert items["rtt.samples"] >= rtt["samples"]
    finally:
        server.close()
