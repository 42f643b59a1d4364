"""The serverless mode on a laptop: emulated gateway and table, and the service behind.

    clients ──► gateway (this process) ──► function in frozen processes, or one server
                        ▲                        │
                        └──── @connections ──────┴──► table (ministack, a process)

The server API is at the server, as it would be at a container of the deployment. What
the table held is gone with it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from service.core.clock import SystemClock
from service.core.errors import StartupError
from service.dev_gateway.emulator import Answer, Gateway
from service.dev_gateway.events import Event
from service.dev_gateway.integrations import HttpProxy, Lambda

__all__ = ["laptop"]

READY = 60.0  # s until a process must answer
POLL = 0.05  # s
TABLE = "steadwire-dev"
FUNCTION = "steadwire-dev"


class Addresses(NamedTuple):
    """Where everything is.

    Attributes:
        clients: The gateway's, for WebSocket clients.
        server: The server's: the API, health and metrics.
        table: The table's endpoint.
    """

    clients: str
    server: str
    table: str


@asynccontextmanager
async def laptop(
    environ: Mapping[str, str],
    *,
    port: int,
    server_port: int,
    table: str,
    function: bool,
    say: Callable[[str], None],
) -> AsyncIterator[Addresses]:
    """Run everything until the block ends.

    Args:
        environ: Of this process. What it sets of Steadwire is passed on.
        port: Of the gateway; 0 takes a free one.
        server_port: Of the server; 0 takes a free one.
        table: Endpoint of a DynamoDB that runs already; "" starts ministack.
        function: Events are handled by a Lambda function, not by the server.
        say: Told what is started, a line each.

    Raises:
        StartupError: A process did not start.
    """
    async with AsyncExitStack() as stack:
        environment = _environment(environ)
        if not table:
            say("starting the table (ministack)")
            table = await stack.enter_async_context(_table(environment))
        environment["STEADWIRE_DYNAMODB_ENDPOINT"] = table
        gateway = Gateway(_not_yet, SystemClock(), stage="dev")
        try:
            await stack.enter_async_context(gateway.run(port))
        except OSError as error:
            why = os.strerror(error.errno or 0)  # asyncio's own text is a sentence
            raise StartupError(
                f"port {port} on 127.0.0.1: {why}; --port takes another"
            ) from error
        environment["STEADWIRE_GATEWAY_ENDPOINT"] = gateway.endpoint
        say("making the table")
        await _once(environment, "tables", "create")
        server_port = server_port or _free_port()
        server = f"http://127.0.0.1:{server_port}"
        environment["STEADWIRE_SERVER_PORT"] = str(server_port)
        if function:
            invoked = gateway.endpoint.removesuffix("/dev")
            environment["AWS_ENDPOINT_URL_LAMBDA"] = invoked
            environment["STEADWIRE_GATEWAY_FUNCTION"] = FUNCTION
            environment["AWS_LAMBDA_INITIALIZATION_TYPE"] = "on-demand"
            handler = Lambda(
                "service.lambda_entry:handler", environment, concurrency=10
            )
            stack.push_async_callback(handler.aclose)
            gateway.integration = handler
        else:
            url = f"{server}/connection/gateway"
            proxy = HttpProxy(url, environment["STEADWIRE_GATEWAY_SECRET"])
            stack.push_async_callback(proxy.aclose)
            gateway.integration = proxy
        say("starting the server")
        command = [sys.executable, "-m", "service", "serve"]
        await stack.enter_async_context(
            _running(command, environment, f"{server}/health/ready")
        )
        yield Addresses(gateway.url, server, table)


async def _not_yet(event: Event) -> Answer:
    return Answer(503)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the service's processes."""
    return {
        **environ,
        "AWS_ACCESS_KEY_ID": "emulated",
        "AWS_SECRET_ACCESS_KEY": "emulated",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "STEADWIRE_STORE_BACKEND": "dynamodb",
        "STEADWIRE_DYNAMODB_TABLE": environ.get("STEADWIRE_DYNAMODB_TABLE", TABLE),
        "STEADWIRE_DYNAMODB_REGION": "us-east-1",
        "STEADWIRE_GATEWAY_SECRET": secrets.token_urlsafe(32),
    }


@asynccontextmanager
async def _table(environment: Mapping[str, str]) -> AsyncIterator[str]:
    beside = Path(sys.executable).with_name("ministack")
    program = str(beside) if beside.is_file() else shutil.which("ministack")
    if program is None:
        raise StartupError(
            "the emulated table needs ministack: pip install 'steadwire[dev-gateway]', "
            "or --table URL for a DynamoDB that runs already"
        )
    port = _free_port()
    own = {
        **environment,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "ERROR",
    }
    url = f"http://127.0.0.1:{port}"
    async with _running([program], own, url, quiet=True):
        yield url


@asynccontextmanager
async def _running(
    command: list[str], environment: Mapping[str, str], url: str, *, quiet: bool = False
) -> AsyncIterator[None]:
    """Run a process that answers at *url*; it ends with the block.

    It has a session of its own, so that Ctrl-C reaches this process alone: the server
    is to end before the table does.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL if quiet else None,
        stderr=asyncio.subprocess.DEVNULL if quiet else None,
        start_new_session=True,
    )
    try:
        await _answers(process, command[-1], url)
        yield
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _answers(process: asyncio.subprocess.Process, name: str, url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(int(READY / POLL)):
            with suppress(httpx.HTTPError):
                if (await client.get(url, timeout=1.0)).status_code != 503:
                    return
            if process.returncode is not None:
                raise StartupError(f"{name} ended with status {process.returncode}")
            await asyncio.sleep(POLL)
    raise StartupError(f"{name} does not answer at {url}")


async def _once(environment: Mapping[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *arguments),
        env=dict(environment),
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await process.wait():
        raise StartupError(f"steadwire {' '.join(arguments)} failed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
