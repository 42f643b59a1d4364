"""Connections on the event loop, with sockets that the test holds."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.connections.connection import ClientConnection
from service.connections.pending_connection import PendingConnection
from service.connections.send_window import SOONEST
from service.core.errors import Close
from service.core.hooks import Handlers
from service.core.model import Channel, Draft, HistoryPage, Position, RawJson
from service.core.ports import (
    AppendDone,
    Clock,
    CommitListener,
    Committed,
    Hearer,
    History,
    Store,
)
from service.protocol.codec import Codec
from service.protocol.json import Json
from service.settings import (
    ChannelOptions,
    ChannelSettings,
    ClientSettings,
    ConnectionSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock
from tests.protocol.public import commands, messages
from tests.world.world import World

JSON = Json()
PATIENCE = 60.0  # s; a wait that ends in failure, never in success


class FakeSocket:
    """`connection.Socket` whose peer the test is.

    Attributes:
        frames: Frames written, in order; binary ones are protobuf.
        closes: Close frames written.
        aborts: Calls of `abort`.
        gone: Once set, every write raises OSError.
        written: Characters written.
        in_flight: How many of them the peer's kernel has not acknowledged.
    """

    def __init__(self) -> None:
        self.frames: list[str | bytes] = []
        self.closes: list[int] = []
        self.aborts = 0
        self.gone = False
        self._messages: list[dict[str, Any]] = []
        self._offsets: dict[str, list[int]] = defaultdict(list)
        self._parsed = 0  # frames whose messages are in there
        self.written = 0
        self.in_flight = 0
        self._stuck: asyncio.Future[None] | None = None
        self._written = asyncio.Event()

    # The peer.

    def stop_reading(self) -> None:
        self._stuck = asyncio.get_running_loop().create_future()

    def read_on(self) -> None:
        assert self._stuck is not None
        stuck, self._stuck = self._stuck, None
        stuck.set_result(None)

    @property
    def messages(self) -> list[dict[str, Any]]:
        self._parse()
        return list(self._messages)

    def _parse(self) -> None:
        for frame in self.frames[self._parsed :]:
            if isinstance(frame, bytes):
                found = messages(frame)
            else:
                found = list(map(json.loads, frame.split("\n")))
            self._messages += found
            for message in found:
                self._note_offsets(message)
        self._parsed = len(self.frames)

    def _note_offsets(self, message: dict[str, Any]) -> None:
        push = message.get("push", {})
        if "pub" in push and "offset" in push["pub"]:
            self._offsets[push["channel"]].append(push["pub"]["offset"])
        results = [message.get("subscribe", {})]
        results += message.get("connect", {}).get("subs", {}).values()
        for result in results:
            for publication in result.get("publications", ()):
                data = publication["data"]
                if isinstance(data, dict) and "ch" in data:
                    self._offsets[data["ch"]].append(publication["offset"])

    def forget(self) -> None:
        """Forget what was written so far."""
        self.frames.clear()
        self._messages.clear()
        self._offsets.clear()
        self._parsed = 0

    def offsets(self, channel: str) -> list[int]:
        """Return the offsets seen of *channel*, of replies and pushes, in order."""
        self._parse()
        return self._offsets[channel].copy()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds; looked at after each write."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._written.clear()
                await self._written.wait()

    async def reply(self, command: int) -> dict[str, Any]:
        """Return the reply to *command*, once it is there."""

        def find() -> list[dict[str, Any]]:
            return [m for m in self.messages if m.get("id") == command]

        await self.until(find)
        [message] = find()
        return message

    # The port.

    async def send(self, frame: str | bytes) -> None:
        if self._stuck is not None:
            await self._stuck
        if self.gone:
            raise ConnectionResetError("gone")
        self.frames.append(frame)
        self.written += len(frame)
        self._written.set()

    async def close(self, close: Close) -> None:
        if self._stuck is not None:
            await self._stuck
        if self.gone:
            raise ConnectionResetError("gone")
        self.closes.append(close.code)
        self._written.set()

    def progress(self) -> tuple[int, int]:
        return self.written, self.written - self.in_flight

    def abort(self) -> None:
        self.aborts += 1
        self._written.set()


class GatedStore:
    """A store whose reads wait at a gate while it is shut; the rest passes through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        await self._store.start(listener, hearer)

    async def close(self) -> None:
        await self._store.close()

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        self._store.append(channel, draft, history, done)

    def knows(self, channel: Channel) -> bool:
        return self._store.knows(channel)

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        if not self.gate.is_set():
            return None
        return self._store.peek(channel, history, since, limit)

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        page = await self._store.read(channel, history, since, limit, reverse=reverse)
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return page

    def follow(self, channel: Channel, history: History) -> None:
        self._store.follow(channel, history)

    def unfollow(self, channel: Channel) -> None:
        self._store.unfollow(channel)

    def told(self, batch: Sequence[Committed]) -> None:
        self._store.told(batch)

    def moved(self, channel: Channel, top: Position) -> None:
        self._store.moved(channel, top)

    async def remove(self, channel: Channel) -> None:
        await self._store.remove(channel)

    async def erase(self, info: str) -> int:
        return await self._store.erase(info)

    def fault(self) -> str | None:
        return self._store.fault()


