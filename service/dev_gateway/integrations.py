"""Integrations: how the gateway reaches the application.

`HttpProxy` sends an HTTP request for each event, with what a template maps into
headers. `Lambda` calls a function in processes of its own, as the service does:

* An environment handles one event at a time; while all are busy another one starts.
* Between events an environment is frozen (SIGSTOP), its threads, sockets and clocks'
  observers with it, and thawed for the next.
* One may be killed at any moment (`Lambda.kill`), in the middle of an event too.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress

import httpx

from service.core.fetch import http_client
from service.dev_gateway.emulator import Answer, IntegrationError
from service.dev_gateway.events import Event

__all__ = ["HttpProxy", "Lambda"]

_MAPPED = ("authorization", "origin", "sec-websocket-protocol")
_ROUTES = {"CONNECT": "connect", "MESSAGE": "message", "DISCONNECT": "disconnect"}
_LINE = 16 * 1024 * 1024  # bytes of an event or an answer


class HttpProxy:
    """An HTTP_PROXY integration for each route: connect, message, disconnect.

    Args:
        url: Of the application.
        secret: Sent as ``x-gw-secret``, so that the application knows the gateway.
        headers: More of a handshake that the template of ``$connect`` maps.
    """

    def __init__(self, url: str, secret: str, headers: Iterable[str] = ()) -> None:
        self._url = url.rstrip("/")
        self._secret = secret
        self._mapped = {*_MAPPED, *(name.lower() for name in headers)}
        self._client = http_client({}, httpx.Limits(max_connections=None))

    async def aclose(self) -> None:
        """Close the connections to the application."""
        await self._client.aclose()

    async def __call__(self, event: Event) -> Answer:
        """Send an event; what the templates do not map is not sent.

        Raises:
            IntegrationError: There was no answer, or it is not an event of a socket.
        """
        context = event.get("requestContext")
        if context is None:
            raise IntegrationError("it has no URL")
        headers = {
            "x-gw-secret": self._secret,
            "x-ws-connection-id": context["connectionId"],
            "x-ws-event": context["eventType"],
            "x-ws-domain": context["domainName"],
            "x-ws-stage": context["stage"],
            "x-ws-source-ip": context["identity"]["sourceIp"],
            "x-ws-connected-at": str(context["connectedAt"]),
        }
        query: Mapping[str, str] = {}
        if context["eventType"] == "CONNECT":
            found = {name.lower(): value for name, value in event["headers"].items()}
            for name in self._mapped & found.keys():
                headers[name] = found[name]
            query = event.get("queryStringParameters", {})
        url = f"{self._url}/{_ROUTES[context['eventType']]}"
        body = event.get("body", "").encode()
        try:
            answer = await self._client.post(
                url, params=query, headers=headers, content=body
            )
        except httpx.HTTPError as error:
            raise IntegrationError(type(error).__name__) from error
        return Answer(answer.status_code, dict(answer.headers))


class Lambda:
    """A Lambda function: ``module:handler``, in processes of this Python.

    Args:
        handler: Called with the event and None; returns a dict with ``statusCode``.
        environment: All variables of its processes.
        concurrency: Most environments; events beyond wait for a free one.
        seed: Of which free environment takes an event.
        output: Descriptor that its processes write to; None: where this one does.

    Attributes:
        started: Environments so far: cold starts.
    """

    def __init__(
        self,
        handler: str,
        environment: Mapping[str, str],
        concurrency: int = 50,
        seed: int = 0,
        output: int | None = None,
    ) -> None:
        self.started = 0
        self._command = [
            sys.executable,
            "-m",
            "service.dev_gateway.environment",
            handler,
        ]
        self._environment = environment
        self._output = output
        self._slots = asyncio.Semaphore(concurrency)
        self._random = random.Random(seed)
        self._free: list[_Environment] = []
        self._busy: set[_Environment] = set()
        self._all: list[asyncio.Future[_Environment]] = []

    async def __call__(self, event: Event) -> Answer:
        """Handle an event in a free environment, or a new one."""
        async with self._slots:
            if self._free:
                chosen = self._free.pop(self._random.randrange(len(self._free)))
            else:
                chosen = await self._start()
            self._busy.add(chosen)
            kept = False
            try:
                answer = await chosen.handle(event)
                kept = True
            finally:
                self._busy.discard(chosen)
                if kept:
                    self._free.append(chosen)
                else:
                    await chosen.kill()
        return answer

    async def _start(self) -> _Environment:
        self.started += 1
        start = asyncio.ensure_future(
            _Environment.start(self._command, self._environment, self._output)
        )
        self._all.append(start)  # it goes on when the event is given up
        chosen = await asyncio.shield(start)
        return chosen

    def kill(self) -> bool:
        """Kill an environment that is handling an event; False: there is none."""
        if not self._busy:
            return False
        busy = sorted(self._busy, key=lambda each: each.pid)
        busy[self._random.randrange(len(busy))].signal(signal.SIGKILL)
        return True

    async def aclose(self) -> None:
        """Kill all environments."""
        for each in await asyncio.gather(*self._all):
            await each.kill()


class _Environment:
    """One process; it is spoken to in lines of JSON over a socket of its own."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frozen = False

    @classmethod
    async def start(
        cls,
        command: list[str],
        environment: Mapping[str, str],
        output: int | None,
    ) -> _Environment:
        ours, theirs = socket.socketpair()
        number = str(theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            *command,
            number,
            env=dict(environment),
            pass_fds=[theirs.fileno()],
            stdout=output,
            stderr=output,
        )
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE)
        return cls(process, reader, writer)

    async def handle(self, event: Event) -> Answer:
        if self._frozen:
            self.signal(signal.SIGCONT)
            self._frozen = False
        try:
            self._writer.write(json.dumps(event).encode() + b"\n")
            line = await self._reader.readline()
        except OSError as error:
            raise IntegrationError("the environment is gone") from error
        if not line:
            raise IntegrationError("the environment is gone")
        answer = json.loads(line)
        if "statusCode" not in answer:
            raise IntegrationError(answer.get("errorType", "no status"))
        self.signal(signal.SIGSTOP)
        self._frozen = True
        headers = answer.get("headers") or {}
        found = {name.lower(): value for name, value in headers.items()}
        return Answer(int(answer["statusCode"]), found)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._writer.close()
        await self._process.wait()
