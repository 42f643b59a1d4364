"""The refresh and sub_refresh commands: what was admitted may go on for longer.

Nothing that is written for a channel waits for them, and no other command does: a
refresh never interrupts a stream.

Invariants, each with a test in tests/session:

* One refresh of a connection, and one sub_refresh of a channel, is under way at a time;
  further ones wait for it, in order, and count as commands under way.
* An outcome concerns the subscription that was there when it was asked for: when that
  ends, whoever ends it, its sub_refreshes are answered with 103 at once, and what
  comes later is dropped. A channel that was subscribed to anew is not touched.
* A refresh that comes too late never answers 109, which SDKs take as the end: it closes
  with 3005, or ends the subscription with push 2501, and the client comes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from service.core.errors import (
    CONNECTION_EXPIRED,
    EXPIRED,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNSUBSCRIBE_EXPIRED,
    CloseError,
    ErrorReply,
    ReplyError,
)
from service.core.hooks import (
    Handlers,
    RefreshEvent,
    RefreshResult,
    SubRefreshEvent,
    SubRefreshResult,
)
from service.core.model import Channel
from service.payload import dump_optional
from service.protocol import replies
from service.protocol.commands import RefreshRequest, SubRefreshRequest
from service.session.channels import Channels
from service.session.expiry import Expiry
from service.session.port import CommandQueue, Identity, Port

__all__ = ["Refreshing"]

_Event = RefreshEvent | SubRefreshEvent


class Refreshing:
    """The refreshes of one connection.

    Args:
        port: The session's.
        work: The session's.
        handlers: Decide.
        channels: The session's.
        expiry: The session's.
        refreshed: Told what a refresh of the connection says, and the time; raises
            what `Expiry` does, or `Exception` for a result of wrong types.

    Attributes:
        allowed: The connection was told when it expires, and may refresh.
    """

    def __init__(
        self,
        port: Port,
        work: CommandQueue,
        handlers: Handlers,
        channels: Channels,
        expiry: Expiry,
        refreshed: Callable[[RefreshResult, float], None],
    ) -> None:
        self._port = port
        self._work = work
        self._channels = channels
        self._expiry = expiry
        self._refreshed = refreshed
        self._connection = handlers.refresh is not None
        self._subscription = handlers.sub_refresh is not None
        # By channel, None for the connection; the first of each is under way.
        self._queues: dict[Channel | None, deque[tuple[int, _Event]]] = {}
        self.allowed = False

    # Commands.

    def refresh(
        self, identity: Identity, command: int, request: RefreshRequest
    ) -> None:
        """Handle a refresh command.

        Raises:
            ReplyError: 108: nobody can refresh this connection.
        """
        if not self._connection or not self.allowed:
            raise ReplyError(NOT_AVAILABLE)
        event = RefreshEvent(
            identity.client, identity.user, request.token, identity.meta
        )
        self._add(None, command, event)

    def sub_refresh(
        self, identity: Identity, command: int, request: SubRefreshRequest
    ) -> None:
        """Handle a sub_refresh command; the token names a channel that it forgets.

        Raises:
            ReplyError: 103: there is no such subscription; 108: nobody can refresh it.
        """
        channel = request.channel
        if not self._subscription:
            raise ReplyError(NOT_AVAILABLE)
        if channel:
            if self._channels.waits(channel, (command, "sub_refresh", request)):
                return
            entry = self._channels.established(channel)
            if entry is None:
                raise ReplyError(PERMISSION_DENIED)
            if not entry.refreshes:
                raise ReplyError(NOT_AVAILABLE)
        event = SubRefreshEvent(
            identity.client, identity.user, channel, request.token, identity.meta
        )
        self._add(channel, command, event)

    def _add(self, key: Channel | None, command: int, event: _Event) -> None:
        self._work.under_way += 1
        queue = self._queues.setdefault(key, deque())
        queue.append((command, event))
        if len(queue) == 1:
            self._port.ask(command, event)

    # Outcomes.

    def connection_goes_on(
        self, command: int, answer: RefreshResult, now: float
    ) -> None:
        """Answer a refresh that is granted.

        Raises:
            Exception: What was answered is of the wrong types; nothing was done.
        """
        ttl = self._expiry.ttl(answer.expire_at, now)
        self._refreshed(answer, now)
        self._end(None, command, replies.refresh_reply(command, "refresh", ttl))

    def subscription_goes_on(
        self,
        identity: Identity,
        command: int,
        event: SubRefreshEvent,
        answer: SubRefreshResult,
        now: float,
    ) -> None:
        """Answer a sub_refresh that is granted.

        Raises:
            Exception: What was answered is of the wrong types; nothing was done.
        """
        if not self._is_under_way(event):
            return  # its subscription has ended
        ttl = self._expiry.ttl(answer.expire_at, now)
        ends = self._expiry.unsubscribe_at(answer.expire_at, now)
        info = dump_optional(answer.info)
        entry = self._channels.established(event.channel or Channel(answer.channel))
        if entry is None or not entry.refreshes:
            self._end(event.channel, command, PERMISSION_DENIED)
            return
        self._channels.ends(entry, ends)
        if info is not None:
            self._channels.describe(entry, identity, info)
        reply = replies.refresh_reply(command, "sub_refresh", ttl)
        self._end(event.channel, command, reply)

    def refused(self, command: int, event: _Event, error: ErrorReply) -> None:
        """Answer one that is refused.

        Raises:
            CloseError: The connection has expired.
        """
        if isinstance(event, RefreshEvent):
            if error.code == TOKEN_EXPIRED.code:
                raise CloseError(CONNECTION_EXPIRED)
            self._end(None, command, error)
            return
        if not self._is_under_way(event):
            return
        if error.code == TOKEN_EXPIRED.code:
            error = EXPIRED
            if event.channel:
                # `left` answers; a client that was told to come back ignores that.
                self._channels.remove(event.channel, UNSUBSCRIBE_EXPIRED)
                return
        self._end(event.channel, command, error)

    def left(self, channel: Channel) -> None:
        """Answer what asks for a subscription that has just ended."""
        for command, _ in self._queues.pop(channel, ()):
            self._work.under_way -= 1
            self._port.reply_error(command, PERMISSION_DENIED)

    def clear(self) -> None:
        """Forget all: the connection is over."""
        self._queues.clear()

    def _is_under_way(self, event: SubRefreshEvent) -> bool:
        # By the event itself: ids are the client's, who may use one twice.
        queue = self._queues.get(event.channel)
        return queue is not None and queue[0][1] is event

    def _end(self, key: Channel | None, command: int, reply: str | ErrorReply) -> None:
        queue = self._queues[key]
        queue.popleft()
        self._work.under_way -= 1
        if isinstance(reply, ErrorReply):
            self._port.reply_error(command, reply)
        else:
            self._port.reply(reply)
        if not queue:
            del self._queues[key]
            return
        self._port.ask(*queue[0])
