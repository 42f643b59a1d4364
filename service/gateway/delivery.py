"""`ports.Delivery` on rows: what is appended is delivered under the channel's lease.

An append that finds its channel free takes the lease in its own transaction. Here the
hold is delivered in the background, or handed over to another invocation. Publications
that are not kept, joins and leaves go to all active rows, each at most once.

Invariants:

* Every hold that was taken is delivered, handed over, or left to expire; `drain`
  returns when nothing of it runs here any more, so nothing runs while an environment
  is frozen.
* A subscribe's read is fresh: it begins after its row was stored, and is answered by
  the table alone (`read_fresh`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from service.core.cluster import PresenceRow, visible
from service.core.errors import StoreError, describe
from service.core.lease import Hold
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    RawJson,
    SubscriberInfo,
)
from service.core.ports import (
    AppendDone,
    Committed,
    History,
    Invoker,
    PresenceDone,
    ReadDone,
    Store,
)
from service.gateway.passing import Passing, PassingPushes
from service.gateway.rounds import Rounds
from service.protocol import replies

__all__ = ["GatewayDelivery", "LocalSubscribers"]

_log = structlog.get_logger("steadwire")


class FreshStore(Store, Protocol):
    """A store that others write to, too."""

    async def read_fresh(
        self, channel: Channel, history: History, since: int | None, limit: int
    ) -> HistoryPage:
        """Answer `read` from a read that begins now, and from nothing older.

        Raises:
            StoreError: The read failed.
        """


class LocalSubscribers(Protocol):
    """The subscribers of this very process, if it has any (the hub)."""

    def committed(self, batch: Sequence[Committed]) -> None:
        """Deliver what is durable now."""

    def look(self, channel: Channel, done: PresenceDone) -> list[SubscriberInfo] | None:
        """Return the subscribers of *channel* everywhere, or call *done* later."""


class GatewayDelivery:
    """Delivery to the rows of a table.

    Args:
        store: The log.
        rounds: Delivers under holds.
        spawn: Runs a coroutine in the background.
        invoker: Takes holds over; None to deliver all of them here.
        local: The subscribers of this process; None where it has none.
        present: Returns the rows of all who may be present, those of resident processes
            included.

    Attributes:
        hands_over: Others deliver what is appended now: this invocation cannot wait.
        until: When deliveries here hand over what is left, by the clock.
    """

    def __init__(
        self,
        store: FreshStore,
        rounds: Rounds,
        spawn: Callable[[Awaitable[None]], object],
        *,
        present: Callable[[Channel], Awaitable[Sequence[PresenceRow]]],
        invoker: Invoker | None = None,
        local: LocalSubscribers | None = None,
    ) -> None:
        self.hands_over = False
        self.until = math.inf
        self.read_fresh = store.read_fresh
        self.knows = store.knows
        self._store = store
        self._present = present
        self._rounds = rounds
        self._spawn = spawn
        self._invoker = invoker
        self._local = local
        self._running: set[asyncio.Future[None]] = set()
        self._passing = PassingPushes(rounds, self._run)

    # ports.Delivery

    def publish(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Publish to *channel*; *done* is told of the outcome, later."""
        self._store.append(channel, draft, history, done)

    def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        done: ReadDone,
        *,
        reverse: bool = False,
    ) -> HistoryPage | None:
        """Read kept publications; the outcome always comes later."""

        async def read() -> None:
            outcome: HistoryPage | StoreError
            try:
                outcome = await self._store.read(
                    channel, history, since, limit, reverse=reverse
                )
            except StoreError as error:
                outcome = error
            done(outcome)

        self._run(read())
        return None

    def look(self, channel: Channel, done: PresenceDone) -> list[SubscriberInfo] | None:
        """Return the subscribers of *channel* everywhere, or call *done* later."""
        if self._local is not None:
            return self._local.look(channel, done)

        async def look() -> None:
            outcome: list[SubscriberInfo] | StoreError
            try:
                rows = await self._present(channel)
                shown = visible(rows)
                outcome = [
                    SubscriberInfo(row.client, row.user, row.info, present=True)
                    for row in rows
                    if row.present and row.key in shown
                ]
            except StoreError as error:
                outcome = error
            done(outcome)

        self._run(look())
        return None

    # The store's listener, and the taker of its holds.

    def committed(self, batch: Sequence[Committed]) -> None:
        """Deliver what is not kept; the rest is delivered under the lease."""
        if self._local is not None:
            self._local.committed(batch)
        for channel, publication, _, _, _ in batch:
            if not publication.offset:
                push = replies.publication_push(replies.quote(channel), publication)
                self._passing.send(channel, Passing(push))

    def took(self, hold: Hold) -> None:
        """Deliver under a hold, or hand it over."""
        self._run(self.deliver(hold))

    async def deliver(self, hold: Hold) -> None:
        """Deliver under a hold until nothing is left, or hand over the rest."""
        rounds, invoker = self._rounds, self._invoker
        left: Hold | None = hold
        if hold.claimed:
            left = await rounds.deliver(hold, until=self.until)
        while left is not None:
            if invoker is not None and await invoker.deliver(left.record()):
                return  # nothing may be posted under it here any more
            # Nobody else will: here, for as long as it takes.
            claimed = await rounds.claim(left)
            if claimed is None:
                return
            left = await rounds.deliver(claimed)

    async def claim(self, hold: Hold) -> None:
        """Deliver under a hold that was handed over to this process."""
        claimed = await self._rounds.claim(hold)
        if claimed is not None:
            await self.deliver(claimed)

    # Joins and leaves.

    def join(self, channel: Channel, client: ClientId, info: RawJson) -> None:
        """Tell those who hear it that a client has joined; not the client."""
        push = replies.join_push(replies.quote(channel), info)
        self._passing.send(channel, Passing(push, joins=True, but=client))

    def leave(self, channel: Channel, client: ClientId, info: RawJson) -> None:
        """Tell those who hear it that a client has left."""
        push = replies.leave_push(replies.quote(channel), info)
        self._passing.send(channel, Passing(push, joins=True, but=client))

    # Background.

    def _run(self, work: Awaitable[None]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.add(done)

        async def run() -> None:
            try:
                await work
            except Exception as error:
                _log.error("a delivery failed", **describe(error))
            finally:
                self._running.discard(done)
                if not done.done():
                    done.set_result(None)

        self._spawn(run())

    async def drain(self) -> None:
        """Wait until nothing runs any more."""
        while self._running:
            await asyncio.wait(list(self._running))
