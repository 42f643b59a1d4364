"""The emulator does what the gateway does, clients and boto3 included."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import boto3
import pytest
import websockets
from botocore.config import Config
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from service.core.clock import SystemClock
from service.core.rate_limits import Rate
from service.dev_gateway.emulator import Answer, Gateway, IntegrationError, Quotas
from service.dev_gateway.faults import Faults
from service.dev_gateway.integrations import HttpProxy, Lambda
from tests.clock import VirtualClock
from tests.gateway.application import Application
from tests.server.running import until


def client(gateway: Gateway) -> Any:
    """Return boto3's client of ``@connections``, which repeats nothing."""
    return boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=gateway.endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(
            retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5
        ),
    )


async def call(method: Any, **arguments: Any) -> Any:
    return await asyncio.to_thread(method, **arguments)


@asynccontextmanager
async def opened(
    gateway: Gateway, application: Application, **options: Any
) -> AsyncIterator[tuple[ClientConnection, str]]:
    """Connect a client; give it and its connection id."""
    before = len(application.events)
    async with connect(gateway.url, compression=None, **options) as socket:
        context = application.events[before]["requestContext"]
        yield socket, context["connectionId"]


async def closed(socket: ClientConnection) -> tuple[int | None, str | None]:
    await socket.wait_closed()
    return socket.close_code, socket.close_reason


async def test_the_events_of_a_socket(application: Application) -> None:
    clock = VirtualClock()
    async with Gateway(application, clock).run() as gateway:
        address = f"{gateway.url}?token=a&token=b&empty="
        async with connect(address, additional_headers={"X-Own": "1"}) as socket:
            await socket.send('{"id":1}')
            (message,) = await application.until("MESSAGE")
            await socket.close(4001, "bye")
        (gone,) = await application.until("DISCONNECT")
    came = application.events[0]
    assert came["queryStringParameters"] == {"token": "b", "empty": ""}
    assert came["multiValueQueryStringParameters"]["token"] == ["a", "b"]
    assert came["headers"]["X-Own"] == "1"
    assert came["requestContext"]["routeKey"] == "$connect"
    assert came["requestContext"]["connectedAt"] == 1_700_000_000_000
    assert came["requestContext"]["identity"] == {"sourceIp": "127.0.0.1"}
    assert message["body"] == '{"id":1}'
    assert message["requestContext"]["routeKey"] == "$default"
    assert not {"headers", "queryStringParameters"} & message.keys()
    assert gone["requestContext"]["disconnectStatusCode"] == 4001
    assert gone["requestContext"]["disconnectReason"] == "bye"
    assert "body" not in gone
    ids = {each["requestContext"]["connectionId"] for each in application.events}
    assert len(ids) == 1
    assert ids.pop().endswith("=")


async def test_the_status_of_connect_refuses(application: Application) -> None:
    async with Gateway(application, VirtualClock()).run() as gateway:
        for status in (401, 403, 429, 500):
            application.answers["CONNECT"] = Answer(status)
            with pytest.raises(InvalidStatus) as refused:
                await connect(gateway.url)
            assert refused.value.response.status_code == status

        async def fails(event: dict[str, Any]) -> Answer:
            raise IntegrationError

        application.answers["CONNECT"] = fails
        with pytest.raises(InvalidStatus) as refused:
            await connect(gateway.url)
        assert refused.value.response.status_code == 502
    assert "DISCONNECT" not in application.kinds()  # there was no connection


async def test_the_subprotocol_is_the_one_answered(application: Application) -> None:
    application.answers["CONNECT"] = Answer(200, {"sec-websocket-protocol": "two"})
    async with (
        Gateway(application, VirtualClock()).run() as gateway,
        connect(gateway.url, subprotocols=["one", "two"]) as socket,
    ):
        assert socket.subprotocol == "two"


async def test_a_post_from_inside_connect_is_gone(application: Application) -> None:
    async with Gateway(application, VirtualClock()).run() as gateway:
        posts = client(gateway)

        async def posting(event: dict[str, Any]) -> Answer:
            name = event["requestContext"]["connectionId"]
            with pytest.raises(posts.exceptions.GoneException):
                await call(posts.post_to_connection, ConnectionId=name, Data=b"hello")
            return Answer(200)

        application.answers["CONNECT"] = posting
        async with opened(gateway, application) as (socket, name):
            await call(posts.post_to_connection, ConnectionId=name, Data=b"hello")
            assert await socket.recv() == "hello"


