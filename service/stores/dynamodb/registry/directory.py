"""The Directory port on a table: the connections of this process in the registry.

`maintenance` does what the registry needs while the process runs.

Invariants:

* A connection has an entry here from before its admission is requested until it is
  known to have left. Records of this node without an entry are orphans, which
  `maintenance` deletes; if this process dies, other nodes delete all its records.
* A leave that failed is repeated at each heartbeat until it succeeds.
* Where an admission and a leave of one connection meet, the leave is done last: both
  wait for the lock of the owner, in the order of the calls.

Nothing here is longer than this process has connections.
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
from service.core.model import ClientId, UserId
from service.core.ports import Clock
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client, gather_limited
from service.stores.dynamodb.registry.connections import (
    AdmissionLimits,
    Connections,
    OverLimit,
)
from service.stores.dynamodb.registry.counter import ConnectionCounter, CounterFull
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.presence import Presence
from service.stores.dynamodb.registry.records import ConnectionRecord, owner_of

__all__ = ["SETTLED", "DynamodbDirectory"]

CLOSING = 2.0  # s for connections that are leaving when the process ends

SETTLED = 15.0  # s after which an admission cannot arrive any more

_log = structlog.get_logger(__name__)


class _Entry:
    """A connection of this process.

    Attributes:
        owner: Partition key of its user or address.
        node: The name of this node when it was admitted.
        record: None while it is being admitted, or if the outcome is unknown.
        active: When it was last active, Unix milliseconds.
        written: The same, as the table may have it.
    """

    __slots__ = ("active", "node", "owner", "record", "written")

    def __init__(self, owner: str, node: str, now: int) -> None:
        self.owner = owner
        self.node = node
        self.record: ConnectionRecord | None = None
        self.active = now
        self.written = now


class DynamodbDirectory:
    """The connections of all processes that share a table.

    Args:
        client: Calls the table; closed by its maker, after this.
        settings: The table's.
        limits: Of one user or address.
        clock: Tells all times.
        rng: Spreads what many processes would do at once.
        active: Returns when a client of this process was last active, by the clock;
            None if `touch` knows it as well.

    Attributes:
        nodes: All nodes.
        counter: Counts all connections.
        connections: Their records.
        presence: The subscribers that others may see.
    """

    def __init__(
        self,
        client: Client,
        settings: DynamodbSettings,
        limits: AdmissionLimits,
        clock: Clock,
        rng: random.Random | None = None,
        active: Callable[[ClientId], float | None] = lambda client: None,
    ) -> None:
        rng = rng or random.SystemRandom()
        self.nodes = Nodes(client, clock, settings.node_timeout)
        self.counter = ConnectionCounter(client, settings.client_limit, clock, rng)
        self.connections = Connections(
            client,
            self.counter,
            limits,
            clock,
            rng,
            timeout=settings.timeout,
            active=self._active,
            is_dead=self.nodes.is_dead,
        )
        self.presence = Presence(client, clock, limits.age)
        self._clock = clock
        self._seen_active = active
        self._timeout = settings.timeout
        self._entries: dict[ClientId, _Entry] = {}
        self._leaving: set[ClientId] = set()  # until the leave has succeeded
        self._evicted: set[ClientId] = set()  # until they leave
        self._touching: asyncio.Task[None] | None = None
        self._unsettled = float("-inf")  # until then an admission may arrive

    async def start(self) -> None:
        """Register this process as a node.

        Raises:
            StartupError: The table cannot be written.
        """
        try:
            await self.nodes.register()
        except StoreError as error:
            raise StartupError(f"this server cannot be registered: {error}") from error

    async def close(self) -> None:
        """Leave the deployment; other nodes delete the records that are left.

        Harmless when `start` was not called or has failed.
        """
        if not self.nodes.name:
            return
        if self._touching is not None:
            self._touching.cancel()
            await asyncio.gather(self._touching, return_exceptions=True)
        deadline = self._clock.now() + CLOSING
        while self._entries and self._clock.now() < deadline:
            await asyncio.sleep(0.02)
        with suppress(StoreError):  # others notice after the node's timeout
            left = self._entries or self._clock.now() < self._unsettled
            if left or await self.presence.has_rows(self.nodes.name):
                await self.nodes.retire()
            else:
                await self.nodes.delete(self.nodes.name)

    # The port

    async def admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        """Admit a client of this process; see the port.

        Raises:
            StoreError: It is not known whether it was admitted; it is removed again.
        """
        entry = self._entries.get(client)
        if entry is not None and entry.record is not None:
            return []
        owner = owner_of(user, address)
        entry = _Entry(owner, self.nodes.name, self._now())
        self._entries[client] = entry
        self._leaving.discard(client)
        try:
            admitted = await self.connections.admit(owner, client, entry.node)
        except CounterFull:
            self._forget(client)
            return TOO_MANY_REQUESTS_CLOSE
        except OverLimit:
            self._forget(client)
            return CLOSE_CONNECTION_LIMIT
        except BaseException:
            self._leaving.add(client)
            self._unsettled = self._clock.now() + SETTLED
            raise
        entry.record = admitted.record
        return [one.client for one in admitted.evicted]

    async def leave(self, client: ClientId) -> None:
        """Remove a client; see the port.

        Raises:
            StoreError: It may not be removed yet; the next heartbeats repeat it.
        """
        entry = self._entries.get(client)
        if entry is None:
            return
        self._leaving.add(client)
        if entry.record is None:
            left = await self.connections.withdraw(entry.owner, client, entry.node)
        else:
            left = await self.connections.leave(entry.record)
        if not left:
            await self.nodes.delete_notice(entry.node, client)
        if self._entries.get(client) is entry:
            self._forget(client)

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        """Record when clients were last active; see the port.

        Returns when it is written, or after the time that one call may take; then it
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
        """Return the evicted clients of this process; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        if not self._entries:
            return []
        name = self.nodes.name
        evicted = await self.nodes.notices(name)
        gone = [client for client in evicted if client not in self._entries]
        await gather_limited(self.nodes.delete_notice(name, client) for client in gone)
        self._evicted.update(evicted)
        self._evicted &= self._entries.keys()
        return list(self._evicted)

    async def total(self) -> int:
        """Return how many connections all processes have.

        Raises:
            StoreError: They cannot be counted.
        """
        return sum(count.number for count in await self.counter.read())

    # For maintenance

    async def heartbeat(self) -> None:
        """Say that this node is alive, and repeat the leaves that failed.

        If the node was marked dead meanwhile, register it under a new name, and admit
        its connections again, under the limits, as if they connected now.

        Raises:
            StoreError: Something is left for the next heartbeat.
        """
        if not await self.nodes.renew():
            _log.warning("this node was taken for dead", node=self.nodes.name)
            await self.nodes.register()
        name = self.nodes.name
        again = [c for c, entry in self._entries.items() if entry.node != name]
        await gather_limited(self._admit_again(client) for client in again)
        await gather_limited(self.leave(client) for client in tuple(self._leaving))

    def has(self, client: ClientId) -> bool:
        """Return whether a client is connected to this process, or may be admitted."""
        return client in self._entries

    async def _admit_again(self, client: ClientId) -> None:
        entry = self._entries.get(client)
        if entry is None or entry.record is None or client in self._leaving:
            return
        name = self.nodes.name
        try:
            admitted = await self.connections.admit(entry.owner, client, name)
        except (CounterFull, OverLimit):
            self._evicted.add(client)
            return
        if self._entries.get(client) is not entry or client in self._leaving:
            await self.connections.leave(admitted.record)  # it left meanwhile
            return
        entry.node, entry.record = name, admitted.record

    async def _touch_all(
        self, due: list[tuple[ClientId, _Entry, ConnectionRecord]]
    ) -> None:
        await gather_limited(self._touch(*each) for each in due)

    async def _touch(
        self, client: ClientId, entry: _Entry, record: ConnectionRecord
    ) -> None:
        active = entry.active
        try:
            present = await self.connections.touch(record, active)
        except StoreError:
            return  # again in a minute
        if present:
            entry.written = active
        elif entry.record is record:
            self._evicted.add(client)

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
        self._leaving.discard(client)
        self._evicted.discard(client)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)
