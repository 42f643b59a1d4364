"""Session: one client's side of the protocol as a state machine without I/O.

It is fed by `receive`, `tick`, `turn` and the outcomes of what it asked for, and acts
through a narrow port. It never sees a socket, a store or a task.

    NEW ──connect──► CONNECTING ──► CONNECTED       Each state leads to CLOSED, too;
     │                    └───────► REFUSED         any other step raises
     └──────restore────────────────► CONNECTED      AssertionError.

Invariants:

* Commands of one connection are *handled* in the order they came. A command that
  waits for an outcome (publish, rpc, refresh) does not hold up the next. Exceptions:
  subscribe and unsubscribe of one channel wait for each other (`subscriptions`), and so
  do refreshes of one thing (`refresh`); a connect, a history, and a publish for which a
  hook is called hold up all that follow, since the commands after a connect need its
  outcome, and hooks may answer out of order.
* At most `in_flight` commands are under way, and one portion is handled in a turn of
  the event loop (`command_queue`); the backlog is one frame: `busy` stops the reading.
* While more than one piece of a recovery waits for the socket, no command is taken up,
  and one history is read at a time: a client that asks faster than it reads is slowed,
  not closed.
* Every command with an id gets exactly one reply, unless the connection ends.
* After CLOSED the session asks nothing of the port, and drops outcomes that arrive.
* A pong is handled when it arrives, whatever waits; while we do not read, a missing
  pong does not count.

Interleavings that could break them, each a test in tests/session: an outcome after
close; unsubscribe and subscribe while the first subscribe is under way; the in-flight
bound met in the middle of a frame; a subscription lost while an unsubscribe waits.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from operator import attrgetter
from random import Random
from typing import Any

from service.auth.permissions import Permissions
from service.core.errors import (
    CLOSE_BAD_REQUEST,
    INTERNAL,
    SHUTDOWN,
    STALE,
    Close,
    CloseError,
    CodecError,
    ErrorReply,
    ReplyError,
    StoreError,
    Unsubscribe,
)
from service.core.hooks import (
    WRONG_ANSWER,
    Answer,
    ConnectEvent,
    Event,
    Handlers,
    PublishEvent,
    RefreshEvent,
    SubRefreshEvent,
    SubscribeEvent,
    WrongAnswer,
)
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    HistoryPage,
    Joined,
    Position,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.protocol.commands import (
    Command,
    ConnectRequest,
    HistoryRequest,
    Malformed,
    PingRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    Request,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from service.session.answers import (
    Checked,
    ConnectionRefresh,
    PublishGrant,
    RpcReturn,
    SubscribeGrant,
    SubscriptionRefresh,
    Welcome,
    check,
    decision,
)
from service.session.command_queue import CommandQueue, CommandQuota
from service.session.commands import Commands, Method
from service.session.connect import ConnectCommand
from service.session.expiry import NEVER, Expiry
from service.session.keepalive import Due, Keepalive
from service.session.liveness_stats import LivenessStats
from service.session.port import Identity, Port
from service.session.record import ChannelRecord, SessionRecord, identity_of
from service.session.refresh import Refreshes
from service.session.subscriptions import Subscriptions
from service.settings import ClientSettings

__all__ = ["Session"]


class _State(enum.Enum):
    NEW = enum.auto()
    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    REFUSED = enum.auto()
    CLOSED = enum.auto()


_CONNECTED, _CLOSED = _State.CONNECTED, _State.CLOSED  # each message asks for them

_STEPS = {
    (_State.NEW, _State.CONNECTING),
    (_State.NEW, _State.CONNECTED),  # restored
    (_State.CONNECTING, _State.CONNECTED),
    (_State.CONNECTING, _State.REFUSED),
    (_State.NEW, _State.CLOSED),
    (_State.CONNECTING, _State.CLOSED),
    (_State.CONNECTED, _State.CLOSED),
    (_State.REFUSED, _State.CLOSED),
}


_HANDLERS: dict[type[Any], Callable[[Session], Method]] = {
    PublishRequest: attrgetter("_commands.publish"),
    HistoryRequest: attrgetter("_commands.history"),
    PresenceRequest: attrgetter("_commands.presence"),
    PresenceStatsRequest: attrgetter("_commands.presence_stats"),
    RpcRequest: attrgetter("_commands.rpc"),
    SendRequest: attrgetter("_commands.send"),
    PingRequest: attrgetter("_commands.not_available"),
    SubscribeRequest: attrgetter("subscriptions.subscribe"),
    UnsubscribeRequest: attrgetter("subscriptions.unsubscribe"),
    RefreshRequest: attrgetter("_refreshes.refresh"),
    SubRefreshRequest: attrgetter("_refreshes.sub_refresh"),
}
"""Who handles each type of request; not a dictionary in each session."""


class Session:
    """The protocol of one connection.

    Args:
        port: The outside.
        settings: Limits and times of each client.
        permissions: Decide about channels.
        handlers: Decide, where they are.
        liveness_stats: Shared by the connections of a process.
        client: The connection's id.
        version: The server's.
        insecure: Clients may connect with any token, or none.
        rng: Spreads pings and ages.
        now: The time.
        wall: The same in Unix seconds.
        quota: The commands that the connection may send; None for any number.
        pongs: Clients are asked for a pong to each ping. If not, one is ignored.
        deltas: Clients may take deltas where the channel allows it.

    Attributes:
        identity: The client and its user.
        token_id: The ``jti`` of the last token of a connect or refresh, "" for none.
        issued_at: When that token was issued, in Unix seconds, 0 for unknown.
        subscriptions: The channels, pending and established.
        keepalive: The timers, the level of liveness and the round-trip times.
        expiry: From Unix times to those of the session's clock.
        next_tick: When `tick` is to be called next, on the clock of *now*.
    """

    __slots__ = (
        "__weakref__",
        "_audits_subscribe_tokens",
        "_commands",
        "_connect",
        "_connected_at",
        "_leaving",
        "_pongs",
        "_port",
        "_queue",
        "_refreshes",
        "_rng",
        "_state",
        "expiry",
        "identity",
        "issued_at",
        "keepalive",
        "next_tick",
        "subscriptions",
        "token_id",
    )

    def __init__(
        self,
        port: Port,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        liveness_stats: LivenessStats,
        *,
        client: ClientId,
        version: str,
        insecure: bool,
        rng: Random,
        now: float,
        wall: float,
        quota: CommandQuota | None = None,
        pongs: bool = True,
        deltas: bool = True,
    ) -> None:
        self.identity = Identity(client, UserId(""))
        self.token_id = ""
        self.issued_at = 0.0
        self.expiry = Expiry(settings, wall - now)
        self.keepalive = Keepalive(settings, liveness_stats, client)
        self.next_tick = now + settings.stale_timeout
        self._port = port
        self._rng = rng
        self._state = _State.NEW
        self._connected_at = now
        self._leaving = False
        self._pongs = pongs
        self._audits_subscribe_tokens = handlers.subscribe_token is not None
        self._queue = queue = CommandQueue(settings.in_flight, quota)
        self.subscriptions = subscriptions = Subscriptions(
            port, queue, settings, permissions, handlers, self._ended, deltas=deltas
        )
        self._refreshes = Refreshes(
            port, queue, handlers, subscriptions, self._refreshed
        )
        # Until it has connected: what is idle then is not to be kept.
        self._connect: ConnectCommand | None = ConnectCommand(
            port,
            subscriptions,
            permissions,
            handlers,
            client,
            version=version,
            ping=settings.ping_interval,
            pongs=pongs,
            anonymous=settings.allow_anonymous_connect_without_token,
            insecure=insecure,
            identified=self._identified,
            welcomed=self._welcomed,
            refused=self._refused,
        )
        self._commands = Commands(
            port, queue, settings, permissions, handlers, subscriptions
        )

    def _require_connecting(self) -> ConnectCommand:
        if self._state is not _State.CONNECTING or self._connect is None:
            raise AssertionError(f"an outcome of a connect while {self._state.name}")
        return self._connect

    def _go_to(self, state: _State) -> None:
        if (self._state, state) not in _STEPS:
            raise AssertionError(f"a step from {self._state.name} to {state.name}")
        self._state = state

    @property
    def busy(self) -> bool:
        """No more commands should be read for now."""
        queue = self._queue
        if queue.backlog or queue.under_way >= queue.in_flight or self._leaving:
            return self._state is not _CLOSED  # the reader must get to see the end
        return False

    @property
    def in_flight(self) -> bool:
        """A command waits or is under way."""
        if self._state is _State.CLOSED:
            return False
        return bool(self._queue.backlog) or self._queue.under_way > 0

    # Inputs.

    def receive(self, commands: list[Command], now: float) -> None:
        """Handle the commands of one frame; the caller then looks at `next_tick`."""
        if self._state is _CONNECTED:
            self.keepalive.hear(now)
            if len(commands) == 1 and type(commands[0][2]) is Pong:
                self._pong(now)
                return
        elif self._state is _CLOSED:
            return
        queue = self._queue
        if len(commands) == 1 and not queue.backlog and queue.may_take(self._port):
            self._handle(commands[0], now)  # most of them: nothing waits
        else:
            queue.add(commands)
            self._go_on(now)
        if self._leaving:
            self._leave()

    def heard(self, now: float) -> None:
        """Take a frame without commands as a sign of life."""
        if self._state is _State.CONNECTED:
            self.keepalive.hear(now)

    def malformed(self) -> None:
        """Handle a frame that could not be decoded."""
        self.disconnect(CLOSE_BAD_REQUEST)

    def tick(self, now: float) -> None:
        """Do what is due at *now*; the caller then looks at `next_tick`."""
        if self._state is _State.CLOSED:
            return
        if self._state is not _State.CONNECTED:
            if now >= self.next_tick:
                self.disconnect(STALE)
            return
        due = self.keepalive.tick(now, reading=not self.busy)
        end = due.close or self.subscriptions.tick(now)
        if end is not None:
            self.disconnect(end)
        elif due is Due.PING:
            self._port.ping()
        self._plan()

    def resume(self, now: float) -> None:
        """Take up commands that waited for an outcome."""
        if self._queue.backlog and self._state is not _CLOSED:
            self._go_on(now)
        if self._leaving:
            self._leave()

    def turn(self) -> None:
        """Note that the event loop has turned; the caller then resumes."""
        self._queue.turn()

    def ended(self) -> None:
        """Note that the connection is gone or is being closed; may be called again."""
        if self._state is not _State.CLOSED:
            self._go_to(_State.CLOSED)
        self._queue.backlog.clear()
        self.subscriptions.clear()
        self.keepalive.end()
        self._refreshes.clear()
        self.next_tick = NEVER

    # The record.

    def record(self) -> SessionRecord:
        """Return what a session with the same client can be restored from.

        Subscribes under way are not in it, and neither are origin and address, which
        the session does not know.

        Raises:
            AssertionError: The client is not connected.
        """
        if self._state is not _State.CONNECTED:
            raise AssertionError(f"a record while {self._state.name}")
        identity, unix = self.identity, self.expiry.unix
        return SessionRecord(
            client=identity.client,
            user=identity.user,
            conn_info=identity.conn_info,
            meta=identity.meta,
            token_id=self.token_id,
            issued_at=self.issued_at,
            refreshable=self._refreshes.allowed,
            end=unix(self.keepalive.expires_at),
            connected_at=unix(self._connected_at),
            active_at=unix(self.keepalive.heard),
            refresh=self._refreshes.last,
            channels=self.subscriptions.record(self.expiry, self._refreshes.of_token),
        )

    def channel_record(self, channel: Channel) -> ChannelRecord:
        """Return the record of one channel, also while its subscribe is under way."""
        of_token = channel in self._refreshes.of_token
        if self._connect is not None:
            of_token = of_token or channel in self._connect.of_token
        return self.subscriptions.record_of(channel, self.expiry, of_token=of_token)

    def restore(self, record: SessionRecord, now: float) -> None:
        """Be the session that made *record*; only before anything was received."""
        self._go_to(_State.CONNECTED)
        time = self.expiry.time
        self.identity = identity = identity_of(record)
        self.token_id, self.issued_at = record.token_id, record.issued_at
        refreshes = self._refreshes
        refreshes.allowed, refreshes.last = record.refreshable, record.refresh
        self._connected_at = time(record.connected_at)
        self.keepalive.expire(time(record.end))
        heard = time(record.active_at)
        self.keepalive.restore(self._connected_at, heard, now, self._rng)
        for name, each in record.channels.items():
            channel = Channel(name)
            self.subscriptions.restore(identity, channel, each, self.expiry)
            if each.of_token:
                refreshes.of_token |= {channel}
        self._plan()

    # The server's side.

    def disconnect(self, close: Close) -> None:
        """End the connection."""
        if self._state is not _State.CLOSED:
            self.ended()
            self._port.close(close)

    def send_away(self) -> None:
        """Take no more frames, and close with 3001 when every command is answered.

        The frame that the transport is reading is still taken.
        """
        self._leaving = True
        self._leave()

    def _leave(self) -> None:
        if self._leaving and not (self._state is _State.CONNECTED and self.in_flight):
            self.disconnect(SHUTDOWN)

    def probe(self, now: float) -> bool:
        """Ping at once; False if the client is not connected."""
        if self._state is not _State.CONNECTED:
            return False
        self.keepalive.pinged(now)
        self._plan()
        self._port.ping()
        return True

    def refresh(self, expire_at: float, info: RawJson | None, now: float) -> None:
        """Expire at the Unix time *expire_at*, 0 for never; show *info* if not None."""
        if self._state is _State.CONNECTED:
            self.keepalive.expire(self.expiry.close_at(expire_at, now))
            self._describe(info)
            self._plan()

    def subscribe(
        self, channel: Channel, since: Position | None, **options: Any
    ) -> bool:
        """Subscribe the client and push that; see `Subscriptions.add_and_push`.

        Returns:
            False if the client is not connected: nothing is done.

        Raises:
            ReplyError: As `Subscriptions.add`.
        """
        if self._state is not _State.CONNECTED:
            return False
        self.subscriptions.add_and_push(self.identity, channel, since, **options)
        self._plan()
        return True

    def unsubscribe(self, channel: Channel, code: Unsubscribe) -> None:
        """Take the client out of a channel and tell it."""
        if self._state is _State.CONNECTED:
            self.subscriptions.remove(channel, code)

    def lost(self, channel: Channel) -> None:
        """Tell the client of a gap in a subscription that cannot be filled."""
        try:
            self.subscriptions.lost(channel)
        except CloseError as end:
            self.disconnect(end.close)

    # Outcomes.

    def slot_acquired(self, refusal: Close | ErrorReply | None) -> None:
        """Go on with a connect that has its slot, or gets none."""
        if self._state is _State.CLOSED:
            return
        connect = self._require_connecting()
        if isinstance(refusal, Close):
            self.disconnect(refusal)
        else:
            connect.slot_acquired(refusal)

    def published(self, command: int, outcome: Appended | StoreError) -> None:
        """Answer a publish."""
        if self._state is not _CLOSED:
            self._commands.published(command, outcome)

    def history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        """Answer a history that was asked for from *since*."""
        if self._state is not _State.CLOSED:
            self._commands.history_read(command, since, outcome)

    def presence_read(
        self,
        command: int,
        outcome: list[SubscriberInfo] | StoreError,
        *,
        stats: bool,
    ) -> None:
        """Answer a presence, or its figures alone."""
        if self._state is not _State.CLOSED:
            self._commands.presence_read(command, outcome, stats=stats)

    def subscribed(self, channel: Channel, outcome: Joined | StoreError) -> bool:
        """Answer a subscribe; False when it is not wanted after all."""
        if self._state is _State.CLOSED:
            return False
        wanted = self.subscriptions.joined(channel, outcome)
        if self.subscriptions.next_end < self.next_tick:
            self._plan()
        return wanted

    def superseded(self, channel: Channel) -> None:
        """End a subscribe that a later command of the client has overtaken."""
        if self._state is not _State.CLOSED:
            self.subscriptions.superseded(channel)

    def answered(
        self,
        command: int,
        event: Event,
        answer: Answer | ReplyError | CloseError,
        now: float,
    ) -> Exception | None:
        """Go on with the answer to a hook, and log a decision about an identity.

        Returns:
            What is wrong with the answer, for the log; None if nothing is.
        """
        if self._state is _State.CLOSED:
            return None
        if isinstance(event, ConnectEvent):
            self._require_connecting()
        wrong: Exception | None = None
        outcome: Checked | ReplyError | CloseError
        if isinstance(answer, ReplyError | CloseError):
            outcome = answer
        else:
            try:  # only this: an exception of what is done then is not the answer's
                outcome = check(event, answer, self.expiry, now)
            except CloseError as end:
                outcome = end
            except Exception as error:
                wrong = error
                refusal = WRONG_ANSWER if isinstance(error, WrongAnswer) else INTERNAL
                outcome = answer = ReplyError(refusal, reason="a wrong answer")
        user = self.identity.user
        try:
            if isinstance(outcome, CloseError):
                raise outcome
            if isinstance(outcome, ReplyError):
                self._answer_refused(command, event, outcome.error)
            else:
                self._answer_granted(command, event, outcome, now)
        except CloseError as end:
            answer = end
        audited = decision(event, answer, user, by_token=self._audits_subscribe_tokens)
        if audited is not None:
            self._port.audit(audited)
        if isinstance(answer, CloseError):
            self.disconnect(answer.close)
        self._plan()  # an end may have come nearer
        return wrong

    def _answer_granted(
        self, command: int, event: Event, grant: Checked, now: float
    ) -> None:
        match event, grant:
            case _, Welcome():
                self._require_connecting().granted(command, grant, now)
            case _, ConnectionRefresh():
                self._refreshes.connection_granted(command, grant)
            case SubRefreshEvent(), SubscriptionRefresh():
                self._refreshes.subscription_granted(
                    self.identity, command, event, grant
                )
            case SubscribeEvent(), SubscribeGrant():
                self.subscriptions.granted(self.identity, event.channel, grant)
            case PublishEvent(), PublishGrant():
                self._commands.publish_granted(self.identity, command, event, grant)
            case _, RpcReturn():
                self._commands.rpc_returned(command, grant)
            case _:
                raise AssertionError("`check` returns the grant of the event")

    def _answer_refused(self, command: int, event: Event, error: ErrorReply) -> None:
        match event:
            case ConnectEvent():
                self._require_connecting().refuse(command, error)
            case RefreshEvent() | SubRefreshEvent():
                self._refreshes.refused(command, event, error)
            case SubscribeEvent():
                self.subscriptions.refused(event.channel, error)
            case PublishEvent():
                self._commands.publish_refused(command, error)
            case _:
                self._commands.rpc_refused(command, error)

    # Commands.

    def _go_on(self, now: float) -> None:
        queue = self._queue
        while queue.backlog and queue.may_take(self._port):
            self._handle(queue.backlog.pop(), now)

    def _handle(self, taken: Command, now: float) -> None:
        command, method, request = taken
        try:
            if self._state is not _CONNECTED:
                self._connect_first(command, request, now)
            elif self._queue.allows(command, method, now):
                kind = type(request)
                handler = _HANDLERS.get(kind)
                if handler is not None and (command or kind is SendRequest):
                    handler(self)(self.identity, command, request)
                elif kind is Pong:
                    self._pong(now)
                elif command and isinstance(request, Malformed):
                    raise request.error
                else:
                    raise CloseError(CLOSE_BAD_REQUEST)
        except ReplyError as refusal:
            self._port.reply_error(command, refusal.error)
        except CodecError:
            self.disconnect(CLOSE_BAD_REQUEST)
        except CloseError as end:
            self.disconnect(end.close)

    def _connect_first(self, command: int, request: Request, now: float) -> None:
        if not (self._state is _State.NEW and command):
            raise CloseError(CLOSE_BAD_REQUEST)
        if not isinstance(request, ConnectRequest):
            raise CloseError(CLOSE_BAD_REQUEST)
        self._go_to(_State.CONNECTING)
        self._queue.blocked = True
        self._queue.under_way += 1
        self._connected_at = now
        self._require_connecting().begin(command, request, now)

    def _pong(self, now: float) -> None:
        if not self._pongs:
            return  # not asked for, and nothing is measured by it
        if self.keepalive.pong(now):
            self._plan()
        else:
            self.disconnect(CLOSE_BAD_REQUEST)

    def _identified(self, welcome: Welcome, now: float) -> None:
        self.identity = welcome.identity
        self.token_id, self.issued_at = welcome.token_id, welcome.issued_at
        self._refreshes.allowed = welcome.refreshable
        self._connected_at = now
        self.keepalive.expire(welcome.close_at)

    def _welcomed(self) -> None:
        connect, self._connect = self._require_connecting(), None
        self._go_to(_State.CONNECTED)
        self._queue.under_way -= 1
        self._queue.blocked = False
        self._refreshes.of_token = connect.of_token
        self._port.connected()
        self.keepalive.start(self._connected_at, self._rng)
        self._plan()

    def _refused(self) -> None:
        self._port.release_slot()
        self._go_to(_State.REFUSED)
        self._queue.under_way = 0
        self._queue.blocked = False

    def _refreshed(self, grant: ConnectionRefresh) -> None:
        self.keepalive.expire(grant.close_at)
        self.token_id, self.issued_at = grant.token_id, grant.issued_at
        self._describe(grant.info)
        self._plan()

    def _ended(self, channel: Channel) -> None:
        self._refreshes.subscription_ended(channel)

    def _describe(self, info: RawJson | None) -> None:
        old = self.identity
        if info is not None and info != old.conn_info:
            self.identity = Identity(old.client, old.user, info, old.meta)
            self.subscriptions.describe_all(self.identity)

    def _plan(self) -> None:
        if self._state is _State.CONNECTED:
            self.next_tick = min(self.keepalive.next, self.subscriptions.next_end)
