"""Hooks over HTTP: endpoints decide about clients, and nobody gets in without them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from tests.harness.api import ApiError
from tests.harness.backends import ENVIRONMENTS
from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server
from tests.http.endpoints import Endpoints

INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}
FINAL = {"code": 100, "message": "internal server error"}  # do not ask again
ABOUT = {"transport": "websocket", "protocol": "json", "encoding": "json"}


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Return the endpoints' listening socket; one port, so one server serves all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
async def endpoints(listener: socket.socket) -> AsyncIterator[Endpoints]:
    endpoints = Endpoints(listener.getsockname()[1])
    app = web.Application()
    app.router.add_post("/{hook}", endpoints.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener.dup()).start()
    yield endpoints
    await runner.cleanup()


def asking(**more: str) -> Any:
    """Return a fixture of a server that asks the endpoints."""
    return server_with(
        lambda request: Endpoints(
            request.getfixturevalue("listener").getsockname()[1]
        ).settings(**more)
    )


server = asking()
brief = asking(STEADWIRE_PROXY_TIMEOUT="1")  # for endpoints that are silent


async def enter(server: Server, **fields: Any) -> tuple[RawClient, dict[str, Any]]:
    client = await server.raw(connected=False)
    return client, await client.connect(**fields)


# --- what is asked, and what is answered


async def test_connect(server: Server, endpoints: Endpoints) -> None:
    endpoints.results["connect"] = {
        "result": {
            "user": "ann",
            "info": {"name": "Ann"},
            "data": {"welcome": [1]},
            "channels": ["news"],
            "meta": {"unknown": "fields are ignored"},
        }
    }
    client, reply = await enter(
        server,
        token="t",
        data={"a": 1},
        name="test",
        version="7",
        headers={"X-Trace": "1"},
    )
    assert endpoints.question("connect") == {
        "client": reply["client"],
        **ABOUT,
        "token": "t",
        "data": {"a": 1},
        "name": "test",
        "version": "7",
        "headers": {"X-Trace": "1"},
    }
    assert endpoints.headers[-1]["Content-Type"] == "application/json"
    assert reply["data"] == {"welcome": [1]} and list(reply["subs"]) == ["news"]
    presence = (await client.request(presence={"channel": "news"}))["presence"]
    (info,) = presence["presence"].values()
    assert (info["user"], info["conn_info"]) == ("ann", {"name": "Ann"})


async def test_connect_without_anything(server: Server, endpoints: Endpoints) -> None:
    _, reply = await enter(server)
    assert endpoints.question("connect") == {"client": reply["client"], **ABOUT}
    assert "data" not in reply and "subs" not in reply


async def test_subscribe(server: Server, endpoints: Endpoints, channel: str) -> None:
    client, connected = await enter(server)
    endpoints.results["subscribe"] = {
        "result": {"b64info": "eyJhIjoxfQ==", "data": {"b": 2}}
    }
    reply = await client.subscribe(channel, token="t", data=[3])
    assert endpoints.question("subscribe") == {
        "client": connected["client"],
        **ABOUT,
        "user": "ann",
        "channel": channel,
        "token": "t",
        "data": [3],
    }
    assert reply["data"] == {"b": 2}
    presence = (await client.request(presence={"channel": channel}))["presence"]
    (info,) = presence["presence"].values()
    assert info["chan_info"] == {"a": 1}
    endpoints.results["subscribe"] = {"error": {"code": 103, "message": "no"}}
    refused = await client.request(subscribe={"channel": f"{channel}-2"})
    assert refused["error"] == {"code": 103, "message": "no"}


async def test_publish(server: Server, endpoints: Endpoints, channel: str) -> None:
    client, connected = await enter(server)
    await client.subscribe(channel)
    await client.publish(channel, "as it is")
    assert endpoints.question("publish") == {
        "client": connected["client"],
        **ABOUT,
        "user": "ann",
        "channel": channel,
        "data": "as it is",
    }
    endpoints.results["publish"] = {"result": {"data": {"new": 1}}}
    await client.publish(channel, "old")
    endpoints.results["publish"] = {"result": {"skip_history": True, "b64data": "MQ=="}}
    await client.publish(channel, "old")
    endpoints.results["publish"] = {
        "error": {"code": 1000, "message": "not now", "temporary": True}
    }
    refused = await client.request(publish={"channel": channel, "data": 1})
    assert refused["error"] == {"code": 1000, "message": "not now", "temporary": True}
    seen = [each["data"] for each in await client.publications(channel, 3)]
    assert seen == ["as it is", {"new": 1}, 1]
    async with server.api() as api:
        kept = [each["data"] for each in await api.whole_history(channel)]
    assert kept == ["as it is", {"new": 1}]


async def test_rpc(server: Server, endpoints: Endpoints) -> None:
    client, connected = await enter(server)
    endpoints.results["rpc"] = {"result": {"data": {"answer": 42}}}
    reply = await client.request(rpc={"method": "ask", "data": {"q": 1}})
    assert reply["rpc"] == {"data": {"answer": 42}}
    assert endpoints.question("rpc") == {
        "client": connected["client"],
        **ABOUT,
        "user": "ann",
        "method": "ask",
        "data": {"q": 1},
    }
    async with server.api() as api:
        body = {"method": "ask", "params": [1]}
        assert await api.call("rpc", body) == {"data": {"answer": 42}}
        question = endpoints.question("rpc")
        assert (question["user"], question["client"]) == ("", "")
        endpoints.results["rpc"] = {"result": {}}
        assert await api.call("rpc", {"method": "ask"}) == {}
        endpoints.results["rpc"] = {"error": {"code": 400, "message": "no"}}
        with pytest.raises(ApiError) as error:
            await api.call("rpc", {"method": "ask"})
        assert error.value.code == 400
    endpoints.results["rpc"] = {"disconnect": {"code": 4500, "reason": "enough"}}
    await client.send({"id": 9, "rpc": {"method": "ask"}})
    closed = await client.closed()
    assert (closed.code, closed.reason) == (4500, "enough")


async def test_connections_are_kept_and_bounded(
    endpoints: Endpoints, make_server: Callable[..., Server]
) -> None:
    more = {"STEADWIRE_PROXY_CONNECTIONS": "2", "STEADWIRE_PROXY_TIMEOUT": "4"}
    server = await make_server(endpoints.settings(**more)).start()
    client, _ = await enter(server)
    both, go = asyncio.Event(), asyncio.Event()

    async def together(_: web.Request) -> web.Response:
        if endpoints.under_way == 2:
            both.set()
        await go.wait()
        return web.json_response({"result": {}})

    endpoints.results["rpc"] = together
    await client.send(*({"id": 10 + n, "rpc": {"method": "x"}} for n in range(20)))
    async with asyncio.timeout(10):
        await both.wait()
    go.set()
    replies = [await client.message() for _ in range(20)]
    assert {reply["id"] for reply in replies} == set(range(10, 30))
    assert all("error" not in reply for reply in replies)
    assert endpoints.most == 2
    assert len(endpoints.peers) <= 3  # the connect's may have been one of the two


# --- the headers of the handshake


COOKIES = {"Cookie": "session=s3cr3t; theme=dark", "User-Agent": "Browser/1"}


async def test_the_listed_headers_of_the_handshake(
    endpoints: Endpoints, make_server: Callable[..., Server]
) -> None:
    listed = {"STEADWIRE_PROXY_HTTP_HEADERS": '["Cookie", "user-agent", "X-None"]'}
    server = await make_server(endpoints.settings(**listed)).start()
    sent = {**COOKIES, "Authorization": "Bearer not-listed"}
    async with await server.raw(connected=False, headers=sent) as client:
        # What the client writes into its command is not taken for a header.
        await client.connect(headers={"cookie": "made up", "authorization": "made up"})
        await client.request(rpc={"method": "m"})
    connect, rpc = endpoints.headers
    assert connect["Cookie"] == COOKIES["Cookie"]
    assert connect["User-Agent"] == "Browser/1"
    assert "Authorization" not in connect and "X-None" not in connect
    assert connect["Content-Type"] == "application/json"
    assert endpoints.question("connect")["headers"] == {
        "cookie": "made up",
        "authorization": "made up",
    }
    assert "Cookie" not in rpc
    assert "s3cr3t" not in server.output()


async def test_no_header_of_the_handshake_unless_listed(
    server: Server, endpoints: Endpoints
) -> None:
    async with await server.raw(connected=False, headers=COOKIES) as client:
        await client.connect()
    assert "Cookie" not in endpoints.headers[-1]
    assert endpoints.headers[-1]["User-Agent"] != "Browser/1"


# --- connections that the endpoint closes


class _Closing:
    """An endpoint that answers the first request of each connection and then cuts it.

    Attributes:
        asked: The path of each request, with the number of its connection.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self._connections = 0

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        number = self._connections
        with contextlib.closing(writer), contextlib.suppress(EOFError):
            await self._request(number, reader)
            body = b'{"result":{}}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            await self._request(number, reader)

    async def _request(self, number: int, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.split("content-length: ")[1].split("\r\n")[0])
        await reader.readexactly(size)
        self.asked.append((number, head.split(" ")[1]))


