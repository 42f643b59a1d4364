"""Admission of connections under the limits of users, addresses and the deployment.

Whatever limits is written in one transaction, so that a process may die between any
two calls:

    admit   the owner's item, if it is as it was read: the new connection in, evicted
            ones out; and either one more in the counter or the shard of an evicted
            connection, whose record is deleted and whose node gets a notice
    leave   the entry in the owner's item removed, if it is there, and the counter
            lowered

An owner is a user, or the address of connections without a user. The record of a
connection is what its node, or the sweeper, finds it by. That of a server's connection
is written and deleted in the same transactions. That of a connection at the gateway
is outside of them, which saves a unit each time: it is written before, as a claim, in
the place of the note of its handshake, and deleted after.

Invariants, after each call:

* an owner's item has at most `limit` entries that have not expired, and the next
  admission removes the expired ones;
* the count of a shard is the number of servers' records that name it, and of entries
  of the gateway;
* each entry has its record, so that it will be found if nobody ends it. A record of
  the gateway without an entry counts nowhere, and is found in the same way;
* each evicted connection has a notice until its node has acted on it.

The third, for the gateway. An admission reads the owner's item, claims, and writes the
item if it is still as it was read; each of its attempts claims anew, and every claim is
marked with another text. Whoever ends a connection reads its record, removes its entry,
or changes the version of the owner's item if there is no entry (`_fence`), and deletes
the record if it is as it was read. So an admission whose entry comes after that has
read the item after it, has claimed after that, and its claim is not the record that is
deleted. An owner's item without entries stays for an hour, or the absence that an
admission has read could come back while its transaction is under way.

Expired entries do not count, wherever they still are: those of owners are compared with
the clock here, records by `maintenance`. The admission that removes an expired entry of
the gateway takes its shard, or lowers the counter; its record is without an entry then.

The least recently active connection is evicted. Activity of connections on other nodes
is up to a minute old (`touch`); this node's is known and written with the owner's item.

Interleavings, each of which has a test: two admissions of one owner read the same item
(one of them reads again); an admission and the leave of the connection that it evicts
(the item has changed, so the admission reads again); two leaves (the second finds
neither record nor entry); a lost answer (the token makes the repeat the same
transaction); an admission that arrives after its caller gave up (of a server: no node
claims the record, and `maintenance` removes it; of the gateway: it is fenced off, or
has its record); a crash between claim, transaction, session and all steps of an end,
in every order with another admission (`tests/gateway/explorer/admissions`).

Within one process, calls for one owner run one after the other. Otherwise fifty
connects of one user would each read and lose forty-nine times. An admission whose turn
it is admits those that wait behind it, too, `TOGETHER` at most, in one transaction, if
there is room for all without an eviction; and if there is none, all of them are told
so. Otherwise two hundred connects from one address would wait for two hundred
transactions, and for as many of each other process that has such. What ends without an
outcome leaves the others to their own turns, which find what was written.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from service.core.errors import StoreBusy
from service.core.keyed_lock import KeyedLock
from service.core.model import ClientId
from service.core.ports import Clock
from service.stores.dynamodb.client import Client, gather_limited
from service.stores.dynamodb.errors import (
    ConditionFailed,
    Item,
    TransactionCancelled,
)
from service.stores.dynamodb.registry import writes
from service.stores.dynamodb.registry.counter import ConnectionCounter
from service.stores.dynamodb.registry.records import (
    CLIENT,
    GATEWAY_NODES,
    ConnectionRecord,
    OwnerItem,
    connection_key,
    decode_connection,
    decode_owner,
    encode_connection,
    encode_notice,
    encode_owner,
    is_admitted,
    key,
    number,
    owner_key,
)
from service.stores.dynamodb.registry.writes import Action

__all__ = ["AdmissionLimits", "Connections", "OverLimit"]

PAUSE = 0.02  # s, at most, before an owner is read again after a conflict

EVICTED = 20
"""Evicted by one admission at most (count): a transaction is bounded. More are only due
when a limit was lowered; the next admissions evict them."""

TOGETHER = 25
"""Admissions in one transaction at most (count): it has two actions more."""

MARK = 8
"""Characters that mark a claim: another one of the same client has others."""


class OverLimit(Exception):
    """A user or an address has as many connections as it may have."""


class AdmissionLimits(NamedTuple):
    """Limits of one user or address.

    Attributes:
        user: Connections of one user.
        address: Connections of one address without a user.
        policy: At the limit, ``evict_lru`` evicts the least recently active connection;
            ``reject`` refuses the new one.
        age: Seconds after which a connection stops to count.
    """

    user: int
    address: int
    policy: Literal["evict_lru", "reject"]
    age: float


class Admitted(NamedTuple):
    """An admission that was made.

    Attributes:
        record: The new connection.
        evicted: The connections evicted for it.
    """

    record: ConnectionRecord
    evicted: tuple[ConnectionRecord, ...]


class _Request:
    """An admission that waits for its turn; done when it has an outcome.

    Attributes:
        client: Its id.
        node: The node that has it.
        more: Attributes of its item besides its record's.
        claim: The mark of its record, if it was claimed.
        admitted: The outcome.
        refused: The owner has as many connections as it may have.
    """

    __slots__ = ("admitted", "claim", "client", "more", "node", "refused")

    def __init__(self, client: ClientId, node: str, more: Item) -> None:
        self.client = client
        self.node = node
        self.more = more
        self.claim = ""
        self.admitted: Admitted | None = None
        self.refused = False


class _AdmitTransaction(NamedTuple):
    """The transaction of admissions."""

    actions: list[Action]
    records: list[ConnectionRecord]
    evicted: list[ConnectionRecord]
    claims: list[tuple[_Request, Item]]  # records that are written before
    increment: int | None  # index of the action on the counter
    entry: int | None  # index of the first action that writes a record

    @property
    def owner(self) -> int:
        """Index of the action that writes the owner's item."""
        return len(self.actions) - 1


