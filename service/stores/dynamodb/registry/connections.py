"""Connections in the table: letting them in, taking them out, and who was active.

What limits is written in one transaction, so a process may die between any two calls:

    admit   the user's book, if unchanged since it was read: the newcomer in, whoever
            is over the limit out; the newcomer's record; and either a slot of the
            count, or, when somebody goes, his: his record is deleted, his node told
    leave   the record, if it is there: whoever deletes it gives the slot back, and no
            one else does; the book's entry

Invariants, after each transaction:

* a user's book holds `limit` entries that have not expired at the most, and of the rest
  none outlives the next admission;
* a shard counts the records that name it;
* every connection that was taken out for another one has its notice, or its node has
  seen it.

What has expired is not counted, wherever it still lies: entries are compared with the
clock here, records by the sweep.

Who goes is the least recently active, as the book has it: for connections of other
processes it is up to a minute old (`touch`), those of this one are asked, and what they
say is written with the book.

Interleavings, each a test: two admissions of one user read the same book (one of them
reads again); an admission and the leave of him who is to go (his record is gone: he is
a ghost in the book, and gives no slot); a leave and another (the second finds no
record); an answer that is lost (the token makes the repeat the same transaction); an
admission that arrives after it was given up (the record is nobody's, and its node's
next sweep takes it out).

In one process, what concerns one book is done one at a time: else fifty connects of a
user would each read and lose forty-nine times. A book is a user's, or an address's for
those without a user.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from service.core.errors import StoreBusy
from service.core.model import ClientId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import (
    ConditionFailed,
    Item,
    TransactionCancelled,
)
from service.stores.dynamodb.registry.actions import (
    Action,
    delete_book,
    delete_record,
    new_version,
    put,
    put_book,
    put_new,
    remove_from_book,
)
from service.stores.dynamodb.registry.counter import Slots
from service.stores.dynamodb.registry.keyed_lock import KeyedLock
from service.stores.dynamodb.registry.limits import Limits, choose
from service.stores.dynamodb.registry.records import (
    CLIENT,
    Book,
    Record,
    book_item,
    book_key,
    key,
    notice_item,
    number,
    read_book,
    read_record,
    record_item,
    record_key,
)

__all__ = ["Connections"]

PAUSE = 0.02  # s before a book is read again that somebody else was faster with


class Admitted(NamedTuple):
    """A newcomer is in.

    Attributes:
        record: Of it.
        evicted: Who went for it.
    """

    record: Record
    evicted: tuple[Record, ...]


class _Plan(NamedTuple):
    """One transaction of an admission, and which action is what."""

    actions: list[Action]
    record: Record
    evicted: list[Record]
    places: dict[int, Record]  # whose record an action deletes
    slot: int | None  # the action that takes one
    entry: int  # the action that writes the record
    book: int  # the action that writes the book


class Connections:
    """All connections of a deployment.

    Args:
        client: Of the table.
        slots: Counts them.
        limits: Of one user.
        clock: Says what has expired, and ends what takes too long.
        chance: Spreads repeats.
        timeout: Seconds that one call of this takes at the most.
        active: When a connection of this process was last heard of, Unix milliseconds;
            None for those of others.
        lost: Whether a process is known to be dead.
    """

    def __init__(
        self,
        client: Client,
        slots: Slots,
        limits: Limits,
        clock: Clock,
        rng: random.Random,
        *,
        timeout: float,
        active: Callable[[ClientId], int | None],
        lost: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._slots = slots
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._timeout = timeout
        self._active = active
        self._lost = lost
        self._turns = KeyedLock()

    async def admit(self, book: str, client: ClientId, node: str) -> Admitted:
        """Let a connection in, for others of its book if need be. Safe to repeat.

        Raises:
            Full: There are as many connections as there may be.
            OverLimit: Its user or address has as many as it may, and none may go.
            StoreError: It is not known whether it is in: let it `leave`.
        """
        deadline = self._clock.now() + self._timeout
        async with self._turns.of(book):
            return await self._admit(book, client, node, deadline)

    async def leave(self, record: Record) -> bool:
        """Take a connection out; False if it was out already. Safe to repeat.

        Raises:
            StoreError: It is not known whether it is out.
        """
        deadline = self._clock.now() + self._timeout
        async with self._turns.of(record.book):
            return await self._leave(record, deadline)

    async def withdraw(self, book: str, client: ClientId, node: str) -> bool:
        """Take out a connection of which nobody knows whether it is in.

        Raises:
            StoreError: Nobody knows yet.
        """
        deadline = self._clock.now() + self._timeout
        async with self._turns.of(book):
            item = await self._get(key(f"N#{node}", CLIENT + client), deadline)
            return item is not None and await self._leave(read_record(item), deadline)

    async def touch(self, record: Record, active: int) -> bool:
        """Take note that a connection was active; False if it is not there any more.

        Writes only if the user has others, who might go for it or it for them.

        Args:
            record: Of the connection.
            active: When it was, Unix milliseconds.

        Raises:
            StoreError: Nobody knows.
        """
        # Half the price, and as good: if it lags, the next one is written.
        item = await self._get(book_key(record.book), None, consistent=False)
        book = read_book(record.book, item)
        if record.client in book.records and len(self._alive(book)) < 2:
            return True
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": book_key(record.book),
                    "UpdateExpression": (
                        "SET conns.#client.active = :active, ver = :ver"
                    ),
                    "ConditionExpression": "attribute_exists(conns.#client)",
                    "ExpressionAttributeNames": {"#client": record.client},
                    "ExpressionAttributeValues": {
                        ":active": number(active),
                        ":ver": {"S": new_version()},
                    },
                },
            )
        except ConditionFailed:
            return False
        return True

    # Admission

    async def _admit(
        self, name: str, client: ClientId, node: str, deadline: float
    ) -> Admitted:
        ghosts: set[ClientId] = set()
        while True:
            item = await self._get(book_key(name), deadline)
            book = read_book(name, item)
            there = book.records.get(client)
            if there is not None and there.node == node:
                return Admitted(there, ())
            if there is not None:  # it was another process's, or this one's before
                await self._leave(there, deadline)
                continue
            plan = self._plan(book, client, node, ghosts)
            try:
                await self._transact(plan.actions, deadline)
            except TransactionCancelled as cancelled:
                await self._understand(plan, cancelled, ghosts, deadline)
            else:
                return Admitted(plan.record, tuple(plan.evicted))
            await self._pause(deadline)

    def _plan(
        self, book: Book, client: ClientId, node: str, ghosts: set[ClientId]
    ) -> _Plan:
        table = self._client.table
        now = int(self._clock.wall() * 1000)
        kept = [
            one._replace(active=max(one.active, self._active(one.client) or 0))
            for one in self._alive(book)
            if one.client not in ghosts
        ]
        evicted = choose(book.name, kept, self._limits, self._lost)
        actions: list[Action] = []
        places: dict[int, Record] = {}
        slot = None
        if evicted:
            shard = evicted[0].shard  # one in, one out
        else:
            shard = self._slots.pick()
            slot = len(actions)
            actions.append(self._slots.take(shard))
        for one in evicted:
            places[len(actions)] = one
            actions.append(delete_record(table, one))
            actions.append(put(table, notice_item(one, now)))
        surplus = Counter(one.shard for one in evicted[1:])
        actions += [self._slots.give_back(s, count) for s, count in surplus.items()]
        expires = now + round(self._limits.age * 1000)
        record = Record(book.name, client, node, shard, now, expires)
        entry = len(actions)
        actions.append(put_new(table, record_item(record)))
        records = [one for one in kept if one not in evicted]
        item = book_item(new_version(), [*records, record])
        actions.append(put_book(table, item, book.version))
        return _Plan(actions, record, evicted, places, slot, entry, entry + 1)

    async def _understand(
        self,
        plan: _Plan,
        cancelled: TransactionCancelled,
        ghosts: set[ClientId],
        deadline: float,
    ) -> None:
        """See what to do about a plan that failed."""
        for place, one in plan.places.items():
            if cancelled.failed(place):
                ghosts.add(one.client)
        if plan.slot is not None and cancelled.failed(plan.slot):
            await self._slots.full(plan.record.shard, deadline)
        if cancelled.failed(plan.entry) and not cancelled.failed(plan.book):
            # Its record is there, and its book does not have it: the rest of one that
            # has expired.
            item = await self._get(record_key(plan.record), deadline)
            if item is not None:
                await self._leave(read_record(item), deadline)

    # Leaving

    async def _leave(self, record: Record, deadline: float) -> bool:
        table = self._client.table
        actions = [
            delete_record(table, record),
            self._slots.give_back(record.shard),
        ]
        # Most users have one connection, so that the book goes with it.
        entry: Action | None = delete_book(table, record)
        while True:
            try:
                await self._transact(
                    actions if entry is None else [*actions, entry], deadline
                )
            except TransactionCancelled as cancelled:
                if cancelled.failed(0):
                    return False
                book = read_book(record.book, cancelled.reasons[2].item)
                if record.client not in book.records:
                    entry = None
                elif len(book.records) > 1:
                    entry = remove_from_book(table, record)
                else:
                    entry = delete_book(table, record)
            else:
                self._slots.freed()
                return True
            await self._pause(deadline)

    # Calls

    def _alive(self, book: Book) -> list[Record]:
        now = self._clock.wall() * 1000
        return [record for record in book.records.values() if record.expires > now]

    async def _get(
        self, item_key: Item, deadline: float | None, *, consistent: bool = True
    ) -> Item | None:
        answer = await self._client.call(
            "get_item",
            {
                "TableName": self._client.table,
                "Key": item_key,
                "ConsistentRead": consistent,
            },
            deadline=deadline,
        )
        item: Item | None = answer.get("Item")
        return item

    async def _transact(self, actions: list[Action], deadline: float) -> None:
        await self._client.call(
            "transact_write_items", {"TransactItems": actions}, deadline=deadline
        )

    async def _pause(self, deadline: float) -> None:
        seconds = PAUSE * self._rng.random()
        if self._clock.now() + seconds >= deadline:
            raise StoreBusy("others were always faster")
        await asyncio.sleep(seconds)