async def test_a_kept_connection_that_is_closed_is_tried_once_more_but_for_an_rpc(
    make_server: Callable[..., Server], channel: str
) -> None:
    closing = _Closing()
    endpoint = await asyncio.start_server(closing.serve, "127.0.0.1", 0)
    async with endpoint:
        port = endpoint.sockets[0].getsockname()[1]
        # Each environment of a function would keep connections of its own.
        one = {**Endpoints(port).settings(), ENVIRONMENTS: "1"}
        server = await make_server(one).start()
        client, _ = await enter(server)
        await client.subscribe(channel)
        assert closing.asked == [(1, "/connect"), (1, "/subscribe"), (2, "/subscribe")]
        await client.publish(channel, 1)
        assert closing.asked[3:] == [(2, "/publish"), (3, "/publish")]
        reply = await client.request(rpc={"method": "m"})
        assert reply["error"] == INTERNAL
        assert closing.asked[5:] == [(3, "/rpc")]
        assert "error" not in await client.request(rpc={"method": "m"})
        assert closing.asked[6:] == [(4, "/rpc")]
        server.close()  # it ends the connection that it has kept


# --- failing closed


async def _status(_: web.Request) -> web.Response:
    return web.json_response({"result": {"user": "eve"}}, status=500)


async def _redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/rpc")


