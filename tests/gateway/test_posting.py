"""Posts to connections: each outcome, nothing written twice, no connection confused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.session import Session
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from service.core.clock import SystemClock
from service.core.errors import StartupError
from service.core.model import ClientId
from service.core.ports import Invoker, Posted, Posts
from service.dev_gateway.emulator import Gateway
from service.dev_gateway.faults import Faults, Post
from service.gateway.events import hold_of
from service.gateway.http_pool import (
    IDLE,
    LIMIT,
    WAITING,
    HttpPool,
    NoAnswer,
    NotSent,
)
from service.gateway.invoking import LambdaInvoker, invoke_endpoint
from service.gateway.posting import ATTEMPTS, CallbackPosts
from service.gateway.signed_calls import SignedCalls
from tests.clock import VirtualClock
from tests.gateway.application import Application
from tests.server.running import until

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI"


def session(*, keys: bool = True) -> Session:
    found = Session()
    if keys:
        found.set_credentials(KEY, SECRET, "token")  # type: ignore[no-untyped-call]
    return found


@asynccontextmanager
async def posting(url: str) -> AsyncIterator[Posts]:
    clock = SystemClock()
    calls = SignedCalls(url, "execute-api", "us-east-1", session(), clock)
    async with closing(calls):
        yield CallbackPosts(calls, clock, Random(1))


@asynccontextmanager
async def closing(calls: Any) -> AsyncIterator[Any]:
    """Close *calls*, or a pool, at the end of the block."""
    try:
        yield calls
    finally:
        await calls.close()


@asynccontextmanager
async def opened(
    application: Application, **options: Any
) -> AsyncIterator[tuple[Gateway, Any, ClientId]]:
    """Run a gateway with one socket."""
    async with (
        Gateway(application, SystemClock(), **options).run() as gateway,
        connect(gateway.url, compression=None) as socket,
    ):
        yield gateway, socket, ClientId(gateway.connections[0])


@asynccontextmanager
async def peer(handle: Peer) -> AsyncIterator[str]:
    """Serve connections with *handle*."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def pool(url: str, clock: Any = None) -> Any:
    clock = clock or SystemClock()
    return closing(HttpPool(url, clock, ssl.create_default_context))


async def get(pool: HttpPool, target: str = "/", timeout: float = 10.0) -> bytes:
    answer = await pool.request("GET", target, [("host", "a")], b"", timeout)
    return answer.body


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def test_a_post_reaches_the_client(application: Application) -> None:
    async with (
        opened(application) as (gateway, socket, client),
        posting(gateway.endpoint) as writer,
    ):
        for text in ("one", "zwei €"):
            assert await writer.post(client, text) is Posted.DELIVERED
            assert await socket.recv() == text


async def test_what_the_gateway_says_is_gone(application: Application) -> None:
    async with (
        opened(application) as (gateway, socket, client),
        posting(gateway.endpoint) as writer,
    ):
        assert await writer.delete(client)
        await socket.wait_closed()
        assert await writer.post(client, "late") is Posted.GONE
        assert await writer.delete(client)  # 410 confirms it too


async def test_a_throttled_post_is_repeated_then_busy(application: Application) -> None:
    class Twice(Faults):
        left = 2 * [Post.THROTTLED]

        def post(self) -> Post:
            return self.left.pop() if self.left else Post.SENT

    async with (
        opened(application, faults=Twice()) as (gateway, socket, client),
        posting(gateway.endpoint) as writer,
    ):
        for number in range(3):
            assert await writer.post(client, str(number)) is Posted.DELIVERED
        assert [await socket.recv() for _ in range(3)] == ["0", "1", "2"]
    never = Faults(throttled=1.0)
    async with (
        opened(application, faults=never) as (gateway, socket, client),
        posting(gateway.endpoint) as writer,
    ):
        assert await writer.post(client, "text") is Posted.BUSY
        assert await writer.delete(client)
        with pytest.raises(ConnectionClosedOK):
            await socket.recv()


@pytest.mark.parametrize("status", [200, 204])
async def test_what_was_accepted_is_delivered(status: int) -> None:
    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await _request(reader)
            length = b"content-length: 0\r\n" if status == 200 else b""
            writer.write(b"HTTP/1.1 %d Yes\r\n%s\r\n" % (status, length))

    async with peer(accept) as url, posting(url) as writer:
        for _ in range(2):
            assert await writer.post(ClientId("a"), "text") is Posted.DELIVERED


