"""Which store the settings ask for."""

from __future__ import annotations

from service.ports import Clock
from service.settings import Settings
from service.stores.dynamodb.store import DynamodbStore
from service.stores.sqlite import SqliteStore

__all__ = ["make_store"]


def make_store(settings: Settings, clock: Clock) -> SqliteStore | DynamodbStore:
    """Return the store that *settings* name, not started."""
    if settings.store.backend == "dynamodb":
        return DynamodbStore(settings.dynamodb, settings.store, clock)
    return SqliteStore(settings.store, clock)