class LoopWorld(World):
    """Connections on the event loop, with the SQLite store in memory."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        handlers: Handlers | None = None,
        *,
        insecure: bool = True,
    ) -> None:
        self.clock = clock
        # A clock of its own, so that all timers of *clock* are the connections'.
        self.store_clock = VirtualClock() if isinstance(clock, VirtualClock) else clock
        self.store = GatedStore(SqliteStore(settings.store, self.store_clock))
        self.tasks: set[asyncio.Task[None]] = set()
        call_soon = asyncio.get_running_loop().call_soon
        super().__init__(
            settings, clock, self.store, call_soon, handlers, insecure=insecure
        )

    async def start(self) -> None:
        await self.store.start(self.hub.committed, self.hub)

    async def stop(self) -> None:
        self.store.gate.set()
        for connection in self.registry:
            assert isinstance(connection, ClientConnection)
            connection.gone()
        await self.store.close()
        for task in tuple(self.tasks):
            task.cancel()
        await self.quiet()

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def open(self, codec: Codec = JSON) -> tuple[ClientConnection, FakeSocket]:
        socket = FakeSocket()
        return ClientConnection(
            self.context, socket, codec, PendingConnection("192.0.2.1")
        ), socket

    async def connect(
        self, *channels: str, codec: Codec = JSON
    ) -> tuple[ClientConnection, FakeSocket]:
        """Return a connection that has subscribed to *channels* with ids from 2."""
        write = commands if codec.binary else lines
        connection, socket = self.open(codec)
        connection.receive(write({"id": 1, "connect": {}}))
        await socket.reply(1)
        for number, channel in enumerate(channels, 2):
            connection.receive(write({"id": number, "subscribe": {"channel": channel}}))
            reply = await socket.reply(number)
            assert "error" not in reply
        return connection, socket

    async def publish(self, channel: str, size: int = 10, count: int = 1) -> None:
        """Publish *count* payloads of some *size* bytes, which name their channel."""
        data = RawJson(json.dumps({"ch": channel, "x": "x" * size}))
        rules = self.context.permissions.rules(channel)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = count

        def one(outcome: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)

        for _ in range(count):
            self.hub.publish(Channel(channel), Draft(data), rules.history, one)
        async with asyncio.timeout(PATIENCE):
            await done

    async def caught_up(
        self, socket: FakeSocket, condition: Callable[[], object]
    ) -> None:
        """Wait until *condition* holds; a catch-up takes time of the virtual clock."""
        assert isinstance(self.clock, VirtualClock)
        seen = -1
        async with asyncio.timeout(PATIENCE):
            while seen == socket.written or not condition():
                seen = socket.written
                if self.tasks:
                    await asyncio.wait(self.tasks)
                else:
                    self.clock.advance(SOONEST)
                await asyncio.sleep(0)

    async def quiet(self) -> None:
        """Wait until no task of ours is left and the loop has turned."""
        async with asyncio.timeout(PATIENCE):
            while self.tasks:
                await asyncio.wait(self.tasks)
        for _ in range(5):
            await asyncio.sleep(0)

    async def assert_free(self, connection: weakref.ref[ClientConnection]) -> None:
        """Check that nothing is left of connections that are gone."""
        await self.quiet()
        assert len(self.registry) == 0
        assert (self.channels, self.subscriptions) == (0, 0)
        if isinstance(self.clock, VirtualClock):
            assert self.clock.pending == []
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()
        gc.collect()
        assert connection() is None, gc.get_referrers(connection())


def lines(*commands: dict[str, Any]) -> str:
    return "\n".join(json.dumps(command) for command in commands)


def settings(
    client: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    channels: ChannelSettings | None = None,
) -> Settings:
    kept = ChannelOptions(history_size=1000, history_ttl=3600.0, force_recovery=True)
    return Settings(
        client=ClientSettings(**(client or {})),
        connections=ConnectionSettings(limit=1000, address_limit=1000),
        server=ServerSettings(**(server or {})),
        store=StoreSettings(path=":memory:"),
        channels=channels or ChannelSettings(without_namespace=kept),
    )
