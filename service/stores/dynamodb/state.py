"""The State port on DynamoDB: small shared values that expire.

    K#<kind>   <SHA-256 of the key>   key, value, expires (Unix ms), ttl

A kind is one partition, which takes 1,000 puts and takes a second; calls above that are
repeated for some seconds and then refused. The sort key is a hash because a key may be
empty or as long as a sort key can be, and because keys are tickets, which a list of the
table's keys should not show.

`take` returns the value in the answer of the DeleteItem that removed it. If that answer
is lost, the repeat finds nothing: then no caller gets the value, and this one is told
that it does not exist, as all are from then on.
"""

from __future__ import annotations

import hashlib

from service.core.ports import Clock, StateEntry
from service.stores.dynamodb.client import Client, query_all
from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.registry.records import key as item_key
from service.stores.dynamodb.registry.records import number
from service.stores.history_cache import milliseconds
from service.stores.state_sizes import check_sizes

__all__ = ["DynamodbState"]


class DynamodbState:
    """The State port on a table.

    Args:
        client: Calls the table.
        clock: Tells what has expired.
    """

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        """Keep *value* for *ttl* seconds; see the port.

        Raises:
            ValueError: Key or value is too large, or is not valid Unicode.
            StoreError: It may not be stored.
        """
        check_sizes(key, value)
        expires = self._now() + milliseconds(ttl)
        item = {
            **_key(kind, key),
            "key": {"S": key},
            "value": {"S": value},
            "expires": number(expires),
            "ttl": number(-(-expires // 1000)),
        }
        await self._client.call(
            "put_item", {"TableName": self._client.table, "Item": item}
        )

    async def take(self, kind: str, key: str) -> str | None:
        """Remove an entry and return its value; see the port.

        Raises:
            ValueError: The key is too large, or is not valid Unicode.
            StoreError: It is not known whether it was removed.
        """
        check_sizes(key)
        answer = await self._client.call(
            "delete_item",
            {
                "TableName": self._client.table,
                "Key": _key(kind, key),
                "ReturnValues": "ALL_OLD",
            },
        )
        item: Item | None = answer.get("Attributes")
        kept = _read(item) if item else None
        if kept is None or kept.expires * 1000 <= self._now():
            return None
        return kept.value

    async def entries(self, kind: str) -> list[StateEntry]:
        """Return all entries of a kind; see the port.

        Raises:
            StoreError: They cannot be read.
        """
        found = [_read(item) async for item in query_all(self._client, f"K#{kind}")]
        now = self._now()
        return [kept for kept in found if kept.expires * 1000 > now]

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def _key(kind: str, key: str) -> Item:
    return item_key(f"K#{kind}", hashlib.sha256(key.encode()).hexdigest())


def _read(item: Item) -> StateEntry:
    return StateEntry(
        item["key"]["S"], item["value"]["S"], int(item["expires"]["N"]) / 1000
    )
