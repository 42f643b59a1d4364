"""Periodic maintenance of the registry: heartbeats, dead nodes, orphans, a recount.

    heartbeat     every quarter of `node_timeout`: see `DynamodbDirectory.heartbeat`
    reap          every 30 s or so: late nodes are marked dead; what dead nodes have in
                  presence is removed, and their connections
    drop_orphans  every five minutes: records of this node without a connection here are
                  removed: admissions that arrived after their callers had given up
    recount       once a day, by one process: each shard of the counter is compared with
                  the records that name it, and a difference is logged

Heartbeats have a task of their own: `reap` may take minutes, and they must not wait.
What fails is tried again the next time.

Any process may do any of this at any time, and several at once: each step is a
conditional write, which only one of them does, or a deletion, which may be repeated.
There is no lock, and no process waits for another.

A count cannot be wrong unless another program writes to the table: each transaction
changes it together with the records, and the row of a node outlives all admissions that
may still arrive. So the recount reports, and repairs nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from service.core.errors import StoreError, describe
from service.core.ports import Clock
from service.stores.dynamodb.client import Client, gather_limited, query_all
from service.stores.dynamodb.errors import ConditionFailed
from service.stores.dynamodb.registry.cluster import DynamodbCluster
from service.stores.dynamodb.registry.directory import SETTLED, DynamodbDirectory
from service.stores.dynamodb.registry.records import (
    CLIENT,
    ConnectionRecord,
    decode_connection,
    is_admitted,
    key,
    number,
)

__all__ = ["HEARTBEATS", "REAP_EVERY", "Maintenance"]

HEARTBEATS = 4  # in one `node_timeout`
REAP_EVERY = 30.0  # s; up to a fifth more or less, so that processes differ
ORPHANS_EVERY = 10  # reaps

RECOUNT_EVERY = 86400.0  # s

_log = structlog.get_logger(__name__)


class Maintenance:
    """Maintains the registry while this process is part of it.

    Args:
        client: Calls the table.
        directory: This process's; started and closed here.
        clock: Tells what is late.
        node_timeout: Of the settings, seconds.
        rng: Spreads the reaps of many processes.
        pseudo_nodes: Nodes that no process is, but that have connections.

    Attributes:
        directory: The same.
        cluster: The nodes, of which this process is one.
        period: Seconds between two looks at what others have left for this process.
    """

    period: Final = 1.0

    def __init__(
        self,
        client: Client,
        directory: DynamodbDirectory,
        clock: Clock,
        node_timeout: float,
        rng: random.Random | None = None,
        pseudo_nodes: Sequence[str] = (),
    ) -> None:
        self._pseudo_nodes = pseudo_nodes
        self.directory = directory
        nodes, presence = directory.nodes, directory.presence
        self.cluster = DynamodbCluster(client, nodes, presence, clock)
        self._client = client
        self._clock = clock
        self._heartbeat_every = node_timeout / HEARTBEATS
        self._rng = rng or random.SystemRandom()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    def describe_by(self, figures: Callable[[], str]) -> None:
        """Take this node's figures from *figures*, as JSON text."""
        self.directory.nodes.describe = figures

    async def start(self) -> None:
        """Register the process, and begin.

        Raises:
            StartupError: The table cannot be written.
        """
        await self.directory.start()
        self._tasks = [
            asyncio.create_task(self._keep_alive()),
            asyncio.create_task(self._clean_up()),
        ]

    async def close(self) -> None:
        """Stop, and leave the deployment. Safe to call twice, and if `start` failed.

        A start that failed may have registered this node all the same: its answer can
        have been lost.
        """
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._closed:
            self._closed = True
            await self.directory.close()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_every)
            await _try(self.directory.heartbeat)

    async def _clean_up(self) -> None:
        reaps = 0
        while True:
            await _try(self.reap)
            reaps += 1
            if reaps % ORPHANS_EVERY == 0:
                await _try(self.drop_orphans)
                await _try(self.recount_if_due)
            await asyncio.sleep(REAP_EVERY * (0.8 + 0.4 * self._rng.random()))

    async def reap(self) -> int:
        """Remove the connections of dead nodes; return how many.

        Raises:
            StoreError: Some are left.
        """
        nodes = self.directory.nodes
        count = 0
        now = self._clock.wall() * 1000
        for node in await nodes.read():
            if node.name == nodes.name:
                continue
            if node.dead is None and (
                node.until > now or not await nodes.mark_dead(node)
            ):
                continue
            await self.directory.presence.leave_all(node.name)
            count += await self._remove(await self._records(node.name))
            evicted = await nodes.notices(node.name)
            await gather_limited(
                nodes.delete_notice(node.name, client) for client in evicted
            )
            if nodes.is_finished(node):
                await nodes.delete(node.name)
        if count:
            _log.info("removed connections of dead nodes", count=count)
        return count

    async def drop_orphans(self) -> int:
        """Remove this node's records without a connection here; return how many.

        Raises:
            StoreError: Some are left.
        """
        directory = self.directory
        settled = int((self._clock.wall() - SETTLED) * 1000)
        return await self._remove(
            [
                record
                for record in await self._records(directory.nodes.name)
                if record.active <= settled and not directory.has(record.client)
            ]
        )

    async def recount(self) -> int:
        """Compare the counter with the records; return how many shards are wrong.

        Shards that change meanwhile are not compared.

        Raises:
            StoreError: They cannot be read.
        """
        counter, nodes = self.directory.counter, self.directory.nodes
        before = await counter.read()
        found: Counter[int] = Counter()
        names = [node.name for node in await nodes.read()]
        for name in (*names, *self._pseudo_nodes):
            found.update(record.shard for record in await self._records(name))
        if any(found[shard] > count.number for shard, count in enumerate(before)):
            found -= await self._unlisted()
        after = await counter.read()
        wrong = [
            count.number - found[shard]
            for shard, count in enumerate(before)
            if after[shard] == count and count.number != found[shard]
        ]
        if wrong:
            _log.error(
                "counts of connections are wrong: does another program write to the "
                "table?",
                shards=len(wrong),
                surplus=sum(wrong),
            )
        return len(wrong)

    async def recount_if_due(self) -> int:
        """Recount if no process has done so for a day; return what `recount` does.

        Raises:
            StoreError: It was not done; it is due again in a day.
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
                        ":due": number(now - int(RECOUNT_EVERY * 1000)),
                    },
                },
            )
        except ConditionFailed:
            return 0
        return await self.recount()

    async def _unlisted(self) -> Counter[int]:
        """Return how many records of the gateway count nowhere, by shard.

        Their clients are being admitted, or whoever admitted them has died.

        Raises:
            StoreError: They cannot be read.
        """
        found: Counter[int] = Counter()
        for name in self._pseudo_nodes:
            records = await self._records(name)
            listed = await gather_limited(
                self.directory.connections.is_listed(record) for record in records
            )
            pairs = zip(records, listed, strict=True)
            found.update(record.shard for record, there in pairs if not there)
        return found

    async def _records(self, node: str) -> list[ConnectionRecord]:
        return [
            decode_connection(item)
            async for item in query_all(self._client, f"N#{node}", prefix=CLIENT)
            if is_admitted(item)
        ]

    async def _remove(self, records: list[ConnectionRecord]) -> int:
        connections = self.directory.connections
        return sum(await gather_limited(connections.leave(each) for each in records))


async def _try(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except StoreError as error:
        _log.info("maintenance of the registry has to wait", reason=str(error))
    except Exception as error:
        _log.error("maintenance of the registry failed", **describe(error))
