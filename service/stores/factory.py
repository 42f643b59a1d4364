"""The store that the settings name, its shared connection registry, and its metrics.

The modules of a store are imported only when the settings name it: botocore takes
longer to import than the rest of the service, and a Lambda function needs no SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from service.core.broker import Broker
from service.core.model import ClientId
from service.core.ports import Clock
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.stores.dynamodb.registry.maintenance import Maintenance
    from service.stores.dynamodb.store import DynamodbStore
    from service.stores.sqlite.cluster import SqliteUpkeep
    from service.stores.sqlite.store import SqliteStore

__all__ = ["AnyStore", "add_store_metrics", "make_store", "make_upkeep"]

AnyStore: TypeAlias = "SqliteStore | DynamodbStore"

_BREAKER_STATES = ("closed", "open", "half-open")


def make_store(
    settings: Settings,
    clock: Clock,
    stopping: asyncio.Event | None = None,
    broker: Broker | None = None,
) -> AnyStore:
    """Return the store that *settings* name, not started.

    Args:
        settings: Of the process.
        clock: Of every timer.
        stopping: Set to give up a start that waits for the SQLite file.
        broker: Tells of what other processes commit to DynamoDB; None for polls.
    """
    if settings.store.backend == "sqlite":
        from service.stores.sqlite.store import SqliteStore

        channels = settings.channels
        limits = {"": channels.without_namespace.max_size} | {
            namespace.name: namespace.max_size for namespace in channels.namespaces
        }
        limits = {name: limit for name, limit in limits.items() if limit}
        return SqliteStore(settings.store, clock, namespaces=limits, stopping=stopping)
    from service.stores.dynamodb.store import DynamodbStore

    return DynamodbStore(settings.table, settings.store, clock, broker=broker)


def make_upkeep(
    store: AnyStore,
    settings: Settings,
    clock: Clock,
    active: Callable[[ClientId], float | None],
) -> Maintenance | SqliteUpkeep | None:
    """Return the registry that all processes on *store* share, not started.

    None for a SQLite file of one process: it knows by itself who is connected.

    Args:
        store: Holds the registry.
        settings: Of this process.
        clock: Of this process.
        active: Returns when a client of this process was last active, on the clock.
    """
    limited = settings.connections
    if store.backend == "sqlite":
        if not settings.shared:
            return None
        from service.stores.sqlite.cluster import SharedLimits, open_upkeep

        shared = SharedLimits(
            settings.connection_limit,
            settings.user_limit,
            limited.address_limit,
            limited.policy == "evict_lru",
            settings.client.max_age,
        )
        return open_upkeep(
            shared, clock, active, write=store.write_cluster, read=store.read_cluster
        )
    from service.stores.dynamodb.registry.connections import AdmissionLimits
    from service.stores.dynamodb.registry.directory import DynamodbDirectory
    from service.stores.dynamodb.registry.maintenance import Maintenance
    from service.stores.dynamodb.registry.records import GATEWAY_NODES

    limits = AdmissionLimits(
        settings.user_limit,
        limited.address_limit,
        limited.policy,
        settings.client.max_age,
    )
    directory = DynamodbDirectory(
        store.client, settings.table, limits, clock, active=active
    )
    directory.nodes.broker = store.broker is not None
    directory.nodes.on_read = store.peers.seen
    return Maintenance(
        store.client,
        directory,
        clock,
        settings.table.node_timeout,
        pseudo_nodes=GATEWAY_NODES if settings.table.leases else (),
    )


def add_store_metrics(metrics: Metrics, store: AnyStore) -> None:
    """Show what *store* counts. Every metric is there with either store."""
    client = None if store.backend == "sqlite" else store.client

    def states() -> dict[str, float]:
        return {state: float(state == store.breaker.state) for state in _BREAKER_STATES}

    def sizes() -> dict[str, float]:
        if store.backend == "dynamodb":
            return dict.fromkeys(("used", "file", "log"), 0.0)
        return store.sizes._asdict()

    metrics.total(
        "store_reads",
        "Reads of the database, each one look at one channel; all others were answered "
        "from memory.",
        lambda: store.reads,
    )
    metrics.gauge(
        "store_bytes",
        "Bytes of the SQLite store: used by what is kept; file, with its free pages; "
        "log, the write-ahead log beside it. 0 with DynamoDB.",
        sizes,
        "part",
    )
    metrics.gauge(
        "breaker_state",
        "The circuit breaker before the store: 1 at the state that it is in.",
        states,
        "state",
    )
    metrics.total(
        "breaker_openings",
        "How often that breaker has opened.",
        lambda: store.breaker.openings,
    )
    metrics.total(
        "breaker_recoveries",
        "How often it has closed again, since the store answered.",
        lambda: store.breaker.recoveries,
    )
    metrics.total(
        "store_attempts",
        "Requests sent to DynamoDB, repeats and probes among them.",
        lambda: 0 if client is None else client.attempts,
    )
    metrics.total(
        "store_handed_over",
        "Appends to contended channels that another server has stored for this one.",
        lambda: 0 if store.backend == "sqlite" else store.handed_over,
    )
    metrics.total(
        "store_repeats",
        "Requests sent to DynamoDB again, after a failure that may pass.",
        lambda: 0 if client is None else client.repeats,
    )