@pytest.mark.parametrize("status", [400, 403, 404, 413, 500, 503])
async def test_any_other_answer_is_an_unknown_outcome_and_final(status: int) -> None:
    came: list[bytes] = []

    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            came.append(await _request(reader))
            writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)

    async with peer(refuse) as url, posting(url) as writer:
        assert await writer.post(ClientId("a"), "text") is Posted.UNKNOWN
        assert len(came) == 1
        came.clear()
        assert not await writer.delete(ClientId("a"))
        assert len(came) == ATTEMPTS


async def test_a_lost_answer_is_an_unknown_outcome_and_final(
    application: Application,
) -> None:
    faults = Faults(answer_lost=1.0)
    async with (
        opened(application, faults=faults) as (gateway, socket, client),
        posting(gateway.endpoint) as writer,
    ):
        assert await writer.post(client, "once") is Posted.UNKNOWN
        assert await writer.delete(client)
        assert await socket.recv() == "once"
        with pytest.raises(ConnectionClosedOK):
            await socket.recv()  # and not a second time


async def test_nobody_listens_is_busy() -> None:
    async def nothing(*_: Any) -> None: ...

    async with peer(nothing) as url:
        pass
    async with posting(url) as writer:
        assert await writer.post(ClientId("a"), "text") is Posted.BUSY
        assert not await writer.delete(ClientId("a"))


async def test_the_signature_is_that_of_the_request_as_sent() -> None:
    """As AWS documents it, written here a second time: the path is encoded twice."""
    came: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            came.append(await _request(reader))
            writer.write(answer(b""))

    async with peer(take) as url, posting(f"{url}/prod") as writer:
        await writer.post(ClientId("BFHP/hfC+AMCKlQ="), "{}")
    head, _, body = came[0].partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
    target = line.split(" ")[1]
    assert target == "/prod/@connections/BFHP%2FhfC%2BAMCKlQ%3D"
    assert headers["host"] == urlsplit(url).netloc
    fields = dict(
        each.split("=", 1)
        for each in headers["authorization"].partition(" ")[2].split(", ")
    )
    names = fields["SignedHeaders"].split(";")
    assert {"host", "x-amz-date", "x-amz-security-token"} <= set(names)
    canonical = "\n".join(
        [
            "POST",
            quote(target, safe="/-_.~"),
            "",
            *(f"{name}:{headers[name]}" for name in names),
            "",
            fields["SignedHeaders"],
            hashlib.sha256(body).hexdigest(),
        ]
    )
    date = headers["x-amz-date"]
    scope = f"{date[:8]}/us-east-1/execute-api/aws4_request"
    assert fields["Credential"] == f"{KEY}/{scope}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"
    assert fields["Signature"] == hmac.digest(key, text.encode(), "sha256").hex()


