"""The commands that act on channels without belonging to them, and their outcomes.

Publish, history, presence and rpc. Subscribing is in `channels`, connecting and the
life of the connection in `connection`.
"""

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
)
from service.core.hooks import (
    Handlers,
    PublishEvent,
    PublishResult,
    RpcEvent,
    RpcResult,
)
from service.core.model import (
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Position,
    SubscriberInfo,
)
from service.core.ports import NO_HISTORY
from service.payload import dump_optional
from service.protocol import replies
from service.protocol.commands import (
    HistoryRequest,
    PingRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RpcRequest,
    SendRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from service.session.channels import Channels
from service.session.port import CommandQueue, Identity, Port
from service.settings import ClientSettings

__all__ = ["Commands", "Method"]

Method = Callable[[Identity, int, Any], None]
"""Handles one command: who gave it, its id, the request of the method's type."""

PRESENCE_SIZE = 512 * 1024
"""Characters of a presence reply; a larger one is refused with 106. Old SDKs close on
a message over 1 MiB; presence_stats has no such limit."""


class Commands:
    """The commands of one connection that has connected as *identity*."""

    def __init__(
        self,
        port: Port,
        work: CommandQueue,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        channels: Channels,
    ) -> None:
        self._port = port
        self._work = work
        self._settings = settings
        self._permissions = permissions
        self._handlers = handlers
        self._channels = channels

    def methods(self) -> dict[type[Any], Method]:
        """Return what handles each command of a client that has connected."""
        return {
            PublishRequest: self.publish,
            SubscribeRequest: self._channels.subscribe,
            UnsubscribeRequest: self._channels.unsubscribe,
            HistoryRequest: self.history,
            PresenceRequest: self.presence,
            PresenceStatsRequest: self.presence_stats,
            RpcRequest: self.rpc,
            SendRequest: self.send,
            PingRequest: self.not_available,
        }

    # Commands. Each raises ReplyError when refused.

    def publish(
        self, identity: Identity, command: int, request: PublishRequest
    ) -> None:
        """Handle a publish command."""
        channel, data = request.channel, request.data
        rules = self._permissions.rules(channel)
        if self._handlers.publish is not None:
            self._work.under_way += 1
            self._work.blocked = True  # hooks may answer out of order
            self._port.ask(
                command,
                PublishEvent(
                    identity.client, identity.user, channel, data, identity.meta
                ),
            )
            return
        subscribed = self._channels.is_established(channel)
        self._permissions.may_publish(rules, identity.user, subscribed=subscribed)
        self._work.under_way += 1
        self._port.publish(
            command, channel, Draft(data, info=identity.info), rules.history
        )

    def history(
        self, identity: Identity, command: int, request: HistoryRequest
    ) -> None:
        """Handle a history command."""
        channel, since, limit = request.channel, request.since, request.limit
        rules = self._permissions.rules(channel)
        self._permissions.may_read_history(
            rules, identity.user, subscribed=self._channels.is_established(channel)
        )
        if request.reverse and since is not None and since.offset == 0:
            raise ReplyError(BAD_REQUEST)
        most = self._settings.history_limit
        self._work.under_way += 1
        self._work.blocked = True
        self._port.history(
            command,
            channel,
            rules.history,
            since,
            most if limit < 0 else min(limit, most),
            reverse=request.reverse,
        )

    def presence(
        self, identity: Identity, command: int, request: PresenceRequest
    ) -> None:
        """Handle a presence command."""
        present = self._present(identity, request.channel)
        if sum(len(one.info) + 48 for one in present) > PRESENCE_SIZE:
            raise ReplyError(LIMIT_EXCEEDED)
        self._port.reply(
            replies.presence_reply(command, [(one.client, one.info) for one in present])
        )

    def presence_stats(
        self, identity: Identity, command: int, request: PresenceStatsRequest
    ) -> None:
        """Handle a presence_stats command."""
        present = self._present(identity, request.channel)
        users = len({one.user for one in present})
        self._port.reply(replies.presence_stats_reply(command, len(present), users))

    def _present(self, identity: Identity, channel: Channel) -> list[SubscriberInfo]:
        self._permissions.may_see_presence(
            self._permissions.rules(channel),
            identity.user,
            subscribed=self._channels.is_established(channel),
        )
        present = self._port.present(channel)
        self._work.charge(len(present))
        return present

    def rpc(self, identity: Identity, command: int, request: RpcRequest) -> None:
        """Handle an rpc command."""
        if self._handlers.rpc is None:
            raise ReplyError(NOT_AVAILABLE)
        self._work.under_way += 1
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
        """Handle a send command: nobody receives it."""
        raise CloseError(CLOSE_NOT_AVAILABLE)

    def not_available(
        self, identity: Identity, command: int, request: PingRequest
    ) -> None:
        """Handle a command of the protocol that is switched off."""
        raise ReplyError(NOT_AVAILABLE)

    # Outcomes.

    def published(self, command: int, outcome: Appended | StoreError) -> None:
        """Answer a publish."""
        self._work.under_way -= 1
        if isinstance(outcome, StoreError):
            self._refuse(command, _transient(outcome))
        else:
            self._port.reply(replies.empty_reply(command, "publish"))

    def history_read(
        self, command: int, since: Position | None, outcome: HistoryPage | StoreError
    ) -> None:
        """Answer a history that was asked for from *since*."""
        self._work.blocked = False
        self._work.under_way -= 1
        if isinstance(outcome, StoreError):
            self._refuse(command, _transient(outcome))
        elif since is not None and since.epoch not in ("", outcome.top.epoch):
            self._refuse(command, UNRECOVERABLE_POSITION)
        else:
            self._work.charge(len(outcome.publications))
            self._port.reply(
                replies.history_reply(command, outcome.publications, outcome.top)
            )

    def publish_allowed(
        self,
        identity: Identity,
        command: int,
        event: PublishEvent,
        answer: PublishResult,
    ) -> None:
        """Publish what a hook lets through."""
        data = dump_optional(answer.data) or event.data
        history = self._permissions.rules(event.channel).history
        if answer.skip_history:
            history = NO_HISTORY
        draft = Draft(data, info=identity.info)
        self._work.blocked = False
        self._port.publish(command, event.channel, draft, history)

    def rpc_returned(self, command: int, answer: RpcResult) -> None:
        """Answer an rpc."""
        text = replies.rpc_reply(command, dump_optional(answer.data))
        self._work.under_way -= 1
        self._port.reply(text)

    def publish_refused(self, command: int, error: ErrorReply) -> None:
        """Answer a publish that a hook refuses."""
        self._work.blocked = False
        self.rpc_refused(command, error)

    def rpc_refused(self, command: int, error: ErrorReply) -> None:
        """Answer an rpc that a hook refuses."""
        self._work.under_way -= 1
        self._refuse(command, error)

    def _refuse(self, command: int, error: ErrorReply) -> None:
        self._port.reply_error(command, error)


def _transient(error: StoreError) -> ErrorReply:
    return TOO_MANY_REQUESTS if isinstance(error, StoreBusy) else INTERNAL
