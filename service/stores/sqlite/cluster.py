"""The Cluster and Directory ports on SQLite, for processes that share a file.

Every process here has the same clock and the same disk, so a node is known dead soon,
`NODE_TIMEOUT` after its last heartbeat, and reads cost next to nothing: they are made
several times a second, without a hint.

Invariants:

* A connection has an entry here from before its admission is requested until it is
  known to have left. The calls for one connection reach the database in their order:
  one thread makes them.
* A leave that failed is repeated at each heartbeat until it succeeds.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from service.core.clock import sleep
from service.core.cluster import (
    NOTICE_TTL,
    Answer,
    Changes,
    Node,
    Notice,
    PresenceKey,
    PresenceRow,
)
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    TOO_MANY_REQUESTS_CLOSE,
    Close,
    StartupError,
    StoreError,
    describe,
)
from service.core.model import Channel, ClientId, UserId
from service.core.ports import Clock
from service.stores.sqlite.cluster_table import ClusterTable, SlotRequest

__all__ = [
    "SharedLimits",
    "SqliteCluster",
    "SqliteDirectory",
    "SqliteUpkeep",
    "open_upkeep",
]

NODE_TIMEOUT = 15.0
"""Seconds without a heartbeat after which a process counts as dead. A process whose
event loop stands still for longer is taken for dead, and registers anew."""

HEARTBEAT = NODE_TIMEOUT / 4  # s
CLOSING = 2.0  # s for connections that are leaving when the process ends
WAIT = 0.02  # s

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class OnThread(Protocol):
    """Call *run* with the tables on a thread of the store; raises `StoreError`."""

    def __call__(self, run: Callable[[ClusterTable], T]) -> Coroutine[Any, Any, T]: ...


class SharedLimits(NamedTuple):
    """Limits over all processes of a file.

    Attributes:
        total: Connections of all.
        user: Connections of one user.
        address: Connections of one address without a user.
        evict: At the limit of a user, the least recently active makes room.
        age: Seconds after which a connection stops to count.
    """

    total: int
    user: int
    address: int
    evict: bool
    age: float


class SqliteCluster:
    """The nodes of a file.

    Args:
        clock: Tells what has expired.
        write: Runs what changes something, on the writer's thread.
        read: Runs what only reads.

    Attributes:
        name: The present name of this node.
        describe: Returns this node's figures, as JSON text.
    """

    def __init__(self, clock: Clock, *, write: OnThread, read: OnThread) -> None:
        self.name = ""
        self.describe: Callable[[], str] = str
        self._former: dict[str, float] = {}
        self._clock = clock
        self._write = write
        self._read = read

    @property
    def names(self) -> Collection[str]:
        """Its names that still count; see the port."""
        now = self._clock.now()
        for name in [one for one, until in self._former.items() if until <= now]:
            del self._former[name]
        return (self.name, *self._former)

    async def register(self) -> None:
        """Enter under a new name.

        Raises:
            StoreError: The row may not be there.
        """
        name, until = uuid.uuid4().hex[:16], self._until()
        figures = self.describe()
        await self._write(lambda table: table.register(name, until, figures))
        if self.name:
            self._former[self.name] = self._clock.now() + NOTICE_TTL
        self.name = name

    async def renew(self) -> bool:
        """Say that this node lives; False if it was marked dead.

        Raises:
            StoreError: It is not known.
        """
        name, until, figures = self.name, self._until(), self.describe()
        return await self._write(lambda table: table.renew(name, until, figures))

    async def retire(self) -> None:
        """Delete what this node has, and its row.

        Raises:
            StoreError: Others do so when it is late.
        """
        name, now = self.name, self._now()
        await self._write(lambda table: table.leave_all(name, now))

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes but this one; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        now = self._now()
        if await self._read(lambda table: table.late(now)):
            count = await self._write(lambda table: table.reap(now))
            if count:
                _log.info("removed what dead processes had", count=count)
        names = self.names
        return [
            Node(each.name, each.dead, each.figures, _feed_of(each.feed))
            for each in await self._read(lambda table: table.nodes())
            if each.name not in names
        ]

    async def tell(self, feed: Sequence[Changes]) -> None:
        """Put this node's feed into its row; see the port.

        Raises:
            StoreError: It may be there.
        """
        name, text = self.name, msgspec.json.encode(feed).decode()
        await self._write(lambda table: table.tell(name, text))

    async def enter(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows of this node; see the port.

        Raises:
            StoreError: They may be written.
        """
        await self._write(lambda table: table.enter(rows))

    async def leave(self, keys: Sequence[PresenceKey]) -> None:
        """Delete rows of this node; see the port.

        Raises:
            StoreError: They may be deleted.
        """
        await self._write(lambda table: table.remove(keys))

    async def present(self, channel: Channel) -> Sequence[PresenceRow]:
        """Return the rows of a channel; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        return await self._read(lambda table: table.present(channel))

    async def send(self, notice: Notice) -> Collection[str]:
        """Leave a notice for every other node; see the port.

        Raises:
            StoreError: Some may have it.
        """
        names, expires = self.names, self._now() + round(1000 * NOTICE_TTL)
        return await self._write(lambda table: table.send(notice, names, expires))

    async def notices(self) -> Sequence[Notice]:
        """Return the notices that were left for this node; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        names, now = self.names, self._now()
        return await self._read(lambda table: table.notices(names, now))

    async def settle(self, ids: Collection[str]) -> None:
        """Delete notices of this node; see the port.

        Raises:
            StoreError: Some may still be there.
        """
        names = self.names
        await self._write(lambda table: table.settle(names, ids))

    async def answer(self, notice: Notice, parts: Sequence[str]) -> None:
        """Answer a notice; see the port.

        Raises:
            StoreError: The answer may not be there.
        """
        name, expires = self.name, self._now() + round(1000 * NOTICE_TTL)
        await self._write(lambda table: table.answer(notice.id, name, parts, expires))

    async def answers(self, notice: Notice) -> Sequence[Answer]:
        """Return the answers to a notice; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        return await self._read(lambda table: table.answers(notice.id))

    async def forget_answers(self, notice: Notice) -> None:
        """Delete the answers to a notice; see the port.

        Raises:
            StoreError: They may still be there; they expire.
        """
        await self._write(lambda table: table.forget_answers(notice.id))

    def _until(self) -> int:
        return self._now() + round(1000 * NODE_TIMEOUT)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


class SqliteDirectory:
    """The connections of all processes of a file (`ports.Directory`).

    Args:
        cluster: Its nodes, of which this process is one.
        limits: Over all.
        clock: Tells all times.
        active: Returns when a client of this process was last active, by the clock.
        write: Runs what changes something, on the writer's thread.
        read: Runs what only reads.
    """

    def __init__(
        self,
        cluster: SqliteCluster,
        limits: SharedLimits,
        clock: Clock,
        active: Callable[[ClientId], float | None],
        *,
        write: OnThread,
        read: OnThread,
    ) -> None:
        self._cluster = cluster
        self._limits = limits
        self._clock = clock
        self._active = active
        self._write = write
        self._read = read
        self._entries: dict[ClientId, tuple[UserId, str]] = {}  # and the address
        self._leaving: set[ClientId] = set()  # until the leave has succeeded
        self._evicted: set[ClientId] = set()  # until they leave
        self._written: dict[ClientId, int] = {}  # activity, as the table has it

    def __len__(self) -> int:
        return len(self._entries)

    async def admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        """Admit a client of this process; see the port.

        Raises:
            StoreError: It is not known whether it was admitted; let it leave.
        """
        if client in self._entries and client not in self._leaving:
            return []
        self._entries[client] = user, address
        self._leaving.discard(client)
        try:
            answer = await self._admit(user, client, address)
        except BaseException:
            self._leaving.add(client)
            raise
        if isinstance(answer, Close):
            self._forget(client)
        return answer

    async def _admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        limits, now = self._limits, self._now()
        request = SlotRequest(
            client,
            self._cluster.name,
            f"U#{user}" if user else f"A#{address}",
            limits.user if user else limits.address,
            limits.total,
            limits.evict and bool(user),
            now,
            now + round(1000 * limits.age),
            self._activity(),
        )
        outcome = await self._write(lambda table: table.admit(request))
        if outcome.refused:
            owner = outcome.refused == "owner"
            return CLOSE_CONNECTION_LIMIT if owner else TOO_MANY_REQUESTS_CLOSE
        return list(outcome.evicted)

    async def leave(self, client: ClientId) -> None:
        """Free a client's slot; see the port.

        Raises:
            StoreError: It may not be free yet; the next heartbeats repeat it.
        """
        if client not in self._entries:
            return
        self._leaving.add(client)
        await self._write(lambda table: table.leave(client))
        if client in self._leaving:
            self._forget(client)

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        """Record when clients were last active; see the port.

        Raises:
            StoreError: It is not known whether it was written.
        """
        due = {
            client: int(at * 1000)
            for client, at in clients.items()
            if client in self._entries and int(at * 1000) != self._written.get(client)
        }
        if due:
            await self._write(lambda table: table.touch(due))
            self._written.update(due)

    async def evictions(self) -> list[ClientId]:
        """Return the evicted clients of this process; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        names = self._cluster.names
        found = await self._read(lambda table: table.evictions(names))
        gone = [client for client in found if client not in self._entries]
        if gone:
            await self._write(lambda table: table.forget_evictions(gone))
        self._evicted.update(found)
        self._evicted &= self._entries.keys()
        return list(self._evicted)

    async def total(self) -> int:
        """Return how many connections all processes have.

        Raises:
            StoreError: They cannot be counted.
        """
        return await self._read(lambda table: table.count())

    async def repeat_leaves(self) -> None:
        """Repeat the leaves that have failed.

        Raises:
            StoreError: Some are left.
        """
        for client in tuple(self._leaving):
            await self.leave(client)

    async def admit_again(self) -> None:
        """Admit all clients as if they came now: this node was taken for dead.

        Raises:
            StoreError: Some are not admitted.
        """
        for client, (user, address) in tuple(self._entries.items()):
            if client not in self._leaving:
                answer = await self._admit(user, client, address)
                if isinstance(answer, Close) and client in self._entries:
                    self._evicted.add(client)

    def _activity(self) -> dict[ClientId, int]:
        offset = self._clock.wall() - self._clock.now()
        found = {client: self._active(client) for client in self._entries}
        return {
            client: int((at + offset) * 1000)
            for client, at in found.items()
            if at is not None
        }

    def _forget(self, client: ClientId) -> None:
        self._entries.pop(client, None)
        self._written.pop(client, None)
        self._leaving.discard(client)
        self._evicted.discard(client)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def open_upkeep(
    limits: SharedLimits,
    clock: Clock,
    active: Callable[[ClientId], float | None],
    *,
    write: OnThread,
    read: OnThread,
) -> SqliteUpkeep:
    """Return what keeps a process known to the others of its file, not started."""
    cluster = SqliteCluster(clock, write=write, read=read)
    directory = SqliteDirectory(cluster, limits, clock, active, write=write, read=read)
    return SqliteUpkeep(cluster, directory, clock)


