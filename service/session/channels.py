"""The channels of one connection: subscribe, unsubscribe, recovery, from either side.

A channel is *pending* from its subscribe to the outcome, then *established*. While it
is pending, the client's further subscribe, unsubscribe and sub_refresh commands for it
wait, since clients pipeline them; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable

from service.auth.permissions import ChannelRules, Decider, Permissions
from service.core.errors import (
    ALREADY_SUBSCRIBED,
    INTERNAL,
    LIMIT_EXCEEDED,
    UNRECOVERABLE_POSITION,
    ErrorReply,
    ReplyError,
    StoreError,
)
from service.core.hooks import Handlers, SubscribeEvent, SubscribeResult
from service.core.model import (
    Channel,
    Joined,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
)
from service.payload import dump_optional
from service.protocol import replies
from service.protocol.commands import Command, SubscribeRequest, UnsubscribeRequest
from service.session.entry import ChannelState, PendingSubscribe
from service.session.expiry import NEVER, Expiry
from service.session.port import CommandQueue, Identity, Port
from service.session.subscriptions import Subscriptions
from service.settings import ClientSettings

__all__ = ["Channels"]


class Channels(Subscriptions):
    """The channels of one connection.

    Args:
        port: The session's.
        work: The session's.
        settings: Limits.
        permissions: Decides.
        handlers: Decide about subscribes, where they are.
        expiry: The session's.
        left: As of `Subscriptions`.
    """

    def __init__(
        self,
        port: Port,
        work: CommandQueue,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        expiry: Expiry,
        left: Callable[[Channel], None],
    ) -> None:
        super().__init__(port, left)
        self._work = work
        self._settings = settings
        self._permissions = permissions
        self._verified = handlers.subscribe_token is not None
        self._hook = handlers.subscribe is not None
        self._expiry = expiry

    # Commands.

    def subscribe(
        self, identity: Identity, command: int, request: SubscribeRequest
    ) -> None:
        """Handle a subscribe command.

        Raises:
            ReplyError: It is refused.
        """
        channel = request.channel
        if self.waits(channel, (command, "subscribe", request)):
            return
        if channel in self._entries:
            raise ReplyError(ALREADY_SUBSCRIBED)
        rules = self._permissions.rules(channel)
        decider = self._permissions.may_subscribe(
            rules,
            channel,
            identity.user,
            token=request.token != "",
            verified=self._verified,
            hook=self._hook,
        )
        if len(self._entries) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        pending = PendingSubscribe(
            request.since,
            lambda result: self._reply(command, result),
            reject_unrecovered=request.reject_unrecovered,
            positioned=request.positioned,
            hears_joins=request.join_leave,
        )
        self._entries[channel] = entry = ChannelState(rules, pending, server=False)
        self._work.under_way += 1
        if decider is Decider.NOBODY:
            self._join(identity, channel, entry)
            return
        self._port.ask(
            command,
            SubscribeEvent(
                identity.client,
                identity.user,
                channel,
                request.token,
                request.data,
                identity.meta,
            ),
        )

    def admitted(
        self, identity: Identity, channel: Channel, answer: SubscribeResult, now: float
    ) -> None:
        """Go on with a subscribe that a token or a hook lets in.

        Raises:
            Exception: What it answered is of the wrong types; nothing was done.
        """
        entry = self._entries[channel]
        info, data = dump_optional(answer.info), dump_optional(answer.data)
        rules = entry.rules.changed(answer.override)
        ends = self._expiry.unsubscribe_at(answer.expire_at, now)
        ttl = self._expiry.ttl(answer.expire_at, now)
        pending = entry.pending
        assert pending is not None
        if answer.client_side_refresh:
            pending.ttl = ttl
            entry.refreshes = True
        entry.rules, entry.info, entry.data, entry.ends = rules, info, data, ends
        self._join(identity, channel, entry)

    def refused(self, channel: Channel, error: ErrorReply) -> None:
        """End a subscribe that a token or a hook refuses."""
        pending = self._entries.pop(channel).pending
        assert pending is not None
        pending.outcome(error)
        self._take_up(pending)

    def unsubscribe(
        self, identity: Identity, command: int, request: UnsubscribeRequest
    ) -> None:
        """Handle an unsubscribe command."""
        channel = request.channel
        if self.waits(channel, (command, "unsubscribe", request)):
            return
        if channel in self._entries:
            del self._entries[channel]
            self._port.leave(channel)
            self._left(channel)
        self._port.reply(replies.empty_reply(command, "unsubscribe"))

    def waits(self, channel: Channel, command: Command) -> bool:
        """Queue a command behind the subscribe of its channel that is under way.

        Returns:
            False if none is: it has to be handled now.
        """
        entry = self._entries.get(channel)
        if entry is None or entry.pending is None:
            return False
        self._work.under_way += 1
        entry.pending.waiting.append(command)
        return True

    # The server's side.

    def add_and_tell(
        self,
        identity: Identity,
        channel: Channel,
        since: Position | None,
        *,
        info: RawJson | None = None,
        data: RawJson | None = None,
        rules: ChannelRules | None = None,
        ends: float = NEVER,
        done: Callable[[ErrorReply | None], None] = lambda error: None,
    ) -> None:
        """Subscribe on the server's side and push that to the client.

        *done* is called once, unless the connection ends first.

        Raises:
            ReplyError: As `add`.
        """

        def outcome(result: str | ErrorReply) -> None:
            if isinstance(result, str):
                self._port.reply(replies.subscribe_push(replies.quote(channel), result))
            done(None if isinstance(result, str) else result)

        if self.add(
            identity,
            channel,
            since,
            outcome,
            info=info,
            data=data,
            rules=rules,
            ends=ends,
        ):
            return
        entry = self._entries[channel]
        if entry.server:
            self.ends(entry, ends)
        if entry.pending is None:
            done(None)
        else:
            entry.pending.also(done)

    def add(
        self,
        identity: Identity,
        channel: Channel,
        asked: Position | None,
        outcome: Callable[[str | ErrorReply], None],
        *,
        held: bool = False,
        info: RawJson | None = None,
        data: RawJson | None = None,
        rules: ChannelRules | None = None,
        ends: float = NEVER,
    ) -> bool:
        """Subscribe on the server's side; *outcome* is told the result to write.

        Returns:
            False if it is subscribed or about to be: nothing is done.

        Raises:
            ReplyError: 102 or 107, from the name; 106 over the limit.
        """
        if channel in self._entries:
            return False
        rules = rules or self._permissions.rules(channel)
        if len(self._entries) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        pending = PendingSubscribe(asked, outcome, positioned=True)
        pending.pushed = not held
        self._entries[channel] = entry = ChannelState(rules, pending, server=True)
        entry.data, entry.info, entry.ends = data, info, ends
        self._work.under_way += 1
        self._join(identity, channel, entry, held=held)
        return True

    # Outcomes.

    def _join(
        self,
        identity: Identity,
        channel: Channel,
        entry: ChannelState,
        *,
        held: bool = False,
    ) -> None:
        pending, rules = entry.pending, entry.rules
        assert pending is not None
        decide, user = self._permissions, identity.user
        asked = pending.positioned
        entry.recoverable = decide.is_recoverable(rules, user, asked=asked)
        entry.positioned = entry.recoverable or decide.is_positioned(
            rules, user, asked=asked
        )
        if not entry.recoverable:
            pending.asked = None
        options = rules.options
        entry.listener = listener = SubscriberInfo(
            identity.client,
            user,
            identity.in_channel(entry.info),
            present=options.presence,
            sends_join_leave=options.join_leave,
            receives_join_leave=decide.hears_joins(
                rules, user, asked=pending.hears_joins
            ),
            positioned=entry.positioned,
        )
        self._port.join(channel, listener, rules.history, pending.asked, held=held)

    def joined(self, channel: Channel, outcome: Joined | StoreError) -> bool:
        """Establish a subscription; False when it is not wanted after all."""
        entry = self._entries[channel]
        pending = entry.pending
        assert pending is not None
        wanted = False
        if isinstance(outcome, StoreError):
            del self._entries[channel]
            pending.outcome(INTERNAL)
        elif (
            pending.reject_unrecovered
            and pending.asked is not None
            and outcome.recovered is None
        ):
            del self._entries[channel]
            pending.outcome(UNRECOVERABLE_POSITION)
        else:
            wanted = True
            entry.pending = None
            follow: list[Publication] = []
            if pending.pushed and outcome.recovered:
                follow, outcome = outcome.recovered, Joined(outcome.top, [])
            pending.outcome(
                replies.subscribe_result(
                    outcome,
                    asked=pending.asked,
                    recoverable=entry.recoverable,
                    positioned=entry.positioned,
                    data=entry.data,
                    ttl=pending.ttl,
                )
            )
            entry.data = None
            for publication in follow:
                push = replies.publication_push(replies.quote(channel), publication)
                self._port.reply(push)
            self.ends(entry, entry.ends)
            if pending.removal is not None:
                self.remove(channel, pending.removal)
        self._take_up(pending)
        return wanted and channel in self._entries

    def _take_up(self, pending: PendingSubscribe) -> None:
        self._work.under_way -= 1
        self._work.put_back(pending.waiting)

    def _reply(self, command: int, result: str | ErrorReply) -> None:
        if isinstance(result, ErrorReply):
            self._port.reply_error(command, result)
        else:
            self._port.reply(replies.subscribe_reply(command, result))
