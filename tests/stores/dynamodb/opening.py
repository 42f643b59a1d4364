"""Opens a State on a DynamoDB table for the contract suites."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.core.ports import State
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.state import DynamodbState
from service.stores.dynamodb.table import definition
from tests.clock import VirtualClock
from tests.harness.emulators import Emulator
from tests.stores.dynamodb.support import StoreClock, client_for

__all__ = ["EMULATORS", "make_table", "state_on"]

EMULATORS = ("ministack", "dynalite", "moto")

_Opened = tuple[State, Callable[[], Awaitable[None]]]


async def make_table(client: Client, settings: DynamodbSettings) -> None:
    """Make a table, without time to live, which not every emulator knows."""
    await client.call("create_table", definition(settings))
    about = {"TableName": settings.table}
    while (await client.call("describe_table", about))["Table"][
        "TableStatus"
    ] != "ACTIVE":
        await asyncio.sleep(0.01)


def state_on(emulator: Emulator) -> Callable[[Path, VirtualClock], Awaitable[_Opened]]:
    """Return what opens a State; with the same path, again on the same table."""
    tables: dict[Path, str] = {}

    async def opened(path: Path, virtual: VirtualClock) -> _Opened:
        clock = StoreClock(virtual)
        settings = emulator.settings(
            **{"table": tables[path]} if path in tables else {}
        )
        client = client_for(settings, clock)
        await client.start()
        if path not in tables:
            await make_table(client, settings)
            tables[path] = settings.table
        return DynamodbState(client, clock), client.close

    return opened
