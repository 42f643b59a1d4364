"""A table and the processes of the registry that share it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, NamedTuple

from service.core.cluster import PresenceKey, PresenceRow
from service.core.model import Channel, ClientId, RawJson, UserId
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.registry.directory import DynamodbDirectory
from service.stores.dynamodb.registry.maintenance import Maintenance
from tests.stores.dynamodb.opening import make_table
from tests.stores.dynamodb.support import Faults, StoreClock, client_for

DAY = 86400.0


class Contents(NamedTuple):
    """The table as another program sees it."""

    counts: Counter[int]  # by shard, as written
    records: dict[str, dict[str, Any]]  # by client
    books: dict[str, dict[str, Any]]  # by name, then by client
    rest: list[tuple[str, str]]  # keys of everything else


class Process(DynamodbDirectory):
    """The directory of a process, and its maintenance, which a test does by hand."""

    def __init__(self, client: Client, fleet: Fleet, seed: int) -> None:
        rng = random.Random(seed)
        super().__init__(client, fleet.settings, fleet.limits, fleet.clock, rng)
        self.clock = fleet.clock
        self.maintenance = Maintenance(
            client, self, fleet.clock, fleet.settings.node_timeout
        )
        self.cluster = self.maintenance.cluster


class Fleet:
    """Processes of one deployment."""

    def __init__(
        self,
        settings: DynamodbSettings,
        clock: StoreClock,
        *,
        user: int = 3,
        address: int = 100,
        policy: str = "evict_lru",
        age: float = DAY,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.limits = AdmissionLimits(user, address, policy, age)
        self.faults = Faults()
        self.boto = Faults().connect(settings)  # without faults
        self._clients: list[Any] = []

    async def create(self) -> Fleet:
        client = client_for(self.settings, self.clock)
        await client.start()
        # Without time to live: ministack does delete what has expired, by the time of
        # the machine.
        await make_table(client, self.settings)
        await client.close()
        return self

    async def process(self, faults: Faults | None = None) -> Process:
        """Return a new process."""
        seed = len(self._clients)
        client = client_for(self.settings, self.clock, faults, seed)
        await client.start()
        self._clients.append(client)
        process = Process(client, self, seed)
        await process.start()
        return process

    def write(self, operation: str, **request: Any) -> None:
        """Write to the table as another program."""
        getattr(self.boto, operation)(TableName=self.settings.table, **request)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        self.boto.close()

    def items(self) -> list[dict[str, Any]]:
        pages = self.boto.get_paginator("scan").paginate(
            TableName=self.settings.table, ConsistentRead=True
        )
        return [item for page in pages for item in page["Items"]]

    def contents(self) -> Contents:
        counts: Counter[int] = Counter()
        found = Contents(counts, {}, {}, [])
        for item in self.items():
            pk, sk = item["pk"]["S"], item["sk"]["S"]
            if pk.startswith("G#"):
                counts[int(pk[2:])] = int(item["n"]["N"])
            elif pk.startswith("N#") and sk.startswith("C#"):
                found.records[sk[2:]] = item
            elif sk == "CONNS":
                assert bool(item["conns"]["M"]) is ("ttl" not in item)
                if item["conns"]["M"]:  # else it was left an hour ago at most
                    found.books[pk] = item["conns"]["M"]
            elif pk not in ("NODES", "RECOUNT"):
                found.rest.append((pk, sk))
        return found

    def check(self) -> Contents:
        """Assert that every count is what it is derived from; return the contents."""
        found = self.contents()
        derived = Counter(int(r["shard"]["N"]) for r in found.records.values())
        assert +found.counts == derived
        booked = {
            client: (name, entry["M"]["node"]["S"], entry["M"]["shard"]["N"])
            for name, entries in found.books.items()
            for client, entry in entries.items()
        }
        assert sum(map(len, found.books.values())) == len(booked)
        recorded = {
            client: (r["book"]["S"], r["pk"]["S"][2:], r["shard"]["N"])
            for client, r in found.records.items()
        }
        assert booked == recorded
        return found


def nothing(found: Contents) -> bool:
    """Return whether no connection has left anything."""
    return not (found.records or found.books or found.rest or +found.counts)


async def admit(
    directory: DynamodbDirectory, user: str, client: str, address: str = "192.0.2.1"
) -> Any:
    return await directory.admit(UserId(user), ClientId(client), address)


def row_of(process: Process, client: str, channel: str, user: str = "u") -> PresenceRow:
    return PresenceRow(
        Channel(channel),
        ClientId(client),
        UserId(user),
        process.nodes.name,
        RawJson(f'{{"user":"{user}","client":"{client}"}}'),
        round(process.clock.wall() * 1000),
    )


async def subscribe(
    process: Process, client: str, channel: str, user: str = "u"
) -> None:
    await process.cluster.enter([row_of(process, client, channel, user)])


async def unsubscribe(process: Process, client: str, channel: str) -> None:
    await process.cluster.leave([PresenceKey(Channel(channel), ClientId(client))])


async def present(process: Process, channel: str) -> list[tuple[str, str]]:
    found = await process.cluster.present(Channel(channel))
    return sorted((one.client, one.user) for one in found)


__all__ = [
    "Contents",
    "Fleet",
    "admit",
    "nothing",
    "present",
    "row_of",
    "subscribe",
    "unsubscribe",
]
