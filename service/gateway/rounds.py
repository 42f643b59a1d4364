"""Rounds of the holder of a channel's lease: what is delivered to whom, in which order.

Whoever holds the lease reads the channel's rows and log, posts to each connection what
it does not have yet, and releases the lease when nobody lacks anything. The steps are
those of a model that was checked exhaustively; the real code is explored by
`tests/gateway/explorer`. Nothing here does I/O of its own, and time is the clock's.

Invariants:

* One POST at a time is under way to a connection for a channel, and the next one
  begins when the one before was delivered. After any other outcome the connection is
  closed (`kill`), because nobody knows what reached the client, and a connection id is
  the only fence there is: the client comes back with another one, and recovers.
* HEAD is read after the rows and the log, before the first POST of a round, and must
  still name the hold's token. So a POST that is late, or of a holder that was taken for
  dead, reaches only connections that the takeover closes.
* `delivered`: every active row of its epoch, and no client beyond, has everything up
  to there. It moves only when nothing is under way. What single clients have beyond it
  is in `_have`, by row *and* command: the row of another command begins anew.
* The lease is released only if the last round saw no pending and no waiting row, and
  HEAD is as that round read it, epoch and top as *stored*. A row that became pending
  after the round had read the rows was stored after HEAD was read; its own fresh read
  covers what the round delivered.
* A hole in the log is never skipped: the client is told to subscribe again, or closed.
* A hold that is lost, or whose connection cannot be closed, ends without a release:
  the lease expires, and the takeover closes all connections that it may have written
  to. No exit leaves a POST under way: all of them are awaited.

Interleavings that could break this, each explored:

* A subscribe stores its row between the round's read of HEAD and of the rows: it is
  seen as pending, so the round does not release, and the row's position decides.
* It becomes active between two rounds at a position above or below `delivered`: in the
  round after it was seen pending, only its own position counts.
* It is replaced while a POST to it is under way: the waiting row is not let in before
  that POST was answered.
* It becomes active so far behind the others that a round ends (`WINDOW`) before it has
  what they have: they are ahead of `delivered`, which is theirs no more.
* The epoch ends between two reads: `delivered` is offset 0 of the new one, and rows of
  the old one are told.
* Two invocations claim one hold, or one comes late: each hold has a token of its own,
  and the second claim fails.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import structlog

from service.core.errors import (
    INSUFFICIENT_STATE,
    UNSUBSCRIBE_INSUFFICIENT,
    StoreError,
    describe,
)
from service.core.lease import (
    LEASE_SECONDS,
    PENDING_SECONDS,
    POST_SECONDS,
    ChannelState,
    Hold,
    Leases,
    Stored,
)
from service.core.model import Channel, ClientId, Position, Publication, size_of
from service.core.ports import (
    Clock,
    Posted,
    Posts,
    RowState,
    SubscriberRow,
    Subscribers,
)
from service.protocol import replies

__all__ = ["FRAME", "POLL", "WINDOW", "Rounds"]

FRAME = 32 * 1024  # bytes of several publications in one POST; a larger one goes alone

WINDOW = 64  # publications read from the log in one round

PARALLEL = 64  # connections that are posted to at once, for one channel

SLOW = 1.0  # s after which a round goes on without those it still waits for
POLL = (0.1, 0.5)  # s between looks at pending rows: at first, and after a second
RETRY = 0.5  # s before a round is repeated that the store has failed

_PENDING = (RowState.PENDING, RowState.PIECES)

_log = structlog.get_logger(__name__)


class _Lost(Exception):
    """The hold is lost, or cannot be ended in order: it ends without a release."""


class Rounds:
    """Delivers under leases.

    Args:
        leases: The owners of channels.
        rows: The subscriptions.
        stored: The log.
        posts: Writes to connections.
        clock: Tells all times.
        token: Returns a token that was never used.
        forget: Deletes the record of a connection that was closed, so that it gets no
            more pings: should it live on, its client notices.
    """

    def __init__(
        self,
        leases: Leases,
        rows: Subscribers,
        stored: Stored,
        posts: Posts,
        clock: Clock,
        *,
        token: Callable[[], str],
        forget: Callable[[ClientId], Awaitable[None]],
    ) -> None:
        self.leases = leases
        self.rows = rows
        self.stored = stored
        self.posts = posts
        self.clock = clock
        self._token = token
        self._forget = forget

    async def deliver(self, hold: Hold, *, until: float = math.inf) -> Hold | None:
        """Deliver until nothing is left, and release the lease.

        Args:
            hold: A hold that this process may post under.
            until: The time of the clock at which to stop and hand over. Some seconds
                more pass until the POSTs under way were answered.

        Returns:
            The hold to hand over: nothing may be posted under it here any more. None if
            it has ended, in order or not.
        """
        if not hold.claimed:
            raise ValueError("a hold that was handed over is claimed first")
        return await _Delivery(self, hold, until).run()

    async def claim(self, hold: Hold) -> Hold | None:
        """Claim a hold that was handed over; None if it is not to be had any more.

        Raises:
            StoreError: It is not known whether it was claimed. Nothing is lost: it
                expires.
        """
        token, sent = self._token(), self.clock.now()
        state = await self.leases.claim(hold.channel, hold.token, token)
        if state is None:
            return None
        return self._began(hold, token, sent, state, state)

    async def watch(self, channel: Channel) -> Hold | None:
        """Look after a channel: its lease has expired, or a recovery was broken off.

        Returns:
            A hold to deliver under, if the lease had expired.

        Raises:
            StoreError: Something is left for the next look.
        """
        state = await self.leases.read(channel)
        hold = None
        if state.owner and state.until < self._now():
            token, sent = self._token(), self.clock.now()
            before = await self.leases.take(channel, state, token)
            if before is not None:
                duty = before.duty
                old = Hold(channel, "", duty or before.top, takeover=duty is None)
                hold = self._began(old, token, sent, before, None)
        for row in await self.rows.rows(channel):
            if row.state is RowState.PIECES and self.is_overdue(row):
                await self.kill(channel, row.client, Posted.UNKNOWN)
        return hold

    @staticmethod
    def _began(
        hold: Hold,
        token: str,
        sent: float,
        found: ChannelState,
        state: ChannelState | None,
    ) -> Hold:
        delivered = hold.delivered
        if hold.takeover:
            delivered = found.top
        elif delivered.epoch != found.top.epoch:
            delivered = Position(0, found.top.epoch)
        return hold._replace(
            token=token,
            delivered=delivered,
            claimed=True,
            deadline=sent + LEASE_SECONDS - POST_SECONDS,
            state=state,
        )

    def is_overdue(self, row: SubscriberRow) -> bool:
        """Return whether the subscribe that wrote a row counts as dead."""
        return row.at + round(PENDING_SECONDS * 1000) < self._now()

    def _now(self) -> int:
        return int(self.clock.wall() * 1000)

    async def kill(self, channel: Channel, client: ClientId, why: Posted) -> bool:
        """Close a connection, then delete its row; False if it may still be open.

        Args:
            channel: The channel.
            client: The connection.
            why: What became of the last POST: to a client that is gone there is nothing
                to say.

        Raises:
            StoreError: It is closed, and its row may still be there.
        """
        if why is not Posted.GONE:
            # The client comes back sooner than from a close; what becomes of this does
            # not matter.
            await self.posts.post(client, _DISCONNECT)
        if not await self.posts.delete(client):
            _log.warning("a connection cannot be closed", client=client)
            return False
        await self._forget(client)
        await self.rows.remove(channel, client)
        return True

    async def wait(self, seconds: float) -> None:
        """Wait by the clock."""
        await _first(self.clock, [], self.clock.now() + seconds)


_DISCONNECT = replies.disconnect_push(INSUFFICIENT_STATE)


class _Span(NamedTuple):
    """What one round delivers: `log`, up to `through`.

    Attributes:
        through: The last offset.
        floor: Everything up to this offset was removed.
        log: Begins after the first hole below `through`; empty if that one is missing.
    """

    through: int
    floor: int
    log: list[Publication]


class _Delivery:
    """One hold, from its beginning to its end in this process."""

    def __init__(self, rounds: Rounds, hold: Hold, until: float) -> None:
        self._rounds = rounds
        self._hold = hold
        self._until = until
        self._quoted = replies.quote(hold.channel)
        self._deadline = hold.deadline
        self._delivered = hold.delivered
        self._seen = hold.seen
        self._busy: dict[ClientId, asyncio.Task[None]] = {}
        self._have: dict[tuple[ClientId, int], int] = {}
        self._gate = asyncio.Semaphore(PARALLEL)
        self._is_lost = False
        self._polls = 0

    async def run(self) -> Hold | None:
        renewing = asyncio.create_task(self._keep())
        try:
            if self._hold.takeover and not await self._take_over():
                return self._hold
            return await self._go_round()
        except _Lost:
            return None
        finally:
            renewing.cancel()
            self._is_lost = True
            await self._ended(math.inf)
            await asyncio.gather(renewing, return_exceptions=True)

    # The lease

    async def _keep(self) -> None:
        """Renew the lease until it is lost."""
        rounds, hold = self._rounds, self._hold
        while not self._is_lost:
            await rounds.wait(LEASE_SECONDS / 3)
            sent = rounds.clock.now()
            try:
                renewed = await rounds.leases.renew(hold.channel, hold.token)
            except StoreError as error:
                _log.info("a lease was not renewed", reason=str(error))
                continue  # no POST begins after the deadline
            if renewed:
                self._deadline = sent + LEASE_SECONDS - POST_SECONDS
            else:
                self._is_lost = True

    def _may_post(self) -> None:
        """Make sure that a POST may begin.

        Raises:
            _Lost: It may not.
        """
        if self._is_lost or self._rounds.clock.now() >= self._deadline:
            raise _Lost

    @property
    def _is_stopping(self) -> bool:
        return self._rounds.clock.now() >= self._until

    # Rounds

    async def _go_round(self) -> Hold | None:
        rounds, hold = self._rounds, self._hold
        state = hold.state
        while True:
            if self._is_stopping and not self._busy and not self._have:
                return hold._replace(
                    delivered=self._delivered,
                    seen=self._seen,
                    takeover=False,
                    claimed=False,
                    state=None,
                )
            try:
                if state is None:
                    state = self._owned(await rounds.leases.read(hold.channel))
                state = await self._round(state)
                if state is not None and not state.owner:
                    return None
            except StoreError as error:
                _log.info("a round has to wait", reason=str(error))
                self._may_post()
                await rounds.wait(RETRY)
                state = None

    def _owned(self, state: ChannelState) -> ChannelState:
        """Return *state*.

        Raises:
            _Lost: It names another owner.
        """
        if state.owner != self._hold.token:
            raise _Lost
        return state

    async def _round(self, state: ChannelState) -> ChannelState | None:
        """Deliver what is stored up to the top of *state*.

        Returns:
            The state for the next round, None if it has to be read; one without an
            owner when the lease was released.
        """
        rounds, channel = self._rounds, self._hold.channel
        top = state.top
        if self._delivered.epoch != top.epoch:
            self._delivered = Position(0, top.epoch)
            self._have.clear()
        busy = frozenset(self._busy)  # what is read of them may be old when they end
        rows = await rounds.rows.rows(channel)
        waiting = frozenset(
            row.client
            for row in rows
            if row.state is RowState.WAITING
            or (row.state in _PENDING and not rounds.is_overdue(row))
        )
        begins = {
            (row.client, row.command): self._begin(row)
            for row in rows
            if row.state is RowState.ACTIVE and row.position.epoch == top.epoch
        }
        through, log = top.offset, []
        if begins and (low := min(begins.values())) < through:
            through = min(through, low + WINDOW)
            log = await rounds.stored.between(channel, state, low, through)
        now = self._owned(await rounds.leases.read(channel))
        floor = now.floor if now.top.epoch == top.epoch else 0
        span = _Span(through, floor, log)
        idle = [row for row in rows if row.client not in busy]
        self._start(idle, begins, span)
        slow = await self._ended(SLOW)
        self._seen = waiting
        if slow or len(idle) < len(rows):
            return None  # the others go on meanwhile
        self._delivered = Position(through, top.epoch)
        # Where one is far behind, this may be less than before: others are ahead of it.
        self._have = {row: begin for row, begin in begins.items() if begin > through}
        if through < top.offset or now.top != top:
            self._polls = 0
            return now
        if waiting:
            self._polls += 1
            await rounds.wait(POLL[self._polls > 10])
            return None
        return await self._release(state)

    async def _release(self, state: ChannelState) -> ChannelState:
        hold = self._hold
        refused = await self._rounds.leases.release(hold.channel, hold.token, state)
        if refused is not None:
            return self._owned(refused)
        return state._replace(owner="")

    def _begin(self, row: SubscriberRow) -> int:
        """Return the offset that the client of an active row has."""
        begin = row.position.offset
        if row.client not in self._seen:
            begin = max(begin, self._delivered.offset)
        return max(begin, self._have.get((row.client, row.command), 0))

    def _start(
        self,
        rows: Iterable[SubscriberRow],
        begins: Mapping[tuple[ClientId, int], int],
        span: _Span,
    ) -> None:
        """Begin what this round does for each row; nothing is under way for them.

        Args:
            rows: The rows.
            begins: What the clients have of those that are active in this epoch.
            span: What the round delivers.
        """
        first = span.log[0].offset if span.log else math.inf
        frames: dict[int, list[tuple[str, int]]] = {}
        for row in rows:
            if row.state is RowState.WAITING:
                self._begin_job(row, self._grant(row))
            elif row.state in _PENDING:
                if self._rounds.is_overdue(row):
                    self._begin_job(row, self._kill(row.client))
            elif row.state is not RowState.ACTIVE:
                continue
            elif (begin := begins.get((row.client, row.command))) is None:
                self._begin_job(row, self._tell_behind(row))
            elif begin >= span.through:
                continue
            elif begin + 1 < first or begin < span.floor:
                self._begin_job(row, self._tell_behind(row))
            else:
                if begin not in frames:
                    lacking = [p for p in span.log if p.offset > begin]
                    frames[begin] = list(_joined(self._quoted, lacking))
                self._begin_job(row, self._serve(row, frames[begin]))

    def _begin_job(self, row: SubscriberRow, job: Awaitable[None]) -> None:
        client = row.client
        task = asyncio.ensure_future(self._run_job(client, job))
        self._busy[client] = task

    async def _run_job(self, client: ClientId, job: Awaitable[None]) -> None:
        try:
            async with self._gate:
                await job
        except _Lost:
            self._is_lost = True
        except Exception as error:
            # What the client has is not known any more: the takeover closes it.
            self._is_lost = True
            if not isinstance(error, StoreError):
                _log.error("a delivery failed", **describe(error))
        finally:
            del self._busy[client]

    async def _ended(self, seconds: float) -> bool:
        """Wait until nothing is under way, *seconds* at most; return if something is.

        Raises:
            _Lost: A job has found that the hold is lost.
        """
        left = self._rounds.clock.now() + seconds
        while self._busy:
            if self._rounds.clock.now() >= left:
                return True
            await _first(self._rounds.clock, list(self._busy.values()), left)
        if self._is_lost and seconds < math.inf:
            raise _Lost
        return False

    # Jobs, one for a row

    async def _serve(self, row: SubscriberRow, frames: list[tuple[str, int]]) -> None:
        for frame, offset in frames:
            self._may_post()
            outcome = await self._rounds.posts.post(row.client, frame)
            if outcome is not Posted.DELIVERED:
                await self._kill(row.client, outcome)
                return
            self._have[row.client, row.command] = offset

    async def _tell_behind(self, row: SubscriberRow) -> None:
        """Tell a client that it cannot be served from where it is."""
        rounds, channel = self._rounds, self._hold.channel
        outcome = Posted.UNKNOWN
        if not row.server:
            push = replies.unsubscribe_push(self._quoted, UNSUBSCRIBE_INSUFFICIENT)
            self._may_post()
            outcome = await rounds.posts.post(row.client, push)
            if outcome is Posted.DELIVERED:
                await rounds.rows.reset(channel, row.client, row.command)
                return
        await self._kill(row.client, outcome)

    async def _grant(self, row: SubscriberRow) -> None:
        hold = self._hold
        await self._rounds.rows.grant(hold.channel, row.client, row.command, hold.token)

    async def _kill(self, client: ClientId, why: Posted = Posted.UNKNOWN) -> None:
        if not await self._rounds.kill(self._hold.channel, client, why):
            raise _Lost

    # Takeover

    async def _take_over(self) -> bool:
        """Close every connection that the holder before may have written to.

        Returns:
            False if the time is over before all are closed.
        """
        rows = await self._rows_for_takeover()
        # The lease never posts to pending rows. All others are closed, those that have
        # left too: a late POST may still be on its way to them.
        self._seen = frozenset(row.client for row in rows if row.state in _PENDING)
        for row in rows:
            if row.state not in _PENDING:
                self._begin_job(row, self._kill(row.client))
        while await self._ended(SLOW):
            if self._is_stopping:
                break
        stopped = bool(self._busy)
        await self._ended(math.inf)
        if self._is_lost:
            raise _Lost
        if stopped:
            self._hold = self._hold._replace(claimed=False, state=None)
        self._hold = self._hold._replace(state=None)
        return not stopped

    async def _rows_for_takeover(self) -> list[SubscriberRow]:
        while True:
            try:
                return await self._rounds.rows.rows(self._hold.channel)
            except StoreError as error:
                _log.info("a takeover has to wait", reason=str(error))
            self._may_post()
            await self._rounds.wait(RETRY)


def _joined(
    quoted: str, publications: Iterable[Publication]
) -> Iterable[tuple[str, int]]:
    """Yield the frames of pushes, of up to `FRAME` bytes, and the last offset of each.

    Args:
        quoted: The channel as a JSON string.
        publications: In order.
    """
    pushes: list[str] = []
    size = last = 0
    for publication in publications:
        push = replies.publication_push(quoted, publication)
        added = size_of(push) + 1
        if pushes and size + added > FRAME:
            yield "\n".join(pushes), last
            pushes, size = [], 0
        pushes.append(push)
        size += added
        last = publication.offset
    if pushes:
        yield "\n".join(pushes), last


async def _first(clock: Clock, tasks: list[asyncio.Task[None]], when: float) -> None:
    """Wait until the first task has ended, or the clock says *when*."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wake = partial(_settle, woken)
    for task in tasks:
        task.add_done_callback(wake)
    timer = clock.call_at(when, wake) if when < math.inf else None
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()
        for task in tasks:
            task.remove_done_callback(wake)


def _settle(future: asyncio.Future[None], _: object = None) -> None:
    if not future.done():
        future.set_result(None)


def _report(ended: Iterable[BaseException | None]) -> None:
    for each in ended:
        if isinstance(each, Exception):
            _log.info("a push was not sent to all", **describe(each))
        elif each is not None:
            raise each