async def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _silent(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"result":')
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 1000)


async def _compressed(_: web.Request) -> web.Response:
    response = web.json_response({"result": {"user": "eve"}})
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def _no_json(_: web.Request) -> web.Response:
    return web.Response(body=b'{"result":{"user":"eve"')


async def _not_utf8(_: web.Request) -> web.Response:
    return web.Response(body=b'{"result":{"user":"\xff"}}')


# The client comes back, and the endpoint may do better then.
FAILURES: dict[str, Any] = {
    "status-500": _status,
    "redirect": _redirect,
    "cut": _cut,
    "silent": _silent,
    "trickle": _trickle,
    "endless": _endless,
    "compressed": _compressed,
    "no-json": _no_json,
    "not-utf8": _not_utf8,
    "list": [],
    "empty": {},
    "null": {"result": None},
    "oversize": {"result": {"user": "eve", "data": "x" * 5000}},
}

# The endpoint's program is wrong: each answer, and what the log names.
MISTAKES: dict[str, tuple[Any, str]] = {
    "result-list": ({"result": []}, "result: Expected `object`, got `array`"),
    "user-number": ({"result": {"user": 1}}, "got `int` - at `$.user`"),
    "channels-text": ({"result": {"channels": "a"}}, "at `$.channels`"),
    "bad-channel": ({"result": {"channels": [1]}}, "at `$.channels[0]`"),
    "bad-base64": ({"result": {"b64data": "!"}}, "b64data does not hold JSON"),
    "bad-sub-base64": ({"result": {"subs": {"a": {"b64info": "!"}}}}, "b64info"),
    "subs-shape": ({"result": {"subs": {"a": []}}}, "at `$.subs[...]`"),
    "override-shape": (
        {"result": {"subs": {"a": {"override": {"presence": True}}}}},
        "at `$.subs[...].override.presence`",
    ),
    "meta-list": ({"result": {"meta": [1]}}, "meta must be an object"),
    "expire-at-text": ({"result": {"expire_at": "1"}}, "got `str` - at `$.expire_at`"),
    "expire-at-below-zero": ({"result": {"expire_at": -1}}, "at `$.expire_at`"),
    "error-shape": ({"error": "no"}, "at `$.error`"),
    "error-code-low": ({"error": {"code": 99, "message": "no"}}, "error code 99"),
    "error-code-high": ({"error": {"code": 2000, "message": "no"}}, "error code 2000"),
    "error-message": ({"error": {"code": 400, "message": "two\nlines"}}, "message is"),
    "disconnect-code": ({"disconnect": {"code": 1000}}, "disconnect code 1000"),
    "disconnect-reason": ({"disconnect": {"code": 4000, "reason": "123"}}, "reason is"),
    "disconnect-long": (
        {"disconnect": {"code": 4000, "reason": "x" * 124}},
        "reason is",
    ),
}


