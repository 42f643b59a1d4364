"""Both integrations tell the same of a socket, and only the gateway is believed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from service.core.errors import CodecError
from service.dev_gateway.emulator import Answer, Gateway
from service.dev_gateway.events import Connected, connect_event, message_event
from service.dev_gateway.integrations import HttpProxy
from service.gateway.events import (
    SECRET_HEADER,
    Arrival,
    Kind,
    from_event,
    from_request,
    trusts,
)
from tests.clock import VirtualClock
from tests.gateway.application import Application
from tests.server.running import until

SOCKET = Connected(
    id="BFHPhfCWIAMCKlQ=",
    api="api",
    stage="prod",
    domain="api.example.org",
    address="166.90.225.1",
    at=1_731_324_924.553,
    headers=[
        ("Origin", "https://chat.example.org"),
        ("cookie", "a=1"),
        ("Cookie", "b=2"),
        ("Sec-WebSocket-Protocol", " centrifuge-json ,centrifuge-protobuf"),
        ("X-Own", "1"),
        ("x-own", "2"),
    ],
    query="token=a&token=b&empty=",
)


def event() -> dict[str, Any]:
    return connect_event(SOCKET, "request", SOCKET.at)


def test_the_event_of_a_connect() -> None:
    arrival = from_event(event())
    assert arrival.kind is Kind.CONNECT
    assert arrival.client == "BFHPhfCWIAMCKlQ="
    assert arrival.connected_at == 1_731_324_924.553
    assert arrival.address == "166.90.225.1"
    assert arrival.host == "api.example.org"
    assert arrival.headers["origin"] == "https://chat.example.org"
    assert arrival.headers["cookie"] == "a=1; b=2"
    assert arrival.headers["x-own"] == "1, 2"
    assert arrival.query == {"token": "b", "empty": ""}
    assert arrival.subprotocols == ["centrifuge-json", "centrifuge-protobuf"]


async def test_a_message_and_a_disconnect(application: Application) -> None:
    async with Gateway(application, VirtualClock()).run() as gateway:
        async with connect(f"{gateway.url}?token=a") as socket:
            await socket.send('{"id":1,"Ä":"€"}')
            await application.until("MESSAGE")
            await socket.close(4001, "bye")
        await application.until("DISCONNECT")
    opened, message, closed = map(from_event, application.events)
    assert (message.kind, message.text) == (Kind.MESSAGE, '{"id":1,"Ä":"€"}')
    assert (closed.kind, closed.code, closed.text) == (Kind.DISCONNECT, 4001, "")
    assert opened.client == message.client == closed.client
    assert opened.query == {"token": "a"}
    assert not message.headers and not message.query


async def test_both_integrations_say_the_same() -> None:
    by_event: list[Arrival] = []
    by_request: list[Arrival] = []
    secrets: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        kind = Kind(request.path.removeprefix("/").upper())
        headers = {name.lower(): value for name, value in request.headers.items()}
        secrets.append(headers.get(SECRET_HEADER))
        body = await request.read()
        by_request.append(from_request(kind, headers, request.query, body))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{kind}", handle)
    async with TestServer(app) as server, AsyncExitStack() as stack:
        proxy = HttpProxy(str(server.make_url("")), "s" * 32)
        stack.push_async_callback(proxy.aclose)

        async def integration(given: dict[str, Any]) -> Answer:
            by_event.append(from_event(given))
            return await proxy(given)

        gateway = await stack.enter_async_context(
            Gateway(integration, VirtualClock()).run()
        )
        address = f"{gateway.url}?token=a&cf_protocol=protobuf"
        async with connect(address, subprotocols=[Subprotocol("a")]) as socket:
            await socket.send("hello")
            await until(lambda: len(by_request) == 2, 10.0, "a message")
        await until(lambda: len(by_request) == 3, 10.0, "a disconnect")
    assert [each.kind for each in by_request] == list(Kind)
    for one, other in zip(by_event, by_request, strict=True):
        for name in ("client", "connected_at", "address", "host", "query", "text"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.subprotocols == other.subprotocols
        assert not any(name.startswith("x-gw-") for name in other.headers)
    assert all(trusts("s" * 32, secret) for secret in secrets)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"requestContext": []},
        {"requestContext": {"eventType": "OTHER", "connectionId": "a"}},
        {"requestContext": {"eventType": "CONNECT"}},
        {"requestContext": {"eventType": "CONNECT", "connectionId": ""}},
        {"requestContext": {"eventType": "CONNECT", "connectionId": "a" * 129}},
        {"requestContext": {"eventType": "MESSAGE", "connectionId": "a"}, "body": None},
        {
            "requestContext": {"eventType": "MESSAGE", "connectionId": "a"},
            "body": "/w==",
            "isBase64Encoded": True,
        },
    ],
)
def test_what_is_no_event_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        from_event(given)


def test_a_body_in_base64_is_text_all_the_same() -> None:
    given = message_event(SOCKET, "aGVsbG8=", "request", SOCKET.at)
    given["isBase64Encoded"] = True
    assert from_event(given).text == "hello"


def test_a_request_without_the_template_s_headers_is_refused() -> None:
    with pytest.raises(CodecError):
        from_request(Kind.MESSAGE, {}, {}, b"hello")
    with pytest.raises(CodecError):
        from_request(Kind.MESSAGE, {"x-ws-connection-id": "a"}, {}, b"\xff")


def test_context_variables_may_be_empty() -> None:
    headers = {"x-ws-connection-id": "a", "x-ws-connected-at": ""}
    assert from_request(Kind.DISCONNECT, headers, {}, b"") == Arrival(
        Kind.DISCONNECT, from_event(_closed("a")).client
    )


@pytest.mark.parametrize("given", [None, "", "s" * 31, "s" * 33, "S" * 32, "ü" * 32])
def test_the_secret_is_the_whole_secret(given: str | None) -> None:
    assert trusts("s" * 32, "s" * 32)
    assert not trusts("s" * 32, given)


def test_no_secret_trusts_nobody() -> None:
    assert not trusts("", "")
    assert not trusts("", None)


def test_nothing_of_a_client_is_printed() -> None:
    given = event()
    given["headers"] = {"Authorization": "Bearer token"}
    assert "Bearer" not in repr(from_event(given))
    assert "token" not in repr(from_event(given))


def _closed(client: str) -> dict[str, Any]:
    return {"requestContext": {"eventType": "DISCONNECT", "connectionId": client}}
