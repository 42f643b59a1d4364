"""Counts the capacity units that a process consumes, as the service reports them."""

from __future__ import annotations

import threading
from typing import Any

from service.settings import DynamodbSettings
from tests.stores.dynamodb.support import Faults

__all__ = ["UnitCounter"]

WRITES = {
    "PutItem",
    "UpdateItem",
    "DeleteItem",
    "BatchWriteItem",
    "TransactWriteItems",
}
READS = {"GetItem", "Query", "Scan", "BatchGetItem", "TransactGetItems"}


class UnitCounter:
    """Units of one boto client.

    Attributes:
        written: Write units since the last `reset`.
        read: Read units since the last `reset`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.written = 0.0
        self.read = 0.0

    def connect(self, settings: DynamodbSettings) -> Any:
        """Return a boto client whose units are counted."""
        boto = Faults().connect(settings)
        boto.meta.events.register("provide-client-params.dynamodb", self._ask)
        boto.meta.events.register("after-call.dynamodb", self._take)
        return boto

    def _ask(
        self, params: dict[str, Any], model: Any, context: dict[str, Any], **_: object
    ) -> dict[str, Any]:
        context["least"] = 1.0 if params.get("ConsistentRead") else 0.5
        if model.name in WRITES | READS:
            return {**params, "ReturnConsumedCapacity": "TOTAL"}
        return params

    def _take(
        self,
        model: Any,
        parsed: dict[str, Any],
        context: dict[str, Any],
        **_: object,
    ) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        for one in consumed if isinstance(consumed, list) else [consumed]:
            with self._lock:
                if model.name in WRITES:
                    self.written += one["CapacityUnits"]
                else:
                    # To find nothing is not free; not every emulator knows.
                    self.read += max(one["CapacityUnits"], context["least"])