@pytest.mark.requirement("B94")
@pytest.mark.parametrize("failure", FAILURES)
async def test_nobody_gets_in_without_a_good_answer(
    server: Server, request: pytest.FixtureRequest, endpoints: Endpoints, failure: str
) -> None:
    if failure in ("silent", "trickle"):
        server = request.getfixturevalue("brief")
    failed = "a hook's endpoint failed"
    before = server.output().count(failed)
    endpoints.results["connect"] = FAILURES[failure]
    client = await server.raw(connected=False)
    reply = await client.request(connect={"token": "private-token"})
    assert reply["error"] == INTERNAL
    await server.logged(failed, before + 1)
    assert "private-token" not in server.output()
    # It goes on once the endpoint does.
    endpoints.results["connect"] = {"result": {"user": "ann"}}
    await enter(server)


@pytest.mark.requirement("R46", "L12")
@pytest.mark.parametrize(
    "failure", [FAILURES["status-500"], MISTAKES["user-number"][0]]
)
async def test_a_hook_that_keeps_failing_degrades_until_it_answers(
    server: Server, endpoints: Endpoints, failure: Any
) -> None:
    async with server.api() as api:

        async def health() -> str:
            response = await api.request("GET", "/health/ready")
            assert response.status == 200  # never out of service for that
            return str(response.json.get("checks", {}).get("hooks", ""))

        await enter(server)
        for n in range(3):
            assert "connect" not in await health(), n
            endpoints.results["connect"] = failure
            client = await server.raw(connected=False)
            assert (await client.request(connect={}))["error"]["code"] == 100
        assert "connect" in await health()
        # A refusal is an answer.
        endpoints.results["connect"] = {"error": {"code": 400, "message": "no"}}
        client = await server.raw(connected=False)
        assert (await client.request(connect={}))["error"]["code"] == 400
        assert "connect" not in await health()


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_wrong_answer_is_named_and_not_temporary(
    server: Server, endpoints: Endpoints, mistake: str
) -> None:
    answer, named = MISTAKES[mistake]
    endpoints.results["connect"] = answer
    client = await server.raw(connected=False)
    assert (await client.request(connect={"token": "private-token"}))["error"] == FINAL
    await server.logged(json.dumps(named)[1:-1])
    reasons = [e["reason"] for e in server.log() if e.get("hook") == "connect"]
    assert named in "\n".join(reasons)
    assert "private-token" not in server.output()


@pytest.mark.parametrize("status", [201, 202, 203])
async def test_any_status_of_success_is_an_answer(
    server: Server, endpoints: Endpoints, status: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"result": {"user": "ann"}}, status=status)

    endpoints.results["connect"] = answer
    await enter(server)


@pytest.mark.parametrize("hook", ["subscribe", "publish", "rpc"])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (_status, INTERNAL),
        (_silent, INTERNAL),
        (_no_json, INTERNAL),
        ({}, INTERNAL),
        ({"result": 1}, FINAL),
        ({"result": {"b64data": 1}}, FINAL),
    ],
)
async def test_other_hooks_fail_closed_too(
    server: Server,
    request: pytest.FixtureRequest,
    endpoints: Endpoints,
    hook: str,
    failure: Any,
    error: Any,
    channel: str,
) -> None:
    if failure is _silent:
        server = request.getfixturevalue("brief")
    client, _ = await enter(server)
    endpoints.results[hook] = failure
    command = {
        "subscribe": {"channel": channel},
        "publish": {"channel": channel, "data": 1},
        "rpc": {"method": "x"},
    }[hook]
    assert (await client.request(**{hook: command}))["error"] == error
    async with server.api() as api:
        assert (await api.history(channel))["offset"] == 0


