"""Removal of a channel's publications, and erasure of a user's.

A removal has two steps. The first one raises HEAD's ``floor`` to its top: from then on
no reader of any process returns what is below. The second one deletes the items. If it
fails, a repeat finds them: they are still below the floor.

An erasure scans the whole table, since no index says who published what; it is rare. A
batch with something to erase is written again without it, in one transaction that also
increments HEAD's ``rev``, from which other processes learn it: a batch never changes
without its HEAD. The condition is that the batch is as it was read; otherwise it is
read again.
"""

from __future__ import annotations

import re
from typing import Any

from service.core.errors import StoreError
from service.core.model import Channel, Draft, Publication, RawJson
from service.stores.dynamodb.batches import write_batches
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import (
    ConditionFailed,
    Item,
    TransactionCancelled,
)
from service.stores.dynamodb.log.items import (
    Head,
    batch_key,
    decode_batch,
    encode_draft,
    encode_rows,
    first_of,
    head_key,
    range_key,
)

__all__ = ["Remover"]

ATTEMPTS = 20  # at erasing from one batch

_BATCH = re.compile(r"L#(.*)#([0-9a-f]{16})(#\d+)?", re.DOTALL)


class Remover:
    """Removes publications from one table.

    Args:
        client: Calls the table.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def hide(self, channel: Channel, head: Head) -> None:
        """Raise the floor of a channel, whose state is *head*, to its top.

        Raises:
            StoreError: It may not be raised.
        """
        request = {
            "TableName": self._client.table,
            "Key": head_key(channel),
            "UpdateExpression": "SET #floor = :top ADD #rev :one",
            "ConditionExpression": "#epoch = :epoch",
            "ExpressionAttributeNames": {
                "#floor": "floor",
                "#rev": "rev",
                "#epoch": "epoch",
            },
            "ExpressionAttributeValues": {
                ":top": {"N": str(head.top)},
                ":one": {"N": "1"},
                ":epoch": {"S": head.epoch},
            },
        }
        try:
            await self._client.call("update_item", request)
        except ConditionFailed:
            return  # the offsets restarted: no reader returns that epoch any more

    async def remove(self, channel: Channel, head: Head) -> None:
        """Delete the items up to the top of *head*.

        Raises:
            StoreError: Some may be left.
        """
        for shard in range(head.shards):
            request: dict[str, Any] = {
                "TableName": self._client.table,
                "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
                "ExpressionAttributeValues": {
                    ":pk": {"S": batch_key(channel, head, shard)},
                    ":first": {"S": range_key(0)},
                    ":last": {"S": range_key(head.top) + "~"},
                },
                "ProjectionExpression": "pk, sk",
                "ConsistentRead": True,
            }
            while True:
                answer = await self._client.call("query", request)
                keys = answer["Items"]
                await write_batches(
                    self._client, [{"DeleteRequest": {"Key": key}} for key in keys]
                )
                if "LastEvaluatedKey" not in answer:
                    break
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def erase(self, info: str) -> tuple[int, set[Channel]]:
        """Blank publications whose ``info`` begins with *info*; see the port.

        Returns:
            How many, and in which channels.

        Raises:
            StoreError: Some may be left.
        """
        request: dict[str, Any] = {
            "TableName": self._client.table,
            "FilterExpression": "begins_with(pk, :batch)",
            "ExpressionAttributeValues": {":batch": {"S": "L#"}},
            "ConsistentRead": True,
        }
        erased = 0
        channels: set[Channel] = set()
        while True:
            answer = await self._client.call("scan", request)
            for item in answer["Items"]:
                found = _BATCH.fullmatch(item["pk"]["S"])
                if found is None or "." in item["sk"]["S"]:
                    continue
                channel = Channel(found[1])
                count = await self._erase_from(channel, item, info)
                erased += count
                if count:
                    channels.add(channel)
            if "LastEvaluatedKey" not in answer:
                return erased, channels
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def _erase_from(self, channel: Channel, item: Item, info: str) -> int:
        """Blank such publications of the batch of *item*; return how many."""
        for _ in range(ATTEMPTS):
            parts = [item]
            if "parts" in item:
                parts = await self._parts(item)
            stored = decode_batch(parts)
            if stored is None:
                return 0
            blanked = [_blanked(p, info) for p in stored.publications]
            count = sum(
                new is not old
                for new, old in zip(blanked, stored.publications, strict=True)
            )
            if not count:
                return 0
            if await self._rewrite(channel, parts, blanked):
                return count
            parts = await self._parts(item)
            if not parts:
                return 0
            item = parts[0]
        raise StoreError("a batch changes faster than it can be erased")

    async def _parts(self, item: Item) -> list[Item]:
        request = {
            "TableName": self._client.table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": item["pk"],
                ":first": {"S": range_key(first_of(item))},
                ":last": {"S": range_key(first_of(item)) + "~"},
            },
            "ConsistentRead": True,
        }
        found: list[Item] = []
        while True:
            answer = await self._client.call("query", request)
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return found
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def _rewrite(
        self, channel: Channel, parts: list[Item], publications: list[Publication]
    ) -> bool:
        """Store a batch again; False if it is not as it was read."""
        rows = [
            encode_draft(Draft(p.data, info=p.info, tags=p.tags)) for p in publications
        ]
        base = {
            name: value
            for name, value in parts[0].items()
            if name not in ("b", "z", "parts")
        }
        fresh = encode_rows(base, rows)
        actions: list[dict[str, Any]] = []
        for index, old in enumerate(parts):
            name = "z" if "z" in old else "b"
            guard = {
                "TableName": self._client.table,
                "ConditionExpression": f"{name} = :old",
                "ExpressionAttributeValues": {":old": old[name]},
            }
            if index < len(fresh):
                actions.append({"Put": {"Item": fresh[index], **guard}})
            else:
                key = {"pk": old["pk"], "sk": old["sk"]}
                actions.append({"Delete": {"Key": key, **guard}})
        actions.append(
            {
                "Update": {
                    "TableName": self._client.table,
                    "Key": head_key(channel),
                    "UpdateExpression": "ADD #rev :one",
                    "ConditionExpression": "attribute_exists(pk)",
                    "ExpressionAttributeNames": {"#rev": "rev"},
                    "ExpressionAttributeValues": {":one": {"N": "1"}},
                }
            }
        )
        try:
            request = {"TransactItems": actions}
            await self._client.call("transact_write_items", request)
        except TransactionCancelled as cancelled:
            if cancelled.failed(len(actions) - 1):
                raise StoreError("a batch has no HEAD") from cancelled
            return False
        return True


def _blanked(publication: Publication, info: str) -> Publication:
    if publication.info is None or not publication.info.startswith(info):
        return publication
    return Publication(publication.offset, RawJson("null"), time=publication.time)
