"""The `Sessions` port on a table: the connections whose sockets end at the gateway.

    N#<node>     C#<client>   a socket that has arrived: rec, at, ttl. Once its client
                              is being admitted, its connection (`registry.records`),
                              with its terms: end, jti, iat
    N#<node>     E#<client>   a notice of its eviction
    C#<client>   SESSION      its session: rec, refresh, ttl
    C#<client>   S#<channel>  the session's record of a channel (`subscribers`)

The node is one of 64 that no process is (`registry.records.gateway_node`).

Whatever ends is deleted in an order in which a process may die between any two steps:
first the rows, then the session, last the record by which the sweeper finds it again.
A connect writes in the opposite order: arrival, the record in its place, slot, session.
A record may stand without its slot (`registry.connections` has the rules), or with its
slot and without a session, if a process has died: the sweeper ends it. What is found of
a socket is deleted only as it was read: a client may connect while its socket ends.

Sessions carry the table's id as ``table``. In a table that was restored from a backup
they are those of connections whose deliveries may have been lost with the newest HEADs:
they count as not there, and whoever looks for one closes its connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    TOO_MANY_REQUESTS_CLOSE,
    Close,
    StoreError,
)
from service.core.model import Channel, ClientId, UserId
from service.core.ports import Clock
from service.core.sessions import (
    Listed,
    Listing,
    StoredChannel,
    StoredSession,
    Terms,
)
from service.stores.dynamodb.client import Client, gather_limited, query_all
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.registry.connections import (
    AdmissionLimits,
    Connections,
    OverLimit,
)
from service.stores.dynamodb.registry.counter import ConnectionCounter, CounterFull
from service.stores.dynamodb.registry.records import (
    CLIENT,
    GATEWAY_NODES,
    NOTICE,
    decode_connection,
    decode_owner,
    gateway_node,
    is_admitted,
    key,
    number,
    owner_key,
    owner_of,
)
from service.stores.dynamodb.subscribers import KEPT, DynamodbSubscribers

__all__ = ["DynamodbSessions"]

_SESSION = "SESSION"
_TERMS = ("end", "jti", "iat")
_CHANNEL = "S#"


class DynamodbSessions:
    """The sessions of a table.

    Args:
        client: Calls the table.
        subscribers: Their rows.
        limits: Of one user or address.
        client_limit: Connections of the deployment.
        timeout: Seconds that an admission takes at most.
        clock: Dates the items.
        origin: Returns the table's id.
        rng: Chooses shards, and spreads repeats.
    """

    def __init__(
        self,
        client: Client,
        subscribers: DynamodbSubscribers,
        limits: AdmissionLimits,
        clock: Clock,
        *,
        client_limit: int,
        timeout: float,
        origin: Callable[[], str],
        rng: random.Random | None = None,
    ) -> None:
        self._origin = origin
        self._client = client
        self._subscribers = subscribers
        self._clock = clock
        rng = rng or random.SystemRandom()
        self._connections = Connections(
            client,
            ConnectionCounter(client, client_limit, clock, rng),
            limits,
            clock,
            rng,
            timeout=timeout,
            active=lambda client: None,
            is_dead=lambda node: False,
        )

    async def arrive(self, client: ClientId, record: str) -> None:
        """Note a socket that is about to be opened; see the port.

        Raises:
            StoreError: It may be noted.
        """
        now = self._now()
        await self._put(
            {
                **_connection(client),
                "rec": {"S": record},
                "at": number(now),
                "ttl": number(now // 1000 + KEPT),
            }
        )

    async def arrived(self, client: ClientId) -> str | None:
        """Return what `arrive` was given; see the port.

        Raises:
            StoreError: It could not be read.
        """
        item = await self._get(_connection(client))
        record: str | None = item["rec"]["S"] if item and "rec" in item else None
        return record

    async def admit(
        self, client: ClientId, address: str, terms: Terms
    ) -> list[ClientId] | Close:
        """Give a client its slot; see the port.

        Raises:
            StoreError: It may have its slot; it has none any more, if that could be
                done.
        """
        owner, node = owner_of(terms.user, address), gateway_node(client)
        try:
            admitted = await self._connections.admit(owner, client, node, _own(terms))
        except CounterFull:
            return TOO_MANY_REQUESTS_CLOSE
        except OverLimit:
            return CLOSE_CONNECTION_LIMIT
        except StoreError:
            await self._connections.withdraw(owner, client, node)
            raise
        return [each.client for each in admitted.evicted if each.node in GATEWAY_NODES]

    async def open(self, client: ClientId, record: str) -> bool:
        """Store the session of a client that was admitted; see the port.

        Raises:
            StoreError: It may be stored.
        """
        item = self._session(client, record, 0)
        try:
            await self._put(item, "attribute_not_exists(pk)")
        except ConditionFailed as failed:
            if not failed.repeated or failed.item != item:
                return False
        return True

    async def load(self, client: ClientId) -> StoredSession | None:
        """Return a session; see the port.

        Raises:
            StoreError: It could not be read.
        """
        record = None
        channels = {}
        async for item in query_all(self._client, f"C#{client}"):
            name = item["sk"]["S"]
            if name == _SESSION:
                if item["table"]["S"] == self._origin():
                    record = item["rec"]["S"]
            elif "rec" in item:
                channel = Channel(name.removeprefix(_CHANNEL))
                command = int(item["cmd"]["N"])
                channels[channel] = StoredChannel(command, item["rec"]["S"])
        return None if record is None else StoredSession(record, channels)

    async def save(self, client: ClientId, record: str, refresh: int) -> bool:
        """Replace the record of a session; see the port.

        Raises:
            StoreError: It may be replaced.
        """
        try:
            await self._put(
                self._session(client, record, refresh), "refresh <= :refresh", refresh
            )
        except ConditionFailed:
            return False
        return True

    async def save_channel(
        self, client: ClientId, channel: Channel, command: int, record: str
    ) -> None:
        """Replace the session's record of a channel; see the port.

        Raises:
            StoreError: It may be replaced.
        """
        request = {
            "TableName": self._client.table,
            "Key": key(f"C#{client}", _CHANNEL + channel),
            "UpdateExpression": "SET rec = :rec",
            "ConditionExpression": "cmd = :cmd",
            "ExpressionAttributeValues": {
                ":rec": {"S": record},
                ":cmd": number(command),
            },
        }
        try:
            await self._client.call("update_item", request)
        except ConditionFailed:
            return  # it is of a later command

    async def set_terms(self, client: ClientId, terms: Terms) -> None:
        """Set the terms of a client that was admitted; see the port.

        Raises:
            StoreError: They may be set.
        """
        own = _own(terms)
        gone = [name for name in _TERMS if name not in own]
        expression = []
        if own:
            expression.append("SET " + ", ".join(f"#{n} = :{n}" for n in own))
        if gone:
            expression.append("REMOVE " + ", ".join(f"#{n}" for n in gone))
        request: dict[str, Any] = {
            "TableName": self._client.table,
            "Key": _connection(client),
            "UpdateExpression": " ".join(expression),
            "ConditionExpression": "attribute_exists(book)",
            "ExpressionAttributeNames": {f"#{n}": n for n in _TERMS},
        }
        if own:
            values = {f":{n}": value for n, value in own.items()}
            request["ExpressionAttributeValues"] = values
        try:
            await self._client.call("update_item", request)
        except ConditionFailed:
            return  # it has ended

    async def end(self, client: ClientId) -> bool:
        """Delete everything of a connection that is closed; see the port.

        Raises:
            StoreError: Some of it may be left.
        """
        found = False
        channels = []
        async for item in query_all(self._client, f"C#{client}"):
            found = True
            if item["sk"]["S"].startswith(_CHANNEL):
                channels.append(Channel(item["sk"]["S"].removeprefix(_CHANNEL)))
        await gather_limited(
            self._subscribers.remove(channel, client) for channel in channels
        )
        if found:
            await self._delete(key(f"C#{client}", _SESSION))
        while (record := await self._get(_connection(client))) is not None:
            found = True
            if is_admitted(record):
                await self._connections.leave(decode_connection(record))
                break
            try:
                await self._delete(_connection(client), "attribute_not_exists(book)")
            except ConditionFailed:
                continue  # its client is being admitted
            break
        return found

    async def of_user(self, user: UserId) -> list[ClientId]:
        """Return the connections of a user at the gateway; see the port.

        Raises:
            StoreError: They could not be read.
        """
        if not user:
            return []  # they are strangers, and counted by address
        owner = owner_of(user, "")
        item = await self._get(owner_key(owner))
        now = self._now()
        return [
            each.client
            for each in decode_owner(owner, item).records.values()
            if each.node in GATEWAY_NODES and each.expires > now
        ]

    async def listing(self, part: int) -> Listing:
        """Return the connections of one part; see the port.

        Raises:
            StoreError: They could not be read.
        """
        found = Listing([], [], [])
        async for item in query_all(self._client, f"N#{GATEWAY_NODES[part]}"):
            name = item["sk"]["S"]
            at = int(item["at"]["N"])
            if name.startswith(CLIENT):
                client = ClientId(name.removeprefix(CLIENT))
                if is_admitted(item):
                    found.admitted.append(Listed(client, at, _terms(item)))
                else:
                    found.arrived.append(Listed(client, at))
            elif name.startswith(NOTICE):
                found.evicted.append(ClientId(name.removeprefix(NOTICE)))
        return found

    async def settle(self, client: ClientId) -> None:
        """Delete the notice of an evicted connection; see the port.

        Raises:
            StoreError: It may still be there.
        """
        await self._delete(key(f"N#{gateway_node(client)}", NOTICE + client))

    def _session(self, client: ClientId, record: str, refresh: int) -> Item:
        return {
            **key(f"C#{client}", _SESSION),
            "rec": {"S": record},
            "table": {"S": self._origin()},
            "refresh": number(refresh),
            "ttl": number(self._now() // 1000 + KEPT),
        }

    async def _get(self, item_key: Item) -> Item | None:
        request = {
            "TableName": self._client.table,
            "Key": item_key,
            "ConsistentRead": True,
        }
        item: Item | None = (await self._client.call("get_item", request)).get("Item")
        return item

    async def _put(self, item: Item, condition: str = "", refresh: int = 0) -> None:
        request: dict[str, Any] = {"TableName": self._client.table, "Item": item}
        if condition:
            request["ConditionExpression"] = condition
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        if ":refresh" in condition:
            request["ExpressionAttributeValues"] = {":refresh": number(refresh)}
        await self._client.call("put_item", request)

    async def _delete(self, item_key: Item, condition: str = "") -> None:
        request: dict[str, Any] = {"TableName": self._client.table, "Key": item_key}
        if condition:
            request["ConditionExpression"] = condition
        await self._client.call("delete_item", request)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def _connection(client: ClientId) -> Item:
    return key(f"N#{gateway_node(client)}", CLIENT + client)


def _own(terms: Terms) -> Item:
    """Return the attributes of a connection's terms; the user is in its book."""
    found: Item = {}
    if terms.end:
        found["end"] = number(terms.end)
    if terms.token_id:
        found["jti"] = {"S": terms.token_id}
    if terms.issued_at:
        found["iat"] = {"N": repr(terms.issued_at)}
    return found


def _terms(item: Item) -> Terms:
    book = item["book"]["S"]
    return Terms(
        UserId(book[2:] if book.startswith("U#") else ""),
        item["jti"]["S"] if "jti" in item else "",
        float(item["iat"]["N"]) if "iat" in item else 0.0,
        int(item["end"]["N"]) if "end" in item else 0,
    )
