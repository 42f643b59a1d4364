"""Reading a partition: page by page, since DynamoDB cuts where it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import Item

__all__ = ["pages"]


async def pages(
    client: Client, partition: str, *, prefix: str = "", consistent: bool = True
) -> AsyncIterator[Item]:
    """Yield the items of a partition, in the order of their sort keys.

    Args:
        client: Of the table.
        partition: Its key.
        prefix: Of the sort keys; "" for all.
        consistent: Whether what was written before must be seen.

    Raises:
        StoreError: They cannot all be read.
    """
    request: dict[str, Any] = {
        "TableName": client.table,
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": {":pk": {"S": partition}},
        "ConsistentRead": consistent,
    }
    if prefix:
        request["KeyConditionExpression"] += " AND begins_with(sk, :prefix)"
        request["ExpressionAttributeValues"][":prefix"] = {"S": prefix}
    while True:
        answer = await client.call("query", request)
        for item in answer["Items"]:
            yield item
        if "LastEvaluatedKey" not in answer:
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