async def test_subscribe_with_options(
    server: Server, endpoints: Endpoints, channel: str
) -> None:
    client, _ = await enter(server)
    override = {"presence": {"value": False}, "force_recovery": {"value": False}}
    endpoints.results["subscribe"] = {
        "result": {"override": override, "expire_at": 4_000_000_000}
    }
    reply = (await client.request(subscribe={"channel": channel}))["subscribe"]
    # It is not told when it expires, because nobody could refresh it.
    assert reply == {}
    present = await client.request(presence={"channel": channel})
    assert present["presence"] == {"presence": {}}


@pytest.mark.parametrize("result", [{"expire_at": -1}, {"override": {"presence": 1}}])
async def test_subscribe_options_that_are_none(
    server: Server, endpoints: Endpoints, channel: str, result: dict[str, Any]
) -> None:
    client, _ = await enter(server)
    endpoints.results["subscribe"] = {"result": result}
    refused = await client.request(subscribe={"channel": channel})
    assert refused["error"] == FINAL


async def test_connect_with_subscriptions(
    server: Server, endpoints: Endpoints, channel: str
) -> None:
    hidden = {"override": {"presence": {"value": False}}}
    endpoints.results["connect"] = {
        "result": {
            "user": "ann",
            "channels": [channel],
            "subs": {
                f"{channel}2": {"info": {"role": 1}, "data": {"d": 1}},
                f"{channel}3": hidden,
            },
            "meta": {"plan": "free"},
        }
    }
    client, reply = await enter(server)
    assert sorted(reply["subs"]) == [channel, f"{channel}2", f"{channel}3"]
    assert reply["subs"][f"{channel}2"]["data"] == {"d": 1}
    presence = (await client.request(presence={"channel": f"{channel}2"}))["presence"]
    (info,) = presence["presence"].values()
    assert info["chan_info"] == {"role": 1}
    presence = (await client.request(presence={"channel": f"{channel}3"}))["presence"]
    assert presence["presence"] == {}
    # `meta`, which only the server sees, goes with the next questions.
    endpoints.results["rpc"] = {"result": {}}
    await client.request(rpc={"method": "m"})
    assert endpoints.question("rpc")["meta"] == {"plan": "free"}


async def test_nobody_gets_in_while_there_is_no_endpoint(
    endpoints: Endpoints, make_server: Callable[..., Server]
) -> None:
    nowhere = {"STEADWIRE_PROXY_CONNECT": "http://127.0.0.1:1/connect"}
    server = await make_server(endpoints.settings(**nowhere)).start()
    client = await server.raw(connected=False)
    assert (await client.request(connect={}))["error"] == INTERNAL


async def test_a_client_that_leaves_while_it_is_asked_about(
    endpoints: Endpoints, make_server: Callable[..., Server]
) -> None:
    server = await make_server(endpoints.settings()).start()
    asked = asyncio.Event()

    async def late(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    endpoints.results["connect"] = late
    client = await server.raw(connected=False)
    await client.send({"id": 1, "connect": {}})
    async with asyncio.timeout(10):
        await asked.wait()
    client.reset()
    endpoints.results["connect"] = {"result": {"user": "ann"}}
    await enter(server)
    assert await server.terminate() == 0


async def test_an_expiry_is_no_reason_to_close_at_once(
    server: Server, endpoints: Endpoints
) -> None:
    endpoints.results["connect"] = {"result": {"user": "ann", "expire_at": 1}}
    client, reply = await enter(server)
    # 25 seconds to come back; and the reply asks for no refresh, which we cannot do.
    assert "expires" not in reply
    assert "error" not in await client.request(history={"channel": "x"})


async def test_settings_refuse_what_is_no_url(
    make_server: Callable[..., Server],
) -> None:
    for endpoint in ("ftp://x", "http://[::"):
        server = make_server({"STEADWIRE_PROXY_RPC": endpoint})
        server.spawn()
        with pytest.raises(AssertionError):
            server.wait_ready()
        assert "proxy.rpc" in server.output()
