"""Processes: which are alive, and what others have to tell them.

Each process has a row that says until when it is known to be alive, and moves that on
while it is. Whoever finds that the time has passed marks it dead, unless it has just
been moved on, and then takes out its connections (`sweep`). A process that finds
itself marked was away for too long: its connections do not count any more. It closes
them and goes on under a new name.

Clocks of processes may differ by some seconds, which is little beside `timeout`. One
whose clock is wrong by more than that takes the living for dead, or never notices the
dead; the first costs reconnects, and neither loses a publication.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from service.core.model import ClientId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import ConditionFailed, Item
from service.stores.dynamodb.pages import pages
from service.stores.dynamodb.registry.records import BACKSTOP, NOTICE, key, number

__all__ = ["Nodes"]

GRACE = 3600.0
"""Seconds for which a dead process is looked at again: what it had sent before it was
marked has arrived by then, or never will."""

FRESH = 5.0  # s for which it is believed who is dead


class Node(NamedTuple):
    """A process, as the table has it.

    Attributes:
        name: Of this life of it.
        until: When it is alive no more unless it says so again, Unix milliseconds.
        dead: When it was marked dead, Unix milliseconds; None if it was not.
    """

    name: str
    until: int
    dead: int | None


class Nodes:
    """All processes of a deployment, one of which is this.

    Args:
        client: Of the table.
        clock: Says who is late.
        timeout: Seconds after its last sign at which a process is taken for dead.

    Attributes:
        name: Of this process.
    """

    def __init__(self, client: Client, clock: Clock, timeout: float) -> None:
        self.name = ""
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._lost: frozenset[str] = frozenset()
        self._read = float("-inf")  # when `_lost` was

    async def enter(self) -> None:
        """Give this process a row, under a new name.

        Raises:
            StoreError: It has none for certain.
        """
        name = uuid.uuid4().hex[:16]
        until = self._now() + round(self._timeout * 1000)
        await self._client.call(
            "put_item",
            {
                "TableName": self._client.table,
                "Item": {**_key(name), "until": number(until), "ttl": _ttl(until)},
            },
        )
        self.name = name

    async def renew(self) -> bool:
        """Say that this process is alive; False if it was taken for dead.

        Raises:
            StoreError: Nobody knows.
        """
        until = self._now() + round(self._timeout * 1000)
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": _key(self.name),
                    "UpdateExpression": "SET #until = :until, #ttl = :ttl",
                    "ConditionExpression": (
                        "attribute_exists(pk) AND attribute_not_exists(dead)"
                    ),
                    "ExpressionAttributeNames": {"#until": "until", "#ttl": "ttl"},
                    "ExpressionAttributeValues": {
                        ":until": number(until),
                        ":ttl": _ttl(until),
                    },
                },
            )
        except ConditionFailed:
            return False
        return True

    async def all(self) -> list[Node]:
        """Return all processes that have a row, the dead ones too.

        Raises:
            StoreError: They cannot be read.
        """
        found = []
        async for item in pages(self._client, "NODES"):
            dead = item.get("dead")
            found.append(
                Node(
                    item["sk"]["S"],
                    int(item["until"]["N"]),
                    None if dead is None else int(dead["N"]),
                )
            )
        self._read = self._clock.now()
        now = self._now()
        self._lost = frozenset(
            node.name for node in found if node.dead is not None or node.until <= now
        )
        return found

    async def refresh(self) -> None:
        """Make sure that what `lost` says is `FRESH` seconds old at the most.

        Raises:
            StoreError: It is older.
        """
        if self._clock.now() - self._read >= FRESH:
            await self.all()

    def lost(self, name: str) -> bool:
        """Return whether a process was late or dead when they were last read."""
        return name in self._lost

    async def mark(self, node: Node) -> bool:
        """Mark a process dead; False if it has said that it is alive.

        Raises:
            StoreError: Nobody knows.
        """
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": _key(node.name),
                    "UpdateExpression": "SET dead = :now",
                    "ConditionExpression": (
                        "#until = :seen AND attribute_not_exists(dead)"
                    ),
                    "ExpressionAttributeNames": {"#until": "until"},
                    "ExpressionAttributeValues": {
                        ":now": number(self._now()),
                        ":seen": number(node.until),
                    },
                },
            )
        except ConditionFailed as failed:
            # An earlier attempt of this very call may have marked it.
            return failed.repeated
        return True

    async def retire(self) -> None:
        """Mark this process dead, so that others look after what is left of it.

        Raises:
            StoreError: They find out by themselves.
        """
        await self._client.call(
            "update_item",
            {
                "TableName": self._client.table,
                "Key": _key(self.name),
                "UpdateExpression": "SET dead = :now, #until = :now, #ttl = :ttl",
                "ExpressionAttributeNames": {"#until": "until", "#ttl": "ttl"},
                "ExpressionAttributeValues": {
                    ":now": number(self._now()),
                    ":ttl": _ttl(self._now()),
                },
            },
        )

    async def forget(self, name: str) -> None:
        """Delete the row of a process.

        Raises:
            StoreError: It may still be there.
        """
        await self._client.call(
            "delete_item", {"TableName": self._client.table, "Key": _key(name)}
        )

    def over(self, node: Node) -> bool:
        """Return whether a dead process needs to be looked at no more."""
        grace = round(GRACE * 1000)
        return node.dead is not None and node.dead + grace <= self._now()

    # Notices

    async def notices(self, name: str) -> list[ClientId]:
        """Return the connections of a process that were taken out for others.

        Raises:
            StoreError: They cannot be read.
        """
        return [
            ClientId(item["sk"]["S"].removeprefix(NOTICE))
            async for item in pages(
                self._client, f"N#{name}", prefix=NOTICE, consistent=False
            )
        ]

    async def noticed(self, name: str, client: ClientId) -> None:
        """Delete a notice that was acted on. Safe to repeat.

        Raises:
            StoreError: It may still be there.
        """
        await self._client.call(
            "delete_item",
            {
                "TableName": self._client.table,
                "Key": key(f"N#{name}", NOTICE + client),
            },
        )

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)


def _key(name: str) -> Item:
    return key("NODES", name)


def _ttl(end: int) -> dict[str, str]:
    return number(end // 1000 + 4 * BACKSTOP)
