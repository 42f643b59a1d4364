"""Cross-process presence: the subscribers of all nodes that others may see.

Each is two items: one by node, from which whoever cleans up after a dead node finds its
subscribers, and one by channel, which presence reads. They are written in batches
without a transaction, at half the price, in a safe order: the items by node are written
first and deleted last. So a process that dies between the two writes leaves an item by
node, which is deleted with its node, and never an item by channel that nobody would
find.

An item counts until its connection expires, or its node is marked dead. Readers
compare; `maintenance` deletes, conditional on the node that wrote the item: a node that
was taken for dead writes its items anew, under its new name.

A node makes the calls for one key one after the other. A write whose answer was lost
may arrive after the deletion that followed it, and is then seen until it expires.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from service.core.cluster import PresenceKey, PresenceRow
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Clock
from service.stores.dynamodb.batches import write_batches
from service.stores.dynamodb.client import Client, gather_limited, query_all
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.registry.records import (
    SUBSCRIBER,
    is_present,
    key,
    number,
)

__all__ = ["Presence"]


class Presence:
    """The subscribers of a deployment.

    Args:
        client: Calls the table.
        clock: Tells what has expired.
        age: Seconds after which a connection ends.
    """

    def __init__(self, client: Client, clock: Clock, age: float) -> None:
        self._client = client
        self._clock = clock
        self._age = age

    async def enter(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows, in place of what was there. Safe to repeat.

        Raises:
            StoreError: Others may see them or not; `leave` makes sure that they do not.
        """
        expires = [row.joined + round(self._age * 1000) for row in rows]
        await write_batches(
            self._client,
            [
                _put({**_by_node(row.node, row.key), "ttl": _ttl(end)})
                for row, end in zip(rows, expires, strict=True)
            ],
        )
        await write_batches(
            self._client,
            [_put(_item(row, end)) for row, end in zip(rows, expires, strict=True)],
        )

    async def leave(self, node: str, keys: Sequence[PresenceKey]) -> None:
        """Delete rows of *node*. Safe to repeat.

        Raises:
            StoreError: They may still be there.
        """
        await write_batches(self._client, [_delete(_by_channel(each)) for each in keys])
        await write_batches(
            self._client, [_delete(_by_node(node, each)) for each in keys]
        )

    async def leave_all(self, node: str) -> int:
        """Delete all rows of a dead node; return how many. Safe to repeat.

        Raises:
            StoreError: Some may still be there.
        """
        found = [
            _key_of(item["sk"]["S"])
            async for item in query_all(self._client, f"N#{node}", prefix=SUBSCRIBER)
        ]
        await gather_limited(self._leave_as(node, each) for each in found)
        await write_batches(
            self._client, [_delete(_by_node(node, each)) for each in found]
        )
        return len(found)

    async def has_rows(self, node: str) -> bool:
        """Return whether a node has rows.

        Raises:
            StoreError: They cannot be read.
        """
        async for _ in query_all(self._client, f"N#{node}", prefix=SUBSCRIBER):
            return True
        return False

    async def present(self, channel: Channel) -> list[PresenceRow]:
        """Return the rows of a channel that have not expired.

        Raises:
            StoreError: They cannot be read.
        """
        now = self._clock.wall() * 1000
        return [
            _row(channel, item)
            async for item in query_all(self._client, f"S#{channel}")
            if is_present(item) and int(item["expires"]["N"]) > now
        ]

    async def _leave_as(self, node: str, each: PresenceKey) -> None:
        request = {
            "TableName": self._client.table,
            "Key": _by_channel(each),
            "ConditionExpression": "node = :node",
            "ExpressionAttributeValues": {":node": {"S": node}},
        }
        with contextlib.suppress(ConditionFailed):
            await self._client.call("delete_item", request)


def _by_node(node: str, each: PresenceKey) -> Item:
    return key(f"N#{node}", f"{SUBSCRIBER}{each.client}#{each.channel}")


def _by_channel(each: PresenceKey) -> Item:
    return key(f"S#{each.channel}", each.client)


def _key_of(name: str) -> PresenceKey:
    client, channel = name.removeprefix(SUBSCRIBER).split("#", 1)
    return PresenceKey(Channel(channel), ClientId(client))


def _item(row: PresenceRow, expires: int) -> Item:
    flags = {"pres": row.present, "tells": row.announced}
    return {
        **_by_channel(row.key),
        "node": {"S": row.node},
        "user": {"S": row.user},
        "info": {"S": row.info},
        "at": number(row.joined),
        "expires": number(expires),
        "ttl": _ttl(expires),
        **({"lost": number(row.lost)} if row.lost else {}),
        **{name: {"BOOL": True} for name, on in flags.items() if on},
    }


def _row(channel: Channel, item: Item) -> PresenceRow:
    return PresenceRow(
        channel,
        ClientId(item["sk"]["S"]),
        UserId(item["user"]["S"]),
        item["node"]["S"],
        RawJson(item["info"]["S"]),
        int(item["at"]["N"]),
        int(item["lost"]["N"]) if "lost" in item else 0,
        present="pres" in item,
        announced="tells" in item,
    )


def _ttl(expires: int) -> dict[str, Any]:
    return number(-(-expires // 1000))


def _put(item: Item) -> dict[str, Any]:
    return {"PutRequest": {"Item": item}}


def _delete(item_key: Item) -> dict[str, Any]:
    return {"DeleteRequest": {"Key": item_key}}
