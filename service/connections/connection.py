"""Joins one session to the hub and to the socket: the session's port, made real.

It owns the connection: the session, the outbox, the subscriptions, one timer. All of
it is freed on one path, `gone`, whatever ended the connection.

Ends, in order: the session is told (it accepts nothing more), subscriptions are left
(nothing is written for them), what waits is written, the close frame is written, the
peer answers or the deadline aborts the transport, the receive loop ends, `gone`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from service.auth.permissions import ChannelRules, Permissions
from service.connections.audit_log import log_decision
from service.connections.deadline_timer import DeadlineTimer
from service.connections.grace_period import GracePeriod
from service.connections.hook_calls import Outcome, ask, count_hook, log_hook
from service.connections.lifecycle_log import LifecycleLog
from service.connections.limits import ConnectionLimits
from service.connections.outbox import Flusher, Outbox
from service.connections.pending_connection import PendingConnection
from service.connections.registry import Registry
from service.connections.turns import CoalescedCall, ReadGate
from service.core.errors import (
    WRITE_ERROR,
    Close,
    CodecError,
    ErrorReply,
    StoreError,
    Unsubscribe,
)
from service.core.hooks import ConnectEvent, Event, Handlers, RefreshEvent
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Joined,
    Position,
    RawJson,
    SubscriberInfo,
)
from service.core.ports import Clock, Frame, History, Socket
from service.core.position import size_of_publication, take_piece
from service.hub.hub import Hub
from service.hub.subscription import Subscription
from service.metrics import Metrics
from service.protocol import replies
from service.protocol.codec import Codec
from service.session.heartbeat import Heartbeat
from service.session.keepalive import Liveness
from service.session.port import Decision, Identity
from service.session.session import Session
from service.settings import Settings

__all__ = ["ClientConnection", "ConnectionContext"]

LOST = 1006  # the transport ended, and nobody had said so


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionContext:
    """What every connection of a process shares.

    Attributes:
        settings: The process's.
        hub: Channels and delivery.
        permissions: Decide about channels.
        handlers: The hooks.
        clock: Of everything.
        flusher: Writes what was queued, at the end of the loop's turn.
        rng: Spreads pings and ages.
        new_client: Makes the id of a connection.
        spawn: Runs a coroutine in the background, and logs what it raises.
        version: Shown to clients.
        metrics: Counts.
        registry: Holds the connections.
        limits: Gives slots, and takes them back.
        heartbeat: What all heartbeats have in common.
        grace_period: Holds back the leaves of lost connections.
    """

    settings: Settings
    hub: Hub
    permissions: Permissions
    handlers: Handlers
    clock: Clock
    flusher: Flusher
    rng: Random
    new_client: Callable[[], ClientId]
    spawn: Callable[[Awaitable[None]], object]
    version: str
    metrics: Metrics
    registry: Registry
    limits: ConnectionLimits
    heartbeat: Heartbeat
    grace_period: GracePeriod


class ClientConnection:
    """One connection: `registry.Connection`, `session.Port` and `hub.Member`.

    Attributes:
        behind: Subscriptions that are being caught up; kept by the hub.
        later: Calls `Session.turn` in the event loop's next turn.
    """

    def __init__(
        self,
        context: ConnectionContext,
        socket: Socket,
        codec: Codec,
        visit: PendingConnection,
    ) -> None:
        self._codec = codec
        self.behind: dict[Subscription, None] = {}
        self._context = context
        self._clock = context.clock
        self._hub = context.hub
        self._socket = socket
        self._visit = visit
        self.later = CoalescedCall(context.flusher.call_soon, self._turn).ask
        self._subscriptions: dict[Channel, Subscription] = {}
        self._released: set[Channel] = set()
        self._reserved = 0  # bytes of recovered publications that a reply will hold
        self._room = ReadGate()
        self._alarm = DeadlineTimer(context.clock, self._tick)
        name, now = context.new_client(), context.clock.now()
        self._timeline = LifecycleLog(context.metrics, name, now)
        self._outbox = Outbox(
            socket.send,
            context.clock,
            context.settings.client,
            codec,
            flusher=context.flusher,
            drained=self._drained,
            failed=self._failed,
        )
        self._session = Session(
            self,
            context.settings.client,
            context.permissions,
            context.handlers,
            context.heartbeat,
            client=name,
            version=context.version,
            insecure=context.settings.insecure,
            random=context.rng,
            now=now,
            wall=context.clock.wall(),
            allowance=visit.allowance,
        )
        visit.end = self._session.disconnect
        self._record = context.registry.open(self, visit.address, now)
        self._schedule()

    def _schedule(self) -> None:
        """Look when the session wants to be called; after whatever is done to it."""
        self._alarm.by(self._session.next_tick)

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
        return self._session.channels

    @property
    def protocol(self) -> str:
        """The form of the wire protocol that it speaks: ``json`` or ``protobuf``."""
        return self._codec.name

    @property
    def liveness(self) -> Liveness:
        """Its level, round-trip times and pings without a pong; to be read only."""
        return self._session.liveness

    @property
    def busy(self) -> bool:
        """Whether its socket is not read for now: a pong may wait there."""
        return self._session.busy

    @property
    def in_flight(self) -> bool:
        """Whether one of its commands waits, or has no outcome yet."""
        return self._session.in_flight

    @property
    def messages_sent(self) -> int:
        """Messages handed to its socket (count)."""
        return self._outbox.sent

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for its socket."""
        return self._outbox.size

    def disconnect(self, close: Close) -> None:
        """Close it; harmless when it is closing already."""
        self._session.disconnect(close)

    def subscribe(
        self,
        channel: Channel,
        since: Position | None,
        *,
        expire_at: float = 0.0,
        info: RawJson | None = None,
        data: RawJson | None = None,
        rules: ChannelRules | None = None,
        done: Callable[[ErrorReply | None], None] = lambda error: None,
    ) -> bool:
        """Subscribe the client to *channel* and push that to it."""
        session = self._session
        ends = session.expiry.unsubscribe_at(expire_at, self._clock.now())
        try:
            return session.subscribe(
                channel, since, ends=ends, info=info, data=data, rules=rules, done=done
            )
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

    def receive(self, frame: Frame) -> None:
        """Handle one frame, of the kind that its codec takes."""
        now = self._clock.now()
        try:
            commands = self._codec.decode(frame)
        except CodecError:
            self._session.malformed()
        else:
            for _, method, _ in commands:
                self._timeline.received(method)
            self._session.receive(commands, now)
        self._record.hear(now)
        self._schedule()

    async def room(self) -> None:
        """Wait until the session takes more: this is what stops reading the socket."""
        while self._session.busy:
            await self._room.wait()

    def gone(self, code: int | None = None) -> None:
        """Free everything: it is over, by the peer's *code*. Safe to call twice."""
        self._session.ended()
        self._give_up(lost=code == LOST)
        outbox = self._outbox
        outbox.drop()
        self._alarm.stop()
        self._context.limits.remove(self._record)
        now = self._clock.now()
        self._timeline.closed(code, now, sent=outbox.sent, dropped=outbox.dropped)

    # session.Port

    def _turn(self) -> None:
        self._session.turn()
        self._resume()

    def reply(self, text: str) -> None:
        """Write one reply or push."""
        self._outbox.put(text)

    def admit(self, identity: Identity) -> None:
        """Ask for a slot; the outcome goes to the session."""
        under_way = True

        def admitted(refusal: Close | ErrorReply | None) -> None:
            self._session.admitted(refusal)
            if not under_way:
                self._resume()

        self._context.limits.admit(self._record, identity, admitted)
        under_way = False

    def refused(self) -> None:
        """Give the slot back."""
        self._context.limits.release(self._record)

    def reply_error(self, command: int, error: ErrorReply) -> None:
        """Refuse one command."""
        self._timeline.refused(error)
        self._outbox.put(replies.error_reply(command, error))

    def connected(self) -> None:
        """Take note of who it is."""
        self._visit.welcome(self.identity.user)
        self._timeline.connected(self.identity.user, self._clock.now())

    def audit(self, decision: Decision) -> None:
        """Log who was let in or refused, and why."""
        metrics = self._context.metrics
        log_decision(decision, self.identity.client, self._visit, metrics)

    def ping(self) -> None:
        """Write a ping ahead of what waits."""
        self._outbox.put(replies.PING, first=True)

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; the outcome goes to the session."""
        self._hub.publish(channel, draft, history, partial(self._published, command))

    def ask(self, command: int, event: Event) -> None:
        """Ask a hook; its answer goes to the session, or a refusal if it is late."""
        context = self._context
        if isinstance(event, ConnectEvent | RefreshEvent):
            event = replace(event, origin=self._visit.origin)
        ask(
            context.handlers,
            event,
            partial(self._answered, command, event),
            clock=context.clock,
            timeout=context.settings.client.hook_timeout,
            spawn=context.spawn,
            metrics=context.metrics,
        )

    def _answered(self, command: int, event: Event, answer: Outcome) -> None:
        wrong = self._session.answered(command, event, answer, self._clock.now())
        if wrong is not None:
            count_hook(event, self._context.metrics)
            log_hook(event, wrong)
        self._resume()

    def join(
        self,
        channel: Channel,
        listener: SubscriberInfo,
        history: History,
        asked: Position | None,
        *,
        held: bool,
    ) -> None:
        """Join a channel; the outcome goes to the session."""
        under_way = True

        def joined(outcome: Joined | StoreError) -> bool:
            if held and isinstance(outcome, Joined):
                self._reserved += sum(map(size_of_publication, outcome.recovered or ()))
            wanted = self._session.subscribed(channel, outcome)
            self._timeline.joined(channel, asked, outcome, wanted=wanted)
            if not wanted:
                self._subscriptions.pop(channel, None)
            if not under_way:
                self._resume()
            return wanted

        subscription = self._hub.join(
            channel, self, listener, history, asked, joined, held=held
        )
        under_way = False
        if not subscription.left:
            self._subscriptions[channel] = subscription
            if channel in self._released:
                self._hub.release(subscription)
        self._released.discard(channel)
        self._schedule()  # it may have an end

    @property
    def has_room(self) -> bool:
        """Whether replies of some size may be asked for."""
        return self.space > 0

    def release(self, channel: Channel) -> None:
        """Let pushes follow for a channel that was held."""
        self._reserved = 0  # the reply that held them is in the outbox
        subscription = self._subscriptions.get(channel)
        if subscription is not None:
            self._hub.release(subscription)
        else:
            self._released.add(channel)  # its join has not returned yet

    def leave(self, channel: Channel) -> None:
        """Leave a channel."""
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._hub.leave(subscription)
            self._timeline.left(channel)

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
        size = self._context.settings.client.recovery_size
        under_way = True

        def read(outcome: HistoryPage | StoreError) -> None:
            if not isinstance(outcome, StoreError):
                piece = take_piece(outcome.publications, size)
                outcome = HistoryPage(piece, outcome.top)
            self._session.history_read(command, since, outcome)
            if not under_way:
                self._resume()

        offset = None if since is None else since.offset
        self._hub.read(channel, history, offset, limit, read, reverse=reverse)
        under_way = False

    def present(self, channel: Channel) -> list[SubscriberInfo]:
        """Return who is in a channel."""
        return self._hub.present(channel)

    def close(self, close: Close) -> None:
        """Write what waits, then the close frame; abort if that takes too long."""
        self._timeline.closing(close)
        self._give_up(lost=close is WRITE_ERROR)
        self._room.free()
        deadline = self._clock.now() + self._context.settings.server.abort_timeout
        self._alarm.last(deadline, self._socket.abort)
        self._outbox.close(lambda: self._context.spawn(self._write_close(close)))

    # hub.Member

    @property
    def idle(self) -> bool:
        """Whether everything handed over so far has been written."""
        return self._outbox.idle

    @property
    def space(self) -> int:
        """Bytes of recovered publications that it takes now."""
        limit = self._context.settings.client.recovery_size
        return limit - self._outbox.size - self._reserved

    def put(self, text: str) -> None:
        """Write one push."""
        self._outbox.put(text)

    def lost(self, channel: Channel) -> None:
        """Tell the client that a subscription has a gap that cannot be filled."""
        self._subscriptions.pop(channel, None)
        self._timeline.left(channel)
        self._session.lost(channel)

    # Callbacks.

    def _published(self, command: int, outcome: Appended | StoreError) -> None:
        self._session.published(command, outcome)
        self._resume()

    def _resume(self) -> None:
        session = self._session
        session.resume(self._clock.now())
        if not session.busy:
            self._room.free()
        self._schedule()

    def _drained(self) -> None:
        self._record.active = self._clock.now()
        if self._session.busy:
            # First: who waits to join must not wait for one that is far behind.
            self._resume()
        for subscription in tuple(self.behind):
            self._hub.advance(subscription)

    def _failed(self, close: Close) -> None:
        self._session.ended()
        self.close(close)

    async def _write_close(self, close: Close) -> None:
        try:
            await self._socket.close(close)
        except OSError:
            self._socket.abort()

    def _give_up(self, *, lost: bool) -> None:
        """Give back the slot and every place in a channel, or park them."""
        lost = lost and self._record.admitted
        self._context.limits.release(self._record)
        places = tuple(self._subscriptions.values())
        self._subscriptions.clear()
        if lost and (user := self.identity.user):
            kept = [place for place in places if self._hub.park(place)]
            self._context.grace_period.park(user, self.identity.client, kept)
        else:
            for place in places:
                self._hub.leave(place)

    def _tick(self) -> None:
        self._session.tick(self._clock.now())
        self._schedule()