class Connections:
    """All connections of a deployment.

    Args:
        client: Calls the table.
        counter: Counts them.
        limits: Of one user or address.
        clock: Tells what has expired, and bounds the calls.
        rng: Spreads repeats.
        timeout: Seconds that one call of this class takes at most.
        active: Returns when a connection of this node was last heard of, Unix
            milliseconds; None for those of others.
        is_dead: Returns whether a node is known to be dead.
    """

    def __init__(
        self,
        client: Client,
        counter: ConnectionCounter,
        limits: AdmissionLimits,
        clock: Clock,
        rng: random.Random,
        *,
        timeout: float,
        active: Callable[[ClientId], int | None],
        is_dead: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._counter = counter
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._timeout = timeout
        self._active = active
        self._is_dead = is_dead
        self._locks = KeyedLock()
        self._waiting: dict[str, list[_Request]] = {}  # by owner, none of them done

    async def admit(
        self, owner: str, client: ClientId, node: str, more: Item | None = None
    ) -> Admitted:
        """Admit a connection, evicting others of its owner if need be. Safe to repeat.

        Args:
            owner: Partition key of its owner's item.
            client: Its id.
            node: The node that has it.
            more: Attributes of its item besides its record's.

        Raises:
            CounterFull: The deployment has as many connections as it may have.
            OverLimit: So has the owner, and none of its connections may be evicted.
            StoreError: It may be admitted or not: let it `leave`.
        """
        deadline = self._clock.now() + self._timeout
        request = _Request(client, node, more or {})
        waiting = self._waiting.setdefault(owner, [])
        waiting.append(request)
        try:
            async with self._locks.hold(owner):
                if not request.refused and request.admitted is None:
                    await self._admit(owner, request, waiting, deadline)
        finally:
            _drop(waiting, request)
            if not waiting and self._waiting.get(owner) is waiting:
                del self._waiting[owner]
        if request.admitted is None:
            raise OverLimit
        return request.admitted

    async def leave(self, record: ConnectionRecord) -> bool:
        """Remove a connection; False if it was not there. Safe to repeat.

        Raises:
            StoreError: It may still be there.
        """
        deadline = self._clock.now() + self._timeout
        async with self._locks.hold(record.owner):
            return await self._leave(record, deadline)

    async def withdraw(self, owner: str, client: ClientId, node: str) -> bool:
        """Remove a connection whose admission had no known outcome.

        Raises:
            StoreError: It may still be there.
        """
        deadline = self._clock.now() + self._timeout
        async with self._locks.hold(owner):
            item = await self._get(key(f"N#{node}", CLIENT + client), deadline)
            if item is None or not is_admitted(item):
                return False
            return await self._leave(decode_connection(item), deadline)

    async def touch(self, record: ConnectionRecord, active: int) -> bool:
        """Record when a connection was active; False if it is not there any more.

        Writes only if its owner has others, of which one might be evicted.

        Args:
            record: The connection.
            active: When it was active, Unix milliseconds.

        Raises:
            StoreError: It is not known whether it was written.
        """
        # Half the price of a consistent read: if it lags, the next touch is written.
        item = await self._get(owner_key(record.owner), None, consistent=False)
        owner = decode_owner(record.owner, item)
        if record.client in owner.records and len(self._alive(owner)) < 2:
            return True
        try:
            await self._client.call(
                "update_item",
                {
                    "TableName": self._client.table,
                    "Key": owner_key(record.owner),
                    "UpdateExpression": (
                        "SET conns.#client.active = :active, ver = :ver"
                    ),
                    "ConditionExpression": "attribute_exists(conns.#client)",
                    "ExpressionAttributeNames": {"#client": record.client},
                    "ExpressionAttributeValues": {
                        ":active": number(active),
                        ":ver": {"S": writes.new_version()},
                    },
                },
            )
        except ConditionFailed:
            return False
        return True

    async def is_listed(self, record: ConnectionRecord) -> bool:
        """Return whether a connection's owner has its entry.

        Raises:
            StoreError: It could not be read.
        """
        owner = decode_owner(
            record.owner, await self._get(owner_key(record.owner), None)
        )
        found = owner.records.get(record.client)
        return found is not None and found.node == record.node

    # Admission

    async def _admit(
        self, name: str, first: _Request, waiting: list[_Request], deadline: float
    ) -> None:
        """Give *first* its outcome, and others that wait theirs where that is possible.

        Raises:
            CounterFull: The deployment has as many connections as it may have.
            StoreError: Any of them may be admitted or not.
        """
        alone = False  # others cannot be admitted together with it
        while True:
            requests = [first]
            if not alone:
                others = [request for request in waiting if request is not first]
                requests += others[: TOGETHER - 1]
            item = await self._get(owner_key(name), deadline)
            owner = decode_owner(name, item)
            present = owner.records.get(first.client)
            if present is not None and present.node == first.node:
                first.admitted = Admitted(present, ())
                return
            if present is not None:  # admitted by another node, or by this one before
                await self._leave(present, deadline)
                continue
            try:
                admission = self._prepare(owner, requests)
            except OverLimit:
                for request in requests:
                    if request.client not in owner.records:
                        request.refused = True
                        _drop(waiting, request)
                return
            if await self._claim(admission, deadline):
                try:
                    await self._transact(admission.actions, deadline)
                except TransactionCancelled as cancelled:
                    if len(admission.records) == 1:
                        await self._resolve(admission, cancelled, deadline)
                    else:
                        # If not the owner has changed, somebody's part is impossible.
                        alone = not cancelled.failed(admission.owner)
                else:
                    self._admitted(admission, requests, waiting)
                    return
            await self._pause(deadline)

    async def _claim(self, admission: _AdmitTransaction, deadline: float) -> bool:
        """Write the records that are not in the transaction; False if one could not be.

        Raises:
            StoreError: Some may be written; nobody is admitted.
        """
        written = await gather_limited(
            self._claim_one(request, item, deadline)
            for request, item in admission.claims
        )
        return all(written)

    async def _claim_one(self, claimer: _Request, item: Item, deadline: float) -> bool:
        request = writes.claim(self._client.table, item, claimer.claim)
        claimer.claim = ""
        try:
            await self._client.call("put_item", request, deadline=deadline)
        except ConditionFailed as failed:
            if not failed.repeated or failed.item != item:
                found = failed.item
                if found and is_admitted(found):  # for another frame of the client
                    await self._leave(decode_connection(found), deadline)
                return False
        claimer.claim = item["claim"]["S"]
        return True

    @staticmethod
    def _admitted(
        admission: _AdmitTransaction,
        requests: Sequence[_Request],
        waiting: list[_Request],
    ) -> None:
        of = {record.client: record for record in admission.records}
        for request in requests:
            record = of.get(request.client)
            if record is not None and record.node == request.node:
                request.admitted = Admitted(record, tuple(admission.evicted))
                _drop(waiting, request)

    def _prepare(
        self, owner: OwnerItem, requests: Sequence[_Request]
    ) -> _AdmitTransaction:
        table = self._client.table
        version, now = writes.new_version(), self._now()
        kept = [
            one._replace(active=max(one.active, self._active(one.client) or 0))
            for one in self._alive(owner)
        ]
        evicted = self._choose_evicted(owner.name, kept)
        expired = [
            one
            for one in owner.records.values()
            if one.expires <= now and one.node in GATEWAY_NODES
        ]
        out = [*evicted, *expired[:EVICTED]]
        actions: list[Action] = []
        increment = None
        if out:
            shard = out[0].shard  # one in, one out: the count stays
            entering = [requests[0]]
        else:
            shard = self._counter.choose_shard()
            room = min(
                self._limit(owner.name) - len(kept), self._counter.limit_of(shard)
            )
            new: dict[ClientId, _Request] = {}
            for request in requests:
                if request.client not in owner.records:
                    new.setdefault(request.client, request)
            entering = list(new.values())[:room]
            increment = len(actions)
            actions.append(self._counter.increment(shard, len(entering)))
        for one in evicted:
            actions.append(writes.delete_record(table, one))
            notice = encode_notice(one, now)
            actions.append({"Put": {"TableName": table, "Item": notice}})
        surplus = Counter(one.shard for one in out[1:])
        actions += [self._counter.decrement(s, count) for s, count in surplus.items()]
        expires = now + round(self._limits.age * 1000)
        entry = None
        claims = []
        records = []
        for it in entering:
            claim = version[-MARK:] if it.node in GATEWAY_NODES else ""
            record = ConnectionRecord(
                owner.name, it.client, it.node, shard, now, expires, claim
            )
            records.append(record)
            item = encode_connection(record, it.more)
            if claim:
                claims.append((it, item))
                continue
            entry = len(actions) if entry is None else entry
            actions.append(writes.put_record(table, item))
        stay = [record for record in kept if record not in evicted]
        item = encode_owner(version, [*stay, *expired[EVICTED:], *records])
        actions.append(writes.put_owner(table, item, owner.version))
        return _AdmitTransaction(actions, records, evicted, claims, increment, entry)

    def _limit(self, owner: str) -> int:
        limits = self._limits
        return limits.user if owner.startswith("U#") else limits.address

    def _choose_evicted(
        self, owner: str, kept: Sequence[ConnectionRecord]
    ) -> list[ConnectionRecord]:
        """Return the connections to evict so that one more is within the limit.

        Connections of dead nodes come first, whatever the policy; those of an address,
        which are strangers to each other, are evicted only if their node is dead.

        Raises:
            OverLimit: No connection may be evicted.
        """
        limits = self._limits
        is_user = owner.startswith("U#")
        count = len(kept) + 1 - self._limit(owner)
        if count <= 0:
            return []

        def value(one: ConnectionRecord) -> tuple[bool, int]:
            return not self._is_dead(one.node), one.active

        chosen = heapq.nsmallest(min(count, EVICTED), kept, key=value)
        if (limits.policy == "reject" or not is_user) and not all(
            self._is_dead(one.node) for one in chosen
        ):
            raise OverLimit
        return chosen

    async def _resolve(
        self,
        admission: _AdmitTransaction,
        cancelled: TransactionCancelled,
        deadline: float,
    ) -> None:
        """Do what a cancelled admission of one needs before it is tried again."""
        increment, entry = admission.increment, admission.entry
        [record] = admission.records
        if increment is not None and cancelled.failed(increment):
            await self._counter.note_full(record.shard, deadline)
        if (
            entry is not None
            and cancelled.failed(entry)
            and not cancelled.failed(admission.owner)
        ):
            # The record exists, and its owner does not list it: it has expired there.
            item = await self._get(connection_key(record), deadline)
            if item is not None and is_admitted(item):
                await self._leave(decode_connection(item), deadline)

    # Leaving

    async def _leave(self, record: ConnectionRecord, deadline: float) -> bool:
        table, shard = self._client.table, record.shard
        claimed = record.node in GATEWAY_NODES
        # Most users have one connection.
        entry: Action | None = writes.remove_entry(
            table, record, shard, empty_at=self._now()
        )
        while True:
            actions = [] if claimed else [writes.delete_record(table, record)]
            actions.append(self._counter.decrement(shard))
            if entry is not None:
                actions.append(entry)
            try:
                await self._transact(actions, deadline)
            except TransactionCancelled as cancelled:
                if not claimed and cancelled.failed(0):
                    return False
                owner = decode_owner(record.owner, cancelled.reasons[-1].item)
                found = owner.records.get(record.client)
                if found is not None and found.node == record.node:
                    shard = found.shard
                    empty_at = self._now() if len(owner.records) == 1 else None
                    entry = writes.remove_entry(table, record, shard, empty_at=empty_at)
                elif not claimed:
                    entry = None
                elif await self._fence(owner, deadline):
                    await self._delete_claim(record, deadline)
                    return False
            else:
                if claimed:
                    await self._delete_claim(record, deadline)
                self._counter.note_freed()
                return True
            await self._pause(deadline)

    async def _fence(self, owner: OwnerItem, deadline: float) -> bool:
        """Change the version of an owner's item; False if it is not as it was read.

        Raises:
            StoreError: It may be changed.
        """
        operation, request = writes.fence(self._client.table, owner, self._now())
        try:
            await self._client.call(operation, request, deadline=deadline)
        except ConditionFailed:
            return False
        return True

    async def _delete_claim(self, record: ConnectionRecord, deadline: float) -> None:
        """Delete the record of a connection at the gateway if it is as it was read.

        Raises:
            StoreError: It may still be there.
        """
        request = writes.delete_claim(self._client.table, record)
        with suppress(ConditionFailed):  # claimed anew, or deleted
            await self._client.call("delete_item", request, deadline=deadline)

    # Calls

    def _alive(self, owner: OwnerItem) -> list[ConnectionRecord]:
        now = self._now()
        return [record for record in owner.records.values() if record.expires > now]

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)

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
            raise StoreBusy("other processes wrote first each time")
        await asyncio.sleep(seconds)


def _drop(waiting: list[_Request], request: _Request) -> None:
    """Let a request wait no more; it may have been given up before."""
    if request in waiting:
        waiting.remove(request)
