"""Pushes that no log keeps: publications without history, joins and leaves.

They go to all active rows, each at most once: a client that cannot be reached misses
them.

Invariants:

* A client is sent what this process was told of a channel in that order: the rows are
  read again only after what was told before is queued, and one frame is posted to a
  client at a time. Else a join could come after the leave that followed it.
* Nobody waits for a client that is slow: each has a queue of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from service.core.errors import StoreError, describe
from service.core.model import Channel, ClientId, size_of
from service.core.ports import Posted, RowState, SubscriberRow
from service.gateway.rounds import FRAME, Rounds

__all__ = ["WAITING", "Passing", "PassingPushes"]

_log = structlog.get_logger("steadwire")

PARALLEL = 64  # connections that are posted to at once
WAITING = 256  # pushes of a channel, and of a client in it; the oldest give way


class Passing(NamedTuple):
    """A push that is not kept.

    Attributes:
        push: The message.
        joins: It is for those that hear joins and leaves.
        but: Who does not get it.
    """

    push: str
    joins: bool = False
    but: ClientId | None = None

    def is_for(self, row: SubscriberRow) -> bool:
        """Return whether the subscriber gets it."""
        return row.client != self.but and (row.hears_joins or not self.joins)


class PassingPushes:
    """Sends what is not kept.

    Args:
        rounds: The rows and the posts, and what closes a connection.
        run: Runs a coroutine in the background.
    """

    def __init__(
        self, rounds: Rounds, run: Callable[[Awaitable[None]], object]
    ) -> None:
        self._rounds = rounds
        self._run = run
        self._gate = asyncio.Semaphore(PARALLEL)
        self._told: dict[Channel, deque[Passing]] = {}
        self._unsent: dict[tuple[Channel, ClientId], deque[str]] = {}

    def send(self, channel: Channel, passing: Passing) -> None:
        """Send a push behind what was told of the channel before."""
        told = self._told.get(channel)
        if told is None:
            self._told[channel] = deque([passing], WAITING)
            self._run(self._read(channel))
        else:
            told.append(passing)

    async def _read(self, channel: Channel) -> None:
        told = self._told[channel]
        try:
            while told:
                batch = list(told)
                told.clear()
                try:
                    rows = await self._rounds.rows.rows(channel)
                except StoreError as error:
                    _log.error("a delivery failed", **describe(error))
                    continue
                for row in rows:
                    if row.state is RowState.ACTIVE:
                        for each in batch:
                            if each.is_for(row):
                                self._queue(channel, row.client, each.push)
        finally:
            del self._told[channel]

    def _queue(self, channel: Channel, client: ClientId, push: str) -> None:
        unsent = self._unsent.get((channel, client))
        if unsent is None:
            self._unsent[channel, client] = deque([push], WAITING)
            self._run(self._post(channel, client))
        else:
            unsent.append(push)

    async def _post(self, channel: Channel, client: ClientId) -> None:
        unsent = self._unsent[channel, client]
        try:
            while unsent:
                async with self._gate:
                    outcome = await self._rounds.posts.post(client, _frame(unsent))
                if outcome is Posted.GONE:
                    await self._rounds.kill(channel, client, outcome)
                    return
        finally:
            del self._unsent[channel, client]


def _frame(unsent: deque[str]) -> str:
    """Remove the first pushes and return them as a frame of up to `FRAME` bytes."""
    taken = [unsent.popleft()]
    size = size_of(taken[0])
    while unsent and (size := size + size_of(unsent[0]) + 1) <= FRAME:
        taken.append(unsent.popleft())
    return "\n".join(taken)
