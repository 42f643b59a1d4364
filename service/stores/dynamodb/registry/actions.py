"""What the transactions on connections are made of: one action each.

Books, records and notices are described in `records`.
"""

from __future__ import annotations

import uuid
from typing import Any

from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.registry.records import (
    Record,
    book_key,
    number,
    record_key,
)

__all__ = [
    "Action",
    "delete_book",
    "delete_record",
    "new_version",
    "put",
    "put_book",
    "put_new",
    "remove_from_book",
]

Action = dict[str, Any]


def new_version() -> str:
    """Return a version that no book has had."""
    # By chance, not counted: a book that was deleted and made anew has no version that
    # an earlier one had.
    return uuid.uuid4().hex


def put(table: str, item: Item) -> Action:
    """Return the action that writes an item."""
    return {"Put": {"TableName": table, "Item": item}}


def put_new(table: str, item: Item) -> Action:
    """Return the action that writes an item where there is none."""
    return {
        "Put": {
            "TableName": table,
            "Item": item,
            "ConditionExpression": "attribute_not_exists(pk)",
        }
    }


def put_book(table: str, item: Item, version: str | None) -> Action:
    """Return the action that writes a book, if it is still of that version."""
    if version is None:
        return put_new(table, item)
    return {
        "Put": {
            "TableName": table,
            "Item": item,
            "ConditionExpression": "ver = :seen",
            "ExpressionAttributeValues": {":seen": {"S": version}},
        }
    }


def delete_record(table: str, record: Record) -> Action:
    """Return the action that deletes a connection, if it is there."""
    return {
        "Delete": {
            "TableName": table,
            "Key": record_key(record),
            "ConditionExpression": "attribute_exists(pk)",
        }
    }


def delete_book(table: str, record: Record) -> Action:
    """Return the action that deletes a book with this one entry."""
    return {
        "Delete": {
            "TableName": table,
            "Key": book_key(record.book),
            "ConditionExpression": (
                "attribute_exists(conns.#client) AND size(conns) = :one"
            ),
            "ExpressionAttributeNames": {"#client": record.client},
            "ExpressionAttributeValues": {":one": number(1)},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def remove_from_book(table: str, record: Record) -> Action:
    """Return the action that removes this entry from a book with several."""
    return {
        "Update": {
            "TableName": table,
            "Key": book_key(record.book),
            "UpdateExpression": "REMOVE conns.#client SET ver = :ver",
            "ConditionExpression": (
                "attribute_exists(conns.#client) AND size(conns) > :one"
            ),
            "ExpressionAttributeNames": {"#client": record.client},
            "ExpressionAttributeValues": {
                ":ver": {"S": new_version()},
                ":one": number(1),
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }
