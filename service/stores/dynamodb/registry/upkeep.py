"""What a process has to do for the registry while it runs.

    beat    every quarter of `node_timeout`: say that it is alive; take out who is owed;
            if it was taken for dead, enter again and let its connections in again,
            under the limits, as if they came now
    sweep   every 30 s or so: bury the dead; every five minutes, tidy up its own part;
            once a day, whoever comes first, recount

The two do not wait for each other: a sweep may take minutes, and a beat must not. What
fails is done at the next time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from service.core.errors import StoreError, describe
from service.stores.dynamodb.registry.directory import DynamodbDirectory

__all__ = ["BEATS", "SWEEP", "Upkeep"]

BEATS = 4  # in one `node_timeout`
SWEEP = 30.0  # s between sweeps; up to a fifth more or less, so that processes differ
TIDY = 10  # sweeps from one look at our own part to the next

_log = structlog.get_logger(__name__)


class Upkeep:
    """Does it.

    Args:
        directory: This process's; started and closed here.
        node_timeout: Of the settings.
        chance: Spreads the sweeps of many processes.

    Attributes:
        directory: The same.
    """

    def __init__(
        self,
        directory: DynamodbDirectory,
        node_timeout: float,
        rng: random.Random | None = None,
    ) -> None:
        self.directory = directory
        self._beat_every = node_timeout / BEATS
        self._rng = rng or random.SystemRandom()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Enter the process, and begin.

        Raises:
            StartupError: The table does not take it.
        """
        await self.directory.start()
        self._tasks = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._sweep()),
        ]

    async def close(self) -> None:
        """Stop, and leave. Safe to call twice."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.directory.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_every)
            await _try(self.directory.beat)

    async def _sweep(self) -> None:
        sweeps = 0
        while True:
            await _try(self.directory.bury)
            sweeps += 1
            if sweeps % TIDY == 0:
                await _try(self.directory.tidy)
                await _try(self.directory.recount_when_due)
            await asyncio.sleep(SWEEP + SWEEP / 5 * (2 * self._rng.random() - 1))


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except StoreError as error:
        _log.info("upkeep of the registry has to wait", reason=str(error))
    except Exception as error:
        _log.error("upkeep of the registry failed", **describe(error))
