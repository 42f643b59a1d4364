"""The `Subscribers` port on a table: subscriptions whose sockets end at the gateway.

    C#<client>    S#<channel>   by connection: node, cmd, rec, ttl
    S#<channel>   <client>      by channel: st, cmd, at, node, expires, ttl, user, info
                                [, off, epoch, srv, pres, joins]

``st`` is the letter of a `RowState`, ``cmd`` the id of the command that wrote the row,
``rec`` the session's record of the channel. ``off`` and ``epoch`` are the position of
an active row. ``at`` is when the command wrote it, or when its pieces began. The other
attributes are those of all subscriptions (`registry.records`). A row outlives its
connection, which the gateway ends after two hours, by `KEPT` at most: those that have
left are remembered for so long, because a subscribe that is handled late must find
them.

Every write names the command's id. A write whose answer was lost is repeated, and where
the repeat finds its own work done, that counts.
"""

from __future__ import annotations

from typing import Any

from service.core.lease import PENDING_SECONDS
from service.core.model import Channel, ClientId, Position, RawJson, UserId
from service.core.ports import Claim, Clock, RowState, SubscriberRow
from service.stores.dynamodb.client import Client, query_all
from service.stores.dynamodb.errors import ConditionFailed, Item, TransactionCancelled
from service.stores.dynamodb.lease import DynamodbLeases
from service.stores.dynamodb.log.items import head_key
from service.stores.dynamodb.registry.records import gateway_node, key, number

__all__ = ["KEPT", "DynamodbSubscribers"]

KEPT = 2 * 3600 + 600  # s from a command; the gateway ends a connection after 2 h

TRIES = 4  # at a row that other commands of its client write meanwhile

_OWN = "#st = :st AND cmd = :cmd"


