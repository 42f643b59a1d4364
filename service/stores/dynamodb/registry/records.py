"""What the table holds of connections: the items, and reading and writing them.

    pk            sk          is
    U#<user>      CONNS       ver, conns {client: node, shard, active, expires}, ttl:
                              a book: all connections of a user, so that their limit
                              is a condition on one item
    A#<address>   CONNS       the same, of those from an address without a user
    N#<node>      C#<client>  book, shard, at, expires, ttl: one connection. While it is
                              there, its shard counts one for it
    N#<node>      E#<client>  at, ttl: a connection that was taken out for another;
                              its node closes it
    NODES         <node>      until, dead, ttl: a process, and how long it is known to
                              be alive
    G#<0…63>      COUNT       n, ver: how many connections have this shard
    C#<client>    S#<channel> node, ttl: a subscription, by connection
    S#<channel>   <client>    node, user, info, expires, ttl: the same, by channel
    RECOUNT       RECOUNT     at: when the counts were last compared

``active``, ``expires``, ``until``, ``dead`` and ``at`` are Unix milliseconds; ``ttl``
is in seconds, and later than the end that counts: DynamoDB deletes at some time after
it, which nobody relies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.core.model import ClientId, UserId
from service.stores.dynamodb.errors import Item

__all__ = [
    "BACKSTOP",
    "CLIENT",
    "NOTICE",
    "Book",
    "Record",
    "book_item",
    "book_key",
    "book_of",
    "key",
    "number",
    "notice_item",
    "read_book",
    "read_record",
    "record_item",
    "record_key",
]

CLIENT = "C#"  # sort keys of connections, in their node's partition
NOTICE = "E#"  # and of those that were taken out

BACKSTOP = 7 * 86400
"""Seconds after its end at which DynamoDB may delete an item. The sweep deletes it long
before, and corrects the counts, which that deletion would not."""


class Record(NamedTuple):
    """One connection, as the table has it.

    Attributes:
        book: Which book it is in: the partition key of one.
        client: Its id.
        node: The process that has it.
        shard: Of the counter, which counts it.
        active: When its peer was last heard of, Unix milliseconds: as last written in
            a book; in an item of its own, when it was admitted.
        expires: From when on it does not count, Unix milliseconds.
    """

    book: str
    client: ClientId
    node: str
    shard: int
    active: int
    expires: int


class Book(NamedTuple):
    """All connections of one user, or of one address without a user.

    Attributes:
        name: The partition key.
        version: Changes with every write; None when there is no such item.
        records: By client, those that have expired included.
    """

    name: str
    version: str | None
    records: dict[ClientId, Record]


def key(partition: str, sort: str) -> Item:
    """Return an item's key."""
    return {"pk": {"S": partition}, "sk": {"S": sort}}


def book_of(user: UserId, address: str) -> str:
    """Return the name of the book that a connection is in."""
    return f"U#{user}" if user else f"A#{address}"


def book_key(book: str) -> Item:
    """Return a book's key."""
    return key(book, "CONNS")


def record_key(record: Record) -> Item:
    """Return the key of a connection."""
    return key(f"N#{record.node}", CLIENT + record.client)


def number(value: int) -> dict[str, Any]:
    """Return a number as the service writes it."""
    return {"N": str(value)}


def read_book(name: str, item: Item | None) -> Book:
    """Return the book that an item is."""
    if not item:
        return Book(name, None, {})
    records = {}
    for client, entry in item["conns"]["M"].items():
        values = entry["M"]
        records[ClientId(client)] = Record(
            name,
            ClientId(client),
            values["node"]["S"],
            int(values["shard"]["N"]),
            int(values["active"]["N"]),
            int(values["expires"]["N"]),
        )
    return Book(name, item["ver"]["S"], records)


def book_item(version: str, records: Sequence[Record]) -> Item:
    """Return the item of a book, which must have an entry."""
    return {
        **book_key(records[0].book),
        "ver": {"S": version},
        "conns": {
            "M": {
                record.client: {
                    "M": {
                        "node": {"S": record.node},
                        "shard": number(record.shard),
                        "active": number(record.active),
                        "expires": number(record.expires),
                    }
                }
                for record in records
            }
        },
        "ttl": _ttl(max(record.expires for record in records)),
    }


def read_record(item: Item) -> Record:
    """Return the connection that an item is."""
    return Record(
        item["book"]["S"],
        ClientId(item["sk"]["S"].removeprefix(CLIENT)),
        item["pk"]["S"].removeprefix("N#"),
        int(item["shard"]["N"]),
        int(item["at"]["N"]),
        int(item["expires"]["N"]),
    )


def record_item(record: Record) -> Item:
    """Return the item of a connection."""
    return {
        **record_key(record),
        "book": {"S": record.book},
        "shard": number(record.shard),
        "at": number(record.active),
        "expires": number(record.expires),
        "ttl": _ttl(record.expires),
    }


def notice_item(record: Record, now: int) -> Item:
    """Return the item that tells a connection's node to close it."""
    return {
        **key(f"N#{record.node}", NOTICE + record.client),
        "at": number(now),
        "ttl": _ttl(max(now, record.expires)),
    }


def _ttl(end: int) -> dict[str, Any]:
    return number(-(-end // 1000) + BACKSTOP)
