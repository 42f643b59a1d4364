"""One client's side of the protocol as a state machine without I/O.

Fed by `receive` (decoded commands), `tick` (the time has come) and the outcomes of
what it asked for; it acts through a narrow port. It never sees a socket, a store or a
task, which is what makes it the same code behind an API gateway.

    NEW ──connect──► CONNECTED ──► CLOSED        any other step raises AssertionError

Invariants:

* Commands of one connection are *handled* in the order they came. A command that
  waits for the outside (publish, history) does not hold up the next; of one channel,
  subscribe and unsubscribe do wait for each other, because clients pipeline them.
* At most `in_flight` commands are under way; the rest wait in `_backlog`, which is
  bounded by one frame, since the driver reads no further while `busy`.
* Every command with an id gets exactly one reply, unless the connection ends.
* Nothing is asked of the port after CLOSED, and outcomes that arrive then are dropped.

Interleavings that could break them, each a test in tests/session: an outcome after
close; unsubscribe and subscribe while the first subscribe is under way; the in-flight
bound met in the middle of a frame; a subscription lost while an unsubscribe waits.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from service.errors import (
    ALREADY_SUBSCRIBED,
    BAD_REQUEST,
    CLOSE_BAD_REQUEST,
    CLOSE_NOT_AVAILABLE,
    INTERNAL,
    INVALID_TOKEN,
    LIMIT_EXCEEDED,
    NO_PONG,
    NOT_AVAILABLE,
    STALE,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE_POSITION,
    UNSUBSCRIBE_INSUFFICIENT,
    Close,
    CloseError,
    CodecError,
    ErrorReply,
    ReplyError,
    StoreBusy,
    StoreError,
)
from service.model import (
    Appended,
    Channel,
    ClientId,
    ClientInfo,
    Draft,
    HistoryPage,
    Joined,
    Position,
    UserId,
)
from service.permissions import Permissions
from service.ports import History
from service.protocol import json as wire
from service.settings import ClientSettings

__all__ = ["Port", "Session"]

REJECT_UNRECOVERED = 2  # bit of subscribe.flag: error 112 instead of recovered:false
NEVER = float("inf")


class Port(Protocol):
    """What a session asks of the outside.

    An outcome may come before the call returns: it often is in memory.
    """

    def reply(self, text: str) -> None:
        """Write one reply or push, after all that were written before."""
        ...

    def ping(self) -> None:
        """Write a ping, ahead of what waits: it must go out on schedule."""
        ...

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; ends in `Session.published`."""
        ...

    def subscribe(
        self, command: int, channel: Channel, history: History, asked: Position | None
    ) -> None:
        """Join a channel; ends in `Session.subscribed`. Pushes follow the reply."""
        ...

    def unsubscribe(self, channel: Channel) -> None:
        """Leave a channel: not one push after this."""
        ...

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
        """Read publications; ends in `Session.history_read`."""
        ...

    def close(self, close: Close) -> None:
        """Write what waits, then the close frame, then end the connection."""
        ...


class _State(enum.Enum):
    NEW = enum.auto()
    CONNECTED = enum.auto()
    CLOSED = enum.auto()


class _Pending:
    """A subscribe under way, and what waits for it."""

    __slots__ = ("asked", "flag", "waiting")

    def __init__(self, asked: Position | None, flag: int) -> None:
        self.asked = asked
        self.flag = flag
        self.waiting: deque[wire.Command] = deque()


