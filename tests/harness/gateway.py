"""The real server behind an emulated API Gateway, for the tests of the local mode."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from service.core.clock import SystemClock
from service.dev_gateway.emulator import Answer, Gateway
from service.dev_gateway.faults import Faults
from service.dev_gateway.integrations import HttpProxy, Lambda
from tests.harness.backends import ENVIRONMENTS, INTEGRATION, PROCESSES
from tests.harness.pair import ServerPair
from tests.harness.ports import free_port
from tests.harness.process import environment
from tests.harness.raw import RawClient
from tests.harness.server import Server

__all__ = ["GatewayServer", "server_of"]

T = TypeVar("T")

FUNCTIONS = {
    "": "service.lambda_entry:handler",
    "tests.http.hooked:app": "tests.http.hooked_function:handler",
}
"""Of a server's application: what handles its clients in a Lambda function."""


class GatewayServer(Server):
    """A server whose clients connect to a gateway before it.

    The gateway runs in a thread, so that servers that tests share outlive the event
    loop of each test. It stays as it is when the server is restarted.

    Args:
        directory: As of `Server`.
        settings: As of `Server`; with `INTEGRATION`, and maybe `ENVIRONMENTS`.
        app: As of `Server`; a function has to be known for it.
        faults: Of the gateway.

    Attributes:
        gateway: The emulator; to be touched in its own thread only, by `call`.
        function: The Lambda function; None with HTTP_PROXY integrations.
    """

    message_size = 32 * 1024
    load = 0.1  # each publication is some requests to an emulated table
    pipelined = 1  # others are handled at once

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        *,
        app: str = "",
        faults: Faults | None = None,
        **options: Any,
    ) -> None:
        own = dict(settings)
        kind = own.pop(INTEGRATION)
        environments = int(own.pop(ENVIRONMENTS, "8"))
        secret = secrets.token_urlsafe(32)
        super().__init__(
            directory,
            {**own, "STEADWIRE_GATEWAY_SECRET": secret},
            app=app,
            **options,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._closed = False
        self.function: Lambda | None = None
        self._written = bytearray()  # by the function, in all lives of the server
        self._proxy: HttpProxy | None = None
        self._secret = secret
        self.gateway = Gateway(_unavailable, SystemClock(), faults=faults)
        self._running = self.gateway.run()
        self.call(self._running.__aenter__())
        self.settings["STEADWIRE_GATEWAY_ENDPOINT"] = self.gateway.endpoint
        if kind == "lambda":
            self.settings["STEADWIRE_GATEWAY_FUNCTION"] = "tests"
            self.settings["AWS_ENDPOINT_URL_LAMBDA"] = (
                f"http://127.0.0.1:{self.gateway.port}"
            )
            # Packets, so that what two environments write at once stays whole.
            self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._reader = self._pump("function", self._ends[0], self._written)
            self.port = free_port()
            self.function = Lambda(
                FUNCTIONS[app],
                environment({**self.settings, "PORT_OF_TESTS": str(self.port)}),
                concurrency=environments,
                output=self._ends[1].fileno(),
            )
            self.gateway.integration = self.function

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the gateway's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60.0)

    def spawn(self) -> None:
        """Start the process of the server and return at once."""
        super().spawn()
        if self.function is not None:
            self._output["function"] = self._written

    def wait_ready(self) -> None:
        """Block until it serves, then let the gateway call it."""
        super().wait_ready()
        if self.function is None and self._proxy is None:
            self.call(self._open_proxy())

    async def _open_proxy(self) -> None:
        url = f"http://127.0.0.1:{self.port}/connection/gateway"
        headers = json.loads(self.settings.get("STEADWIRE_PROXY_HTTP_HEADERS", "[]"))
        self._proxy = self.gateway.integration = HttpProxy(url, self._secret, headers)

    def close(self) -> None:
        """Make sure that nothing of it is left."""
        if not self._closed:
            self._closed = True
            self.call(self._close_gateway())
            if self.function is not None:
                self._close_ends()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        super().close()

    def _close_ends(self) -> None:
        reading, writing = self._ends
        writing.close()  # nobody else has it open, so the pump comes to the end
        self._reader.join()
        reading.close()

    async def _close_gateway(self) -> None:
        await self._running.__aexit__(None, None, None)
        for part in (self._proxy, self.function):
            if part is not None:
                await part.aclose()

    @property
    def socket_port(self) -> int:
        """The port of clients' sockets."""
        return self.gateway.port

    @property
    def url(self) -> str:
        """The address for SDKs."""
        return self.gateway.url

    async def raw(self, *, connected: bool = True, **options: object) -> RawClient:
        """Open a raw WebSocket, with the connect command done unless told not to."""
        # An environment of a function may have to start first.
        where = {"path": f"/{self.gateway.stage}", "within": 60.0, **options}
        client = await RawClient.open(self.gateway.port, **where)
        client.at_gateway = True
        if connected:
            await client.connect()
        return client


async def _unavailable(event: object) -> Answer:
    return Answer(503)


def server_of(directory: Path, settings: Mapping[str, str], **options: Any) -> Server:
    """Return a server, not started yet.

    Its variables say whether it is behind a gateway, or one of two on a store.
    """
    kind: type[Server] = Server
    if INTEGRATION in settings:
        kind = GatewayServer
    elif PROCESSES in settings:
        kind = ServerPair
    return kind(directory, settings, **options)
