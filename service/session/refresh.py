"""Refresh and sub_refresh commands: prolong a connection or a subscription.

Neither another command nor anything that is written for a channel waits for them: a
refresh never interrupts a stream.

Invariants, each with a test in tests/session:

* One refresh of a connection, and one sub_refresh of a channel, is under way at a time;
  further ones wait for it, in order, and count as commands under way.
* An outcome concerns the subscription that was there at the time of the command. When
  that subscription ends, for whatever reason, its sub_refreshes are answered with 103
  at once and later outcomes are dropped. A new subscription of the channel is not
  touched.
* A refresh that comes too late is not answered with 109, which SDKs take as final: the
  connection closes with 3005, or the subscription ends with push 2501, and the client
  connects or subscribes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from service.core.errors import (
    CONNECTION_EXPIRED,
    EXPIRED,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNSUBSCRIBE_EXPIRED,
    UNSUBSCRIBE_SERVER,
    CloseError,
    ErrorReply,
    ReplyError,
)
from service.core.hooks import (
    Handlers,
    RefreshEvent,
    SubRefreshEvent,
)
from service.core.model import Channel
from service.protocol import replies
from service.protocol.commands import RefreshRequest, SubRefreshRequest
from service.session.answers import ConnectionRefresh, SubscriptionRefresh
from service.session.command_queue import CommandQueue
from service.session.port import Identity, Port
from service.session.subscriptions import Subscriptions

__all__ = ["NO_CHANNELS", "Refreshes"]

NO_CHANNELS: Final[frozenset[Channel]] = frozenset()
"""Shared by the connections: each empty set is an object of its own, of 216 bytes."""

_Event = RefreshEvent | SubRefreshEvent


class Refreshes:
    """The refreshes of one connection.

    Args:
        port: The session's.
        queue: The session's.
        handlers: Decide.
        subscriptions: The session's.
        refreshed: Called with a refresh of the connection that is granted.

    Attributes:
        allowed: The client may refresh the connection, and was told when it expires.
        of_token: The server-side subscriptions that the token of the connect named.
        last: The id of the last refresh command that was granted, 0 before the first.
    """

    __slots__ = (
        "_has_refresh",
        "_has_sub_refresh",
        "_port",
        "_queue",
        "_refreshed",
        "_subscriptions",
        "_waiting",
        "allowed",
        "last",
        "of_token",
    )

    def __init__(
        self,
        port: Port,
        queue: CommandQueue,
        handlers: Handlers,
        subscriptions: Subscriptions,
        refreshed: Callable[[ConnectionRefresh], None],
    ) -> None:
        self._port = port
        self._queue = queue
        self._subscriptions = subscriptions
        self._refreshed = refreshed
        self._has_refresh = handlers.refresh is not None
        self._has_sub_refresh = handlers.sub_refresh is not None
        # By channel, None for the connection; the first of each is under way.
        self._waiting: dict[Channel | None, deque[tuple[int, _Event]]] = {}
        self.allowed = False
        self.last = 0
        self.of_token = NO_CHANNELS

    # Commands.

    def refresh(
        self, identity: Identity, command: int, request: RefreshRequest
    ) -> None:
        """Handle a refresh command.

        Raises:
            ReplyError: 108: nobody can refresh this connection.
        """
        if not self._has_refresh or not self.allowed:
            raise ReplyError(NOT_AVAILABLE)
        event = RefreshEvent(
            identity.client, identity.user, request.token, identity.meta
        )
        self._add(None, command, event)

    def sub_refresh(
        self, identity: Identity, command: int, request: SubRefreshRequest
    ) -> None:
        """Handle a sub_refresh command; the token names the channel if it does not.

        Raises:
            ReplyError: 103: there is no such subscription; 108: nobody can refresh it.
        """
        channel = request.channel
        if not self._has_sub_refresh:
            raise ReplyError(NOT_AVAILABLE)
        if channel:
            if self._subscriptions.waits(channel, (command, "sub_refresh", request)):
                return
            state = self._subscriptions.established(channel)
            if state is None:
                raise ReplyError(PERMISSION_DENIED)
            if not state.refreshable:
                raise ReplyError(NOT_AVAILABLE)
        event = SubRefreshEvent(
            identity.client, identity.user, channel, request.token, identity.meta
        )
        self._add(channel, command, event)

    def _add(self, key: Channel | None, command: int, event: _Event) -> None:
        self._queue.under_way += 1
        queue = self._waiting.setdefault(key, deque())
        queue.append((command, event))
        if len(queue) == 1:
            self._port.ask(command, event)

    # Outcomes.

    def connection_granted(self, command: int, grant: ConnectionRefresh) -> None:
        """Answer a refresh that is granted, and end what its token lists no more."""
        self.last = command
        self._refreshed(grant)
        if grant.channels is not None:
            for channel in sorted(self.of_token - grant.channels):
                self._subscriptions.remove(channel, UNSUBSCRIBE_SERVER)
        self._end(None, command, replies.refresh_reply(command, "refresh", grant.ttl))

    def subscription_granted(
        self,
        identity: Identity,
        command: int,
        event: SubRefreshEvent,
        grant: SubscriptionRefresh,
    ) -> None:
        """Answer a sub_refresh that is granted."""
        if not self._is_under_way(event):
            return  # its subscription has ended
        state = self._subscriptions.established(event.channel or grant.channel)
        if state is None or not state.refreshable:
            self._end(event.channel, command, PERMISSION_DENIED)
            return
        self._subscriptions.set_end(state, grant.end)
        if grant.info is not None:
            self._subscriptions.describe(state, identity, grant.info)
        reply = replies.refresh_reply(command, "sub_refresh", grant.ttl)
        self._end(event.channel, command, reply)

    def refused(self, command: int, event: _Event, error: ErrorReply) -> None:
        """Answer a refresh or sub_refresh that is refused.

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
                # `subscription_ended` answers; the client, which was told to subscribe
                # again, ignores that.
                self._subscriptions.remove(event.channel, UNSUBSCRIBE_EXPIRED)
                return
        self._end(event.channel, command, error)

    def subscription_ended(self, channel: Channel) -> None:
        """Refuse the sub_refreshes of a subscription that has just ended."""
        self.of_token -= {channel}
        for command, _ in self._waiting.pop(channel, ()):
            self._queue.under_way -= 1
            self._port.reply_error(command, PERMISSION_DENIED)

    def clear(self) -> None:
        """Forget all refreshes: the connection is over."""
        self._waiting.clear()

    def _is_under_way(self, event: SubRefreshEvent) -> bool:
        # By the event itself: a client may use the id of a command twice.
        queue = self._waiting.get(event.channel)
        return queue is not None and queue[0][1] is event

    def _end(self, key: Channel | None, command: int, reply: str | ErrorReply) -> None:
        queue = self._waiting[key]
        queue.popleft()
        self._queue.under_way -= 1
        if isinstance(reply, ErrorReply):
            self._port.reply_error(command, reply)
        else:
            self._port.reply(reply)
        if not queue:
            del self._waiting[key]
            return
        self._port.ask(*queue[0])
