"""Publish, history, presence and rpc commands, and their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.auth.permissions import Permissions
from service.core.errors import (
    BAD_REQUEST,
    CLOSE_NOT_AVAILABLE,
    INTERNAL,
    LIMIT_EXCEEDED,
    NOT_AVAILABLE,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE_POSITION,
    CloseError,
    ErrorReply,
    ReplyError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreTooLarge,
)
from service.core.hooks import Handlers, PublishEvent, RpcEvent
from service.core.model import (
    NO_OVERRIDE,
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Position,
    SubscriberInfo,
)
from service.core.ports import NO_HISTORY
from service.protocol import replies
from service.protocol.commands import (
    HistoryRequest,
    PingRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RpcRequest,
    SendRequest,
)
from service.session.answers import PublishGrant, RpcReturn
from service.session.command_queue import CommandQueue
from service.session.port import Identity, Port
from service.session.subscriptions import Subscriptions
from service.settings import ClientSettings

__all__ = ["Commands", "Method"]

Method = Callable[[Identity, int, Any], None]
"""Handles a command: the connection's identity, the command's id, its request."""

MAX_PRESENCE = 512 * 1024
"""Characters of a presence reply; a larger one is refused with 106. Old SDKs close on
a message over 1 MiB; presence_stats has no such limit."""


class Commands:
    """The handlers of these commands, for one connection."""

    __slots__ = (
        "_handlers",
        "_permissions",
        "_port",
        "_queue",
        "_settings",
        "_subscriptions",
    )

    def __init__(
        self,
        port: Port,
        queue: CommandQueue,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        subscriptions: Subscriptions,
    ) -> None:
        self._port = port
        self._queue = queue
        self._settings = settings
        self._permissions = permissions
        self._handlers = handlers
        self._subscriptions = subscriptions

    # Commands. Each raises ReplyError when refused.

    def publish(
        self, identity: Identity, command: int, request: PublishRequest
    ) -> None:
        """Handle a publish command."""
        channel, data = request.channel, request.data
        state = self._subscriptions.established(channel)
        if state is not None and state.override is NO_OVERRIDE:
            rules = state.rules  # the channel's own
        else:
            rules = self._permissions.rules(channel)
        if rules.runs_only:
            raise ReplyError(NOT_AVAILABLE)
        if self._handlers.publish is not None:
            self._queue.under_way += 1
            self._queue.blocked = True  # hooks may answer out of order
            self._port.ask(
                command,
                PublishEvent(
                    identity.client, identity.user, channel, data, identity.meta
                ),
            )
            return
        self._permissions.may_publish(
            rules, identity.user, subscribed=state is not None
        )
        if rules.history.size:
            self._queue.create_channel(self._port, channel)
        self._queue.under_way += 1
        draft = Draft(data, info=identity.info, delta=rules.options.delta_publish)
        self._port.publish(command, channel, draft, rules.history)

    def history(
        self, identity: Identity, command: int, request: HistoryRequest
    ) -> None:
        """Handle a history command."""
        channel, since, limit = request.channel, request.since, request.limit
        rules = self._permissions.rules(channel)
        self._permissions.may_read_history(
            rules, identity.user, subscribed=self._subscriptions.is_established(channel)
        )
        if request.reverse and since is not None and since.offset == 0:
            raise ReplyError(BAD_REQUEST)
        if self._port.refuses_read():
            raise ReplyError(TOO_MANY_REQUESTS)
        maximum = self._settings.history_limit
        self._queue.under_way += 1
        self._queue.blocked = True
        self._port.history(
            command,
            channel,
            rules.history,
            since,
            maximum if limit < 0 else min(limit, maximum),
            reverse=request.reverse,
        )

    def presence(
        self, identity: Identity, command: int, request: PresenceRequest
    ) -> None:
        """Handle a presence command."""
        self._look(identity, command, request.channel, stats=False)

    def presence_stats(
        self, identity: Identity, command: int, request: PresenceStatsRequest
    ) -> None:
        """Handle a presence_stats command."""
        self._look(identity, command, request.channel, stats=True)

    def _look(
        self, identity: Identity, command: int, channel: Channel, *, stats: bool
    ) -> None:
        self._permissions.may_see_presence(
            self._permissions.rules(channel),
            identity.user,
            subscribed=self._subscriptions.is_established(channel),
        )
        if self._port.refuses_read():
            raise ReplyError(TOO_MANY_REQUESTS)
        self._queue.under_way += 1
        self._port.present(command, channel, stats=stats)

    def rpc(self, identity: Identity, command: int, request: RpcRequest) -> None:
        """Handle an rpc command."""
        if self._handlers.rpc is None:
            raise ReplyError(NOT_AVAILABLE)
        self._queue.under_way += 1
        self._port.ask(
            command,
            RpcEvent(
                identity.client,
                identity.user,
                request.method,
                request.data,
                identity.meta,
            ),
        )

    def send(self, identity: Identity, command: int, request: SendRequest) -> None:
        """Handle a send command: there is no handler of messages, so it closes."""
        raise CloseError(CLOSE_NOT_AVAILABLE)

    def not_available(
        self, identity: Identity, command: int, request: PingRequest
    ) -> None:
        """Handle a command that this server does not offer."""
        raise ReplyError(NOT_AVAILABLE)

    # Outcomes.

    def published(self, command: int, outcome: Appended | StoreError) -> None:
        """Answer a publish."""
        self._queue.under_way -= 1
        if isinstance(outcome, StoreError):
            self._port.reply_error(command, _error_of(outcome))
        else:
            self._port.reply(replies.empty_reply(command, "publish"))

    def history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        """Answer a history that was asked for from *since*."""
        self._queue.blocked = False
        self._queue.under_way -= 1
        if isinstance(outcome, StoreError):
            self._port.reply_error(command, _error_of(outcome))
        elif since is not None and since.epoch not in ("", outcome.top.epoch):
            self._port.reply_error(command, UNRECOVERABLE_POSITION)
        else:
            self._queue.charge(len(outcome.publications))
            self._port.reply(
                replies.history_reply(command, outcome.publications, outcome.top)
            )

    def presence_read(
        self,
        command: int,
        outcome: list[SubscriberInfo] | StoreError,
        *,
        stats: bool,
    ) -> None:
        """Answer a presence or presence_stats."""
        self._queue.under_way -= 1
        if isinstance(outcome, StoreError):
            self._port.reply_error(command, _error_of(outcome))
            return
        self._queue.charge(len(outcome))
        if stats:
            users = len({one.user for one in outcome})
            self._port.reply(replies.presence_stats_reply(command, len(outcome), users))
        elif sum(len(one.info) + 48 for one in outcome) > MAX_PRESENCE:
            self._port.reply_error(command, LIMIT_EXCEEDED)
        else:
            present = [(one.client, one.info) for one in outcome]
            self._port.reply(replies.presence_reply(command, present))

    def publish_granted(
        self,
        identity: Identity,
        command: int,
        event: PublishEvent,
        grant: PublishGrant,
    ) -> None:
        """Publish what a hook allows."""
        rules = self._permissions.rules(event.channel)
        history = NO_HISTORY if grant.skip_history else rules.history
        draft = Draft(
            grant.data or event.data,
            info=identity.info,
            delta=rules.options.delta_publish,
        )
        self._queue.blocked = False
        try:
            if history.size:
                self._queue.create_channel(self._port, event.channel)
        except ReplyError as refused:
            self.rpc_refused(command, refused.error)
        else:
            self._port.publish(command, event.channel, draft, history)

    def rpc_returned(self, command: int, result: RpcReturn) -> None:
        """Answer an rpc."""
        self._queue.under_way -= 1
        self._port.reply(replies.rpc_reply(command, result.data))

    def publish_refused(self, command: int, error: ErrorReply) -> None:
        """Answer a publish that a hook refuses."""
        self._queue.blocked = False
        self.rpc_refused(command, error)

    def rpc_refused(self, command: int, error: ErrorReply) -> None:
        """Answer an rpc that a hook refuses."""
        self._queue.under_way -= 1
        self._port.reply_error(command, error)


def _error_of(error: StoreError) -> ErrorReply:
    if isinstance(error, StoreTooLarge):
        return BAD_REQUEST
    busy = isinstance(error, StoreBusy | StoreFull)
    return TOO_MANY_REQUESTS if busy else INTERNAL