async def test_messages_of_one_client_are_concurrent(application: Application) -> None:
    both = asyncio.Barrier(2)

    async def meets(event: dict[str, Any]) -> Answer:
        await both.wait()  # for ever, unless the other is called meanwhile
        return Answer(200)

    application.answers["MESSAGE"] = meets
    async with (
        Gateway(application, VirtualClock()).run() as gateway,
        opened(gateway, application) as (socket, _),
    ):
        await socket.send("1")
        await socket.send("2")
        await application.until("MESSAGE", 2)
        await until(lambda: not both.n_waiting, 30.0, "both were called")


async def test_messages_overtake_each_other(application: Application) -> None:
    gateway = Gateway(application, SystemClock(), faults=Faults(seed=7, delay=0.05))
    async with gateway.run(), opened(gateway, application) as (socket, _):
        for number in range(20):
            await socket.send(str(number))
        messages = await application.until("MESSAGE", 20)
    found = [int(each["body"]) for each in messages]
    assert sorted(found) == list(range(20))
    assert found != list(range(20))


async def test_an_invocation_that_fails_is_told_to_the_client(
    application: Application,
) -> None:
    application.answers["MESSAGE"] = Answer(500)
    async with (
        Gateway(application, VirtualClock()).run() as gateway,
        opened(gateway, application) as (socket, name),
    ):
        await socket.send("1")
        told = json.loads(await socket.recv())
    assert told["message"] == "Internal server error"
    assert told["connectionId"] == name


async def test_an_invocation_has_29_seconds(application: Application) -> None:
    never = asyncio.Event()

    async def hangs(event: dict[str, Any]) -> Answer:
        await never.wait()
        return Answer(200)

    application.answers["MESSAGE"] = hangs
    clock = VirtualClock()
    async with (
        Gateway(application, clock).run() as gateway,
        opened(gateway, application) as (socket, _),
    ):
        await socket.send("1")
        await application.until("MESSAGE")
        clock.advance(28.9)
        clock.advance(0.1)
        assert json.loads(await socket.recv())["message"] == "Internal server error"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"binary"], 1003),
        (["x" * (32 * 1024)], None),
        (["x" * (32 * 1024 + 1)], 1009),
        (["x" * 20_000, "y" * 20_000], None),
        (["x" * (32 * 1024)] * 4, None),
        (["x" * (32 * 1024)] * 4 + ["y"], 1009),
        (["é" * (16 * 1024 + 1)], 1009),
    ],
)
async def test_sizes(
    frames: list[Any], code: int | None, application: Application
) -> None:
    async with (
        Gateway(application, VirtualClock()).run() as gateway,
        opened(gateway, application) as (socket, _),
    ):
        with pytest.raises(websockets.ConnectionClosed) if code else nullcontext():
            await socket.send(frames if len(frames) > 1 else frames[0])
            if code:
                await socket.recv()
        if code is None:
            (message,) = await application.until("MESSAGE")
            assert message["body"] == "".join(frames)
        else:
            assert socket.close_code == code
            assert "MESSAGE" not in application.kinds()


async def test_idle_and_old_connections_are_closed(application: Application) -> None:
    clock = VirtualClock()
    async with Gateway(application, clock).run() as gateway:
        posts = client(gateway)
        async with opened(gateway, application) as (socket, _):
            await (await socket.ping())  # does not keep it
            clock.advance(599.0)
            await socket.send("1")
            await application.until("MESSAGE")
            clock.advance(599.0)
            assert len(gateway.connections) == 1
            clock.advance(1.0)
            assert await closed(socket) == (1001, "Going away")
        async with opened(gateway, application) as (socket, name):
            for _ in range(14):
                clock.advance(500.0)
                await call(posts.post_to_connection, ConnectionId=name, Data=b"ping")
                assert await socket.recv() == "ping"
            clock.advance(199.0)
            assert len(gateway.connections) == 1
            clock.advance(1.0)
            assert await closed(socket) == (1001, "Going away")
        gone = await application.until("DISCONNECT", 2)
    codes = [each["requestContext"]["disconnectStatusCode"] for each in gone]
    assert codes == [1001, 1001]


