"""Who is subscribed to what, in all processes.

Each subscription is two items: by connection, so that what ends a connection finds its
channels; by channel, which is what is asked for. They are written without a
transaction, at half the price, in an order that makes up for it: the first is there
before the second, and goes after it. So a process that dies between the two leaves an
item by connection, which is cleaned up with its connection, and no item by channel that
nobody would ever find.

An item counts while its connection may be there: not after the connection's end, and
not when its process is known to be dead. Whoever asks compares; the sweep deletes.

What concerns one connection must be asked for one at a time, by its process; once it
has left, nothing may be entered for it.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.pages import pages
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.records import Record, key, number
from service.stores.dynamodb.several import several

__all__ = ["Presence", "Present"]


class Present(NamedTuple):
    """One subscription.

    Attributes:
        client: Whose.
        user: "" for nobody in particular.
        node: The process that has it.
        info: It as others see it in this channel, as JSON text.
    """

    client: ClientId
    user: UserId
    node: str
    info: RawJson


class Presence:
    """The subscriptions of a deployment.

    Args:
        client: Of the table.
        nodes: Knows which processes are dead.
        clock: Says what has expired.
    """

    def __init__(self, client: Client, nodes: Nodes, clock: Clock) -> None:
        self._client = client
        self._nodes = nodes
        self._clock = clock

    async def enter(
        self, record: Record, channel: Channel, user: UserId, info: RawJson
    ) -> None:
        """Put a connection into a channel; again, to change how it is seen.

        Raises:
            StoreError: It is not known whether others see it; `leave` makes sure that
                they do not.
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
        """Take a connection out of a channel. Safe to repeat.

        Raises:
            StoreError: It may still be there.
        """
        await self._delete(key(f"S#{channel}", client))
        await self._delete(key(f"C#{client}", f"S#{channel}"))

    async def leave_all(self, client: ClientId, node: str) -> None:
        """Take a connection out of all its channels. Safe to repeat.

        Only what it entered as one of *node*: it may be one of another's by now.

        Raises:
            StoreError: It may still be in some.
        """
        channels = await self.channels(client)
        await several(self._leave_as(client, channel, node) for channel in channels)

    async def channels(self, client: ClientId) -> list[Channel]:
        """Return where a connection is.

        Raises:
            StoreError: It cannot be read.
        """
        return [
            Channel(item["sk"]["S"].removeprefix("S#"))
            async for item in pages(self._client, f"C#{client}", prefix="S#")
        ]

    async def present(self, channel: Channel) -> list[Present]:
        """Return who is in a channel.

        Raises:
            StoreError: It cannot be read.
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
            async for item in pages(self._client, f"S#{channel}")
            if int(item["expires"]["N"]) > now
            and not self._nodes.lost(item["node"]["S"])
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
