"""Nodes (the server processes of a deployment): liveness, and notices of evictions.

A row also carries what others are to know of the node (`core.cluster`): figures, which
are written when it is renewed, and its feed.

Each node has a row that says until when it is alive, and renews it. Any node that finds
the time passed marks the row dead, unless it was renewed meanwhile, and then removes
the node's connections (`maintenance`). A node that finds its own row marked was away
for too long and has lost its connections' places. It registers under a new name and
admits its connections again (`directory`).

The clocks of nodes may differ by some seconds, which is little beside `timeout`. A
clock that is wrong by more takes living nodes for dead, or misses dead ones; the first
costs reconnects, and neither loses a publication.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.core.cluster import NOTICE_TTL
from service.core.model import ClientId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client, query_all
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.registry.records import NOTICE, key, number

__all__ = ["NodeRow", "Nodes"]

GRACE = 3600.0
"""Seconds for which a dead node is looked at again: requests that it sent before it was
marked have arrived by then, or never will."""

FRESH = 5.0  # s for which the list of dead nodes is used

_LIVING = "attribute_exists(pk) AND attribute_not_exists(dead)"


class NodeRow(NamedTuple):
    """A node, as stored.

    Attributes:
        name: Changes each time the node registers.
        until: When it counts as dead unless it renews, Unix milliseconds.
        dead: When it was marked dead, Unix milliseconds; None if it was not.
        figures: Of the server API's info, as JSON text.
        feed: The newest entries of its feed, as JSON text.
        broker: It tells others over a broker what it commits.
    """

    name: str
    until: int
    dead: int | None
    figures: str = ""
    feed: str = ""
    broker: bool = False


class Nodes:
    """All nodes of a deployment, of which this process is one.

    Args:
        client: Calls the table.
        clock: Tells which nodes are late.
        timeout: Seconds without renewal after which a node counts as dead.

    Attributes:
        name: The present name of this node.
        describe: Returns this node's figures, as JSON text; set by whoever knows them.
        broker: This process has a broker.
        on_read: Told of the rows of all others whenever they were read.
    """

    def __init__(self, client: Client, clock: Clock, timeout: float) -> None:
        self.name = ""
        self.describe: Callable[[], str] = str
        self.broker = False
        self.on_read: Callable[[Sequence[NodeRow]], None] = lambda rows: None
        self._former: dict[str, float] = {}  # names of before, until when they count
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._dead: frozenset[str] = frozenset()
        self._marked: set[str] = set()
        self._read_at = float("-inf")

    async def register(self) -> None:
        """Write a row for this node, under a new name.

        Raises:
            StoreError: The row may not be there.
        """
        name = uuid.uuid4().hex[:16]
        if not self.name:
            self.name = name  # the answer may be lost, and the row must not stay
        until = self._now() + round(self._timeout * 1000)
        await self._client.call(
            "put_item",
            {
                "TableName": self._client.table,
                "Item": {
                    **_key(name),
                    "until": number(until),
                    "figures": {"S": self.describe()},
                    "broker": {"BOOL": self.broker},
                },
            },
        )
        if self.name != name:
            self._former[self.name] = self._clock.now() + NOTICE_TTL
        self.name = name

    @property
    def names(self) -> tuple[str, ...]:
        """The present name, and those of the last `NOTICE_TTL` seconds."""
        now = self._clock.now()
        for name in [one for one, until in self._former.items() if until <= now]:
            del self._former[name]
        return (self.name, *self._former)

    async def renew(self) -> bool:
        """Say that this node is alive; False if it was marked dead.

        Raises:
            StoreError: It is not known whether the row was renewed.
        """
        until = self._now() + round(self._timeout * 1000)
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": _key(self.name),
                    "UpdateExpression": "SET #until = :until, figures = :figures",
                    "ConditionExpression": _LIVING,
                    "ExpressionAttributeNames": {"#until": "until"},
                    "ExpressionAttributeValues": {
                        ":until": number(until),
                        ":figures": {"S": self.describe()},
                    },
                },
            )
        except ConditionFailed:
            return False
        return True

    async def write_feed(self, feed: str) -> None:
        """Put this node's feed into its row; nothing happens if it is dead.

        Raises:
            StoreError: It is not known whether it is there.
        """
        request = {
            "TableName": self._client.table,
            "Key": _key(self.name),
            "UpdateExpression": "SET feed = :feed",
            "ConditionExpression": _LIVING,
            "ExpressionAttributeValues": {":feed": {"S": feed}},
        }
        with contextlib.suppress(ConditionFailed):  # the next heartbeat finds out
            await self._client.call("update_item", request)

    async def read(self, *, consistent: bool = True) -> list[NodeRow]:
        """Return all nodes that have a row, the dead ones included.

        Args:
            consistent: Whether every node is returned that registered before.

        Raises:
            StoreError: They cannot be read.
        """
        found = []
        async for item in query_all(self._client, "NODES", consistent=consistent):
            dead = item.get("dead")
            found.append(
                NodeRow(
                    item["sk"]["S"],
                    int(item["until"]["N"]),
                    None if dead is None else int(dead["N"]),
                    item["figures"]["S"] if "figures" in item else "",
                    item["feed"]["S"] if "feed" in item else "",
                    "broker" in item and item["broker"]["BOOL"],
                )
            )
        names = self.names
        self.on_read([node for node in found if node.name not in names])
        self._read_at = self._clock.now()
        now = self._now()
        self._marked = {node.name for node in found if node.dead is not None}
        self._dead = frozenset(
            node.name for node in found if node.dead is not None or node.until <= now
        )
        return found

    async def refresh(self) -> None:
        """Make sure that what `is_dead` knows is at most `FRESH` seconds old.

        Raises:
            StoreError: It is older.
        """
        if self._clock.now() - self._read_at >= FRESH:
            await self.read()

    def is_dead(self, name: str) -> bool:
        """Return whether a node was late or marked dead at the last `read`."""
        return name in self._dead

    def is_marked(self, name: str) -> bool:
        """Return whether a node was marked dead, which is for good.

        As of the last `read`, or marked by this process.
        """
        return name in self._marked

    async def mark_dead(self, node: NodeRow) -> bool:
        """Mark a late node dead; False if it has renewed its row meanwhile.

        Raises:
            StoreError: It is not known whether it is marked.
        """
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": _key(node.name),
                    "UpdateExpression": "SET dead = :now",
                    "ConditionExpression": (
                        "#until = :seen AND attribute_not_exists(dead)"
                    ),
                    "ExpressionAttributeNames": {"#until": "until"},
                    "ExpressionAttributeValues": {
                        ":now": number(self._now()),
                        ":seen": number(node.until),
                    },
                },
            )
        except ConditionFailed as failed:
            # An earlier attempt of this very call may have marked it.
            if not failed.repeated:
                return False
        self._marked.add(node.name)
        return True

    async def retire(self) -> None:
        """Mark this node dead, so that others remove the connections it leaves.

        Raises:
            StoreError: Others notice after `timeout`.
        """
        await self._client.call(
            "update_item",
            {
                "TableName": self._client.table,
                "Key": _key(self.name),
                "UpdateExpression": "SET dead = :now, #until = :now",
                "ExpressionAttributeNames": {"#until": "until"},
                "ExpressionAttributeValues": {":now": number(self._now())},
            },
        )

    async def delete(self, name: str) -> None:
        """Delete the row of a node.

        Raises:
            StoreError: It may still be there.
        """
        await self._client.call(
            "delete_item", {"TableName": self._client.table, "Key": _key(name)}
        )

    def is_finished(self, node: NodeRow) -> bool:
        """Return whether a node has been dead for so long that nothing can arrive."""
        grace = round(GRACE * 1000)
        return node.dead is not None and node.dead + grace <= self._now()

    # Notices

    async def notices(self, name: str) -> list[ClientId]:
        """Return the evicted connections that a node has to close.

        Raises:
            StoreError: They cannot be read.
        """
        return [
            ClientId(item["sk"]["S"].removeprefix(NOTICE))
            async for item in query_all(
                self._client, f"N#{name}", prefix=NOTICE, consistent=False
            )
        ]

    async def delete_notice(self, name: str, client: ClientId) -> None:
        """Delete a notice that was acted on. Safe to repeat.

        Raises:
            StoreError: It may still be there.
        """
        await self._client.call(
            "delete_item",
            {
                "TableName": self._client.table,
                "Key": key(f"N#{name}", NOTICE + client),
            },
        )

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def _key(name: str) -> Item:
    return key("NODES", name)
