"""One client's side of the protocol as a state machine without I/O.

Fed by `receive`, `tick`, `turn` and outcomes of what it asked for, it acts through a
narrow port. It never sees a socket, a store or a task: the same code serves a gateway.

    NEW ──connect──► CONNECTING ──► CONNECTED       any other step raises
                          └───────► REFUSED         AssertionError; all lead
                                                    to CLOSED

Invariants:

* Commands of one connection are *handled* in the order they came. A command that
  waits for the outside (publish, history, rpc) does not hold up the next; of one
  channel, subscribe and unsubscribe do wait for each other (`channels`). A connect,
  and a publish that a hook is asked about, hold up all that follow: the commands
  after a connect need its outcome, and hooks may answer out of order.
* At most `in_flight` commands are under way, and one portion is handled in a turn of
  the event loop (`pace`); the backlog is one frame: `busy` stops the reading.
* While more than a recovery's piece waits for the socket, no command is taken up, and
  one history is read at a time: who asks faster than it reads is slowed, not closed.
* Every command with an id gets exactly one reply, unless the connection ends.
* Nothing is asked of the port after CLOSED, and outcomes that arrive then are dropped.
* A pong is handled when it arrives, whatever waits; while we do not read, none lacks.

Interleavings that could break them, each a test in tests/session: an outcome after
close; unsubscribe and subscribe while the first subscribe is under way; the in-flight
bound met in the middle of a frame; a subscription lost while an unsubscribe waits.
"""

from __future__ import annotations

import enum
from random import Random
from typing import Any

