"""Items of the connection registry: their attributes, and their encoding.

    pk            sk          content
    U#<user>      CONNS       an owner: ver, conns {client: {node, shard, active,
                              expires}}: all connections of a user, in one item, so that
                              their limit is a condition of one write; without any, ttl
    A#<address>   CONNS       the same for the connections of an address without a user
    N#<node>      C#<client>  a connection: book (its owner's pk), shard, at, expires,
                              [claim]. It counts one in its shard as long as it exists;
                              one of the gateway, as long as its owner has its entry.
                              Without a book it is a socket of the gateway whose client
                              has not connected, and counts nowhere (`sessions`)
    N#<node>      E#<client>  a notice: at. The connection was evicted; its node has to
                              close it
    NODES         <node>      a node (a server process): until, dead, figures, feed
    G#<0…63>      COUNT       a shard of the connection counter: n, ver
    RECOUNT       RECOUNT     at: when the counter was last checked
    N#<node>      F#<id>      a notice of what it has to do: action, body, asker, ttl
    N#<node>      R#<id>#<n>  a part of an answer to a notice of its own: from, part,
                              parts, body, ttl
    N#<node>      S#<client>#<channel>
                              a subscriber that others may see, by node: ttl
    S#<channel>   <client>    the same, by channel: node, user, info, at, [lost,]
                              expires, ttl, [pres, tells]; those of the gateway have
                              others (`subscribers`)

A connection whose socket ends at an API Gateway has no process. Its node is one of 64
pseudo-nodes (`gateway_node`), so that no partition takes the writes of all connects.
They have no row in NODES, and never die.

``active``, ``expires``, ``until``, ``dead``, ``lost`` and ``at`` are Unix milliseconds;
``ttl`` is in seconds. Subscribers, notices and answers have one, sockets whose clients
have not connected, and owners without connections. DynamoDB must not delete a
connection: the counter would keep counting it. Nor a node: nobody would find its
connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from service.core.model import ClientId, UserId
from service.core.sessions import PARTS
from service.stores.dynamodb.errors import Item

__all__ = [
    "ANSWER",
    "CLIENT",
    "GATEWAY_NODES",
    "NOTICE",
    "SUBSCRIBER",
    "TASK",
    "ConnectionRecord",
    "OwnerItem",
    "connection_key",
    "decode_connection",
    "decode_owner",
    "encode_connection",
    "encode_notice",
    "encode_owner",
    "gateway_node",
    "is_admitted",
    "is_present",
    "key",
    "number",
    "owner_key",
    "owner_of",
]

CLIENT = "C#"  # prefix of the sort keys of a node's connections
NOTICE = "E#"  # of the notices that one of them was evicted
TASK = "F#"  # of those of what it has to do
ANSWER = "R#"  # of the answers to its own
SUBSCRIBER = "S#"  # and of its subscribers


GATEWAY_NODES = tuple(f"gateway-{number:02}" for number in range(PARTS))
"""The pseudo-nodes of connections at the gateway; a part of the format."""


def gateway_node(client: ClientId) -> str:
    """Return the pseudo-node of a connection at the gateway."""
    digest = blake2b(client.encode(), digest_size=1).digest()
    return GATEWAY_NODES[digest[0] % len(GATEWAY_NODES)]


class ConnectionRecord(NamedTuple):
    """One connection, as stored.

    Attributes:
        owner: Partition key of the owner's item.
        client: Its id.
        node: The node that has it.
        shard: The shard of the counter in which it counts.
        active: When its peer was last heard of, Unix milliseconds: from an owner's
            item, as last written there; from its own item, when it was admitted.
        expires: When it stops to count, Unix milliseconds.
        claim: Marks a record of the gateway, as read from its own item, among those
            that its client has had.
    """

    owner: str
    client: ClientId
    node: str
    shard: int
    active: int
    expires: int
    claim: str = ""


class OwnerItem(NamedTuple):
    """All connections of one user, or of one address without a user.

    Attributes:
        name: The partition key.
        version: Changes with every write; None if there is no such item.
        records: By client, expired ones included.
    """

    name: str
    version: str | None
    records: dict[ClientId, ConnectionRecord]


def key(partition: str, sort: str) -> Item:
    """Return an item's key."""
    return {"pk": {"S": partition}, "sk": {"S": sort}}


def number(value: int) -> dict[str, Any]:
    """Return a number in DynamoDB's form."""
    return {"N": str(value)}


def owner_of(user: UserId, address: str) -> str:
    """Return the partition key of a connection's owner."""
    return f"U#{user}" if user else f"A#{address}"


def owner_key(owner: str) -> Item:
    """Return the key of an owner's item."""
    return key(owner, "CONNS")


def connection_key(record: ConnectionRecord) -> Item:
    """Return the key of a connection's item."""
    return key(f"N#{record.node}", CLIENT + record.client)


def decode_owner(name: str, item: Item | None) -> OwnerItem:
    """Return an owner's connections from the item, or from its absence."""
    if not item:
        return OwnerItem(name, None, {})
    records = {}
    for client, entry in item["conns"]["M"].items():
        values = entry["M"]
        records[ClientId(client)] = ConnectionRecord(
            name,
            ClientId(client),
            values["node"]["S"],
            int(values["shard"]["N"]),
            int(values["active"]["N"]),
            int(values["expires"]["N"]),
        )
    return OwnerItem(name, item["ver"]["S"], records)


def encode_owner(version: str, records: Sequence[ConnectionRecord]) -> Item:
    """Return the item of an owner with these connections, at least one."""
    return {
        **owner_key(records[0].owner),
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
    }


def decode_connection(item: Item) -> ConnectionRecord:
    """Return a connection from its item."""
    return ConnectionRecord(
        item["book"]["S"],
        ClientId(item["sk"]["S"].removeprefix(CLIENT)),
        item["pk"]["S"].removeprefix("N#"),
        int(item["shard"]["N"]),
        int(item["at"]["N"]),
        int(item["expires"]["N"]),
        item["claim"]["S"] if "claim" in item else "",
    )


def is_admitted(item: Item | None) -> bool:
    """Return whether the item of a connection is one that was admitted."""
    return item is not None and "book" in item


def encode_connection(record: ConnectionRecord, more: Item) -> Item:
    """Return a connection's item, with *more* attributes."""
    claim = {"claim": {"S": record.claim}} if record.claim else {}
    return {
        **connection_key(record),
        **more,
        **claim,
        "book": {"S": record.owner},
        "shard": number(record.shard),
        "at": number(record.active),
        "expires": number(record.expires),
    }


def encode_notice(record: ConnectionRecord, now: int) -> Item:
    """Return the item that tells a node to close an evicted connection."""
    return {**key(f"N#{record.node}", NOTICE + record.client), "at": number(now)}


def is_present(item: Item) -> bool:
    """Return whether a subscription, by channel, appears in presence.

    Those of the gateway have a state, and say so themselves.
    """
    return "st" not in item or ("pres" in item and item["st"]["S"] in "CQP")
