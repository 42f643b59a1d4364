"""The serverless mode with one command, as a person at a laptop runs it."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.core.errors import StartupError
from service.dev_gateway.laptop import laptop
from tests.harness.api import Api
from tests.harness.backends import GATEWAYS, INTEGRATION
from tests.harness.process import environment, launched
from tests.harness.raw import RawClient

KEY = "key-of-the-tests"


@asynccontextmanager
async def running(*options: str) -> AsyncIterator[tuple[int, int]]:
    """Run the command; give the ports of the gateway and of the server."""
    table = GATEWAYS["http_proxy"]()
    del table[INTEGRATION]
    endpoint = table["STEADWIRE_DYNAMODB_ENDPOINT"]
    command = ["-m", "service", "dev-gateway", "--port", "0", "--server-port", "0"]
    own = {
        "STEADWIRE_API_KEY": KEY,
        # A table of the test's own.
        "STEADWIRE_DYNAMODB_TABLE": table["STEADWIRE_DYNAMODB_TABLE"],
    }
    process = await asyncio.create_subprocess_exec(
        *launched(sys.executable, *command, "--table", endpoint, *options),
        env=environment(own),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        text = b""
        async with asyncio.timeout(60.0):
            while b"DynamoDB" not in text:
                line = await process.stdout.readline()
                assert line, text.decode()
                text += line
        after = text.decode().partition("behind an emulated API Gateway")[2]
        gateway = re.search(r"ws://127\.0\.0\.1:(\d+)/dev", after)
        server = re.search(r"http://127\.0\.0\.1:(\d+)/api", after)
        assert gateway and server
        yield int(gateway[1]), int(server[1])
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30.0):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    "integration", ["lambda", pytest.param("http", marks=pytest.mark.slow)]
)
async def test_a_client_at_the_gateway_hears_what_is_published(
    integration: str,
) -> None:
    async with running("--integration", integration) as (gateway, server):
        async with await RawClient.open(gateway, path="/dev", within=30.0) as client:
            await client.connect()
            subscribed = await client.subscribe("chat")
            assert subscribed["epoch"]
            async with Api(server, KEY) as api:
                await api.publish("chat", {"text": "hello"})
            push = await client.message(10.0)
        publication = push["push"]["pub"]
        assert (publication["data"], publication["offset"]) == ({"text": "hello"}, 1)


async def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        nothing = laptop(
            {},
            port=port,
            server_port=0,
            table="http://127.0.0.1:9",
            function=True,
            say=lambda line: None,
        )
        with pytest.raises(StartupError, match=f"port {port} on .* in use; --port"):
            async with nothing:
                raise AssertionError("it has started")
