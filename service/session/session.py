"""One client's side of the protocol as a state machine without I/O.

Fed by `receive`, `tick`, `turn` and outcomes of what it asked for, it acts through a
narrow port. It never sees a socket, a store or a task: the same code serves a gateway.

    NEW ──connect──► CONNECTING ──► CONNECTED       any other step raises
                          └───────► REFUSED         AssertionError; all lead
                                                    to CLOSED

Invariants:

* Commands of one connection are *handled* in the order they came. A command that
  waits for the outside (publish, history, rpc, refresh) does not hold up the next; of
  one channel, subscribe and unsubscribe do wait for each other (`channels`), and so do
  refreshes of one thing (`refreshing`). A connect, and a publish that a hook is asked
  about, hold up all that follow: the commands after a connect need its outcome, and
  hooks may answer out of order.
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

from service.auth.permissions import Permissions
from service.core.errors import (
    CLOSE_BAD_REQUEST,
    STALE,
    Close,
    CloseError,
    CodecError,
    ErrorReply,
    ReplyError,
    StoreError,
    Unsubscribe,
)
from service.core.hooks import Answer, ConnectResult, Event, Handlers, RefreshResult
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    HistoryPage,
    Joined,
    Position,
    RawJson,
    UserId,
)
from service.payload import dump_optional
from service.protocol.commands import (
    Command,
    ConnectRequest,
    Malformed,
    Pong,
    Request,
    SendRequest,
)
from service.session.allowance import CommandQuota
from service.session.command_queue import CommandScheduler
from service.session.expiry import NEVER, Expiry
from service.session.heartbeat import Heartbeat
from service.session.keepalive import Due, Liveness
from service.session.parts import Parts
from service.session.port import CommandQueue, Identity, Port
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
        token_id: The ``jti`` of the last token it came or was refreshed with, "" for
            none.
        issued_at: When that token was issued, in Unix seconds, 0 for unknown.
        channels: What it is subscribed to.
        liveness: Its clocks, and the round-trip times of its pings.
        expiry: From Unix times to those of its clock.
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
        wall: float,
        allowance: CommandQuota | None = None,
    ) -> None:
        self.identity = Identity(client, UserId(""))
        self.token_id = ""
        self.issued_at = 0.0
        self._port = port
        self._settings = settings
        self._random = random
        self._state = _State.NEW
        self._work = CommandQueue()
        self._pace = CommandScheduler(allowance, self._work, settings.in_flight)
        self.expiry = Expiry(settings, wall - now)
        parts = Parts(
            port,
            self._work,
            settings,
            permissions,
            handlers,
            self.expiry,
            client=client,
            version=version,
            insecure=insecure,
            identified=self._identified,
            welcomed=self._welcomed,
            refused=self._turned_away,
            refreshed=self._refreshed,
        )
        self._handshake = parts.handshake
        self.channels = parts.channels
        self._refreshing = parts.refreshing
        self._commands = parts.commands
        self._answers = parts.answers
        self._methods = parts.methods
        self._connected_at = now
        self.liveness = Liveness(settings, heartbeat, client)
        self.next_tick = now + settings.stale_timeout

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

    def receive(self, commands: list[Command], now: float) -> None:
        """Handle the commands of one frame; the caller then looks at `next_tick`."""
        if self._state is _State.CLOSED:
            return
        if self._state is _State.CONNECTED:
            self.liveness.hear(now)
            if len(commands) == 1 and type(commands[0][2]) is Pong:
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
        end = due.close or self.channels.tick(now)
        if end is not None:
            self.disconnect(end)
        elif due is Due.PING:
            self._port.ping()
        self._plan()

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
        self._refreshing.clear()
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
        self._plan()
        self._port.ping()
        return True

    def refresh(self, expire_at: float, info: RawJson | None, now: float) -> None:
        """Expire at the Unix time *expire_at*, 0 for never; show *info* if not None."""
        if self._state is _State.CONNECTED:
            self.liveness.expire(self.expiry.close_at(expire_at, now))
            self._describe(info)
            self._plan()

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
        self._plan()
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
        wanted = self.channels.joined(channel, outcome)
        if self.channels.next_end < self.next_tick:
            self._plan()
        return wanted

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
        wrong, end = self._answers.take(self.identity, command, event, answer, now)
        if end is not None:
            self.disconnect(end)
        self._plan()  # an end may have come nearer
        return wrong

    # Commands.

    def _go_on(self, now: float) -> None:
        for command, method, request in self._pace.portion(self._port):
            try:
                self._handle(command, method, request, now)
            except ReplyError as refusal:
                self._port.reply_error(command, refusal.error)
            except CodecError:
                self.disconnect(CLOSE_BAD_REQUEST)
            except CloseError as end:
                self.disconnect(end.close)

    def _handle(self, command: int, method: str, request: Request, now: float) -> None:
        if self._state is _State.CONNECTED:
            if not self._pace.admits(command, method, now):
                return
            kind = type(request)
            handler = self._methods.get(kind)
            if handler is not None and (command or kind is SendRequest):
                handler(self.identity, command, request)
            elif kind is Pong:
                self._pong(now)
            elif command and isinstance(request, Malformed):
                raise request.error
            else:
                raise CloseError(CLOSE_BAD_REQUEST)
        elif (
            self._state is _State.NEW
            and isinstance(request, ConnectRequest)
            and command
        ):
            self._state = _State.CONNECTING
            self._work.blocked = True
            self._work.under_way += 1
            self._connected_at = now
            self._handshake.begin(command, request, now)
        else:
            raise CloseError(CLOSE_BAD_REQUEST)

    def _pong(self, now: float) -> None:
        if self.liveness.pong(now):
            self._plan()
        else:
            self.disconnect(CLOSE_BAD_REQUEST)

    def _identified(
        self, identity: Identity, result: ConnectResult, now: float
    ) -> None:
        self.identity = identity
        self.token_id, self.issued_at = result.token_id, result.issued_at
        self._refreshing.allowed = result.client_side_refresh
        self._connected_at = now
        self.liveness.expire(self.expiry.close_at(result.expire_at, now))

    def _refreshed(self, result: RefreshResult, now: float) -> None:
        info = dump_optional(result.info)
        self.liveness.expire(self.expiry.close_at(result.expire_at, now))
        self.token_id, self.issued_at = result.token_id, result.issued_at
        self._describe(info)
        self._plan()

    def _describe(self, info: RawJson | None) -> None:
        old = self.identity
        if info is not None and info != old.conn_info:
            self.identity = Identity(old.client, old.user, info, old.meta)
            self.channels.describe_all(self.identity)

    def _plan(self) -> None:
        if self._state is _State.CONNECTED:
            self.next_tick = min(self.liveness.next, self.channels.next_end)

    def _welcomed(self) -> None:
        self._state = _State.CONNECTED
        self._work.under_way -= 1
        self._work.blocked = False
        self._port.connected()
        self.liveness.start(self._connected_at, self._random)
        self._plan()

    def _turned_away(self) -> None:
        self._port.release_slot()
        self._state = _State.REFUSED
        self._work.under_way = 0
        self._work.blocked = False
