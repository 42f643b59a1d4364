"""The Cluster port on a table: rows of nodes, presence, notices and their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence

import msgspec

from service.core.cluster import (
    NOTICE_TTL,
    Answer,
    Changes,
    Node,
    Notice,
    PresenceKey,
    PresenceRow,
)
from service.core.model import Channel
from service.core.ports import Clock
from service.stores.dynamodb.batches import write_batches
from service.stores.dynamodb.client import Client, query_all
from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.registry.nodes import NodeRow, Nodes
from service.stores.dynamodb.registry.presence import Presence
from service.stores.dynamodb.registry.records import ANSWER, TASK, key, number

__all__ = ["DynamodbCluster"]


class DynamodbCluster:
    """The nodes of a table.

    Args:
        client: Calls the table.
        nodes: All nodes, of which this process is one.
        presence: The subscribers of all nodes.
        clock: Dates what is kept.
    """

    def __init__(
        self, client: Client, nodes: Nodes, presence: Presence, clock: Clock
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._presence = presence
        self._clock = clock

    @property
    def name(self) -> str:
        """The present name of this node."""
        return self._nodes.name

    @property
    def names(self) -> Collection[str]:
        """Its names that still count; see the port."""
        return self._nodes.names

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes but this one; see the port.

        Raises:
            StoreError: They cannot be read, or it is not known who is marked.
        """
        found = []
        for row in await self._nodes.read(consistent=False):
            if row.name not in self.names:
                dead = row.dead is not None or await self._is_dead(row)
                found.append(Node(row.name, dead, row.figures, _feed_of(row.feed)))
        return found

    async def tell(self, feed: Sequence[Changes]) -> None:
        """Put this node's feed into its row; see the port.

        Raises:
            StoreError: It may be there.
        """
        await self._nodes.write_feed(msgspec.json.encode(feed).decode())

    # Presence

    async def enter(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows of this node; see the port.

        Raises:
            StoreError: They may be written.
        """
        await self._presence.enter(rows)

    async def leave(self, keys: Sequence[PresenceKey]) -> None:
        """Delete rows of this node; see the port.

        Raises:
            StoreError: They may be deleted.
        """
        await self._presence.leave(self.name, keys)

    async def present(self, channel: Channel) -> Sequence[PresenceRow]:
        """Return the rows of a channel; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        await self._nodes.refresh()
        found = await self._presence.present(channel)
        return [row for row in found if not self._nodes.is_marked(row.node)]

    # Notices

    async def send(self, notice: Notice) -> Collection[str]:
        """Leave a notice for every other node; see the port.

        Raises:
            StoreError: Some may have it.
        """
        now = int(self._clock.wall() * 1000)
        waits = now - round(NOTICE_TTL * 1000)
        rows = [
            row
            for row in await self._nodes.read()
            if row.name not in self.names and (row.dead is None or row.dead > waits)
        ]
        item = {
            "action": {"S": notice.action},
            "body": {"S": notice.body},
            "asker": {"S": notice.asker},
            "ttl": self._ttl(),
        }
        await write_batches(
            self._client,
            [
                {"PutRequest": {"Item": {**_task_key(row.name, notice.id), **item}}}
                for row in rows
            ],
        )
        return [row.name for row in rows if row.dead is None and row.until > now]

    async def notices(self) -> Sequence[Notice]:
        """Return the notices that were left for this node; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        now = self._clock.wall()
        found = [
            Notice(
                item["sk"]["S"].removeprefix(TASK),
                item["action"]["S"],
                item["body"]["S"],
                item["asker"]["S"],
            )
            for name in self.names
            # Half the price: what lags is found the next time.
            async for item in query_all(
                self._client, f"N#{name}", prefix=TASK, consistent=False
            )
            if int(item["ttl"]["N"]) > now
        ]
        return sorted(found)

    async def settle(self, ids: Collection[str]) -> None:
        """Delete notices of this node; see the port.

        Raises:
            StoreError: Some may still be there.
        """
        await write_batches(
            self._client,
            [
                {"DeleteRequest": {"Key": _task_key(name, each)}}
                for name in self.names
                for each in ids
            ],
        )

    async def answer(self, notice: Notice, parts: Sequence[str]) -> None:
        """Answer a notice; see the port.

        Raises:
            StoreError: Some parts may not be there.
        """
        for index, body in enumerate(parts):
            item = {
                **key(f"N#{notice.asker}", f"{ANSWER}{notice.id}#{self.name}#{index}"),
                "from": {"S": self.name},
                "part": number(index),
                "parts": number(len(parts)),
                "body": {"S": body},
                "ttl": self._ttl(),
            }
            request = {"TableName": self._client.table, "Item": item}
            await self._client.call("put_item", request)

    async def answers(self, notice: Notice) -> Sequence[Answer]:
        """Return the answers to a notice; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        return [
            Answer(
                item["from"]["S"],
                int(item["part"]["N"]),
                int(item["parts"]["N"]),
                item["body"]["S"],
            )
            async for item in self._answers(notice)
        ]

    async def forget_answers(self, notice: Notice) -> None:
        """Delete the answers to a notice; see the port.

        Raises:
            StoreError: Some may still be there; they expire.
        """
        found = [item async for item in self._answers(notice)]
        await write_batches(
            self._client,
            [
                {"DeleteRequest": {"Key": {"pk": item["pk"], "sk": item["sk"]}}}
                for item in found
            ],
        )

    def _answers(self, notice: Notice) -> AsyncIterator[Item]:
        prefix = f"{ANSWER}{notice.id}#"
        return query_all(self._client, f"N#{notice.asker}", prefix=prefix)

    async def _is_dead(self, row: NodeRow) -> bool:
        """Return whether a node is marked dead now, if it is late."""
        if row.until > self._clock.wall() * 1000:
            return False
        return await self._nodes.mark_dead(row)

    def _ttl(self) -> dict[str, str]:
        return number(int(self._clock.wall() + NOTICE_TTL))


def _task_key(node: str, notice: str) -> Item:
    return key(f"N#{node}", TASK + notice)


def _feed_of(text: str) -> Sequence[Changes]:
    return msgspec.json.decode(text, type=tuple[Changes, ...]) if text else ()
