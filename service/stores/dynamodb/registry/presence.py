"""Cross-process presence: the subscriptions of all nodes.

Each subscription is two items: one by connection, from which the end of a connection
finds its channels, and one by channel, which presence reads. They are written without a
transaction, at half the price, in a safe order: the item by connection is written first
and deleted last. So a process that dies between the two writes leaves an item by
connection, which is deleted with its connection, and never an item by channel that
nobody would find.

An item counts until its connection expires or its node is known to be dead. Readers
compare; `maintenance` deletes.

The node of a connection must make the calls for it one after the other, and enter
nothing for it once it has left.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client, gather_limited, query_all
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.records import (
    ConnectionRecord,
    is_present,
    key,
    number,
)

__all__ = ["Presence", "Present"]


class Present(NamedTuple):
    """A connection subscribed to a channel.

    Attributes:
        client: Its id.
        user: Its user, "" without one.
        node: The node that has it.
        info: What others see of it in this channel, as JSON text.
    """

    client: ClientId
    user: UserId
    node: str
    info: RawJson


class Presence:
    """The subscriptions of a deployment.

    Args:
        client: Calls the table.
        nodes: Tells which nodes are dead.
        clock: Tells what has expired.
    """

    def __init__(self, client: Client, nodes: Nodes, clock: Clock) -> None:
        self._client = client
        self._nodes = nodes
        self._clock = clock

    async def enter(
        self, record: ConnectionRecord, channel: Channel, user: UserId, info: RawJson
    ) -> None:
        """Add a connection to a channel, or change its info.

        Raises:
            StoreError: Others may see it or not; `leave` makes sure that they do not.
        """
        ttl = number(-(-record.expires // 1000))
        await self._put(
            {
                **key(f"C#{record.client}", f"S#{channel}"),
                "node": {"S": record.node},
                "ttl": ttl,
            }
        )
        await self._put(
            {
                **key(f"S#{channel}", record.client),
                "node": {"S": record.node},
                "user": {"S": user},
                "info": {"S": info},
                "expires": number(record.expires),
                "ttl": ttl,
            }
        )

    async def leave(self, client: ClientId, channel: Channel) -> None:
        """Remove a connection from a channel. Safe to repeat.

        Raises:
            StoreError: It may still be there.
        """
        await self._delete(key(f"S#{channel}", client))
        await self._delete(key(f"C#{client}", f"S#{channel}"))

    async def leave_all(self, client: ClientId, node: str) -> None:
        """Remove a connection from all its channels. Safe to repeat.

        Only what *node* entered: the connection may belong to another node by now.

        Raises:
            StoreError: It may still be in some.
        """
        channels = await self.channels(client)
        await gather_limited(
            self._leave_as(client, channel, node) for channel in channels
        )

    async def channels(self, client: ClientId) -> list[Channel]:
        """Return the channels of a connection.

        Raises:
            StoreError: They cannot be read.
        """
        return [
            Channel(item["sk"]["S"].removeprefix("S#"))
            async for item in query_all(self._client, f"C#{client}", prefix="S#")
        ]

    async def present(self, channel: Channel) -> list[Present]:
        """Return the connections subscribed to a channel.

        Raises:
            StoreError: They cannot be read.
        """
        await self._nodes.refresh()
        now = self._clock.wall() * 1000
        return [
            Present(
                ClientId(item["sk"]["S"]),
                UserId(item["user"]["S"]),
                item["node"]["S"],
                RawJson(item["info"]["S"]),
            )
            async for item in query_all(self._client, f"S#{channel}")
            if is_present(item)
            and int(item["expires"]["N"]) > now
            and not self._nodes.is_dead(item["node"]["S"])
        ]

    async def _leave_as(self, client: ClientId, channel: Channel, node: str) -> None:
        await self._delete(key(f"S#{channel}", client), node)
        await self._delete(key(f"C#{client}", f"S#{channel}"), node)

    async def _put(self, item: Item) -> None:
        await self._client.call(
            "put_item", {"TableName": self._client.table, "Item": item}
        )

    async def _delete(self, item_key: Item, node: str = "") -> None:
        request: dict[str, Any] = {"TableName": self._client.table, "Key": item_key}
        if node:
            request["ConditionExpression"] = "node = :node"
            request["ExpressionAttributeValues"] = {":node": {"S": node}}
        with contextlib.suppress(ConditionFailed):
            await self._client.call("delete_item", request)