from service.errors import (
    CLOSE_BAD_REQUEST,
    INTERNAL,
    STALE,
    Close,
    CloseError,
    CodecError,
    ErrorReply,
    ReplyError,
    StoreError,
    Unsubscribe,
)
from service.handlers import (
    Answer,
    ConnectEvent,
    ConnectResult,
    Event,
    Handlers,
    PublishEvent,
    PublishResult,
    RpcEvent,
    RpcResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.heartbeat import Heartbeat
from service.model import (
    Appended,
    Channel,
    ClientId,
    HistoryPage,
    Joined,
    Position,
    UserId,
)
from service.payload import dump_optional
from service.permissions import Permissions
from service.protocol import json as wire
from service.session.allowance import Allowance
from service.session.channels import Channels
from service.session.commands import Commands
from service.session.handshake import Handshake
from service.session.liveness import NEVER, Due, Liveness
from service.session.pace import Pace
from service.session.port import Identity, Port, Work
from service.settings import ClientSettings

__all__ = ["Session"]


class _State(enum.Enum):
    NEW = enum.auto()
    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    REFUSED = enum.auto()
    CLOSED = enum.auto()


class Session:
    """The protocol of one connection.

    Attributes:
        identity: Who it is; nobody before it has connected.
        channels: What it is subscribed to.
        liveness: Its clocks, and the round-trip times of its pings.
        next_tick: When `tick` wants to be called, on the clock of *now*.
    """

    def __init__(
        self,
        port: Port,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        heartbeat: Heartbeat,
        *,
        client: ClientId,
        version: str,
        insecure: bool,
        random: Random,
        now: float,
        allowance: Allowance | None = None,
    ) -> None:
        self.identity = Identity(client, UserId(""))
        self._port = port
        self._settings = settings
        self._random = random
        self._state = _State.NEW
        self._work = Work()
        self._pace = Pace(allowance, self._work, settings.in_flight)
        asks = handlers.subscribe is not None
        self.channels = Channels(port, self._work, settings, permissions, asks=asks)
        self._handshake = Handshake(
            port,
            self.channels,
            client,
            version=version,
            ping=settings.ping_interval,
            asks=handlers.connect is not None,
            insecure=insecure,
            identified=self._identified,
            welcomed=self._welcomed,
            refused=self._turned_away,
        )
        self._connected_at = now
        self.liveness = Liveness(settings, heartbeat, client)
        self.next_tick = now + settings.stale_timeout
        self._commands = Commands(
            port, self._work, settings, permissions, handlers, self.channels
        )
        self._methods = self._commands.methods()

    @property
    def busy(self) -> bool:
        """Whether no more commands should be read for now."""
        if self._state is _State.CLOSED:
            return False  # the reader must get to see the end
        work = self._work
        return bool(work.backlog) or work.under_way >= self._settings.in_flight

    @property
    def in_flight(self) -> bool:
        """Whether a command waits, or is under way."""
        return bool(self._work.backlog) or self._work.under_way > 0

    # Inputs.

    def receive(self, commands: list[wire.Command], now: float) -> None:
        """Handle the commands of one frame; the caller then looks at `next_tick`."""
        if self._state is _State.CLOSED:
            return
        if self._state is _State.CONNECTED:
            self.liveness.hear(now)
            if len(commands) == 1 and commands[0][:2] == (0, ""):
                self._pong(now)
                return
        self._work.backlog.extend(commands)
        self._go_on(now)

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
        due = self.liveness.tick(now, reading=not self.busy)
        if due.close is not None:
            self.disconnect(due.close)
            return
        if due is Due.PING:
            self._port.ping()
        self.next_tick = self.liveness.next

    def resume(self, now: float) -> None:
        """Take up commands that waited for an outcome."""
        if self._work.backlog and self._state is not _State.CLOSED:
            self._go_on(now)

    def turn(self) -> None:
        """Take note that the loop has turned; the caller then resumes."""
        self._work.spent = 0

    def ended(self) -> None:
        """Take note that the connection is gone, or is being closed from outside."""
        self._state = _State.CLOSED
        self._work.backlog.clear()
        self.channels.clear()
        self.liveness.end()
        self.next_tick = NEVER

    # The server's side.

    def disconnect(self, close: Close) -> None:
        """End the connection."""
        if self._state is not _State.CLOSED:
            self.ended()
            self._port.close(close)

    def probe(self, now: float) -> bool:
        """Ping at once; False if nothing can be written to it yet."""
        if self._state is not _State.CONNECTED:
            return False
        self.liveness.pinged(now)
        self.next_tick = self.liveness.next
        self._port.ping()
        return True

    def expire(self, at: float | None) -> None:
        """Close the connection with 3005 at the time *at*; None: never."""
        self.liveness.expire(at)
        if self._state is _State.CONNECTED:
            self.next_tick = self.liveness.next

    def subscribe(
        self, channel: Channel, since: Position | None, **options: Any
    ) -> bool:
        """Subscribe the client and tell it; *options* as of `Channels.add_and_tell`.

        Returns:
            False if the client is not connected: nothing is done.

        Raises:
            ReplyError: The channel cannot be one of its.
        """
        if self._state is not _State.CONNECTED:
            return False
        self.channels.add_and_tell(self.identity, channel, since, **options)
        return True

    def unsubscribe(self, channel: Channel, code: Unsubscribe) -> None:
        """Take the client out of a channel and tell it."""
        if self._state is _State.CONNECTED:
            self.channels.remove(channel, code)

    def lost(self, channel: Channel) -> None:
        """Tell the client of a gap in a subscription that cannot be filled."""
        try:
            self.channels.lost(channel)
        except CloseError as end:
            self.disconnect(end.close)

    # Outcomes.

    def admitted(self, refusal: Close | ErrorReply | None) -> None:
        """Go on with a connect that has its slot, or gets none."""
        if self._state is _State.CLOSED:
            return
        if isinstance(refusal, Close):
            self.disconnect(refusal)
        else:
            self._handshake.admitted(refusal)

    def published(self, command: int, outcome: Appended | StoreError) -> None:
        """Answer a publish."""
        if self._state is not _State.CLOSED:
            self._commands.published(command, outcome)

    def history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        """Answer a history that was asked for from *since*."""
        if self._state is not _State.CLOSED:
            self._commands.history_read(command, since, outcome)

    def subscribed(self, channel: Channel, outcome: Joined | StoreError) -> bool:
        """Answer a subscribe; False when it is not wanted after all."""
        if self._state is _State.CLOSED:
            return False
        return self.channels.joined(channel, outcome)

    def answered(
        self,
        command: int,
        event: Event,
        answer: Answer | ReplyError | CloseError,
        now: float,
    ) -> Exception | None:
        """Go on with what a hook was asked about.

        Returns:
            What was wrong with the answer, for the log; None if nothing was.
        """
        if self._state is _State.CLOSED:
            return None
        if isinstance(answer, CloseError):
            self.disconnect(answer.close)
            return None
        try:
            self._answered(command, event, answer, now)
        except Exception as error:
            # A result of the wrong types: it admits nobody.
            self._answered(command, event, ReplyError(INTERNAL), now)
            return error
        return None

    def _answered(
        self, command: int, event: Event, answer: Answer | ReplyError, now: float
    ) -> None:
        error = answer.error if isinstance(answer, ReplyError) else INTERNAL
        match event, answer:
            case ConnectEvent(), ConnectResult():
                float(answer.expire_at)  # raises before it is let in
                self._connected_at = now
                self._handshake.admit(command, answer)
            case ConnectEvent(), _:
                self._handshake.turn_away(command, error)
            case SubscribeEvent(), SubscribeResult():
                info, data = dump_optional(answer.info), dump_optional(answer.data)
                self.channels.admitted(self.identity, event.channel, info, data)
            case SubscribeEvent(), _:
                self.channels.refused(event.channel, error)
            case PublishEvent(), PublishResult():
                self._commands.publish_allowed(self.identity, command, event, answer)
            case RpcEvent(), RpcResult():
                self._commands.rpc_returned(command, answer)
            case PublishEvent(), _:
                self._commands.publish_refused(command, error)
            case _:
                self._commands.rpc_refused(command, error)

    # Commands.

    def _go_on(self, now: float) -> None:
        for command, method, fields in self._pace.portion(self._port):
            try:
                self._handle(command, method, fields, now)
            except ReplyError as refusal:
                self._port.reply_error(command, refusal.error)
            except CodecError:
                self.disconnect(CLOSE_BAD_REQUEST)
            except CloseError as end:
                self.disconnect(end.close)

    def _handle(
        self, command: int, method: str, fields: dict[str, Any], now: float
    ) -> None:
        if self._state is _State.CONNECTED:
            if not self._pace.admits(command, method, now):
                return
            handler = self._methods.get(method)
            if handler is not None and (command or method == "send"):
                handler(self.identity, command, fields)
            elif not method and not command:
                self._pong(now)
            else:
                raise CloseError(CLOSE_BAD_REQUEST)
        elif self._state is _State.NEW and method == "connect" and command:
            self._state = _State.CONNECTING
            self._work.blocked = True
            self._work.under_way += 1
            self._connected_at = now
            self._handshake.begin(command, fields)
        else:
            raise CloseError(CLOSE_BAD_REQUEST)

    def _pong(self, now: float) -> None:
        if self.liveness.pong(now):
            self.next_tick = self.liveness.next
        else:
            self.disconnect(CLOSE_BAD_REQUEST)

    def _identified(self, identity: Identity) -> None:
        self.identity = identity

    def _welcomed(self) -> None:
        self._state = _State.CONNECTED
        self._work.under_way -= 1
        self._work.blocked = False
        self._port.connected()
        self.liveness.start(self._connected_at, self._random)
        self.next_tick = self.liveness.next

    def _turned_away(self) -> None:
        self._port.refused()
        self._state = _State.REFUSED
        self._work.under_way = 0
        self._work.blocked = False
