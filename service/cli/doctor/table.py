"""The doctor's look at the DynamoDB table."""

from __future__ import annotations

import asyncio

from service.cli.doctor.finding import OK, PROBLEM, Finding
from service.core.clock import SystemClock
from service.core.errors import SteadwireError
from service.settings import DynamodbSettings
from service.stores.dynamodb import table
from service.stores.dynamodb.client import opened

__all__ = ["examine_table"]


def examine_table(settings: DynamodbSettings) -> Finding:
    """Look whether the table is there, and as it should be."""
    name = f"table {settings.table}"
    try:
        problems = asyncio.run(_check(settings))
    except SteadwireError as error:
        return Finding(
            PROBLEM,
            "store",
            f"{name}: {' '.join(str(error).split())}",
            "see the section dynamodb of the settings, and boto3's credentials",
        )
    if problems:
        remedy = "`steadwire tables create` makes what is missing"
        return Finding(PROBLEM, "store", f"{name}: {'; '.join(problems)}", remedy)
    return Finding(OK, "store", name)


async def _check(settings: DynamodbSettings) -> list[str]:
    async with opened(settings, SystemClock()) as client:
        return await table.check(client, settings)
