"""The `Leases` and `Stored` ports on a table: owners of channels, in their HEADs.

A lease is taken by an append (`log.planner`), and renewed, released, claimed and taken
over here. Each write is conditional on a token that never comes back. So one whose
answer was lost is repeated; where the repeat finds its own work done, that counts.

``until`` never falls: clocks differ, and a claim that set it back would make a living
holder look dead.
"""

from __future__ import annotations

from typing import Any

from service.core.lease import LEASE_SECONDS, ChannelState
from service.core.model import Channel, Publication
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.log.items import Head, decode_head, head_key
from service.stores.dynamodb.log.planner import channel_state
from service.stores.dynamodb.log.reader import Reader
from service.stores.dynamodb.registry.records import number

__all__ = ["DynamodbLeases"]


class DynamodbLeases:
    """The leases of a table's channels, and the log as their holders read it.

    Args:
        client: Calls the table.
        reader: Reads HEADs and publications.
        clock: Tells what has expired.
        timeout: Of one call, seconds.
        shards: Of a channel that has no HEAD.
    """

    def __init__(
        self, client: Client, reader: Reader, clock: Clock, timeout: float, shards: int
    ) -> None:
        self._client = client
        self._reader = reader
        self._clock = clock
        self._timeout = timeout
        self._shards = shards

    async def read(self, channel: Channel) -> ChannelState:
        """Read HEAD; see the port.

        Raises:
            StoreError: It could not be read.
        """
        return channel_state(
            await self._reader.head(channel, self._now(), self._deadline())
        )

    async def between(
        self, channel: Channel, state: ChannelState, since: int, through: int
    ) -> list[Publication]:
        """Read publications as they are stored; see the port.

        Raises:
            StoreError: They could not be read.
        """
        head = Head(state.top.epoch, through, shards=state.shards)
        return await self._reader.between(channel, head, since, self._deadline())

    async def renew(self, channel: Channel, token: str) -> bool:
        """Prolong a lease; see the port.

        Raises:
            StoreError: It is not known whether it was prolonged.
        """
        item = await self._prolong(channel, token, "SET #until = :until", {})
        return _owner(item) == token

    async def claim(
        self, channel: Channel, token: str, claimed: str
    ) -> ChannelState | None:
        """Put another token in place of one, and end its duty; see the port.

        Raises:
            StoreError: It is not known whether it was claimed.
        """
        update = "SET #owner = :claimed, #until = :until REMOVE #duty"
        values = {":claimed": {"S": claimed}}
        item = await self._prolong(channel, token, update, values)
        return self._decoded(channel, item) if _owner(item) == claimed else None

    async def _prolong(
        self, channel: Channel, token: str, update: str, values: Item
    ) -> Item | None:
        """Update a lease that *token* holds; return HEAD as it is then."""
        until = self._now() + round(LEASE_SECONDS * 1000)
        names = {"#owner": "owner", "#until": "until"}
        if "#duty" in update:
            names["#duty"] = "duty"
        while True:
            request = {
                "UpdateExpression": update,
                "ConditionExpression": "#owner = :token AND #until <= :until",
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": {
                    **values,
                    ":token": {"S": token},
                    ":until": number(until),
                },
                "ReturnValues": "ALL_NEW",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
            done, item = await self._update(channel, request)
            if done or item is None or _owner(item) != token:
                return item
            until = int(item["until"]["N"])  # a clock is ahead of this one

    async def release(
        self, channel: Channel, token: str, state: ChannelState
    ) -> ChannelState | None:
        """Free a channel that is as it was read; see the port.

        Raises:
            StoreError: It is not known whether it is free.
        """
        if state.stored is None:
            raise ValueError("a channel without HEAD has no holder")
        request = {
            "UpdateExpression": "REMOVE #owner, #until, #duty",
            "ConditionExpression": (
                "#owner = :token AND #epoch = :epoch AND #top = :top"
            ),
            "ExpressionAttributeNames": {
                "#owner": "owner",
                "#until": "until",
                "#duty": "duty",
                "#epoch": "epoch",
                "#top": "top",
            },
            "ExpressionAttributeValues": {
                ":token": {"S": token},
                ":epoch": {"S": state.stored.epoch},
                ":top": number(state.stored.offset),
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        done, item = await self._update(channel, request)
        # A repeat may find that the release was done, and perhaps another one's hold.
        return None if done else self._decoded(channel, item)

    async def take(
        self, channel: Channel, state: ChannelState, token: str
    ) -> ChannelState | None:
        """Take an expired lease; see the port.

        Raises:
            StoreError: It is not known whether it was taken.
        """
        now = self._now()
        until = max(now + round(LEASE_SECONDS * 1000), state.until)
        request = {
            "UpdateExpression": "SET #owner = :token, #until = :until REMOVE #duty",
            "ConditionExpression": "#owner = :old AND #until < :now",
            "ExpressionAttributeNames": {
                "#owner": "owner",
                "#until": "until",
                "#duty": "duty",
            },
            "ExpressionAttributeValues": {
                ":token": {"S": token},
                ":until": number(until),
                ":old": {"S": state.owner},
                ":now": number(now),
            },
            "ReturnValues": "ALL_OLD",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        done, item = await self._update(channel, request)
        if done:
            return self._decoded(channel, item)
        if _owner(item) == token:
            # Done by an attempt without an answer. Whether there was a duty, nobody
            # knows any more.
            return self._decoded(channel, item)
        return None

    async def _update(
        self, channel: Channel, request: dict[str, Any]
    ) -> tuple[bool, Item | None]:
        """Update HEAD; return whether that was done, and the item that tells of it."""
        request |= {"TableName": self._client.table, "Key": head_key(channel)}
        try:
            answer = await self._client.call(
                "update_item", request, deadline=self._deadline()
            )
        except ConditionFailed as failed:
            return False, failed.item
        return True, answer.get("Attributes")

    def _decoded(self, channel: Channel, item: Item | None) -> ChannelState:
        now = self._now()
        head = decode_head(item, self._reader.origin, channel, self._shards, now)
        return channel_state(head)

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)

    def _deadline(self) -> float:
        return self._clock.now() + self._timeout


def _owner(item: Item | None) -> str:
    return "" if item is None or "owner" not in item else str(item["owner"]["S"])
