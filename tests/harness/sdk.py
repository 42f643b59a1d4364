"""A common interface to the official client SDKs, in whatever language they are.

A `Host` runs SDK clients, in this process or in another one, and speaks of them in
plain dicts: requests ``{"client", "do", ...}`` with one answer each, and events
``{"client", "event", ...}`` as they happen. `SdkClient` is one client of a host.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from tests.harness.process import environment, launched

__all__ = ["THROWS", "UNAUTHORIZED", "Host", "ProcessHost", "SdkClient", "SdkError"]

THROWS = {"throw": "error"}
UNAUTHORIZED = {"throw": "unauthorized"}

# One line holds at most one publication or one page of history.
_LINE_LIMIT = 64 * 1024 * 1024


class SdkError(Exception):
    """An SDK or the server refused a call.

    Attributes:
        code: The server's code, or one below 100 that the SDK made up.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class Host(Protocol):
    """Runs SDK clients.

    Attributes:
        name: The SDK and its version.
        clients: By name.
    """

    name: str
    clients: dict[str, SdkClient]

    async def request(self, command: dict[str, Any]) -> Any:
        """Carry out one command; raises SdkError."""
        ...

    async def close(self) -> None:
        """End all clients and free everything."""
        ...


class SdkClient:
    """One client of one SDK, and all it has reported.

    Attributes:
        name: Unique in its host.
        events: Everything it reported, in order, by kind.
        log: The same, all kinds together.
        on_event: Called with each event before it is kept.
    """

    _names = itertools.count(1)

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.log: list[dict[str, Any]] = []
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @classmethod
    async def create(
        cls,
        host: Host,
        url: str,
        *,
        min_delay: float = 0.1,
        max_delay: float = 0.5,
        ping_delay: float = 10.0,
        protobuf: bool = False,
        token: str = "",
        get_token: list[Any] | None = None,
        name: str = "",
        data: Any = None,
    ) -> Self:
        """Make a client.

        Args:
            host: Where it runs.
            url: The server's.
            min_delay: Seconds before it reconnects or resubscribes, at least,
            max_delay: and at most.
            ping_delay: Seconds that a ping of the server may be late.
            protobuf: It speaks protobuf; payloads are JSON all the same.
            token: Its first connection token.
            get_token: What its application's getToken gives, one after the other, the
                last one again and again: a token, or `THROWS` or `UNAUTHORIZED`. Each
                call is an event ``get_token``. None for no such function.
            name: What its application is called.
            data: What it connects with, if it is not None.
        """
        client = cls(host, f"c{next(cls._names)}")
        host.clients[client.name] = client
        await client.do(
            "create",
            url=url,
            min_delay=min_delay,
            max_delay=max_delay,
            ping_delay=ping_delay,
            protobuf=protobuf,
            token=token,
            get_token=get_token,
            name=name or "harness",
            data=data,
        )
        return client

    async def do(self, what: str, **fields: Any) -> Any:
        """Have the SDK do something and return its answer; raises SdkError."""
        return await self.host.request({"client": self.name, "do": what, **fields})

    # --- commands

    async def connect(self, within: float = 30.0) -> None:
        """Connect and wait until it is connected."""
        count = len(self.events["connected"])
        await self.do("connect")
        await self.seen("connected", count + 1, within)

    async def disconnect(self) -> None:
        """Disconnect for good, and wait until it is."""
        count = len(self.events["disconnected"])
        await self.do("disconnect")
        await self.seen("disconnected", count + 1)

    async def subscribe(
        self,
        channel: str,
        within: float = 30.0,
        *,
        join_leave: bool = False,
        delta: bool = False,
        **tokens: Any,
    ) -> dict[str, Any]:
        """Subscribe and return the subscribed event; *tokens* as of `create`.

        With *delta* the SDK asks for deltas; its application sees none of them.
        """
        count = len(self.events["subscribed"])
        await self.do(
            "subscribe", channel=channel, join_leave=join_leave, delta=delta, **tokens
        )
        return (await self.seen("subscribed", count + 1, within))[count]

    async def unsubscribe(self, channel: str) -> dict[str, Any]:
        """Unsubscribe and return the unsubscribed event."""
        count = len(self.events["unsubscribed"])
        await self.do("unsubscribe", channel=channel)
        return (await self.seen("unsubscribed", count + 1))[count]

    async def publish(self, channel: str, data: Any) -> None:
        """Publish and wait for the server's acknowledgement."""
        await self.do("publish", channel=channel, data=data)

    async def history(self, channel: str, **options: Any) -> dict[str, Any]:
        """Return ``publications``, ``offset`` and ``epoch``."""
        page: dict[str, Any] = await self.do("history", channel=channel, **options)
        return page

    async def presence(self, channel: str) -> dict[str, Any]:
        """Return the clients in a channel, by client id."""
        found: dict[str, Any] = await self.do("presence", channel=channel)
        return found

    async def presence_stats(self, channel: str) -> dict[str, int]:
        """Return ``clients`` and ``users``: how many are in a channel."""
        found: dict[str, int] = await self.do("presence_stats", channel=channel)
        return found

    async def rpc(self, method: str, data: Any) -> Any:
        """Call a remote procedure and return its data."""
        return await self.do("rpc", method=method, data=data)

    async def cut(self) -> None:
        """Destroy the socket below the SDK."""
        await self.do("cut")

    # --- what it saw

    def publications(self, channel: str) -> list[dict[str, Any]]:
        """Return the publications of *channel* so far, in order of arrival."""
        return [
            {name: event[name] for name in ("offset", "data", "tags")}
            for event in self.events["publication"]
            if event["channel"] == channel
        ]

    def offsets(self, channel: str) -> list[int]:
        """Return the offsets of the publications of *channel* so far."""
        return [publication["offset"] for publication in self.publications(channel)]

    async def seen(
        self, event: str, count: int, within: float = 30.0
    ) -> list[dict[str, Any]]:
        """Wait until there were *count* events of a kind and return all of them."""
        happened = self.events[event]
        await self.until(lambda: len(happened) >= count, f"{count} {event}", within)
        return happened

    async def until(
        self, condition: Callable[[], bool], what: str, within: float = 30.0
    ) -> None:
        """Wait until *condition*, asked after every event, is true."""
        if condition():
            return
        entry = (condition, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(within):
                await entry[1]
        except TimeoutError:
            counts = {kind: len(events) for kind, events in self.events.items()}
            last = "\n".join(f"    {str(event)[:300]}" for event in self.log[-10:])
            raise AssertionError(
                f"{self.host.name} {self.name}: no {what} within {within} s;"
                f" saw {counts}, at last\n{last}"
            ) from None
        finally:
            self._waiting.remove(entry)

    def report(self, event: dict[str, Any]) -> None:
        """Take an event from the host; when it came is kept as its ``heard``."""
        event["heard"] = time.time()
        if self.on_event is not None:
            self.on_event(event)
        self.events[event["event"]].append(event)
        self.log.append(event)
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)


class ProcessHost:
    """A host in another process, one JSON object a line on its stdin and stdout."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clients: dict[str, SdkClient] = {}
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def start(cls, name: str, *command: str | Path) -> Self:
        """Start *command*, which dies with us."""
        host = cls(name)
        host._process = await asyncio.create_subprocess_exec(
            *launched(*command),
            env=environment({}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
        host._reader = asyncio.create_task(host._read())
        return host

    async def request(self, command: dict[str, Any]) -> Any:
        """Carry out one command; raises SdkError."""
        number = next(self._ids)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        assert self._process.stdin is not None
        line = json.dumps({"id": number, **command})
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(30.0):
            return await answer

    async def close(self) -> None:
        """Kill the process."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "event" in message:
                self.clients[message["client"]].report(message)
                continue
            answer = self._answers.pop(message["id"])
            if answer.done():
                continue
            if "error" in message:
                error = message["error"]
                answer.set_exception(SdkError(error["code"], error["message"]))
            else:
                answer.set_result(message.get("result"))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"{self.name} has ended"))
