"""Nodes of a deployment on a table in memory, whose calls wait or fail when told."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import replace
from typing import Any

from service.connections.cluster_calls import ClusterCalls
from service.connections.cluster_presence import FLUSH, ClusterPresence
from service.core.cluster import (
    Answer,
    Changes,
    Node,
    Notice,
    PresenceKey,
    PresenceRow,
)
from service.core.errors import StoreUnavailable
from service.core.model import Channel
from service.hub.announcements import WINDOW
from service.settings import Settings
from tests.clock import VirtualClock
from tests.world.script import NOT_KEPT, A, ScriptedMember, ScriptedStore, Seat
from tests.world.world import World

__all__ = ["Deployment", "NodeWorld"]


class Deployment:
    """A table of nodes.

    Attributes:
        held: Operations that wait until the future is done, by name.
        failing: Operations that fail, by name.
        calls: How often each was called.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.nodes: dict[str, Node] = {}
        self.rows: dict[PresenceKey, PresenceRow] = {}
        self.tasks: defaultdict[str, dict[str, Notice]] = defaultdict(dict)
        self.replies: defaultdict[str, list[Answer]] = defaultdict(list)
        self.held: dict[str, asyncio.Future[None]] = {}
        self.failing: set[str] = set()
        self.calls: defaultdict[str, int] = defaultdict(int)

    def hold(self, operation: str) -> asyncio.Future[None]:
        """Let an operation wait: what it reads is read before, what it writes after."""
        self.held[operation] = asyncio.get_running_loop().create_future()
        return self.held[operation]

    def mark_dead(self, name: str) -> None:
        self.nodes[name] = replace(self.nodes[name], dead=True)

    def clean(self, name: str) -> None:
        """Delete the rows of a dead node, as any of the others does."""
        for key in [key for key, row in self.rows.items() if row.node == name]:
            del self.rows[key]


class MemoryCluster:
    """The port, for one node."""

    def __init__(self, table: Deployment, name: str) -> None:
        self.name = name
        self.names: Collection[str] = (name,)
        self._table = table
        table.nodes[name] = Node(name)

    def rename(self, name: str) -> None:
        self.names = (name, *self.names)
        self.name = name
        self._table.nodes[name] = Node(name)

    async def _call(self, operation: str) -> None:
        self._table.calls[operation] += 1
        if operation in self._table.failing:
            raise StoreUnavailable("as told")
        if operation in self._table.held:
            await self._table.held[operation]

    async def nodes(self) -> Sequence[Node]:
        await self._call("nodes")
        return [n for n in self._table.nodes.values() if n.name not in self.names]

    async def tell(self, feed: Sequence[Changes]) -> None:
        await self._call("tell")
        node = self._table.nodes[self.name]
        self._table.nodes[self.name] = replace(node, feed=feed)

    async def enter(self, rows: Sequence[PresenceRow]) -> None:
        await self._call("enter")
        self._table.rows.update({row.key: row for row in rows})

    async def leave(self, keys: Sequence[PresenceKey]) -> None:
        await self._call("leave")
        for key in keys:
            self._table.rows.pop(key, None)

    async def present(self, channel: Channel) -> Sequence[PresenceRow]:
        found = [
            row
            for row in self._table.rows.values()
            if row.channel == channel and not self._table.nodes[row.node].dead
        ]
        await self._call("present")
        return found

    async def send(self, notice: Notice) -> Collection[str]:
        await self._call("send")
        others = [name for name in self._table.nodes if name not in self.names]
        for name in others:
            self._table.tasks[name][notice.id] = notice
        return [name for name in others if not self._table.nodes[name].dead]

    async def notices(self) -> Sequence[Notice]:
        await self._call("notices")
        return sorted(
            notice for name in self.names for notice in self._table.tasks[name].values()
        )

    async def settle(self, ids: Collection[str]) -> None:
        await self._call("settle")
        for name in self.names:
            for each in ids:
                self._table.tasks[name].pop(each, None)

    async def answer(self, notice: Notice, parts: Sequence[str]) -> None:
        await self._call("answer")
        for index, body in enumerate(parts):
            reply = Answer(self.name, index, len(parts), body)
            self._table.replies[notice.id].append(reply)

    async def answers(self, notice: Notice) -> Sequence[Answer]:
        await self._call("answers")
        return list(self._table.replies[notice.id])

    async def forget_answers(self, notice: Notice) -> None:
        await self._call("forget_answers")
        self._table.replies.pop(notice.id, None)


class NodeWorld(World):
    """One node, with members of its hub.

    Args:
        table: The deployment.
        name: Of the node.
    """

    def __init__(self, table: Deployment, name: str) -> None:
        self._tasks: set[asyncio.Future[None]] = set()
        clock, self._clock = table.clock, table.clock
        super().__init__(Settings(), clock, ScriptedStore(in_memory=True), self._never)
        self.cluster = MemoryCluster(table, name)
        self.presence = ClusterPresence(self.hub, self.cluster, clock, self.spawn)
        self.calls = ClusterCalls(self.cluster, clock, self.spawn)
        self.hub.sharing = self.presence

    @staticmethod
    def _never(step: Any) -> None:
        raise AssertionError("no connection is open")

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def join(self, client: str, user: str, channel: Channel = A) -> Seat:
        """Let a client of this node join, seen and told of all."""
        size = self.settings.client.recovery_size
        member = ScriptedMember(self.hub, size, client, user)
        return member.join(
            channel,
            history=NOT_KEPT,
            present=True,
            sends_join_leave=True,
            receives_join_leave=True,
        )

    def leave(self, seat: Seat) -> None:
        seat.ended = True
        self.hub.leave(seat.subscription)

    def lose(self, seat: Seat) -> None:
        """Lose the connection of a client, whose user may come back."""
        seat.ended = True
        assert self.hub.begin_grace(seat.subscription)
        subscriber = seat.subscription.subscriber
        self.grace_period.begin(subscriber.user, subscriber.client, [seat.subscription])

    def seen(self, channel: Channel = A) -> list[str]:
        return sorted(one.client for one in self.hub.present(channel))

    async def turn(self) -> None:
        """Let what goes on go on, until it waits for something else."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what has changed."""
        self._clock.advance(FLUSH)
        await self.turn()

    async def look(self) -> None:
        """Look at the others, and tell the listeners what that brings."""
        self.spawn(self.presence.look_at_nodes())
        await self.turn()
        self._clock.advance(WINDOW)
        await self.turn()
