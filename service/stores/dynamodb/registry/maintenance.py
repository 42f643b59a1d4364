"""What becomes of connections whose process did not say goodbye, and of wrong counts.

Any process may do any of this at any time, and two may do it at once: each step is a
conditional write that only one of them does, or a deletion that does not mind. There is
no lock, and nobody is waited for.

    bury      processes that are late are marked dead; the connections of the dead are
              taken out, their subscriptions first, so that a sweep that dies in the
              middle leaves the record by which the next one finds the rest
    tidy      this process's own part: records of connections that it does not have
    recount   every shard compared with the records that name it, and corrected

DynamoDB's own deletion by time (TTL) is only the backstop, a week later: it would
delete a record and leave its count.

A recount is right although connections come and go meanwhile: a shard is corrected on
the condition that its version is still what it was before the records were read, and
every change of its records changes that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from service.core.model import ClientId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import ConditionFailed
from service.stores.dynamodb.pages import pages
from service.stores.dynamodb.registry.connections import Connections
from service.stores.dynamodb.registry.counter import SHARDS, Slots
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.presence import Presence
from service.stores.dynamodb.registry.records import (
    CLIENT,
    NOTICE,
    Record,
    key,
    number,
    read_record,
)
from service.stores.dynamodb.several import several

__all__ = ["Maintenance"]

SETTLED = 15.0  # s after which an admission has ended, whatever became of it
RECOUNTED = 86400.0  # s between recounts


class Maintenance:
    """The upkeep of the registry.

    Args:
        client: Of the table.
        connections: Takes them out.
        presence: Takes them out of their channels.
        nodes: Knows the processes.
        slots: Counts.
        clock: Says what is late.
    """

    def __init__(
        self,
        client: Client,
        connections: Connections,
        presence: Presence,
        nodes: Nodes,
        slots: Slots,
        clock: Clock,
    ) -> None:
        self._client = client
        self._connections = connections
        self._presence = presence
        self._nodes = nodes
        self._slots = slots
        self._clock = clock

    async def bury(self) -> int:
        """Take out the connections of dead processes; return how many.

        Raises:
            StoreError: Some are left; what was done is done.
        """
        count = 0
        now = self._clock.wall() * 1000
        for node in await self._nodes.all():
            if node.name == self._nodes.name:
                continue
            if node.dead is None and (
                node.until > now or not await self._nodes.mark(node)
            ):
                continue
            count += await self._clear(node.name)
            if self._nodes.over(node):
                await self._nodes.forget(node.name)
        return count

    async def tidy(self, present: Callable[[ClientId], bool]) -> int:
        """Take out records of this process that are nobody's; return how many.

        Args:
            present: Whether a connection is there, or may be let in at this moment.

        Raises:
            StoreError: Some are left.
        """
        settled = int((self._clock.wall() - SETTLED) * 1000)
        left = [
            record
            for record in await self.records(self._nodes.name)
            if record.active <= settled and not present(record.client)
        ]
        return await self._take_out(left)

    async def recount(self) -> int:
        """Correct the counts; return how many were wrong.

        A shard that changed meanwhile is left as it is.

        Raises:
            StoreError: Some may be wrong yet.
        """
        counts = await self._slots.counts()
        found: Counter[int] = Counter()
        for node in await self._nodes.all():
            found.update(record.shard for record in await self.records(node.name))
        wrong = [
            self._slots.correct(shard, counts[shard], found[shard])
            for shard in range(SHARDS)
            if counts[shard].number != found[shard]
        ]
        return sum(await several(wrong))

    async def claim_recount(self) -> bool:
        """Return whether a recount is due, and nobody else has claimed it.

        Raises:
            StoreError: Nobody knows.
        """
        now = int(self._clock.wall() * 1000)
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": key("RECOUNT", "RECOUNT"),
                    "UpdateExpression": "SET #at = :now",
                    "ConditionExpression": "attribute_not_exists(#at) OR #at <= :due",
                    "ExpressionAttributeNames": {"#at": "at"},
                    "ExpressionAttributeValues": {
                        ":now": number(now),
                        ":due": number(now - int(RECOUNTED * 1000)),
                    },
                },
            )
        except ConditionFailed:
            return False
        return True

    async def records(self, node: str) -> list[Record]:
        """Return the connections of a process.

        Raises:
            StoreError: They cannot all be read.
        """
        return [
            read_record(item)
            async for item in pages(self._client, f"N#{node}", prefix=CLIENT)
        ]

    async def _clear(self, node: str) -> int:
        """Take out all connections of a dead process; return how many."""
        count = await self._take_out(await self.records(node))
        items = pages(self._client, f"N#{node}", prefix=NOTICE)
        evicted = [ClientId(i["sk"]["S"].removeprefix(NOTICE)) async for i in items]
        await several(self._see_off(node, client) for client in evicted)
        return count

    async def _take_out(self, records: list[Record]) -> int:
        return sum(await several(self._leave(record) for record in records))

    async def _leave(self, record: Record) -> bool:
        await self._presence.leave_all(record.client, record.node)
        return await self._connections.leave(record)

    async def _see_off(self, node: str, client: ClientId) -> None:
        await self._presence.leave_all(client, node)
        await self._nodes.noticed(node, client)