class SqliteUpkeep:
    """Keeps this process known to the others that share the file.

    Args:
        cluster: The nodes.
        directory: The connections of all.
        clock: Times the heartbeats.

    Attributes:
        cluster: The same.
        directory: The same.
        period: Seconds between two looks at what others have left for this process.
    """

    period: Final = 0.25

    def __init__(
        self, cluster: SqliteCluster, directory: SqliteDirectory, clock: Clock
    ) -> None:
        self.cluster = cluster
        self.directory = directory
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._again = False

    def describe_by(self, figures: Callable[[], str]) -> None:
        """Take this node's figures from *figures*, as JSON text."""
        self.cluster.describe = figures

    async def start(self) -> None:
        """Register the process, and begin.

        Raises:
            StartupError: The file cannot be written.
        """
        try:
            await self.cluster.register()
        except StoreError as error:
            raise StartupError(f"this process cannot be registered: {error}") from error
        self._task = asyncio.create_task(self._keep_alive())

    async def close(self) -> None:
        """Leave the deployment. Safe to call twice, and if `start` failed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._closed or not self.cluster.name:
            return
        self._closed = True
        for _ in range(round(CLOSING / WAIT)):
            if not len(self.directory):
                break
            await asyncio.sleep(WAIT)
        with suppress(StoreError):  # others notice when it is late
            await self.cluster.retire()

    async def heartbeat(self) -> None:
        """Say that this node lives, and repeat what failed.

        Raises:
            StoreError: Something is left for the next heartbeat.
        """
        if not await self.cluster.renew():
            _log.warning("this process was taken for dead", node=self.cluster.name)
            await self.cluster.register()
            self._again = True
        if self._again:
            await self.directory.admit_again()
            self._again = False
        await self.directory.repeat_leaves()

    async def _keep_alive(self) -> None:
        while True:
            await sleep(self._clock, HEARTBEAT)
            try:
                await self.heartbeat()
            except StoreError as error:
                _log.info("a heartbeat has to wait", reason=str(error))
            except Exception as error:
                _log.error("a heartbeat failed", **describe(error))


def _feed_of(text: str) -> Sequence[Changes]:
    return msgspec.json.decode(text, type=tuple[Changes, ...]) if text else ()