async def test_what_connections_answers(application: Application) -> None:
    clock = VirtualClock()
    quotas = Quotas(posts=Rate(rate=1.0, burst=6.0))
    async with Gateway(application, clock, quotas).run() as gateway:
        posts = client(gateway)
        errors = posts.exceptions
        async with opened(gateway, application) as (socket, name):
            clock.advance(60.0)
            text = "\xff".encode("latin-1") + "ü".encode()
            await call(posts.post_to_connection, ConnectionId=name, Data=text)
            assert await socket.recv() == "\ufffdü"
            large = b"x" * (128 * 1024)
            await call(posts.post_to_connection, ConnectionId=name, Data=large)
            assert len(await socket.recv()) == 128 * 1024
            found = await call(posts.get_connection, ConnectionId=name)
            assert found["ConnectedAt"].timestamp() == 1_700_000_000
            assert found["LastActiveAt"].timestamp() == 1_700_000_060
            assert found["Identity"]["SourceIp"] == "127.0.0.1"
            with pytest.raises(errors.ClientError) as too_large:
                await call(
                    posts.post_to_connection, ConnectionId=name, Data=large + b"x"
                )
            status = too_large.value.response["ResponseMetadata"]["HTTPStatusCode"]
            assert status == 413
            await call(posts.delete_connection, ConnectionId=name)
            assert (await closed(socket))[0] == 1000
            with pytest.raises(errors.GoneException):
                await call(posts.post_to_connection, ConnectionId=name, Data=b"late")
            with pytest.raises(errors.LimitExceededException):
                await call(posts.get_connection, ConnectionId=name)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /test/@connections/a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"403"  # not signed
        writer.close()


async def test_a_client_that_does_not_read_is_429(application: Application) -> None:
    async with Gateway(application, VirtualClock()).run() as gateway:
        posts = client(gateway)
        # Its close is not heard of either.
        options = {"max_queue": 1, "close_timeout": 0.1}
        async with opened(gateway, application, **options) as (_, name):
            data = b"x" * (128 * 1024)
            with pytest.raises(posts.exceptions.LimitExceededException):
                for _ in range(200):
                    await call(posts.post_to_connection, ConnectionId=name, Data=data)


async def test_lost_disconnects(application: Application) -> None:
    faults = Faults(disconnect_lost=1.0)
    async with Gateway(application, VirtualClock(), faults=faults).run() as gateway:
        async with opened(gateway, application):
            pass
        await until(lambda: not gateway.connections, 30.0, "the connection is gone")
        assert gateway.disconnects_lost == 1
    assert application.kinds() == ["CONNECT"]


@pytest.mark.parametrize(
    ("fault", "error", "arrives"),
    [
        ("throttled", "LimitExceededException", []),
        ("gone", "GoneException", []),
        ("lost", "ConnectionClosedError", []),
        ("answer_lost", "ConnectionClosedError", ["1"]),
        ("late", "ConnectionClosedError", ["1"]),
    ],
)
async def test_faults_of_a_post(
    fault: str, error: str, arrives: list[str], application: Application
) -> None:
    clock = VirtualClock()
    gateway = Gateway(application, clock, faults=Faults(**{fault: 1.0}))  # type: ignore[arg-type]
    async with gateway.run():
        posts = client(gateway)
        async with opened(gateway, application) as (socket, name):
            with pytest.raises(Exception) as raised:
                await call(posts.post_to_connection, ConnectionId=name, Data=b"1")
            assert type(raised.value).__name__ == error
            clock.advance(1.0)  # what is late comes
            gateway.faults = Faults()
            await call(posts.post_to_connection, ConnectionId=name, Data=b"end")
            received = [await socket.recv()]
            while received[-1] != "end":
                received.append(await socket.recv())
            assert received == [*arrives, "end"]


async def test_nothing_arrives_after_a_delete(application: Application) -> None:
    clock = VirtualClock()
    gateway = Gateway(application, clock, faults=Faults(late=1.0))
    async with gateway.run():
        posts = client(gateway)
        async with opened(gateway, application) as (socket, name):
            with pytest.raises(Exception):  # noqa: B017
                await call(posts.post_to_connection, ConnectionId=name, Data=b"1")
            await call(posts.delete_connection, ConnectionId=name)
            clock.advance(1.0)
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()


