"""One client connection: a session on the hub, the outbox and a socket.

It owns the session, the outbox, the subscriptions and one timer. All of it is freed on
one path, `gone`, whatever ended the connection.

The end, in order: the session is told (it accepts nothing more), subscriptions are
left, what waits is written, then the close frame, the peer answers or the deadline
aborts the transport, `gone`. An internal error ends its connection alone, with 3004.

Re-entrancy: an outcome that is known at once (a join, a history, a slot) is returned by
the part that was asked, and given to the session inside the session's own call, which
then goes on by itself. One that is not is called back later, never inside the call, and
then the session is resumed. So a subscription is known here before the session, or
anything that follows from its outcome, can activate or leave it.

Interleavings that could break that, each a test in tests/connections: a join's outcome
that makes the session leave the channel, or activate it, or that overflows the outbox
and so ends the connection; a slot that is given in the turn in which its connection
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

from service.connections.audit_log import log_decision
from service.connections.context import ConnectionContext
from service.connections.hook_calls import BLOCKED, Outcome, ask, complete, note_answer
from service.connections.lifecycle_log import LifecycleLog
from service.connections.limits import Slot
from service.connections.outbox import Outbox
from service.connections.pending_connection import PendingConnection
from service.connections.send_window import SendWindow
from service.connections.timer_wheel import DeadlineTimer
from service.connections.wakeups import CoalescedCall, ReadGate
from service.core.errors import (
    INTERNAL_CLOSE,
    SHUTDOWN,
    WRITE_ERROR,
    Close,
    CodecError,
    ErrorReply,
    StoreError,
    Unsubscribe,
)
from service.core.hooks import Event
from service.core.model import (
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Joined,
    Position,
    RawJson,
    SubscriberInfo,
)
from service.core.ports import Frame, History, Socket
from service.core.position import size_of_publication, take_piece
from service.hub.subscription import Subscription
from service.protocol import replies
from service.protocol.codec import Codec
from service.session.keepalive import Keepalive
from service.session.port import Decision, Identity
from service.session.session import Session

__all__ = ["ClientConnection"]

LOST = 1006  # the transport ended without a close frame of either side


_P = ParamSpec("_P")


def _ends_on_error(
    step: Callable[Concatenate[ClientConnection, _P], None],
) -> Callable[Concatenate[ClientConnection, _P], None]:
    """Make an internal error in *step* end its connection; the caller goes on."""

    @wraps(step)
    def guarded(self: ClientConnection, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            step(self, *args, **kwargs)
        except Exception as error:
            self._end_on_error(error)

    return guarded


class ClientConnection:
    """One connection: `registry.Connection`, `session.Port` and `hub.Member`.

    Args:
        context: What all connections share.
        socket: The transport.
        codec: The form of the wire protocol that the client speaks.
        pending: What the handshake gate knows of it.

    Attributes:
        behind: Subscriptions that are being caught up; kept by the hub.
        later: Calls `Session.turn` in the event loop's next turn.
        put: Writes a message.
        reply: The same.
        refuses_read: Tells whether a read that may be expensive is refused now.
        knows: Tells whether a channel is known to have had a publication.
    """

    def __init__(
        self,
        context: ConnectionContext,
        socket: Socket,
        codec: Codec,
        pending: PendingConnection,
    ) -> None:
        self._context = context
        self._codec = codec
        self._clock = context.clock
        self._hub = context.hub
        self._socket = socket
        self._pending = pending
        frames = pending.frames
        call_soon = context.flusher.call_soon if frames is None else frames.call_soon
        self.later = CoalescedCall(call_soon, self._next_turn).ask
        self.refuses_read = context.shedding.refuses_read
        self.knows = context.hub.knows
        self._subscriptions: dict[Channel, Subscription] = {}
        self._ending = False
        self._reserved = 0  # bytes of recovered publications that a reply will hold
        self._gate = ReadGate()
        self._timer = DeadlineTimer(context.wheel, self._tick)
        client, now = context.new_client(), context.clock.now()
        self._lifecycle = LifecycleLog(context.metrics, client, now)
        self._outbox = Outbox(
            socket.send,
            context.clock,
            context.settings.client,
            codec,
            flusher=context.flusher,
            progress=socket.progress,
            drained=self._drained,
            failed=self._failed,
        )
        self.behind: dict[Subscription, None] = self._outbox.behind
        # Of `hub.Member` and `session.Port`; saves a call for each message.
        self.put = self.reply = self._outbox.put
        size = context.settings.client.recovery_size
        self._window = SendWindow(
            context.clock, size, self._outbox, socket.progress, self._catch_up
        )
        self._session = Session(
            self,
            context.settings.client,
            context.permissions,
            context.handlers,
            context.liveness_stats,
            client=client,
            version=context.version,
            insecure=context.settings.insecure,
            rng=context.rng,
            now=now,
            wall=context.clock.wall(),
            quota=pending.quota,
        )
        pending.close = self._session.disconnect
        if frames is not None:
            frames.listen(self.heard, self._session.disconnect)
        self._record = context.registry.open(self, pending.address, now)
        self._outbox.activity = self._record
        self._schedule()

    def _schedule(self) -> None:
        """Tick when the session wants it; to be called after each call to it."""
        if self._session.busy:
            self._outbox.watched = True  # until `_drained` finds that it is not
        self._timer.by(self._session.next_tick)

    # registry.Connection

    @property
    def identity(self) -> Identity:
        """The client and its user; the user is "" before it has connected."""
        return self._session.identity

    @property
    def token_id(self) -> str:
        """The ``jti`` of its last token, "" for none."""
        return self._session.token_id

    @property
    def issued_at(self) -> float:
        """The ``iat`` of its last token in Unix seconds, 0 for unknown."""
        return self._session.issued_at

    @property
    def channels(self) -> Iterable[Channel]:
        """The channels that it is subscribed to, or about to be."""
        return self._session.subscriptions

    @property
    def protocol(self) -> str:
        """The form of the wire protocol that it speaks: ``json`` or ``protobuf``."""
        return self._codec.name

    @property
    def keepalive(self) -> Keepalive:
        """Its level, round-trip times and pings without a pong; to be read only."""
        return self._session.keepalive

    @property
    def busy(self) -> bool:
        """True while its socket is not read: a pong may wait there."""
        return self._session.busy

    @property
    def in_flight(self) -> bool:
        """True while one of its commands waits, or has no outcome yet."""
        return self._session.in_flight

    @property
    def messages_sent(self) -> int:
        """Messages whose write to its socket has ended (count)."""
        return self._outbox.sent

    @property
    def messages_displaced(self) -> int:
        """Messages that its full queue had no room for (count)."""
        return self._outbox.displaced

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for its socket."""
        return self._outbox.size

    def disconnect(self, close: Close) -> None:
        """Close it; harmless when it is closing already."""
        self._session.disconnect(close)

    @_ends_on_error
    def send_away(self) -> None:
        """Read it no more, and close it with 3001 when its commands are answered."""
        self._session.send_away()

    def subscribe(
        self,
        channel: Channel,
        since: Position | None,
        *,
        expire_at: float = 0.0,
        **options: Any,
    ) -> bool:
        """Subscribe the client to *channel* and push that to it."""
        session = self._session
        end = session.expiry.unsubscribe_at(expire_at, self._clock.now())
        try:
            return session.subscribe(channel, since, end=end, **options)
        finally:
            self._schedule()

    def unsubscribe(self, channel: Channel, code: Unsubscribe) -> None:
        """Take the client out of *channel* and push that to it."""
        self._session.unsubscribe(channel, code)

    def refresh(self, expire_at: float, info: RawJson | None) -> None:
        """Expire at the Unix time *expire_at*, 0 for never; show *info* if not None."""
        self._session.refresh(expire_at, info, self._clock.now())
        self._schedule()

    def probe(self) -> bool:
        """Ping it now; False if it cannot be pinged yet."""
        asked = self._session.probe(self._clock.now())
        self._schedule()
        return asked

    def abort(self) -> None:
        """Drop its transport at once."""
        self._socket.abort()

    # From the transport.

    def malformed(self) -> None:
        """Handle a frame that is not of the kind its codec takes."""
        self._session.malformed()

    # Each message calls this and `_published`: they have no decorator.

    def receive(self, frame: Frame) -> None:
        """Handle one frame; one that is not of the kind its codec takes ends it."""
        try:
            codec, session, now = self._codec, self._session, self._clock.now()
            if isinstance(frame, bytes) is not codec.binary:
                session.malformed()
                return
            try:
                commands = codec.decode(frame)
            except CodecError:
                session.malformed()
            else:
                self._lifecycle.received(commands)
                session.receive(commands, now)
            self._record.hear(now)
            if session.busy:
                self._outbox.watched = True  # until `_drained` finds that it is not
            self._timer.by(session.next_tick)
        except Exception as error:
            self._end_on_error(error)

    @_ends_on_error
    def heard(self) -> None:
        """Take a frame that is not for the session as a sign of life."""
        now = self._clock.now()
        self._session.heard(now)
        self._record.hear(now)

    async def ready(self) -> None:
        """Wait until the session takes more: until then the socket is not read."""
        while self._session.busy:
            await self._gate.wait()

    def on_ready(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, when the session may take more."""
        self._gate.call(callback)

    def gone(self, code: int | None = None) -> None:
        """Free everything: the transport has ended. Safe to call twice.

        Args:
            code: Of the peer's close frame; 1006 without one, None if it is not known.
        """
        self._ending = True
        self._session.ended()
        self._leave_all(lost=code == LOST)
        outbox = self._outbox
        outbox.drop()
        self._window.stop()
        self._timer.stop()
        self._context.limits.remove(self._record)
        self._pending.over()
        self._lifecycle.closed(
            code,
            self._clock.now(),
            sent=outbox.sent,
            dropped=outbox.dropped,
            displaced=outbox.displaced,
        )

    # session.Port

    @property
    def draining(self) -> bool:
        """True when no more subscriptions are taken: the client is sent away soon."""
        return self._context.drain.begun

    def acquire_slot(self, identity: Identity) -> None:
        """Ask for a slot; the outcome goes to the session."""
        if self.draining:
            self._session.slot_acquired(SHUTDOWN)
            return
        outcome = self._context.limits.acquire(self._record, identity, self._acquired)
        if outcome is Slot.TAKEN:
            self._session.slot_acquired(None)
        elif outcome is not Slot.WAITING:
            self._session.slot_acquired(outcome)

    def release_slot(self) -> None:
        """Give the slot back."""
        self._context.limits.release(self._record)

    def reply_error(self, command: int, error: ErrorReply) -> None:
        """Refuse one command."""
        self._lifecycle.refused(error)
        self._outbox.put(replies.error_reply(command, error))

    def connected(self) -> None:
        """Tell the gate, and log, that the client is in."""
        self._pending.connected(self.identity.user)
        self._lifecycle.connected(self.identity.user, self._clock.now())

    def audit(self, decision: Decision) -> None:
        """Log whether the client was let in or refused, and why."""
        metrics = self._context.metrics
        log_decision(decision, self.identity.client, self._pending, metrics)

    def ping(self) -> None:
        """Write a ping ahead of what waits."""
        self._outbox.put(replies.PING, first=True)

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; the outcome goes to the session."""
        self._hub.publish(channel, draft, history, partial(self._published, command))

    def ask(self, command: int, event: Event) -> None:
        """Ask a hook; the session is given its answer, or a refusal if it is late."""
        context = self._context
        handlers, event = complete(event, self._pending, context.handlers)
        ask(
            handlers,
            event,
            partial(self._answered, command, event, handlers is not BLOCKED),
            dump=context.encoder.dump,
            clock=context.clock,
            timeout=context.settings.client.hook_timeout,
            spawn=context.spawn,
            health=context.hook_health,
        )

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

        def done(outcome: Joined | StoreError) -> None:
            self._joined(subscription, since, outcome, held=held)
            self._resume()

        subscription, joined = self._hub.join(
            channel, self, subscriber, history, since, done
        )
        self._subscriptions[channel] = subscription
        if joined is not None:
            self._joined(subscription, since, joined, held=held)
        self._schedule()  # it may have an end

    @property
    def has_room(self) -> bool:
        """True if replies of some size may be asked for."""
        limit = self._context.settings.client.recovery_size
        return self._outbox.size + self._reserved < limit

    def activate(self, channel: Channel) -> None:
        """Let pushes follow for a channel that was held."""
        self._reserved = 0  # the reply that held them is in the outbox
        subscription = self._subscriptions.get(channel)
        if subscription is not None:
            self._hub.activate(subscription)

    def leave(self, channel: Channel, command: int = 0) -> None:
        """Leave a channel."""
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._hub.leave(subscription)
            self._lifecycle.left(channel)

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

        def done(outcome: HistoryPage | StoreError) -> None:
            self._history_read(command, since, outcome)
            self._resume()

        offset = None if since is None else since.offset
        page = self._hub.read(channel, history, offset, limit, done, reverse=reverse)
        if page is not None:
            self._history_read(command, since, page)

    def present(self, command: int, channel: Channel, *, stats: bool) -> None:
        """Look who is in a channel; the outcome goes to the session."""
        done = partial(self._presence_read, command, stats=stats)
        present = self._hub.look(channel, done, self._subscriptions.get(channel))
        if present is not None:
            self._session.presence_read(command, present, stats=stats)

    def close(self, close: Close) -> None:
        """Write what waits, then the close frame; abort if that takes too long."""
        self._ending = True
        self._lifecycle.closing(close)
        self._leave_all(lost=close is WRITE_ERROR)
        self._gate.open()
        deadline = self._clock.now() + self._context.settings.server.abort_timeout
        self._timer.last(deadline, self._socket.abort)
        self._outbox.close(lambda: self._context.spawn(self._write_close(close)))

    # hub.Member

    @property
    def space(self) -> int:
        """Bytes of recovered publications that it takes now."""
        return min(self._room, self._window.left)

    def takes_more(self) -> bool:
        """Tell whether it takes another piece; if not, the hub is asked in time."""
        return self._outbox.idle and self._window.is_open()

    def give(self, size: int) -> None:
        """Count *size* bytes of recovered publications that are handed over now."""
        self._window.give(size)

    @_ends_on_error
    def lost(self, channel: Channel) -> None:
        """Tell the client that a subscription had a gap that cannot be filled."""
        self._subscriptions.pop(channel, None)
        self._lifecycle.left(channel)
        self._session.lost(channel)

    # Outcomes that come later, and other callbacks.

    @_ends_on_error
    def _acquired(self, refusal: Close | ErrorReply | None) -> None:
        self._session.slot_acquired(refusal)
        self._resume()

    @_ends_on_error
    def _answered(self, command: int, event: Event, asked: bool, it: Outcome) -> None:
        wrong = self._session.answered(command, event, it, self._clock.now())
        if asked:
            note_answer(event, it, wrong, self._context.hook_health)
        self._resume()

    def _published(self, command: int, outcome: Appended | StoreError) -> None:
        try:
            self._session.published(command, outcome)
        except Exception as error:
            self._end_on_error(error)
        else:
            if self._session.busy or self._gate.closed:
                self._resume()

    @_ends_on_error
    def _joined(
        self,
        subscription: Subscription,
        since: Position | None,
        outcome: Joined | StoreError,
        *,
        held: bool,
    ) -> None:
        channel = subscription.topic.channel
        if held and isinstance(outcome, Joined):
            self._reserved += sum(map(size_of_publication, outcome.recovered or ()))
        wanted = self._session.subscribed(channel, outcome)
        self._lifecycle.joined(channel, since, outcome, wanted=wanted)
        if not wanted:
            self._subscriptions.pop(channel, None)
            self._hub.leave(subscription)
        elif not held:
            self._hub.activate(subscription)

    @_ends_on_error
    def _history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        if not isinstance(outcome, StoreError):
            size = self._context.settings.client.recovery_size
            piece = take_piece(outcome.publications, size)
            outcome = HistoryPage(piece, outcome.top)
        self._session.history_read(command, since, outcome)

    @_ends_on_error
    def _presence_read(
        self, command: int, outcome: list[SubscriberInfo] | StoreError, *, stats: bool
    ) -> None:
        self._session.presence_read(command, outcome, stats=stats)
        self._resume()

    @_ends_on_error
    def _next_turn(self) -> None:
        self._session.turn()
        self._resume()

    def _resume(self) -> None:
        try:
            session = self._session
            session.resume(self._clock.now())
            if session.busy:
                self._outbox.watched = True
            else:
                self._gate.open()
            self._timer.by(session.next_tick)
        except Exception as error:
            self._end_on_error(error)

    @_ends_on_error
    def _drained(self) -> None:
        if self._session.busy:
            # First: a join must not wait for a subscription that is far behind.
            self._resume()
        self._catch_up()
        self._outbox.watched = self._session.busy

    def _catch_up(self) -> None:
        # `takes_more` first: while all of them are being read, nobody else asks.
        if self.behind and self.takes_more():
            for subscription in tuple(self.behind):
                self._hub.advance(subscription)

    @property
    def _room(self) -> int:
        """Bytes of large replies for which there is memory; may be negative."""
        limit = self._context.settings.client.recovery_size
        return limit - self._outbox.size - self._reserved

    def _failed(self, close: Close) -> None:
        self._session.ended()
        self.close(close)

    def _end_on_error(self, error: Exception) -> None:
        self._lifecycle.failed(error)
        if self._ending:
            self._socket.abort()  # its end is what failed
        else:
            self._failed(INTERNAL_CLOSE)

    @_ends_on_error
    def _tick(self) -> None:
        self._session.tick(self._clock.now())
        self._schedule()

    async def _write_close(self, close: Close) -> None:
        try:
            await self._socket.close(close)
        except OSError:
            self._socket.abort()

    def _leave_all(self, *, lost: bool) -> None:
        """Give back the slot and leave the channels, a lost connection after grace."""
        lost = lost and self._record.has_slot
        self._context.limits.release(self._record)
        subscriptions = tuple(self._subscriptions.values())
        self._subscriptions.clear()
        if lost and (user := self.identity.user):
            seen = [one for one in subscriptions if self._hub.begin_grace(one)]
            self._context.grace_period.begin(user, self.identity.client, seen)
        else:
            for subscription in subscriptions:
                self._hub.leave(subscription)
