"""Processes that have lost the broker, and say so in the table.

While a process is cut off from the broker, the others hear nothing of what it commits,
though their own connections are whole. So it puts an entry into the table, again every
`RENEW`, and every process looks at these entries each `PERIOD`: while there is one of
another process, the covered channels are polled as well (`HeadWatch.poll_covered`).

An entry outlives the outage by a period, so that every channel was polled after the
last publication that was told nobody. One of a process that has died expires after
`TTL`.

Cost: 1 read unit per `PERIOD` and process with a broker; 1 write unit per `RENEW` in an
outage.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress

from service.core.broker import Broker
from service.core.clock import sleep
from service.core.errors import StoreError
from service.core.ports import Clock, State
from service.stores.dynamodb.log.head_watch import HeadWatch

__all__ = ["PERIOD", "TTL", "BrokerOutages"]

PERIOD = 2.0  # s
RENEW = 5.0  # s
TTL = 15.0  # s

_KIND = "broker-outage"


class BrokerOutages:
    """The outages of all processes, and of this one.

    Args:
        broker: That of this process.
        state: Where they are kept.
        heads: Polls because of those of others.
        clock: Times the looks.
    """

    def __init__(
        self, broker: Broker, state: State, heads: HeadWatch, clock: Clock
    ) -> None:
        self._broker = broker
        self._state = state
        self._heads = heads
        self._clock = clock
        self._node = uuid.uuid4().hex
        self._put_at = float("-inf")  # inside an outage
        self._is_cut = False  # the table says so
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End; an entry of this process is left to expire."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await sleep(self._clock, PERIOD)
            with suppress(StoreError):  # the next period looks again
                await self.look()

    async def look(self) -> None:
        """Tell of an outage here, and learn of others'.

        Raises:
            StoreError: The table does not answer.
        """
        now = self._clock.now()
        if self._broker.fault() is not None:
            if now - self._put_at >= RENEW:
                self._is_cut = True
                await self._state.put(_KIND, self._node, "", TTL)
                self._put_at = now
        elif self._is_cut:
            # Whole again since a moment within the last period: tell it at the next.
            self._is_cut = False
        elif self._put_at > float("-inf"):
            await self._state.take(_KIND, self._node)
            self._put_at = float("-inf")
        others = [
            entry
            for entry in await self._state.entries(_KIND)
            if entry.key != self._node
        ]
        self._heads.poll_covered("a server has lost the broker", bool(others))
