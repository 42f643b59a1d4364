"""``steadwire tables``: create, check or delete the DynamoDB table of the settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from service.settings import DynamodbSettings
    from service.stores.dynamodb.client import Client

__all__ = ["tables"]

T = TypeVar("T")


@click.group()
def tables() -> None:
    """Make, check or delete the DynamoDB table that the settings name."""


@tables.command()
def create() -> None:
    """Make the table, wait until it can be used, and let it delete what has expired.

    Safe to repeat. A table that is there is not changed, except that a missing time to
    live is set.
    """
    from service.stores.dynamodb import table

    name, made = _run(table.create)
    print(f"{name}: {'made' if made else 'there already, and as it should be'}")


@tables.command()
def check() -> None:
    """Compare the table with the settings; exit status 1 if they differ."""
    from service.stores.dynamodb import table

    name, problems = _run(table.check)
    for problem in problems:
        print(f"{name}: {problem}")
    if problems:
        sys.exit(1)
    print(f"{name}: as it should be")


@tables.command()
@click.confirmation_option(prompt="Delete the table, and everything in it, for ever?")
def delete() -> None:
    """Delete the table with everything in it."""
    from service.stores.dynamodb import table

    name, deleted = _run(lambda client, _: table.delete(client))
    print(f"{name}: {'deleted' if deleted else 'it did not exist'}")


def _run(
    call: Callable[[Client, DynamodbSettings], Coroutine[Any, Any, T]],
) -> tuple[str, T]:
    """Await *call* with a client; return the table's name and the result."""
    import asyncio

    import structlog

    from service.core.clock import SystemClock
    from service.settings import load
    from service.stores.dynamodb.client import opened

    async def run(settings: DynamodbSettings) -> T:
        async with opened(settings, SystemClock()) as client:
            return await call(client, settings)

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = load(os.environ, {}).table
    return settings.table, asyncio.run(run(settings))
