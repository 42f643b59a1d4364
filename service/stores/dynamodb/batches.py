"""Batches of writes without conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from service.core.errors import StoreUnavailable
from service.stores.dynamodb.client import Client

__all__ = ["write_batches"]

BATCH = 25  # items in one BatchWriteItem
ATTEMPTS = 20  # at items that the table did not process
UNPROCESSED_PAUSE = 0.1  # s before those are sent again


async def write_batches(client: Client, requests: Sequence[dict[str, Any]]) -> None:
    """Put and delete any number of items, without conditions and in any order.

    Args:
        client: Calls the table.
        requests: A ``PutRequest`` or ``DeleteRequest`` for each; no two for one key.

    Raises:
        StoreError: Some may not be written.
    """
    for begin in range(0, len(requests), BATCH):
        left = {client.table: list(requests[begin : begin + BATCH])}
        for _ in range(ATTEMPTS):
            answer = await client.call("batch_write_item", {"RequestItems": left})
            left = answer.get("UnprocessedItems", {})
            if not left:
                break
            await asyncio.sleep(UNPROCESSED_PAUSE)
        else:
            raise StoreUnavailable("DynamoDB does not process batches at present")
