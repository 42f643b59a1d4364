"""Writes of connections and their owners: requests, and actions of transactions.

`connections` has the rules for which there are these conditions.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.registry.records import (
    ConnectionRecord,
    OwnerItem,
    connection_key,
    number,
    owner_key,
)

__all__ = [
    "Action",
    "claim",
    "delete_claim",
    "delete_record",
    "fence",
    "new_version",
    "put_owner",
    "put_record",
    "remove_entry",
]

EMPTY_TTL = 3600
"""Seconds for which an owner's item stays without entries: what was sent to the table
before has arrived by then, or never will."""

Action = dict[str, Any]  # of a transaction


def new_version() -> str:
    """Return a version that no owner's item ever had."""
    # Random, not counted: an item that was deleted and written anew never has a
    # version of its predecessor.
    return uuid.uuid4().hex


def put_record(table: str, item: Item) -> Action:
    """Return the action that writes the record of a connection that has none."""
    return {
        "Put": {
            "TableName": table,
            "Item": item,
            "ConditionExpression": "attribute_not_exists(book)",
        }
    }


def delete_record(table: str, record: ConnectionRecord) -> Action:
    """Return the action that deletes a connection's record if it exists.

    That of an evicted one does: its entry is in the owner's item.
    """
    return {
        "Delete": {
            "TableName": table,
            "Key": connection_key(record),
            "ConditionExpression": "attribute_exists(pk)",
        }
    }


def claim(table: str, item: Item, seen: str) -> dict[str, Any]:
    """Return the request that writes the record of a connection at the gateway.

    Args:
        table: The table.
        item: The record.
        seen: The mark of the record that it replaces; "" if there must be none.
    """
    request = {
        "TableName": table,
        "Item": item,
        "ConditionExpression": "attribute_not_exists(book)",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if seen:
        request["ConditionExpression"] = "claim = :seen"
        request["ExpressionAttributeValues"] = {":seen": {"S": seen}}
    return request


def delete_claim(table: str, record: ConnectionRecord) -> dict[str, Any]:
    """Return the request that deletes such a record if it is as it was read."""
    return {
        "TableName": table,
        "Key": connection_key(record),
        "ConditionExpression": "claim = :claim",
        "ExpressionAttributeValues": {":claim": {"S": record.claim}},
    }


def put_owner(table: str, item: Item, version: str | None) -> Action:
    """Return the action that writes an owner's item if it still has *version*."""
    put: dict[str, Any] = {"TableName": table, "Item": item}
    if version is None:
        put["ConditionExpression"] = "attribute_not_exists(pk)"
    else:
        put["ConditionExpression"] = "ver = :seen"
        put["ExpressionAttributeValues"] = {":seen": {"S": version}}
    return {"Put": put}


def remove_entry(
    table: str, record: ConnectionRecord, shard: int, *, empty_at: int | None
) -> Action:
    """Return the action that removes a connection's entry from its owner's item.

    Args:
        table: The table.
        record: The connection.
        shard: In which it has to count.
        empty_at: The time, Unix milliseconds, if it has to be the last entry; else it
            must not be.
    """
    update = "REMOVE conns.#client SET ver = :ver"
    names = {"#client": record.client, "#shard": "shard"}
    values = {
        ":ver": {"S": new_version()},
        ":shard": number(shard),
        ":one": number(1),
    }
    size = "> :one"
    if empty_at is not None:
        update, size = f"{update}, #ttl = :ttl", "= :one"
        names["#ttl"], values[":ttl"] = "ttl", _empty_ttl(empty_at)
    return {
        "Update": {
            "TableName": table,
            "Key": owner_key(record.owner),
            "UpdateExpression": update,
            "ConditionExpression": (
                f"conns.#client.#shard = :shard AND size(conns) {size}"
            ),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def fence(
    table: str, owner: OwnerItem, now: int
) -> tuple[Literal["put_item", "update_item"], dict[str, Any]]:
    """Return the call that gives an owner's item, as it was read, another version.

    Args:
        table: The table.
        owner: The item, or its absence.
        now: The time, Unix milliseconds.
    """
    version = {"S": new_version()}
    if owner.version is None:
        item = {**owner_key(owner.name), "ver": version, "conns": {"M": {}}}
        return "put_item", {
            "TableName": table,
            "Item": {**item, "ttl": _empty_ttl(now)},
            "ConditionExpression": "attribute_not_exists(pk)",
        }
    return "update_item", {
        "TableName": table,
        "Key": owner_key(owner.name),
        "UpdateExpression": "SET ver = :ver",
        "ConditionExpression": "ver = :seen",
        "ExpressionAttributeValues": {":ver": version, ":seen": {"S": owner.version}},
    }


def _empty_ttl(now: int) -> dict[str, Any]:
    return number(now // 1000 + EMPTY_TTL)
