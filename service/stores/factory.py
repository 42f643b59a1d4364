"""Which store the settings ask for, and what comes with it."""

from __future__ import annotations

from collections.abc import Callable

from service.core.model import ClientId
from service.core.ports import Clock, Store
from service.settings import Settings
from service.stores.dynamodb.registry.directory import DynamodbDirectory
from service.stores.dynamodb.registry.limits import Limits
from service.stores.dynamodb.registry.upkeep import Upkeep
from service.stores.dynamodb.store import DynamodbStore
from service.stores.sqlite.store import SqliteStore

__all__ = ["make_store", "make_upkeep"]


def make_store(settings: Settings, clock: Clock) -> SqliteStore | DynamodbStore:
    """Return the store that *settings* name, not started."""
    if settings.store.backend == "dynamodb":
        return DynamodbStore(settings.dynamodb, settings.store, clock)
    return SqliteStore(settings.store, clock)


def make_upkeep(
    store: Store,
    settings: Settings,
    clock: Clock,
    active: Callable[[ClientId], float | None],
) -> Upkeep | None:
    """Return the registry that all processes of a store share, not started.

    None where there is one process: it knows by itself who is connected.

    Args:
        store: Theirs.
        settings: Of this one.
        clock: Of everything.
        active: When a client of this process was last active, on the clock.
    """
    if not isinstance(store, DynamodbStore):
        return None
    limits = Limits(
        settings.connections.user_limit,
        settings.connections.address_limit,
        settings.connections.policy,
        settings.client.max_age,
    )
    directory = DynamodbDirectory(
        store.client, settings.dynamodb, limits, clock, active=active
    )
    return Upkeep(directory, settings.dynamodb.node_timeout)
