"""Sharded counter of all connections of a deployment, with a limit.

A single counter would be one item that every connect and disconnect of every process
writes, and they would conflict. So a connection counts in one of 64 shards, chosen at
random; each shard has its part of the limit, and the parts add up to the limit exactly.
A full shard says nothing about the others, so all shards are read before a connect is
refused: `CounterFull` means that at that moment no shard had room.

Invariants:

* A shard's count is the number of connections that name it: in their records, or those
  of the gateway in their owners' items. Both change in one transaction (`connections`),
  on every path.
* A shard's version changes with its count. So if the version was the same before and
  after the records were read, the count must equal their number (`maintenance`).

At the limit, a process makes about one cancelled transaction and one read of all shards
a second (64 read units); it refuses the other connects without a call.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

from service.core.errors import StoreBusy
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.registry.records import key, number

__all__ = ["ConnectionCounter", "CounterFull"]

SHARDS = 64
FRESH = 1.0  # s for which a reading of all shards is used


class CounterFull(Exception):
    """The deployment has as many connections as it may have."""


class ShardCount(NamedTuple):
    """One shard, (0, 0) if it was never written."""

    number: int
    version: int


class ConnectionCounter:
    """The counter.

    Args:
        client: Calls the table.
        limit: Connections of all processes.
        clock: Tells how old a reading is.
        rng: Chooses shards.
    """

    def __init__(
        self, client: Client, limit: int, clock: Clock, rng: random.Random
    ) -> None:
        self._client = client
        self._clock = clock
        self._rng = rng
        self._limits = [limit // SHARDS + (i < limit % SHARDS) for i in range(SHARDS)]
        self._all = [shard for shard in range(SHARDS) if self._limits[shard]]
        self._free = self._all  # shards with room, as of the last reading
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def choose_shard(self) -> int:
        """Return a shard that may have room.

        Raises:
            CounterFull: No shard had room less than a second ago.
        """
        if self._clock.now() - self._read_at >= FRESH:
            self._free = self._all
        if not self._free:
            raise CounterFull
        return self._rng.choice(self._free)

    async def note_full(self, shard: int, deadline: float) -> None:
        """Note that a shard has no room, and find out which others have.

        Calls at the same time share one reading.

        Raises:
            StoreError: The shards cannot be read.
        """
        if self._clock.now() - self._read_at < FRESH:
            self._free = [other for other in self._free if other != shard]
            if self._free:
                return
        if self._reading is None:
            self._reading = asyncio.create_task(self._find_free())
            # Perhaps nobody waits for it any more when it fails.
            self._reading.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )
        reading = self._reading
        left = max(0.0, deadline - self._clock.now())
        await asyncio.wait([reading], timeout=left)
        if not reading.done():
            raise StoreBusy("DynamoDB did not return the connection counts in time")
        reading.result()

    async def _find_free(self) -> None:
        try:
            counts = await self.read()
        finally:
            self._reading = None
        self._read_at = self._clock.now()
        self._free = [s for s in self._all if counts[s].number < self._limits[s]]

    def note_freed(self) -> None:
        """Note that this process has made room."""
        self._read_at = float("-inf")

    def limit_of(self, shard: int) -> int:
        """Return the limit of a shard."""
        return self._limits[shard]

    def increment(self, shard: int, count: int = 1) -> dict[str, Any]:
        """Return the action that counts *count* more, if there is room for all.

        Args:
            shard: The shard.
            count: At most the limit of the shard.
        """
        return {
            "Update": {
                "TableName": self._client.table,
                "Key": _key(shard),
                "UpdateExpression": "ADD n :more, ver :one",
                "ConditionExpression": "attribute_not_exists(n) OR n <= :most",
                "ExpressionAttributeValues": {
                    ":more": number(count),
                    ":one": number(1),
                    ":most": number(self._limits[shard] - count),
                },
            }
        }

    def decrement(self, shard: int, count: int = 1) -> dict[str, Any]:
        """Return the action that counts *count* connections less."""
        return {
            "Update": {
                "TableName": self._client.table,
                "Key": _key(shard),
                "UpdateExpression": "ADD n :less, ver :one",
                "ExpressionAttributeValues": {
                    ":less": number(-count),
                    ":one": number(1),
                },
            }
        }

    async def read(self) -> list[ShardCount]:
        """Return all shards, each as it was at some time during the call.

        Raises:
            StoreError: They cannot be read.
        """
        table = self._client.table
        found = [ShardCount(0, 0)] * SHARDS
        wanted: list[Item] = [_key(shard) for shard in range(SHARDS)]
        while wanted:
            request = {table: {"Keys": wanted, "ConsistentRead": True}}
            answer = await self._client.call(
                "batch_get_item", {"RequestItems": request}
            )
            for item in answer["Responses"].get(table, ()):
                shard = int(item["pk"]["S"].removeprefix("G#"))
                found[shard] = ShardCount(int(item["n"]["N"]), int(item["ver"]["N"]))
            left = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
            if len(left) == len(wanted):
                raise StoreBusy("DynamoDB returns no connection counts at present")
            wanted = left
        return found


def _key(shard: int) -> Item:
    return key(f"G#{shard}", "COUNT")
