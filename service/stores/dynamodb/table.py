"""The DynamoDB table: its definition, and its creation, check and deletion.

One table holds everything. Its keys are two strings, ``pk`` and ``sk``; the items are
described in `log.items`, `registry.records`, `subscribers` and `state`. DynamoDB
deletes an item some time after the Unix second in its attribute ``ttl``, in any order,
so every reader compares the item's end with the clock.

``infra/dynamodb/table.json`` and the table of ``infra/serverless.yaml`` have the same
definition; tests compare them.

That its processes append with leases is an item of the table. `create` writes it, or
`verify` if a process with leases finds the table empty, as a template has made it: so
no process without them can have used it. One that starts at that very moment, without
leases, may see no item yet; it is stopped by its next start.
"""

from __future__ import annotations

import asyncio
from typing import Any

from service.core.errors import StartupError, StoreError, StoreUnavailable
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import Item, NoTable

__all__ = [
    "LEASES",
    "check",
    "create",
    "definition",
    "delete",
    "template",
    "verify",
]

KEYS: list[dict[str, str]] = [
    {"AttributeName": "pk", "KeyType": "HASH"},
    {"AttributeName": "sk", "KeyType": "RANGE"},
]
ATTRIBUTES: list[dict[str, str]] = [
    {"AttributeName": "pk", "AttributeType": "S"},
    {"AttributeName": "sk", "AttributeType": "S"},
]
TTL = "ttl"

LEASES: Item = {"pk": {"S": "DEPLOYMENT"}, "sk": {"S": "LEASES"}}
"""Its presence says that all processes of the table append with leases."""

ACTIVE_WITHIN = 60.0  # s; a new table needs some ten
_POLL = 0.25  # s


def definition(settings: DynamodbSettings) -> dict[str, Any]:
    """Return the request that creates the table."""
    request: dict[str, Any] = {
        "TableName": settings.table,
        "KeySchema": KEYS,
        "AttributeDefinitions": ATTRIBUTES,
        "BillingMode": "PAY_PER_REQUEST",
    }
    if settings.capacity == "provisioned":
        request["BillingMode"] = "PROVISIONED"
        request["ProvisionedThroughput"] = {
            "ReadCapacityUnits": settings.read_units,
            "WriteCapacityUnits": settings.write_units,
        }
    return request


def template(settings: DynamodbSettings) -> dict[str, Any]:
    """Return a CloudFormation template of the table.

    Its name is a parameter. Deleting the stack keeps the table.
    """
    properties = definition(settings) | {
        "TableName": {"Ref": "TableName"},
        "TimeToLiveSpecification": {"AttributeName": TTL, "Enabled": True},
    }
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "The table of Steadwire's DynamoDB store",
        "Parameters": {"TableName": {"Type": "String", "Default": settings.table}},
        "Resources": {
            "Table": {
                "Type": "AWS::DynamoDB::Table",
                "DeletionPolicy": "RetainExceptOnCreate",
                "UpdateReplacePolicy": "Retain",
                "Properties": properties,
            }
        },
        "Outputs": {
            "TableName": {"Value": {"Ref": "Table"}},
            "TableArn": {"Value": {"Fn::GetAtt": ["Table", "Arn"]}},
        },
    }


async def create(client: Client, settings: DynamodbSettings) -> bool:
    """Create the table and wait until it is active; False if it existed already.

    Safe to repeat: it does what an earlier attempt left undone.

    Raises:
        StoreError: It was not created, or differs from its definition.
    """
    table = await _describe(client)
    made = table is None
    if made:
        await client.call("create_table", definition(settings))
    for _ in range(int(ACTIVE_WITHIN / _POLL)):
        table = await _describe(client)
        if table is not None and table["TableStatus"] == "ACTIVE":
            break
        await asyncio.sleep(_POLL)
    else:
        raise StoreUnavailable(f"table {client.table} does not become active")
    if not _keys(table):
        await _write_leases(client, on=settings.leases)
    if await _ttl(client) is None:
        await client.call(
            "update_time_to_live",
            {
                "TableName": client.table,
                "TimeToLiveSpecification": {"AttributeName": TTL, "Enabled": True},
            },
        )
    problems = await check(client, settings)
    if problems:
        raise StoreError(f"table {client.table}: {'; '.join(problems)}")
    return made