@pytest.mark.parametrize("missing", ["credentials", "region"])
async def test_nothing_starts_without_credentials_or_region(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    keys = missing != "credentials"
    region = "" if missing == "region" else "us-east-1"
    url = "http://127.0.0.1:1"
    calls = SignedCalls(url, "execute-api", region, session(keys=keys), SystemClock())
    with pytest.raises(StartupError, match=missing):
        await calls.start()


async def test_connections_are_used_again_one_request_at_a_time() -> None:
    peers: list[asyncio.StreamWriter] = []
    gate = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        while True:
            request = await _request(reader)
            await gate.wait()
            writer.write(answer(request.split(b" ")[1]))

    async with peer(echo) as url, pool(url) as shared:
        many = LIMIT * 3
        calls = [asyncio.ensure_future(get(shared, f"/{n}")) for n in range(many)]
        await until(lambda: len(peers) == LIMIT, 30.0, "connections")
        gate.set()
        bodies = await asyncio.gather(*calls)
        assert bodies == [f"/{number}".encode() for number in range(many)]
        assert len(peers) == LIMIT
        shared.drop_idle()
        await get(shared)
        assert len(peers) == LIMIT + 1


async def test_requests_beyond_those_that_may_wait_are_not_sent() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(silent) as url, pool(url) as shared:
        calls = [
            asyncio.ensure_future(get(shared, timeout=60.0))
            for _ in range(LIMIT + WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(NotSent, match="too many"):
            await get(shared)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_an_answer_that_is_late_goes_to_no_other_request() -> None:
    waiting: list[asyncio.StreamWriter] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _request(reader)
        if b"/slow" in request:
            waiting.append(writer)
            await reader.read()
        writer.write(answer(b"quick"))

    clock = VirtualClock()
    async with peer(slow) as url, pool(url, clock) as shared:
        call = asyncio.ensure_future(get(shared, "/slow", timeout=2.0))
        await until(lambda: bool(waiting), 30.0, "the request")
        waiting[0].write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsl")
        clock.advance(2.0)
        with pytest.raises(NoAnswer):
            await call
        assert await get(shared, "/quick") == b"quick"


async def test_a_request_that_waits_too_long_is_not_sent() -> None:
    came: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        came.append(await _request(reader))
        await reader.read()

    clock = VirtualClock()
    async with peer(silent) as url, pool(url, clock) as shared:
        calls = [asyncio.ensure_future(get(shared, timeout=60.0)) for _ in range(LIMIT)]
        await until(lambda: len(came) == LIMIT, 30.0, "requests")
        late = asyncio.ensure_future(get(shared, timeout=2.0))
        await asyncio.sleep(0)
        clock.advance(2.0)
        with pytest.raises(NotSent):
            await late
        clock.advance(60.0)
        for call in calls:
            with pytest.raises(NoAnswer):
                await call
        assert len(came) == LIMIT


async def test_a_cancelled_request_frees_its_connection() -> None:
    came: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        came.append(await _request(reader))
        await reader.read()

    async with peer(silent) as url, pool(url) as shared:
        for count in (LIMIT, 2 * LIMIT):
            calls = [
                asyncio.ensure_future(get(shared, timeout=60.0)) for _ in range(LIMIT)
            ]
            await until(lambda n=count: len(came) == n, 30.0, "requests")  # type: ignore[misc]
            for call in calls:
                call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}


async def test_a_connection_that_idled_or_was_closed_is_not_used() -> None:
    peers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        while True:
            await _request(reader)
            writer.write(answer(b"ok"))

    clock = VirtualClock()
    async with peer(serve) as url, pool(url, clock) as shared:
        await get(shared)
        await get(shared)
        assert len(peers) == 1
        clock.advance(IDLE)
        await get(shared)
        assert len(peers) == 2
        peers[1].close()
        await peers[1].wait_closed()
        await asyncio.sleep(0.05)  # the end of the stream is on its way here
        assert await get(shared) == b"ok"
        assert len(peers) == 3


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 * 1024 * 1024),
    ],
)
async def test_half_an_answer_is_none(half: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        writer.write(half)

    async with peer(serve) as url, pool(url) as shared:
        with pytest.raises(NoAnswer):
            await get(shared)


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Read one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


@pytest.mark.parametrize(
    ("status", "started"), [(202, True), (429, False), (404, False), (500, True)]
)
async def test_work_is_handed_to_an_invocation_that_nobody_waits_for(
    status: int, started: bool
) -> None:
    came: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            came.append(await _request(reader))
            writer.write(b"HTTP/1.1 %d -\r\ncontent-length: 0\r\n\r\n" % status)

    hold = {"channel": "a", "token": "t"}
    arn = "arn:aws:lambda:eu-west-1:1:function:f"
    async with peer(take) as url:
        calls = SignedCalls(url, "lambda", "eu-west-1", session(), SystemClock())
        async with closing(calls):
            assert await LambdaInvoker(calls, arn).deliver(hold) is started
    head, _, body = came[0].partition(b"\r\n\r\n")
    assert head.startswith(
        b"POST /2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A1%3Afunction%3Af"
        b"/invocations HTTP/1.1"
    )
    assert b"\r\nx-amz-invocation-type: event" in head.lower()
    assert hold_of(json.loads(body)) == hold
    assert hold_of({"requestContext": {}}) is None


async def test_what_was_not_sent_starts_nothing_and_what_was_may() -> None:
    async def silent(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await _request(reader)

    for listens in (True, False):
        async with peer(silent) as url:
            calls = SignedCalls(url, "lambda", "eu-west-1", session(), SystemClock())
            invoker: Invoker = LambdaInvoker(calls, "f")
            if listens:
                assert await invoker.deliver({})
        if not listens:
            assert not await invoker.deliver({})
        await calls.close()


def test_lambda_s_own_endpoint_or_that_of_the_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_LAMBDA", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert invoke_endpoint(session(), "") == "https://lambda.eu-west-1.amazonaws.com"
    assert "us-east-1" in invoke_endpoint(session(), "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:8010")
    assert invoke_endpoint(session(), "us-east-1") == "http://127.0.0.1:8010"
