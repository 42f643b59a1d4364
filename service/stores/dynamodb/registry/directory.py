"""The Directory port on a table: this process's part of the registry.

What has to be done for it while the process runs is in `upkeep`.

Invariants:

* A connection has an entry here from before its admission is asked for until it is
  known to be out. While it has one, what is left of it in the table is this process's;
  what has none is tidied away, or, when the process dies, swept by others.
* A leave that failed is owed: it is repeated at each beat until it is done.
* Where an admission and a leave of one connection meet, the leave is done last: both
  wait for the book, in the order in which they came.

At the bound: nothing here is longer than the connections of this process are many.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    TOO_MANY_REQUESTS_CLOSE,
    Close,
    StartupError,
    StoreError,
)
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Clock
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.registry.connections import Connections
from service.stores.dynamodb.registry.counter import Full, Slots
from service.stores.dynamodb.registry.limits import Limits, OverLimit
from service.stores.dynamodb.registry.maintenance import Maintenance
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.presence import Presence, Present
from service.stores.dynamodb.registry.records import Record, book_of
from service.stores.dynamodb.several import several

__all__ = ["DynamodbDirectory"]

CLOSING = 2.0  # s for connections that are leaving when the process ends

_log = structlog.get_logger(__name__)


class _Entry:
    """A connection of this process.

    Attributes:
        book: Of its user or address.
        node: This process's name when it was let in.
        record: None while it is being let in, or nobody knows whether it is.
        active: When it was last active, Unix milliseconds.
        written: The same, as the table may have it.
        channels: Where it is, and how it is seen there.
    """

    __slots__ = ("active", "book", "channels", "node", "record", "written")

    def __init__(self, book: str, node: str, now: int) -> None:
        self.book = book
        self.node = node
        self.record: Record | None = None
        self.active = now
        self.written = now
        self.channels: dict[Channel, tuple[UserId, RawJson]] = {}


class DynamodbDirectory:
    """Who is connected to all processes that share a table.

    Args:
        client: Of the table; closed by whoever made it, after this.
        settings: Of the table.
        limits: Of one user.
        clock: Of everything.
        chance: Spreads what many processes would do at once.
        active: When a client of this process was last active, on the clock; None when
            it is not known better than from `touch`.

    Attributes:
        buried: Connections of dead processes that this one has taken out.
        tidied: Records that were nobody's and that this one has deleted.
        corrected: Counts that this one has found wrong.
    """

    def __init__(
        self,
        client: Client,
        settings: DynamodbSettings,
        limits: Limits,
        clock: Clock,
        rng: random.Random | None = None,
        active: Callable[[ClientId], float | None] = lambda client: None,
    ) -> None:
        self.buried = 0
        self.tidied = 0
        self.corrected = 0
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._seen_active = active
        self._timeout = settings.timeout
        self._nodes = Nodes(client, clock, settings.node_timeout)
        self._slots = Slots(client, settings.client_limit, clock, self._rng)
        self._connections = Connections(
            client,
            self._slots,
            limits,
            clock,
            self._rng,
            timeout=settings.timeout,
            active=self._active,
            lost=self._nodes.lost,
        )
        self._presence = Presence(client, self._nodes, clock)
        self._sweep = Maintenance(
            client, self._connections, self._presence, self._nodes, self._slots, clock
        )
        self._entries: dict[ClientId, _Entry] = {}
        self._owed: set[ClientId] = set()
        self._displaced: set[ClientId] = set()
        self._touching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Enter this process.

        Raises:
            StartupError: The table does not take it.
        """
        try:
            await self._nodes.enter()
        except StoreError as error:
            raise StartupError(f"no connections can be entered: {error}") from error

    async def close(self) -> None:
        """Leave: what could not be taken out is left to others."""
        if self._touching is not None:
            self._touching.cancel()
            await asyncio.gather(self._touching, return_exceptions=True)
        deadline = self._clock.now() + CLOSING
        while self._entries and self._clock.now() < deadline:
            await asyncio.sleep(0.02)
        with suppress(StoreError):  # they find out by themselves
            if self._entries:
                await self._nodes.retire()
            else:
                await self._nodes.forget(self._nodes.name)

    # The port

    async def admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        """Enter a client of this process; see the port.

        Raises:
            StoreError: It is not known whether it is in; it is taken out.
        """
        entry = self._entries.get(client)
        if entry is not None and entry.record is not None:
            return []
        book = book_of(user, address)
        entry = _Entry(book, self._nodes.name, self._now())
        self._entries[client] = entry
        self._owed.discard(client)
        try:
            admitted = await self._connections.admit(book, client, entry.node)
        except Full:
            self._forget(client)
            return TOO_MANY_REQUESTS_CLOSE
        except OverLimit:
            self._forget(client)
            return CLOSE_CONNECTION_LIMIT
        except BaseException:
            self._owed.add(client)
            raise
        entry.record = admitted.record
        return [one.client for one in admitted.evicted]

    async def leave(self, client: ClientId) -> None:
        """Take a client out; see the port.

        Raises:
            StoreError: It is not known whether it is out; this is repeated by itself.
        """
        entry = self._entries.get(client)
        if entry is None:
            return
        self._owed.add(client)
        for channel in tuple(entry.channels):
            await self._presence.leave(client, channel)
            entry.channels.pop(channel, None)
        if entry.record is None:
            left = await self._connections.withdraw(entry.book, client, entry.node)
        else:
            left = await self._connections.leave(entry.record)
        if not left:
            await self._nodes.noticed(entry.node, client)
        if self._entries.get(client) is entry:
            self._forget(client)

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        """Say when clients were last active; see the port.

        Returns when it is written, or after the time that one call may take: then it
        is still being written.
        """
        due = []
        for client, at in clients.items():
            entry = self._entries.get(client)
            if entry is not None and entry.record is not None:
                entry.active = max(entry.active, int(at * 1000))
                if entry.active > entry.written:
                    due.append((client, entry, entry.record))
        if self._touching is None or self._touching.done():
            self._touching = asyncio.create_task(self._touch_all(due))
        await asyncio.wait([self._touching], timeout=self._timeout)
        if self._touching.done():
            self._touching.result()

    async def evictions(self) -> list[ClientId]:
        """Return clients of this process that lost their place; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        if not self._entries:
            return []
        name = self._nodes.name
        noticed = await self._nodes.notices(name)
        strangers = [client for client in noticed if client not in self._entries]
        await several(self._nodes.noticed(name, client) for client in strangers)
        self._displaced.update(noticed)
        self._displaced &= self._entries.keys()
        return list(self._displaced)

    # Presence

    async def subscribe(
        self, client: ClientId, channel: Channel, user: UserId, info: RawJson
    ) -> bool:
        """Put a client of this process into a channel; False if it is not here.

        Raises:
            StoreError: It is not known whether others see it; `unsubscribe` it.
        """
        entry = self._entries.get(client)
        if entry is None or entry.record is None or client in self._owed:
            return False
        entry.channels[channel] = (user, info)
        await self._presence.enter(entry.record, channel, user, info)
        return True

    async def unsubscribe(self, client: ClientId, channel: Channel) -> None:
        """Take a client out of a channel. Safe to repeat.

        Raises:
            StoreError: It may still be there; it goes with its client.
        """
        await self._presence.leave(client, channel)
        entry = self._entries.get(client)
        if entry is not None:
            entry.channels.pop(channel, None)

    async def present(self, channel: Channel) -> list[Present]:
        """Return who is in a channel, in all processes.

        Raises:
            StoreError: It cannot be read.
        """
        return await self._presence.present(channel)

    async def total(self) -> int:
        """Return how many are connected to all processes.

        Raises:
            StoreError: It cannot be read.
        """
        return sum(count.number for count in await self._slots.counts())

    # Upkeep

    async def beat(self) -> None:
        """Say that this process is alive, and take out who is owed.

        Raises:
            StoreError: Something is left for the next time.
        """
        if not await self._nodes.renew():
            _log.warning("taken for dead", node=self._nodes.name)
            await self._nodes.enter()
        name = self._nodes.name
        again = [c for c, entry in self._entries.items() if entry.node != name]
        await several(self._enter_again(client) for client in again)
        await several(self.leave(client) for client in tuple(self._owed))

    async def bury(self) -> None:
        """Take out the connections of dead processes.

        Raises:
            StoreError: Some are left for the next time.
        """
        buried = await self._sweep.bury()
        if buried:
            self.buried += buried
            _log.info("took out connections of dead processes", count=buried)

    async def tidy(self) -> None:
        """Take out what this process has in the table and not here.

        Raises:
            StoreError: Something is left for the next time.
        """
        self.tidied += await self._sweep.tidy(self._entries.__contains__)

    async def recount_when_due(self) -> None:
        """Recount if nobody has for a day.

        Raises:
            StoreError: It was not done; it is due again in a day.
        """
        if await self._sweep.claim_recount():
            await self.recount()

    async def recount(self) -> int:
        """Compare the counts with what is there; return how many were wrong.

        Raises:
            StoreError: Some may be wrong yet.
        """
        corrected = await self._sweep.recount()
        if corrected:
            self.corrected += corrected
            _log.warning("corrected counts of connections", count=corrected)
        return corrected

    async def _enter_again(self, client: ClientId) -> None:
        """Let a connection in again, since this process was taken for dead."""
        entry = self._entries.get(client)
        if entry is None or entry.record is None or client in self._owed:
            return
        name = self._nodes.name
        try:
            admitted = await self._connections.admit(entry.book, client, name)
        except (Full, OverLimit):
            self._displaced.add(client)
            return
        if self._entries.get(client) is not entry or client in self._owed:
            await self._connections.leave(admitted.record)  # it left meanwhile
            return
        entry.node, entry.record = name, admitted.record
        for channel, (user, info) in tuple(entry.channels.items()):
            await self._presence.enter(admitted.record, channel, user, info)

    async def _touch_all(self, due: list[tuple[ClientId, _Entry, Record]]) -> None:
        await several(self._touch(*each) for each in due)

    async def _touch(self, client: ClientId, entry: _Entry, record: Record) -> None:
        active = entry.active
        try:
            there = await self._connections.touch(record, active)
        except StoreError:
            return  # again in a minute
        if there:
            entry.written = active
        elif entry.record is record:
            self._displaced.add(client)

    def _active(self, client: ClientId) -> int | None:
        entry = self._entries.get(client)
        if entry is None:
            return None
        seen = self._seen_active(client)
        if seen is not None:
            ago = self._clock.now() - seen
            entry.active = max(entry.active, self._now() - int(ago * 1000))
        return entry.active

    def _forget(self, client: ClientId) -> None:
        self._entries.pop(client, None)
        self._owed.discard(client)
        self._displaced.discard(client)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)