async def check(client: Client, settings: DynamodbSettings) -> list[str]:
    """Return how the table differs from its definition.

    Raises:
        StoreError: It cannot be described.
    """
    table = await _describe(client)
    if table is None:
        return ["it does not exist"]
    problems = _keys(table)
    if table["TableStatus"] != "ACTIVE":
        problems.append(f"it is {table['TableStatus']}, not ACTIVE")
    wanted = definition(settings)
    mode = table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    if mode != wanted["BillingMode"]:
        problems.append(f"its billing mode is {mode}, not {wanted['BillingMode']}")
    for name, units in wanted.get("ProvisionedThroughput", {}).items():
        found = table.get("ProvisionedThroughput", {}).get(name)
        if found != units:
            problems.append(f"its {name} is {found}, not {units}")
    if not problems:
        problems += await _compare_leases(client, settings)
    attribute = await _ttl(client)
    if attribute != TTL:
        shown = "off" if attribute is None else f"on {attribute}"
        problems.append(f"its time to live is {shown}, not on {TTL}")
    return problems


async def delete(client: Client) -> bool:
    """Delete the table with everything in it; False if it did not exist.

    Raises:
        StoreError: It was not deleted.
    """
    if await _describe(client) is None:
        return False
    await client.call("delete_table", {"TableName": client.table})
    for _ in range(int(ACTIVE_WITHIN / _POLL)):
        if await _describe(client) is None:
            return True
        await asyncio.sleep(_POLL)
    raise StoreUnavailable(f"table {client.table} is not gone yet")


async def verify(client: Client, settings: DynamodbSettings) -> str:
    """Verify at the start of a process that the table can be used; return its id.

    A table restored from a backup has another id than the original.

    Raises:
        StartupError: It cannot be used; the text says why.
    """
    try:
        table = await _describe(client)
    except StoreError as error:
        raise StartupError(f"table {client.table}: {error}") from error
    if table is None:
        raise StartupError(
            f"table {client.table} does not exist; `steadwire tables create` makes it"
        )
    problems = _keys(table)
    if table["TableStatus"] not in ("ACTIVE", "UPDATING"):
        problems.append(f"it is {table['TableStatus']}, not ACTIVE")
    if not problems:
        try:
            problems = await _compare_leases(client, settings)
            if problems and settings.leases and await _is_empty(client):
                await _write_leases(client, on=True)
                problems = []
        except StoreError as error:
            raise StartupError(f"table {client.table}: {error}") from error
    if problems:
        raise StartupError(f"table {client.table}: {'; '.join(problems)}")
    identity: str = table.get("TableId", client.table)
    return identity


async def _compare_leases(client: Client, settings: DynamodbSettings) -> list[str]:
    request = {"TableName": client.table, "Key": LEASES, "ConsistentRead": True}
    on = bool((await client.call("get_item", request)).get("Item"))
    if on == settings.leases:
        return []
    return [
        f"dynamodb.leases (or gateway.endpoint) says {str(settings.leases).lower()}, "
        f"and the table {str(on).lower()}: all its processes have to agree. Stop them, "
        "then `steadwire tables create` writes what the settings say"
    ]


async def _is_empty(client: Client) -> bool:
    request = {"TableName": client.table, "Limit": 1, "ConsistentRead": True}
    return not (await client.call("scan", request)).get("Items")


async def _write_leases(client: Client, *, on: bool) -> None:
    if on:
        request = {"TableName": client.table, "Item": LEASES}
        await client.call("put_item", request)
    else:
        await client.call("delete_item", {"TableName": client.table, "Key": LEASES})


def _keys(table: dict[str, Any]) -> list[str]:
    types = {a["AttributeName"]: a["AttributeType"] for a in ATTRIBUTES}
    found = {
        a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]
    }
    if table["KeySchema"] != KEYS or any(found.get(n) != t for n, t in types.items()):
        return ["its keys are not the strings pk and sk"]
    return []


async def _describe(client: Client) -> dict[str, Any] | None:
    try:
        answer = await client.call("describe_table", {"TableName": client.table})
    except NoTable:
        return None
    table: dict[str, Any] = answer["Table"]
    return table


async def _ttl(client: Client) -> str | None:
    answer = await client.call("describe_time_to_live", {"TableName": client.table})
    about = answer["TimeToLiveDescription"]
    if about["TimeToLiveStatus"] not in ("ENABLED", "ENABLING"):
        return None
    name: str = about["AttributeName"]
    return name