class Session:
    """The protocol of one connection.

    Attributes:
        client: The connection's id.
        next_tick: When `tick` wants to be called, on the clock of *now*.
    """

    def __init__(
        self,
        port: Port,
        settings: ClientSettings,
        permissions: Permissions,
        *,
        client: ClientId,
        version: str,
        insecure: bool,
        random: Random,
        now: float,
    ) -> None:
        self.client = client
        self._port = port
        self._settings = settings
        self._permissions = permissions
        self._version = version
        self._insecure = insecure
        self._random = random
        self._state = _State.NEW
        self._user = UserId("")
        self._info = wire.client_info(ClientInfo(self._user, client))
        self._channels: dict[Channel, _Pending | None] = {}  # None: subscribed
        self._backlog: deque[wire.Command] = deque()
        self._under_way = 0
        self._ping_at = NEVER
        self._pong_by = NEVER
        self.next_tick = now + settings.stale_timeout
        self._handlers: dict[str, Callable[[int, dict[str, Any]], None]] = {
            "publish": self._publish,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "history": self._history,
            "send": self._send,
        }

    @property
    def busy(self) -> bool:
        """Whether no more commands should be read for now."""
        if self._state is _State.CLOSED:
            return False  # the reader must get to see the end
        return bool(self._backlog) or self._under_way >= self._settings.in_flight

    @property
    def closed(self) -> bool:
        """Whether the connection is over for the protocol."""
        return self._state is _State.CLOSED

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels subscribed to or being subscribed to."""
        return tuple(self._channels)

    # Inputs.

    def receive(self, commands: list[wire.Command], now: float) -> None:
        """Handle the commands of one frame; the caller then looks at `next_tick`."""
        if self._state is _State.CLOSED:
            return
        self._backlog.extend(commands)
        self._work(now)

    def malformed(self) -> None:
        """Handle a frame that could not be decoded."""
        self._end(CLOSE_BAD_REQUEST)

    def tick(self, now: float) -> None:
        """Do what is due at *now*; the caller then looks at `next_tick`."""
        if self._state is _State.NEW:
            if now >= self.next_tick:
                self._end(STALE)
            return
        if self._state is _State.CLOSED:
            return
        if now >= self._pong_by:
            self._end(NO_PONG)
            return
        if now >= self._ping_at:
            self._pong_by = now + self._settings.pong_timeout
            self._ping_at = now + self._settings.ping_interval
            self._port.ping()
        self.next_tick = min(self._ping_at, self._pong_by)

    def ended(self) -> None:
        """Take note that the connection is gone, or is being closed from outside."""
        self._state = _State.CLOSED
        self._backlog.clear()
        self._channels.clear()
        self.next_tick = NEVER

    def disconnect(self, close: Close) -> None:
        """End the connection on behalf of the server."""
        self._end(close)

    def lost(self, channel: Channel) -> None:
        """Tell the client that a subscription has a gap: it comes back by itself."""
        if self._channels.get(channel, self) is not None:
            raise AssertionError("only an established subscription can be lost")
        del self._channels[channel]
        self._port.reply(
            wire.unsubscribe_push(wire.quote(channel), UNSUBSCRIBE_INSUFFICIENT)
        )

    # Outcomes.

    def published(self, command: int, outcome: Appended | StoreError) -> None:
        """Answer a publish."""
        if self._state is _State.CLOSED:
            return
        self._under_way -= 1
        if isinstance(outcome, StoreError):
            self._refuse(command, _transient(outcome))
        elif command:
            self._port.reply(wire.empty_reply(command, "publish"))

    def subscribed(
        self, command: int, channel: Channel, outcome: Joined | StoreError
    ) -> None:
        """Answer a subscribe, then take up what waited for it."""
        if self._state is _State.CLOSED:
            return
        self._under_way -= 1
        pending = self._channels[channel]
        assert pending is not None
        if isinstance(outcome, StoreError):
            del self._channels[channel]
            self._refuse(command, _transient(outcome))
        elif (
            pending.flag & REJECT_UNRECOVERED
            and pending.asked is not None
            and outcome.recovered is None
        ):
            del self._channels[channel]
            self._port.unsubscribe(channel)
            self._refuse(command, UNRECOVERABLE_POSITION)
        else:
            self._channels[channel] = None
            self._port.reply(
                wire.subscribe_reply(
                    command, outcome.top, outcome.recovered, asked=pending.asked
                )
            )
        # What waited comes before anything else of the backlog.
        self._under_way -= len(pending.waiting)
        self._backlog.extendleft(reversed(pending.waiting))

    def history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        """Answer a history that was asked for from *since*."""
        if self._state is _State.CLOSED:
            return
        self._under_way -= 1
        if isinstance(outcome, StoreError):
            self._refuse(command, _transient(outcome))
        elif since is not None and since.epoch not in ("", outcome.top.epoch):
            self._refuse(command, UNRECOVERABLE_POSITION)
        else:
            self._port.reply(
                wire.history_reply(command, outcome.publications, outcome.top)
            )

    def resume(self, now: float) -> None:
        """Take up commands that waited for an outcome."""
        if self._backlog:
            self._work(now)

    # Commands.

    def _work(self, now: float) -> None:
        backlog = self._backlog
        limit = self._settings.in_flight
        while backlog and self._under_way < limit:
            command, method, fields = backlog.popleft()
            try:
                self._handle(command, method, fields, now)
            except ReplyError as refusal:
                self._refuse(command, refusal.error)
            except CodecError:
                self._end(CLOSE_BAD_REQUEST)
            except CloseError as end:
                self._end(end.close)
            # _end clears the backlog, which ends this loop.

    def _handle(
        self, command: int, method: str, fields: dict[str, Any], now: float
    ) -> None:
        if self._state is _State.CONNECTED:
            handler = self._handlers.get(method)
            if handler is not None:
                if not command and method != "send":
                    raise CloseError(CLOSE_BAD_REQUEST)
                handler(command, fields)
            else:
                self._handle_other(command, method, now)
        elif method == "connect" and command:
            self._connect(command, fields, now)
        else:
            raise CloseError(CLOSE_BAD_REQUEST)

    def _handle_other(self, command: int, method: str, now: float) -> None:
        if not method and not command:
            if self._pong_by == NEVER:
                raise CloseError(CLOSE_BAD_REQUEST)  # a pong that nobody asked for
            self._pong_by = NEVER
            self.next_tick = self._ping_at
        elif method in _NOT_AVAILABLE and command:
            raise ReplyError(NOT_AVAILABLE)
        else:
            raise CloseError(CLOSE_BAD_REQUEST)

    def _connect(self, command: int, fields: dict[str, Any], now: float) -> None:
        wire.text(fields, "name")
        wire.text(fields, "version")
        wire.mapping(fields, "subs")
        wire.mapping(fields, "headers")
        token = wire.text(fields, "token")
        if not self._insecure:
            # Nothing can verify a token yet, so no token is valid.
            raise CloseError(INVALID_TOKEN if token else CLOSE_BAD_REQUEST)
        self._state = _State.CONNECTED
        interval = self._settings.ping_interval
        # A random first ping keeps ten thousand clients that reconnected together
        # from being pinged together.
        self._ping_at = now + interval * (0.5 + 0.5 * self._random.random())
        self.next_tick = self._ping_at
        self._port.reply(
            wire.connect_reply(command, self.client, self._version, interval)
        )

    def _publish(self, command: int, fields: dict[str, Any]) -> None:
        channel = Channel(wire.text(fields, "channel"))
        data = wire.raw(fields, "data")
        if not channel or data is None:
            raise CloseError(CLOSE_BAD_REQUEST)
        rules = self._permissions.may_publish(channel, self._user)
        self._under_way += 1
        self._port.publish(
            command, channel, Draft(data, info=self._info), rules.history
        )

    def _subscribe(self, command: int, fields: dict[str, Any]) -> None:
        channel = Channel(wire.text(fields, "channel"))
        if not channel:
            raise CloseError(CLOSE_BAD_REQUEST)
        flag = wire.integer(fields, "flag")
        asked = wire.position(fields)
        recover = wire.boolean(fields, "recover")
        if channel in self._channels:
            if self._wait(channel, command, "subscribe", fields):
                return
            raise ReplyError(ALREADY_SUBSCRIBED)
        rules = self._permissions.may_subscribe(channel, self._user)
        if len(self._channels) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        if rules.history.size == 0:
            recover = False
        pending = _Pending(asked if recover else None, flag)
        self._channels[channel] = pending
        self._under_way += 1
        self._port.subscribe(command, channel, rules.history, pending.asked)

    def _unsubscribe(self, command: int, fields: dict[str, Any]) -> None:
        channel = Channel(wire.text(fields, "channel"))
        if not channel:
            raise CloseError(CLOSE_BAD_REQUEST)
        if channel in self._channels:
            if self._wait(channel, command, "unsubscribe", fields):
                return
            del self._channels[channel]
            self._port.unsubscribe(channel)
        self._port.reply(wire.empty_reply(command, "unsubscribe"))

    def _wait(
        self, channel: Channel, command: int, method: str, fields: dict[str, Any]
    ) -> bool:
        """Queue a command behind the subscribe of its channel that is under way."""
        pending = self._channels[channel]
        if pending is None:
            return False
        self._under_way += 1
        pending.waiting.append((command, method, fields))
        return True

    def _history(self, command: int, fields: dict[str, Any]) -> None:
        channel = Channel(wire.text(fields, "channel"))
        if not channel:
            raise CloseError(CLOSE_BAD_REQUEST)
        limit = wire.integer(fields, "limit", low=-1)
        reverse = wire.boolean(fields, "reverse")
        since = wire.mapping(fields, "since")
        rules = self._permissions.may_read_history(channel, self._user)
        if rules.history.size == 0:
            raise ReplyError(NOT_AVAILABLE)
        asked = Position(0, "") if since is None else wire.position(since)
        if reverse and since is not None and asked.offset == 0:
            raise ReplyError(BAD_REQUEST)
        most = self._settings.history_limit
        self._under_way += 1
        self._port.history(
            command,
            channel,
            rules.history,
            None if since is None else asked,
            most if limit < 0 else min(limit, most),
            reverse=reverse,
        )

    def _send(self, command: int, fields: dict[str, Any]) -> None:
        raise CloseError(CLOSE_NOT_AVAILABLE)

    # Ends.

    def _refuse(self, command: int, error: ErrorReply) -> None:
        self._port.reply(wire.error_reply(command, error))

    def _end(self, close: Close) -> None:
        if self._state is not _State.CLOSED:
            self.ended()
            self._port.close(close)


_NOT_AVAILABLE = frozenset(
    {"presence", "presence_stats", "rpc", "refresh", "sub_refresh", "ping"}
)


def _transient(error: StoreError) -> ErrorReply:
    return TOO_MANY_REQUESTS if isinstance(error, StoreBusy) else INTERNAL
