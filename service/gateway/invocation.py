"""One invocation: a session is restored, handles what has come, and is stored again.

It is the session's port. What the session writes is collected, and flushed in this
order, which every rule of delivery depends on:

    rows and records are stored ──► the messages are posted ──► rows become active

Invariants (the delivery protocol's own are in `rounds`):

* A subscribe's row is stored before the read that decides where it starts, and the read
  is fresh. The row becomes active only when its reply and every piece were delivered.
  Until then nobody else posts to the client for that channel.
* After any other outcome of such a POST the connection is closed. So it is if the reply
  was late, since the client may have given the command up, or if the last piece was,
  since the holder may take the row for dead (`subscribing`).
* Of the frames of one client, which are handled at once and in any order, the one with
  the highest command id wins, in each channel: that is decided by the row, never by
  what was restored. A command that lost is not answered, but for an unsubscribe.
* Nothing is posted for a session that is not stored: not its connect reply, not the
  reply to a refresh.
* `run` returns when no task of it is left.

Interleavings that could break it: the frames of one client in any order; the connection
ends, is evicted or revoked between any two steps; an outcome of a write or a POST is
unknown; a crash between any two steps, after which the sweeper finds either the slot,
or a row that is older than its time. `tests/gateway/explorer` explores them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from service.auth.errors import KeysUnavailable
from service.connections.audit_log import log_decision
from service.connections.hook_calls import BLOCKED, Outcome, ask, complete, note_answer
from service.connections.pending_connection import PendingConnection
from service.core.errors import (
    CONNECTION_EXPIRED,
    INSUFFICIENT_STATE,
    INTERNAL,
    INTERNAL_CLOSE,
    LIMIT_EXCEEDED,
    Close,
    ErrorReply,
    ReplyError,
    StoreError,
    describe,
)
from service.core.hooks import Event
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Joined,
    Position,
    SubscriberInfo,
    UserId,
    size_of,
)
from service.core.ports import AppendDone, Claim, Clock, History, Posted
from service.core.position import size_of_publication, take_piece
from service.core.sessions import StoredSession, Terms
from service.gateway.context import GatewayContext
from service.gateway.subscribing import Place, claim, finish, frames_of, start
from service.protocol import replies
from service.session.port import Decision, Identity
from service.session.record import ChannelRecord, SessionRecord
from service.session.session import Session

__all__ = ["TOGETHER", "Invocation"]

LARGEST = 128 * 1024  # bytes of a message
REPLIES = 64 * 1024  # bytes of publications in all replies of a frame
HISTORY = 96 * 1024  # bytes of publications in a history reply

TOGETHER = 0.2  # s that a reply may wait for others of the same frame

_T = TypeVar("_T")

_COMMAND = re.compile(r'\{"id":(\d+),')

_log = structlog.get_logger("steadwire")


class Invocation:
    """One frame of a client, or one thing that the server does to it.

    Args:
        context: What all invocations share.
        client: The connection.
        pending: What the handshake said.
    """

    def __init__(
        self, context: GatewayContext, client: ClientId, pending: PendingConnection
    ) -> None:
        self._context = context
        self._client = client
        self._pending = pending
        self._clock = context.clock
        self.knows = context.delivery.knows
        self._begun = now = context.clock.now()
        quota = context.limits.quota(pending.address, now)
        pending.quota = quota
        self.session = Session(
            self,
            context.client,
            context.permissions,
            context.handlers,
            context.liveness_stats,
            client=client,
            version=context.version,
            insecure=context.insecure,
            rng=context.rng,
            now=now,
            wall=context.clock.wall(),
            quota=quota,
            pongs=False,
            deltas=False,  # a holder does not know what its clients were sent last
        )
        self._stored: SessionRecord | None = None
        self._channels: dict[Channel, ChannelRecord] = {}
        self._commands: dict[Channel, int] = {}
        self._waits: set[asyncio.Future[None]] = set()
        self._writes: list[asyncio.Future[None]] = []
        self._out: list[str] = []
        self._ready: list[Place] = []
        self._placed: dict[Channel, Place] = {}
        self._space = REPLIES
        self._opening = False
        self._terms = Terms()  # as stored
        self._has_acted = False  # since the session's record was stored
        self._close: Close | None = None
        self._is_over = False

    def restore(self, stored: StoredSession, record: SessionRecord) -> None:
        """Take up the client's session, whose own record is decoded."""
        for channel, each in stored.channels.items():
            self._commands[channel] = each.command
            self._channels[channel] = msgspec.json.decode(
                each.record, type=ChannelRecord
            )
        self._stored = record
        self._terms = _terms_of(record, self._channels)
        whole = msgspec.structs.replace(record, channels=dict(self._channels))
        self.session.restore(whole, self._begun)
        if self._pending.quota is not None:
            self._pending.quota.user = self.session.identity.user

    async def run(self, act: Callable[[Session], object]) -> None:
        """Let the session do something, and everything that follows from it."""
        session = self.session
        await self._context.revocations.refresh()
        if self._stored is not None:
            session.tick(self._begun)  # it may have expired
            self._end_if_revoked()
        self._guard(act, session)
        while not self._is_over:
            if self._waits:
                await _some(self._clock, self._waits, self._clock.now() + TOGETHER)
            # What is flushed may have made the session go on.
            if not await self._flush() and not self._waits:
                return
        await self._end()

    def _guard(self, step: Callable[..., object], *args: object) -> None:
        """Take a step of the session; an error of ours ends its connection alone."""
        self._has_acted = True
        try:
            step(*args)
        except ReplyError:
            raise
        except Exception as error:
            _log.error("a session failed", client=self._client, **describe(error))
            self.session.ended()
            self._close = self._close or INTERNAL_CLOSE

    def _end_if_revoked(self) -> None:
        session = self.session
        of = session.identity.user, session.token_id, session.issued_at
        try:
            revoked = self._context.revocations.is_revoked(*of)
        except KeysUnavailable:
            return  # it was let in when they were known
        if revoked:
            session.disconnect(CONNECTION_EXPIRED)

    # Tasks: everything that has an outcome for the session.

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits.add(done)

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._guard(_raise, error)
            finally:
                self._waits.discard(done)
                if not done.done():
                    done.set_result(None)

        self._context.spawn(run())
        return done

    def _awaited(self, then: Callable[[_T], object]) -> Callable[[_T], None]:
        """Return *then* as a callback, to be called once, that is waited for."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits.add(done)

        def call(outcome: _T) -> None:
            self._waits.discard(done)
            done.set_result(None)
            then(outcome)

        return call

    def _outcome(self, step: Callable[..., object], *args: object) -> None:
        """Tell the session of an outcome; it then goes on."""
        self._guard(step, *args)
        self._guard(self.session.resume, self._clock.now())

    # session.Port

    has_room = True
    draining = False

    def later(self) -> None:
        """Call `Session.turn` in the next turn of the event loop."""

        async def turn() -> None:
            await asyncio.sleep(0)
            self._outcome(self.session.turn)

        self._spawn(turn())

    def refuses_read(self) -> bool:
        """Refuse no read: whoever asks for much waits for it alone."""
        return False

    def reply(self, text: str) -> None:
        """Write one reply or push; an error in its place if it is too large."""
        found = _COMMAND.match(text)
        if found is not None and size_of(text) > LARGEST:
            text = replies.error_reply(int(found[1]), LIMIT_EXCEEDED)
        self._out.append(text)

    def reply_error(self, command: int, error: ErrorReply) -> None:
        """Refuse one command."""
        self._context.metrics.errors.add(error.code)
        self._out.append(replies.error_reply(command, error))

    def ping(self) -> None:
        """Write no ping: the sweeper does."""

    def acquire_slot(self, identity: Identity) -> None:
        """Ask for a slot; whoever loses one to this client is closed here."""
        self._spawn(self._admit(identity))

    async def _admit(self, identity: Identity) -> None:
        session, sessions = self.session, self._context.sessions
        self._terms = terms = Terms(
            identity.user,
            session.token_id,
            session.issued_at,
            session.expiry.unix(session.keepalive.expires_at),
        )
        refusal: Close | ErrorReply | None = None
        try:
            admitted = await sessions.admit(self._client, self._pending.address, terms)
        except StoreError:
            refusal = INTERNAL
        else:
            if isinstance(admitted, Close):
                refusal = admitted
            else:
                for client in admitted:
                    self._spawn(self._evict(client))
        self._outcome(self.session.slot_acquired, refusal)

    async def _evict(self, client: ClientId) -> None:
        with suppress(StoreError):  # the sweeper has a notice
            await self._context.evict(client)

    def release_slot(self) -> None:
        """Give the slot back: the connect is refused after all."""
        self._writes.append(self._spawn(self._forget()))

    async def _forget(self) -> None:
        with suppress(StoreError):  # the sweeper finds it
            await self._context.sessions.end(self._client)

    def connected(self) -> None:
        """Store the session before its reply is posted."""
        self._opening = True
        self._pending.connected(self.session.identity.user)

    def audit(self, decision: Decision) -> None:
        """Log whether the client was let in or refused, and why."""
        log_decision(decision, self._client, self._pending, self._context.metrics)

    def ask(self, command: int, event: Event) -> None:
        """Ask a hook; the session is given its answer, or a refusal if it is late."""
        context = self._context
        handlers, event = complete(event, self._pending, context.handlers)
        answered = partial(self._answered, command, event, handlers is not BLOCKED)
        ask(
            handlers,
            event,
            self._awaited(partial(self._outcome, answered)),
            dump=context.encoder.dump,
            clock=self._clock,
            timeout=context.client.hook_timeout,
            spawn=context.spawn,
            health=context.hook_health,
        )

    def _answered(self, command: int, event: Event, asked: bool, it: Outcome) -> None:
        wrong = self.session.answered(command, event, it, self._clock.now())
        if asked:
            note_answer(event, it, wrong, self._context.hook_health)

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; it is acknowledged first, and then delivered."""
        told = partial(self._outcome, self.session.published, command)
        done: AppendDone = self._awaited(told)
        self._context.delivery.publish(channel, draft, history, done)

    def history(
        self,
        command: int,
        channel: Channel,
        history: History,
        since: Position | None,
        limit: int,
        *,
        reverse: bool,
    ) -> None:
        """Read publications; the outcome goes to the session."""

        def read(outcome: HistoryPage | StoreError) -> None:
            if not isinstance(outcome, StoreError):
                piece = take_piece(outcome.publications, HISTORY)
                outcome = HistoryPage(piece, outcome.top)
            self._outcome(self.session.history_read, command, since, outcome)

        offset = None if since is None else since.offset
        self._context.delivery.read(
            channel, history, offset, limit, self._awaited(read), reverse=reverse
        )

    def present(self, command: int, channel: Channel, *, stats: bool) -> None:
        """Look who is in a channel; the outcome goes to the session."""
        tell = partial(self.session.presence_read, stats=stats)
        looked = partial(self._outcome, tell, command)
        self._context.delivery.look(channel, self._awaited(looked))

    def close(self, close: Close) -> None:
        """Post what waits, then close the connection."""
        self._close = close

    # Joining and leaving.

    def join(
        self,
        channel: Channel,
        subscriber: SubscriberInfo,
        history: History,
        since: Position | None,
        *,
        held: bool,
        command: int,
    ) -> None:
        """Join a channel; the outcome goes to the session."""
        record = self.session.channel_record(channel)
        place = Place(channel, subscriber, command, history, self._clock.now())
        self._spawn(self._join(place, record, since, held=held))

    async def _join(
        self,
        place: Place,
        record: ChannelRecord,
        since: Position | None,
        *,
        held: bool,
    ) -> None:
        channel = place.channel
        outcome: Joined | StoreError
        try:
            claimed = await claim(self._context, place, record)
            if claimed is Claim.PIECES:
                self._kill()
                return
            if claimed is Claim.STALE:
                self._outcome(self.session.superseded, channel)
                return
            outcome = await start(self._context, place, since, self._space)
            found = outcome.recovered or ()
            self._space -= sum(map(size_of_publication, found))
        except StoreError as error:
            outcome = error
            await self._give_up(place)
        wanted = False
        if held:  # the session may go on to activate it at once
            self._placed[channel] = place

        def joined() -> None:
            nonlocal wanted
            wanted = self.session.subscribed(channel, outcome)

        self._guard(joined)
        if wanted:
            self._channels[channel] = record
            self._commands[channel] = place.command
            if not held:
                self._ready.append(place)
        elif self._placed.pop(channel, None) is None and held:
            pass  # it was left, and its row with it
        elif not isinstance(outcome, StoreError):
            await self._give_up(place)
        self._guard(self.session.resume, self._clock.now())

    async def _give_up(self, place: Place) -> None:
        with suppress(StoreError):  # else the holder closes the connection in time
            await self._context.subscribers.leave(
                place.channel, self._client, place.command
            )

    def activate(self, channel: Channel) -> None:
        """Let pushes follow once the connect reply was delivered."""
        place = self._placed.pop(channel, None)
        if place is not None:
            self._ready.append(place)

    def leave(self, channel: Channel, command: int = 0) -> None:
        """Write that the client has left, before anything is answered."""
        self._placed.pop(channel, None)
        self._ready = [each for each in self._ready if each.channel != channel]
        self._writes.append(self._spawn(self._leave(channel, command)))

    async def _leave(self, channel: Channel, command: int) -> None:
        context = self._context
        record = self._channels.pop(channel, None)
        own = self._commands.pop(channel, 0)
        try:
            if not command and not own:  # the server's from beginning to end
                await context.subscribers.remove(channel, self._client)
                left = Claim.MINE
            else:
                left = await context.subscribers.leave(
                    channel, self._client, command or own
                )
        except StoreError:
            self._kill()  # it may go on to get what it is told it does not
            return
        if left is Claim.PIECES:
            self._kill()
        elif left is Claim.MINE and record is not None:
            context.tell_leaves(self.session.identity, {channel: record})

    # The flush.

    async def _flush(self) -> bool:
        """Store what is to be stored, post what waits, activate what was delivered.

        Returns:
            Whether there was anything to do.
        """
        writes, self._writes = self._writes, []
        out, self._out = self._out, []
        ready, self._ready = self._ready, []
        opening, self._opening = self._opening, False
        # Some steps answer nothing, and still change what is stored.
        acted, self._has_acted = self._has_acted, False
        if not (writes or out or ready or opening or acted or self._close):
            return False
        if writes:
            await asyncio.wait(writes)
        if self._is_over:
            return True
        try:
            stored = await self._store(opening=opening)
        except StoreError:
            stored = False
        if not stored:
            self._kill(INTERNAL_CLOSE)
            return True
        outcome = await self._post(out)
        if outcome is not Posted.DELIVERED and (ready or opening):
            self._kill(why=outcome)
        elif outcome is Posted.GONE:
            self._gone()
        else:
            for place in ready:
                self._spawn(self._finish(place))
        if self._close is not None and not self._out and not self._is_over:
            self._hang_up(self._close)
        return True

    async def _store(self, *, opening: bool) -> bool:
        """Store what has changed in the session's record.

        Raises:
            StoreError: It may be stored.
        """
        if not opening and self._stored is None:
            return True  # its client has not connected
        if self._close is not None and not opening:
            return True
        sessions, pending = self._context.sessions, self._pending
        try:
            record = self.session.record()
        except AssertionError:
            return self._close is not None  # it was closed meanwhile
        terms = _terms_of(record, record.channels)
        bare = msgspec.structs.replace(
            record, channels={}, origin=pending.origin, address=pending.address
        )
        if opening:
            await self._store_terms(terms)
            text = msgspec.json.encode(bare).decode()
            opened = await sessions.open(self._client, text)
            self._stored = bare
            return opened
        assert self._stored is not None
        bare = msgspec.structs.replace(bare, active_at=self._stored.active_at)
        shown = bare.conn_info != self._stored.conn_info
        if bare != self._stored:
            text = msgspec.json.encode(bare).decode()
            if await sessions.save(self._client, text, bare.refresh):
                self._stored = bare
        for name, each in record.channels.items():
            await self._store_channel(Channel(name), each, shown=shown)
        await self._store_terms(terms)
        return True

    async def _store_terms(self, terms: Terms) -> None:
        if terms != self._terms:
            await self._context.sessions.set_terms(self._client, terms)
            self._terms = terms

    async def _store_channel(
        self, channel: Channel, record: ChannelRecord, *, shown: bool
    ) -> None:
        """Store what has changed of a channel: its end, and what others are *shown*.

        Raises:
            StoreError: It may be stored.
        """
        context, command = self._context, self._commands.get(channel, 0)
        before = self._channels.get(channel, record)
        if before != record:
            self._channels[channel] = record
            text = msgspec.json.encode(record).decode()
            await context.sessions.save_channel(self._client, channel, command, text)
        if shown or before.info != record.info:
            info = self.session.identity.in_channel(record.chan_info)
            await context.subscribers.describe(channel, self._client, command, info)

    async def _post(self, messages: list[str]) -> Posted:
        for frame in frames_of(messages):
            outcome = await self._context.posts.post(self._client, frame)
            if outcome is not Posted.DELIVERED:
                return outcome
        return Posted.DELIVERED

    async def _finish(self, place: Place) -> None:
        try:
            finished = await finish(self._context, place, self._post)
        except StoreError:
            finished = False
        if not finished:
            self._kill()

    # The end.

    def _kill(
        self, close: Close = INSUFFICIENT_STATE, why: Posted = Posted.UNKNOWN
    ) -> None:
        """Close the connection: its client comes back with another, and recovers."""
        if why is Posted.GONE:
            self._gone()
        elif not self._is_over:
            self._hang_up(close)

    def _hang_up(self, close: Close) -> None:
        self._is_over, self._close = True, close
        self.session.ended()

    def _gone(self) -> None:
        self._is_over, self._close = True, None
        self.session.ended()

    async def _end(self) -> None:
        while self._waits:
            await asyncio.wait(list(self._waits))
        try:
            await self._context.hang_up(self._client, self._close)
        except StoreError as error:  # the sweeper finds it
            _log.info("a connection is not deleted yet", reason=str(error))


def _raise(error: BaseException) -> None:
    raise error


def _terms_of(record: SessionRecord, channels: Mapping[Any, ChannelRecord]) -> Terms:
    ends = [record.end, *(each.end for each in channels.values())]
    end = min(filter(None, ends), default=0)
    return Terms(UserId(record.user), record.token_id, record.issued_at, end)


async def _some(
    clock: Clock, futures: Iterable[asyncio.Future[None]], when: float
) -> None:
    """Wait until all have ended, or one has and the clock says *when*."""
    late: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not late.done():
            late.set_result(None)

    timer = clock.call_at(when, end)
    every = set(futures)
    waiting = set(every)
    try:
        while waiting and not (late.done() and waiting != every):
            watched = waiting if late.done() else {*waiting, late}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            waiting = {each for each in waiting if not each.done()}
    finally:
        timer.cancel()