async def test_http_proxy_sends_what_templates_map(application: Application) -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async def backend(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        requests.append((head[0], headers, body))
        writer.write(
            b"HTTP/1.1 204 OK\r\nSec-WebSocket-Protocol: json\r\n"
            b"Connection: close\r\n\r\n"
        )
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    proxy = HttpProxy(f"http://127.0.0.1:{port}/gateway", "the secret")
    async with Gateway(proxy, VirtualClock()).run() as gateway:
        address = f"{gateway.url}?ticket=t"
        async with connect(address, subprotocols=["json"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "json"
            await socket.send("hello")
            await until(lambda: len(requests) == 2, 30.0, "the message came")
        await until(lambda: len(requests) == 3, 30.0, "the disconnect came")
    await proxy.aclose()
    server.close()
    lines = [line for line, _, _ in requests]
    assert lines[0] == "POST /gateway/connect?ticket=t HTTP/1.1"
    assert lines[1:] == [
        f"POST /gateway/{n} HTTP/1.1" for n in ("message", "disconnect")
    ]
    assert [body for _, _, body in requests] == [b"", b"hello", b""]
    for _, headers, _ in requests:
        assert headers["x-gw-secret"] == "the secret"
    assert len({headers["x-ws-connection-id"] for _, headers, _ in requests}) == 1
    assert requests[0][1]["sec-websocket-protocol"] == "json"
    assert "sec-websocket-protocol" not in requests[1][1]


FUNCTION = """
import os, threading, time

calls = 0
ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.001)
        ticks += 1

threading.Thread(target=tick, daemon=True).start()

def handler(event, context):
    global calls
    calls += 1
    body = event.get("body", "")
    if body == "raise":
        raise ValueError("a secret")
    if body == "hang":
        time.sleep(60)
    with open(os.environ["RECORD"], "a") as record:
        print(os.getpid(), calls, ticks, body, file=record)
    return {"statusCode": 200}
"""


async def test_lambda(application: Application, tmp_path: Any) -> None:
    (tmp_path / "function.py").write_text(FUNCTION)
    record = tmp_path / "record"
    record.touch()
    function = Lambda(
        "function:handler",
        {**os.environ, "PYTHONPATH": f".:{tmp_path}", "RECORD": str(record)},
    )

    def lines() -> list[list[str]]:
        return [line.split() for line in record.read_text().splitlines()]

    async def handled(count: int) -> list[str]:
        await until(lambda: len(lines()) == count, 30.0, f"{count} events were handled")
        return lines()[-1]

    async with (
        Gateway(function, SystemClock()).run() as gateway,
        connect(gateway.url) as socket,
    ):
        first = await handled(1)
        assert function.started == 1
        await socket.send("one")
        second = await handled(2)
        assert (second[0], second[1], second[3]) == (first[0], "2", "one")
        await asyncio.sleep(0.6)  # while it is frozen, its thread stands still
        await socket.send("two")
        third = await handled(3)
        assert third[0] == first[0]
        assert int(third[2]) - int(second[2]) < 300  # of 600 ticks, had it run
        await socket.send("raise")
        assert json.loads(await socket.recv())["message"] == "Internal server error"
        await socket.send("hang")
        await until(function.kill, 30.0, "an environment was killed")
        assert json.loads(await socket.recv())["message"] == "Internal server error"
        await socket.send("three")
        fourth = await handled(4)
        assert fourth[0] != first[0]  # the first was killed
        assert fourth[1] == "1"
    await function.aclose()


async def test_an_asynchronous_invocation_is_accepted_and_tried_three_times() -> None:
    clock = VirtualClock()
    came: list[dict[str, Any]] = []

    async def fails(event: dict[str, Any]) -> Answer:
        came.append(event)
        if event["times"] > sum(each == event for each in came):
            raise IntegrationError
        return Answer(200)

    async with Gateway(fails, clock).run() as gateway:
        function = boto3.client(
            "lambda",
            endpoint_url=gateway.endpoint.removesuffix("/test"),
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        for times in (1, 2, 9):
            answer = await call(
                function.invoke,
                FunctionName="own",
                InvocationType="Event",
                Payload=json.dumps({"times": times}),
            )
            assert answer["StatusCode"] == 202
        await until(lambda: len(came) == 3, 30.0, "the first tries")
        clock.advance(1.0)
        await until(lambda: len(came) == 5, 30.0, "the second tries")
        clock.advance(2.0)
        await until(lambda: len(came) == 6, 30.0, "the third")
        clock.advance(1000.0)
        function.close()
    assert [each["times"] for each in came] == [1, 2, 9, 2, 9, 9]


async def test_an_asynchronous_invocation_may_start_twice(
    application: Application,
) -> None:
    faults = Faults(duplicated=1.0)
    async with Gateway(application, SystemClock(), faults=faults).run() as gateway:
        function = boto3.client(
            "lambda",
            endpoint_url=gateway.endpoint.removesuffix("/test"),
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        await call(
            function.invoke, FunctionName="own", InvocationType="Event", Payload="{}"
        )
        await until(lambda: application.events == [{}, {}], 30.0, "both")
        function.close()