class DynamodbSubscribers:
    """The rows of a table.

    Args:
        client: Calls the table.
        leases: Tells whether a channel is free.
        clock: Dates the rows.
    """

    def __init__(self, client: Client, leases: DynamodbLeases, clock: Clock) -> None:
        self._client = client
        self._leases = leases
        self._clock = clock

    # For a command

    async def claim(self, channel: Channel, row: SubscriberRow, record: str) -> Claim:
        """Write the row of a subscribe; see the port.

        Raises:
            StoreError: It may be written.
        """
        now = self._now()
        by_connection = {
            **key(f"C#{row.client}", f"S#{channel}"),
            "node": {"S": gateway_node(row.client)},
            "cmd": number(row.command),
            "rec": {"S": record},
            "ttl": number(now // 1000 + KEPT),
        }
        free = "attribute_not_exists(pk) OR cmd < :cmd"
        if await self._put(by_connection, free, row.command) is not None:
            return Claim.STALE
        claimed = await self._claim_row(channel, row, now)
        if claimed in (Claim.STALE, Claim.ENDED):
            await self._delete_record(channel, row.client, row.command, "cmd = :cmd")
        return claimed

    async def _claim_row(self, channel: Channel, row: SubscriberRow, now: int) -> Claim:
        item = self._item(channel, row, RowState.PENDING, now)
        waiting = self._item(channel, row, RowState.WAITING, now)
        for _ in range(TRIES):
            found = await self._put(item, "attribute_not_exists(pk)", 0)
            if found is None:
                return Claim.MINE
            if int(found["cmd"]["N"]) >= row.command:
                return _lost(found, row.command)
            if found["st"]["S"] == RowState.PIECES.value:
                return Claim.PIECES
            found = await self._put(
                waiting, "cmd < :cmd AND #st <> :pieces", row.command
            )
            if found is None:
                return Claim.WAITS
        return Claim.STALE

    async def wait(self, channel: Channel, client: ClientId, command: int) -> Claim:
        """Look once whether a waiting row may be posted to; see the port.

        Raises:
            StoreError: It is not known.
        """
        answer = await self._client.call(
            "get_item",
            {
                "TableName": self._client.table,
                "Key": key(f"S#{channel}", client),
                "ConsistentRead": True,
            },
        )
        item = answer.get("Item")
        if item is None or int(item["cmd"]["N"]) != command:
            return Claim.STALE
        state = item["st"]["S"]
        if state == RowState.PENDING.value:
            return Claim.MINE
        if state != RowState.WAITING.value:
            return _lost(item, command)
        if (await self._leases.read(channel)).owner:
            return Claim.WAITS
        promoted = await self._move(
            channel, client, command, RowState.WAITING, RowState.PENDING
        )
        return Claim.MINE if promoted else Claim.WAITS

    async def begin_pieces(
        self, channel: Channel, client: ClientId, command: int, due: int
    ) -> bool:
        """Mark a pending row before the first piece; see the port.

        Raises:
            StoreError: It may be marked.
        """
        return await self._move(
            channel,
            client,
            command,
            RowState.PENDING,
            RowState.PIECES,
            sets={"at": number(due - round(PENDING_SECONDS * 1000))},
        )

    async def activate(
        self, channel: Channel, client: ClientId, command: int, position: Position
    ) -> bool:
        """Leave the posting to the holder; see the port.

        Raises:
            StoreError: It may be left to the holder.
        """
        return await self._move(
            channel,
            client,
            command,
            (RowState.PENDING, RowState.PIECES),
            RowState.ACTIVE,
            sets={"off": number(position.offset), "epoch": {"S": position.epoch}},
        )

    async def leave(self, channel: Channel, client: ClientId, command: int) -> Claim:
        """Write that a client has left; see the port.

        Raises:
            StoreError: It may be written.
        """
        now = self._now()
        left = SubscriberRow(client, UserId(""), RawJson(""), command=command)
        found = await self._put(
            self._item(channel, left, RowState.LEFT, now),
            "attribute_not_exists(pk) OR cmd = :cmd OR (cmd < :cmd AND #st <> :pieces)",
            command,
        )
        if found is not None:
            is_later = int(found["cmd"]["N"]) > command
            return Claim.STALE if is_later else Claim.PIECES
        await self._delete_record(channel, client, command, "cmd <= :cmd")
        return Claim.MINE

    async def describe(
        self, channel: Channel, client: ClientId, command: int, info: RawJson
    ) -> None:
        """Show other information of a subscriber; see the port.

        Raises:
            StoreError: It may be shown.
        """
        request = {
            "TableName": self._client.table,
            "Key": key(f"S#{channel}", client),
            "UpdateExpression": "SET info = :info",
            "ConditionExpression": "cmd = :cmd AND #st <> :left",
            "ExpressionAttributeNames": {"#st": "st"},
            "ExpressionAttributeValues": {
                ":info": {"S": info},
                ":cmd": number(command),
                ":left": {"S": RowState.LEFT.value},
            },
        }
        try:
            await self._client.call("update_item", request)
        except ConditionFailed:
            return  # it is of a later command, or the client has left

    # For the holder

    async def grant(
        self, channel: Channel, client: ClientId, command: int, token: str
    ) -> bool:
        """Make a waiting row pending while *token* holds the lease; see the port.

        Raises:
            StoreError: It may be pending.
        """
        table = self._client.table
        actions: list[dict[str, Any]] = [
            {
                "ConditionCheck": {
                    "TableName": table,
                    "Key": head_key(channel),
                    "ConditionExpression": "#owner = :token",
                    "ExpressionAttributeNames": {"#owner": "owner"},
                    "ExpressionAttributeValues": {":token": {"S": token}},
                }
            },
            {
                "Update": {
                    "TableName": table,
                    "Key": key(f"S#{channel}", client),
                    "UpdateExpression": "SET #st = :pending",
                    "ConditionExpression": _OWN,
                    "ExpressionAttributeNames": {"#st": "st"},
                    "ExpressionAttributeValues": {
                        ":pending": {"S": RowState.PENDING.value},
                        ":st": {"S": RowState.WAITING.value},
                        ":cmd": number(command),
                    },
                }
            },
        ]
        try:
            request = {"TransactItems": actions}
            await self._client.call("transact_write_items", request)
        except TransactionCancelled:
            return False
        return True

    async def reset(self, channel: Channel, client: ClientId, command: int) -> bool:
        """Note that an active row was told to subscribe again; see the port.

        Raises:
            StoreError: It may be noted.
        """
        return await self._move(
            channel, client, command, RowState.ACTIVE, RowState.LEFT
        )

    async def rows(self, channel: Channel) -> list[SubscriberRow]:
        """Return every row of a channel; see the port.

        Raises:
            StoreError: They cannot all be read.
        """
        return [
            SubscriberRow(
                ClientId(item["sk"]["S"]),
                UserId(item["user"]["S"]),
                RawJson(item["info"]["S"]),
                RowState(item["st"]["S"]),
                int(item["cmd"]["N"]),
                _position(item),
                int(item["at"]["N"]),
                server="srv" in item,
                present="pres" in item,
                hears_joins="joins" in item,
            )
            async for item in query_all(self._client, f"S#{channel}")
            if "st" in item  # those of resident processes are served by their hubs
        ]

    async def remove(self, channel: Channel, client: ClientId) -> None:
        """Delete a row and its record; see the port.

        Raises:
            StoreError: They may still be there.
        """
        for each in (
            key(f"S#{channel}", client),
            key(f"C#{client}", f"S#{channel}"),
        ):
            await self._client.call(
                "delete_item", {"TableName": self._client.table, "Key": each}
            )

    # Writes

    async def _put(self, item: Item, condition: str, command: int) -> Item | None:
        """Put an item; return the one in its place if *condition* does not hold."""
        request: dict[str, Any] = {
            "TableName": self._client.table,
            "Item": item,
            "ConditionExpression": condition,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        values: Item = {}
        if ":cmd" in condition:
            values[":cmd"] = number(command)
        if "#st" in condition:
            values[":pieces"] = {"S": RowState.PIECES.value}
            request["ExpressionAttributeNames"] = {"#st": "st"}
        if values:
            request["ExpressionAttributeValues"] = values
        try:
            await self._client.call("put_item", request)
        except ConditionFailed as failed:
            found: Item = failed.item or {}
            own = all(found.get(name) == item[name] for name in item)
            return None if failed.repeated and own else found
        return None

    async def _move(
        self,
        channel: Channel,
        client: ClientId,
        command: int,
        before: RowState | tuple[RowState, ...],
        after: RowState,
        sets: Item | None = None,
    ) -> bool:
        """Change the state of a command's own row; False if it has changed before."""
        states = before if isinstance(before, tuple) else (before,)
        values = {f":{name}": value for name, value in (sets or {}).items()}
        update = "SET #st = :after" + "".join(f", #{n} = :{n}" for n in sets or ())
        allowed = [f":before{index}" for index in range(len(states))]
        request = {
            "TableName": self._client.table,
            "Key": key(f"S#{channel}", client),
            "UpdateExpression": update,
            "ConditionExpression": f"cmd = :cmd AND #st IN ({', '.join(allowed)})",
            "ExpressionAttributeNames": {
                "#st": "st",
                **{f"#{name}": name for name in sets or ()},
            },
            "ExpressionAttributeValues": {
                ":cmd": number(command),
                ":after": {"S": after.value},
                **{a: {"S": s.value} for a, s in zip(allowed, states, strict=True)},
                **values,
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            await self._client.call("update_item", request)
        except ConditionFailed as failed:
            item = failed.item or {}
            return (
                failed.repeated
                and item.get("st") == {"S": after.value}
                and item.get("cmd") == number(command)
            )
        return True

    async def _delete_record(
        self, channel: Channel, client: ClientId, command: int, condition: str
    ) -> None:
        request = {
            "TableName": self._client.table,
            "Key": key(f"C#{client}", f"S#{channel}"),
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {":cmd": number(command)},
        }
        try:
            await self._client.call("delete_item", request)
        except ConditionFailed:
            return  # it is of a later command, or not there

    def _item(
        self, channel: Channel, row: SubscriberRow, state: RowState, now: int
    ) -> Item:
        flags = {"srv": row.server, "pres": row.present, "joins": row.hears_joins}
        return {
            **key(f"S#{channel}", row.client),
            "st": {"S": state.value},
            "cmd": number(row.command),
            "at": number(now),
            "node": {"S": gateway_node(row.client)},
            "expires": number(now + KEPT * 1000),
            "ttl": number(now // 1000 + KEPT),
            "user": {"S": row.user},
            "info": {"S": row.info},
            **{name: {"BOOL": True} for name, on in flags.items() if on},
        }

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def _lost(found: Item, command: int) -> Claim:
    """Return why a subscribe has no row: a later command, or an end by the server.

    Which ends it under its own command's id.
    """
    has_left = found["st"]["S"] == RowState.LEFT.value
    is_own = int(found["cmd"]["N"]) == command
    return Claim.ENDED if has_left and is_own else Claim.STALE


def _position(item: Item) -> Position:
    if "off" not in item:
        return Position(0, "")
    return Position(int(item["off"]["N"]), item["epoch"]["S"])
