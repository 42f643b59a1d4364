"""The count of all connections of a deployment, in 64 shards.

One counter would be one item that every connect and disconnect of every process
writes: they would refuse each other. So a connection counts in a shard chosen by
chance, and each shard has its part of the limit; the parts add up to the limit
exactly. A shard that is full says nothing of the others, so all are looked at before
anybody is refused: `Full` means that at that moment no shard had room.

Invariants:

* A shard's count is the number of connection records with that shard. Both change in
  one transaction (`connections`), on every path: the counts are derived, and nothing
  counts that is not there.
* A shard's version changes with its count, whoever changes it. So a recount (`sweep`)
  that finds the version it began with has counted what is there.

At the bound: in each second, a process spends a cancelled transaction or so and one
look at all shards (64 read units); the rest is refused without a call.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

from service.core.errors import StoreBusy
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.registry.records import key, number

__all__ = ["SHARDS", "Full", "Slots"]

SHARDS = 64
FRESH = 1.0  # s for which a look at all shards is believed


class Full(Exception):
    """All connections that there may be are there."""


class Count(NamedTuple):
    """One shard; one that was never written is (0, 0)."""

    number: int
    version: int


class Slots:
    """The counter.

    Args:
        client: Of the table.
        limit: Connections of all processes.
        clock: Says how old a look is.
        chance: Chooses shards.
    """

    def __init__(
        self, client: Client, limit: int, clock: Clock, rng: random.Random
    ) -> None:
        self._client = client
        self._clock = clock
        self._rng = rng
        self._limits = [limit // SHARDS + (i < limit % SHARDS) for i in range(SHARDS)]
        self._all = [shard for shard in range(SHARDS) if self._limits[shard]]
        self._room = self._all  # as of the last look
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    def pick(self) -> int:
        """Return a shard that may have room.

        Raises:
            Full: None had any a moment ago.
        """
        if self._clock.now() - self._looked >= FRESH:
            self._room = self._all
        if not self._room:
            raise Full
        return self._rng.choice(self._room)

    async def full(self, shard: int, deadline: float) -> None:
        """Take note that a shard has no room, and see which others have.

        All who ask at once share one look.

        Raises:
            StoreError: They cannot be seen.
        """
        if self._clock.now() - self._looked < FRESH:
            self._room = [other for other in self._room if other != shard]
            if self._room:
                return
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            # Nobody may be left to take its error when it ends.
            self._looking.add_done_callback(lambda task: task.exception())
        looking = self._looking
        left = max(0.0, deadline - self._clock.now())
        await asyncio.wait([looking], timeout=left)
        if not looking.done():
            raise StoreBusy("DynamoDB did not say in time where there is room")
        looking.result()

    async def _look(self) -> None:
        try:
            counts = await self.counts()
        finally:
            self._looking = None
        self._looked = self._clock.now()
        self._room = [s for s in self._all if counts[s].number < self._limits[s]]

    def freed(self) -> None:
        """Take note that there is room again, since this process made some."""
        self._looked = float("-inf")

    def take(self, shard: int) -> dict[str, Any]:
        """Return the action that counts one connection more, if there is room."""
        return {
            "Update": {
                "TableName": self._client.table,
                "Key": _key(shard),
                "UpdateExpression": "ADD n :one, ver :one",
                "ConditionExpression": "attribute_not_exists(n) OR n < :limit",
                "ExpressionAttributeValues": {
                    ":one": number(1),
                    ":limit": number(self._limits[shard]),
                },
            }
        }

    def give_back(self, shard: int, count: int = 1) -> dict[str, Any]:
        """Return the action that counts so many connections less."""
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

    async def counts(self, deadline: float | None = None) -> list[Count]:
        """Return all shards, each as it was at some time during the call.

        Raises:
            StoreError: They cannot be read.
        """
        table = self._client.table
        found = [Count(0, 0)] * SHARDS
        wanted: list[Item] = [_key(shard) for shard in range(SHARDS)]
        while wanted:
            request = {table: {"Keys": wanted, "ConsistentRead": True}}
            answer = await self._client.call(
                "batch_get_item", {"RequestItems": request}, deadline=deadline
            )
            for item in answer["Responses"].get(table, ()):
                shard = int(item["pk"]["S"].removeprefix("G#"))
                found[shard] = Count(int(item["n"]["N"]), int(item["ver"]["N"]))
            left = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
            if len(left) == len(wanted):
                raise StoreBusy("DynamoDB reads no counts at present")
            wanted = left
        return found

    async def correct(self, shard: int, seen: Count, count: int) -> bool:
        """Set a shard's count; False if it has changed since it was *seen*.

        Raises:
            StoreError: Nobody knows.
        """
        version = number(seen.version)
        unchanged = "ver = :seen"
        if not seen.version:
            unchanged = f"attribute_not_exists(ver) OR {unchanged}"
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": _key(shard),
                    "UpdateExpression": "SET n = :n, ver = :ver",
                    "ConditionExpression": unchanged,
                    "ExpressionAttributeValues": {
                        ":n": number(count),
                        ":ver": number(seen.version + 1),
                        ":seen": version,
                    },
                },
            )
        except ConditionFailed:
            return False
        return True


def _key(shard: int) -> Item:
    return key(f"G#{shard}", "COUNT")
