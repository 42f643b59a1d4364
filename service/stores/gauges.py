"""What a store counts, shown as metrics; every name is there with every store."""

from __future__ import annotations

from service.metrics import Metrics
from service.stores.dynamodb.store import DynamodbStore
from service.stores.sqlite.store import SqliteStore

__all__ = ["add_gauges"]

_STATES = ("closed", "open", "half-open")


def add_gauges(metrics: Metrics, store: SqliteStore | DynamodbStore) -> None:
    """Show what *store* does; the embedded one has no breaker, as if it were closed."""
    client = store.client if isinstance(store, DynamodbStore) else None

    def states() -> dict[str, float]:
        present = "closed" if client is None else client.breaker.state
        return {state: float(state == present) for state in _STATES}

    metrics.total(
        "store_reads",
        "Reads of the database, each one look at one channel; all others were answered "
        "from memory.",
        lambda: store.reads,
    )
    metrics.gauge(
        "breaker_state",
        "The circuit breaker before DynamoDB: 1 at the state that it is in.",
        states,
        "state",
    )
    metrics.total(
        "breaker_openings",
        "How often that breaker has opened.",
        lambda: 0 if client is None else client.breaker.openings,
    )
    metrics.total(
        "store_attempts",
        "Requests sent to DynamoDB, repeats and probes among them.",
        lambda: 0 if client is None else client.attempts,
    )
    metrics.total(
        "store_repeats",
        "Requests sent to DynamoDB again, after a failure that may pass.",
        lambda: 0 if client is None else client.repeats,
    )
