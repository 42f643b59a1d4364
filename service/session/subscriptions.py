"""Subscriptions of one connection: subscribe, unsubscribe, recovery and expiry.

A channel is *pending* from its subscribe to the outcome, then *established*. While it
is pending, the client's further subscribe, unsubscribe and sub_refresh commands for it
wait, since clients pipeline them; nothing else does.

A subscription may expire. One time is kept for all of a connection: the earliest at
which one may end. It is not moved later when a subscription is refreshed, only found to
be too early: so a refresh costs nothing, and the channels are searched when one ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from service.auth.permissions import ChannelRules, Decider, Permissions
from service.core.errors import (
    ALREADY_SUBSCRIBED,
    INSUFFICIENT_STATE,
    INTERNAL,
    LIMIT_EXCEEDED,
    SUBSCRIPTION_EXPIRED,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE_POSITION,
    UNSUBSCRIBE_EXPIRED,
    UNSUBSCRIBE_INSUFFICIENT,
    Close,
    CloseError,
    ErrorReply,
    ReplyError,
    StoreError,
    Unsubscribe,
)
from service.core.hooks import Handlers, SubscribeEvent
from service.core.model import (
    NO_OVERRIDE,
    Channel,
    Joined,
    Override,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
)
from service.protocol import replies
from service.protocol.commands import Command, SubscribeRequest, UnsubscribeRequest
from service.session.answers import SubscribeGrant
from service.session.command_queue import CommandQueue
from service.session.expiry import NEVER, Expiry
from service.session.port import Identity, Port
from service.session.record import ChannelRecord
from service.settings import ClientSettings

__all__ = ["Subscriptions"]


class PendingSubscribe:
    """A subscribe under way.

    Attributes:
        since: The position to recover from; None for no recovery.
        outcome: Called with the result to write, or with the refusal.
        reject_unrecovered: Refuse with 112 if the gap cannot be filled.
        positioned: The client wants its position checked.
        join_leave: The client wants to be told of joins and leaves.
        delta: The kind of deltas that the client takes; "" for none.
        pushed: The client is told by a push, in which SDKs look for no publications.
        removal: The server has unsubscribed the client meanwhile; None if not.
        ttl: Seconds that the reply tells the client to refresh in; None for none.
        command: The id of the client's command, 0 for the server's.
        replaces: A subscription that was restored is there until its outcome.
        waiting: Commands for the channel that came meanwhile, in order.
    """

    __slots__ = (
        "command",
        "delta",
        "join_leave",
        "outcome",
        "positioned",
        "pushed",
        "reject_unrecovered",
        "removal",
        "replaces",
        "since",
        "ttl",
        "waiting",
    )

    def __init__(
        self,
        since: Position | None,
        outcome: Callable[[str | ErrorReply], None],
        *,
        positioned: bool,
        command: int = 0,
        replaces: bool = False,
        reject_unrecovered: bool = False,
        join_leave: bool = False,
        delta: str = "",
        pushed: bool = False,
    ) -> None:
        self.since = since
        self.outcome = outcome
        self.positioned = positioned
        self.command = command
        self.replaces = replaces
        self.reject_unrecovered = reject_unrecovered
        self.join_leave = join_leave
        self.delta = delta
        self.pushed = pushed
        self.removal: Unsubscribe | None = None
        self.ttl: int | None = None
        self.waiting: deque[Command] = deque()

    def also(self, done: Callable[[ErrorReply | None], None]) -> None:
        """Call *done* with the outcome too: None, or the refusal."""
        first = self.outcome

        def outcome(result: str | ErrorReply) -> None:
            first(result)
            done(result if isinstance(result, ErrorReply) else None)

        self.outcome = outcome


class ChannelState:
    """One channel of one connection.

    Attributes:
        rules: The channel's, with the overrides of this subscription.
        override: Those overrides.
        server: Subscribed on the server's side.
        pending: The subscribe under way, None once established.
        recoverable: Recovery was granted.
        positioned: The check of the position was granted.
        data: The payload of the reply, until it is written.
        info: Shown to others in this channel alone.
        subscriber: The client as the hub knows it, once it has joined.
        end: When the subscription expires, as `Clock.now`.
        recalled: Restored: the client may have left the channel since.
        refreshable: The client may refresh it, and was told when it expires.
    """

    __slots__ = (
        "data",
        "end",
        "info",
        "override",
        "pending",
        "positioned",
        "recalled",
        "recoverable",
        "refreshable",
        "rules",
        "server",
        "subscriber",
    )

    def __init__(
        self, rules: ChannelRules, pending: PendingSubscribe | None, *, server: bool
    ) -> None:
        self.rules = rules
        self.override = NO_OVERRIDE
        self.pending = pending
        self.server = server
        self.recoverable = False
        self.positioned = False
        self.data: RawJson | None = None
        self.info: RawJson | None = None
        self.subscriber: SubscriberInfo | None = None
        self.end = NEVER
        self.recalled = False
        self.refreshable = False


class Subscriptions:
    """The channels of one connection, pending and established.

    Args:
        port: The session's.
        queue: The session's.
        settings: Limits.
        permissions: Decide what needs no hook.
        handlers: Decide about subscribes, where they are.
        ended: Called with each channel whose subscription ends before the connection
            does, after the client was told.
        deltas: Whoever delivers can make deltas.

    Attributes:
        next_end: When the first subscription may expire, as `Clock.now`.
    """

    def __init__(
        self,
        port: Port,
        queue: CommandQueue,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        ended: Callable[[Channel], None],
        *,
        deltas: bool = True,
    ) -> None:
        self._deltas = deltas
        self._port = port
        self._queue = queue
        self._settings = settings
        self._permissions = permissions
        self._verified = handlers.subscribe_token is not None
        self._hook = handlers.subscribe is not None
        self._ended = ended
        self._channels: dict[Channel, ChannelState] = {}
        self.next_end = NEVER

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._channels

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def is_established(self, channel: Channel) -> bool:
        """Tell whether *channel* is subscribed to, and not only about to be."""
        return self.established(channel) is not None

    def established(self, channel: Channel) -> ChannelState | None:
        """Return the state of *channel*; None unless it is established."""
        state = self._channels.get(channel)
        return None if state is None or state.pending is not None else state

    def clear(self) -> None:
        """Forget all channels: the connection is over."""
        self._channels.clear()
        self.next_end = NEVER

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
        known = self._channels.get(channel)
        if known is not None:
            if known.server or not known.recalled:
                raise ReplyError(ALREADY_SUBSCRIBED)
            # An unsubscribe before it may not have come yet: the port knows better.
            del self._channels[channel]
        if self._port.draining:
            raise ReplyError(TOO_MANY_REQUESTS, reason="draining")
        rules = self._permissions.rules(channel)
        decider = self._permissions.may_subscribe(
            rules,
            channel,
            identity.user,
            token=request.token != "",
            verified=self._verified,
            hook=self._hook,
        )
        if len(self._channels) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        pending = PendingSubscribe(
            request.since,
            lambda result: self._reply(command, result),
            command=command,
            replaces=known is not None,
            positioned=request.positioned,
            reject_unrecovered=request.reject_unrecovered,
            join_leave=request.join_leave,
            delta=request.delta,
        )
        self._channels[channel] = state = ChannelState(rules, pending, server=False)
        self._queue.under_way += 1
        if decider is Decider.NOBODY:
            self._join(identity, channel, state, pending)
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

    def unsubscribe(
        self, identity: Identity, command: int, request: UnsubscribeRequest
    ) -> None:
        """Handle an unsubscribe command."""
        channel = request.channel
        if self.waits(channel, (command, "unsubscribe", request)):
            return
        known = self._channels.pop(channel, None) is not None
        self._port.leave(channel, command)
        if known:
            self._ended(channel)
        self._port.reply(replies.empty_reply(command, "unsubscribe"))

    def waits(self, channel: Channel, command: Command) -> bool:
        """Queue a command behind the subscribe of its channel that is under way.

        Returns:
            False if none is under way: the command is to be handled now.
        """
        state = self._channels.get(channel)
        if state is None or state.pending is None:
            return False
        self._queue.under_way += 1
        state.pending.waiting.append(command)
        return True

    def granted(
        self, identity: Identity, channel: Channel, grant: SubscribeGrant
    ) -> None:
        """Go on with a subscribe that a token or a hook allows."""
        state = self._channels[channel]
        pending = state.pending
        assert pending is not None
        pending.ttl = grant.ttl
        state.refreshable = grant.refreshable
        state.rules = state.rules.changed(grant.override)
        state.override = grant.override
        state.info, state.data, state.end = grant.info, grant.data, grant.end
        self._join(identity, channel, state, pending)

    def refused(self, channel: Channel, error: ErrorReply) -> None:
        """End a subscribe that a token or a hook refuses."""
        pending = self._channels.pop(channel).pending
        assert pending is not None
        if pending.replaces:
            self._port.leave(channel, pending.command)
        pending.outcome(error)
        self._take_up(pending)

    def superseded(self, channel: Channel) -> None:
        """Forget a subscribe that a later command has overtaken: nobody is answered."""
        pending = self._channels.pop(channel).pending
        assert pending is not None
        self._take_up(pending)

    def _reply(self, command: int, result: str | ErrorReply) -> None:
        if isinstance(result, ErrorReply):
            self._port.reply_error(command, result)
        else:
            self._port.reply(replies.subscribe_reply(command, result))

    # The record of a session.

    def record(
        self, expiry: Expiry, of_token: frozenset[Channel]
    ) -> dict[str, ChannelRecord]:
        """Return the records of the channels that are established."""
        return {
            channel: self._record_of(state, expiry, of_token=channel in of_token)
            for channel, state in self._channels.items()
            if state.pending is None
        }

    def record_of(
        self, channel: Channel, expiry: Expiry, *, of_token: bool
    ) -> ChannelRecord:
        """Return the record of a channel, also of one whose subscribe is under way."""
        return self._record_of(self._channels[channel], expiry, of_token=of_token)

    @staticmethod
    def _record_of(
        state: ChannelState, expiry: Expiry, *, of_token: bool
    ) -> ChannelRecord:
        subscriber = state.subscriber
        assert subscriber is not None
        return ChannelRecord(
            server=state.server,
            of_token=of_token,
            positioned=state.positioned,
            recoverable=state.recoverable,
            hears_joins=subscriber.receives_join_leave,
            delta=subscriber.delta,
            info=state.info,
            refreshable=state.refreshable,
            end=expiry.unix(state.end),
            override=state.override.changes(),
        )

    def restore(
        self,
        identity: Identity,
        channel: Channel,
        record: ChannelRecord,
        expiry: Expiry,
    ) -> None:
        """Take up a channel from its record; not if it has no namespace any more."""
        try:
            rules = self._permissions.rules(channel).changed(record.overridden)
        except ReplyError:
            return
        self._channels[channel] = state = ChannelState(
            rules, None, server=record.server
        )
        state.override = record.overridden
        state.recalled = True
        state.positioned = record.positioned
        state.recoverable = record.recoverable
        state.info = record.chan_info
        state.refreshable = record.refreshable
        state.subscriber = SubscriberInfo(
            identity.client,
            identity.user,
            identity.in_channel(state.info),
            present=rules.options.presence,
            sends_join_leave=rules.options.join_leave,
            receives_join_leave=record.hears_joins,
            positioned=record.positioned,
            delta=record.delta,
        )
        self.set_end(state, expiry.time(record.end))

    # Server-side subscriptions.

    def add_and_push(
        self,
        identity: Identity,
        channel: Channel,
        since: Position | None,
        *,
        info: RawJson | None = None,
        data: RawJson | None = None,
        override: Override = NO_OVERRIDE,
        end: float = NEVER,
        done: Callable[[ErrorReply | None], None] = lambda error: None,
    ) -> None:
        """Subscribe the client on the server's side and push that to it.

        A subscription that is there already only gets another *end*. *done* is called
        once, with None or the refusal, unless the connection ends first.

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
            pushed=True,
            info=info,
            data=data,
            override=override,
            end=end,
        ):
            return
        state = self._channels[channel]
        if state.server:
            self.set_end(state, end)
        if state.pending is None:
            done(None)
        else:
            state.pending.also(done)

    def add(
        self,
        identity: Identity,
        channel: Channel,
        since: Position | None,
        outcome: Callable[[str | ErrorReply], None],
        *,
        pushed: bool,
        info: RawJson | None = None,
        data: RawJson | None = None,
        override: Override = NO_OVERRIDE,
        end: float = NEVER,
    ) -> bool:
        """Subscribe the client on the server's side.

        Args:
            identity: The connection's.
            channel: The channel.
            since: The position to recover from; None for no recovery.
            outcome: Called with the result to write, or with the refusal.
            pushed: *outcome* writes a push. Otherwise it writes a connect reply, and
                pushes are held back until `Port.activate`.
            info: Shown to others in this channel.
            data: A payload for the client.
            override: Options of the channel that are different.
            end: When the subscription expires, as `Clock.now`.

        Returns:
            False if it is subscribed or about to be: nothing is done.

        Raises:
            ReplyError: 102 or 107, from the name; 106 over the limit; 111 while the
                process drains.
        """
        if channel in self._channels:
            return False
        if self._port.draining:
            raise ReplyError(TOO_MANY_REQUESTS, reason="draining")
        rules = self._permissions.rules(channel).changed(override)
        if len(self._channels) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        pending = PendingSubscribe(since, outcome, positioned=True, pushed=pushed)
        self._channels[channel] = state = ChannelState(rules, pending, server=True)
        state.override = override
        state.data, state.info, state.end = data, info, end
        self._queue.under_way += 1
        self._join(identity, channel, state, pending, held=not pushed)
        return True

    # The join at the hub, and its outcome.

    def _join(
        self,
        identity: Identity,
        channel: Channel,
        state: ChannelState,
        pending: PendingSubscribe,
        *,
        held: bool = False,
    ) -> None:
        permissions, rules, user = self._permissions, state.rules, identity.user
        wanted = pending.positioned
        state.recoverable = permissions.is_recoverable(rules, user, asked=wanted)
        state.positioned = state.recoverable or permissions.is_positioned(
            rules, user, asked=wanted
        )
        if not state.recoverable:
            pending.since = None
        if wanted and not state.server and not state.positioned:
            permissions.recovery_refused(rules)
        options = rules.options
        state.subscriber = subscriber = SubscriberInfo(
            identity.client,
            user,
            identity.in_channel(state.info),
            present=options.presence,
            sends_join_leave=options.join_leave,
            receives_join_leave=permissions.hears_joins(
                rules, user, asked=pending.join_leave
            ),
            positioned=state.positioned,
            delta=self._deltas and pending.delta in options.allowed_delta_types,
        )
        self._port.join(
            channel,
            subscriber,
            rules.history,
            pending.since,
            held=held,
            command=pending.command,
        )

    def joined(self, channel: Channel, outcome: Joined | StoreError) -> bool:
        """Establish a subscription; False when it is not wanted after all."""
        state = self._channels[channel]
        pending = state.pending
        assert pending is not None
        refusal: ErrorReply | None = None
        if isinstance(outcome, StoreError):
            refusal = INTERNAL
        elif (
            pending.reject_unrecovered
            and pending.since is not None
            and outcome.recovered is None
        ):
            refusal = UNRECOVERABLE_POSITION
        else:
            state.pending = None
            self._establish(channel, state, pending, outcome)
        if refusal is not None:
            del self._channels[channel]
            pending.outcome(refusal)
        self._take_up(pending)
        return refusal is None and channel in self._channels

    def _establish(
        self,
        channel: Channel,
        state: ChannelState,
        pending: PendingSubscribe,
        outcome: Joined,
    ) -> None:
        follow: list[Publication] = []
        if pending.pushed and outcome.recovered:
            follow, outcome = outcome.recovered, Joined(outcome.top, [])
        pending.outcome(
            replies.subscribe_result(
                outcome,
                asked=pending.since,
                recoverable=state.recoverable,
                positioned=state.positioned,
                data=state.data,
                ttl=pending.ttl,
                delta=state.subscriber is not None and state.subscriber.delta,
            )
        )
        state.data = None
        for publication in follow:
            push = replies.publication_push(replies.quote(channel), publication)
            self._port.reply(push)
        self.set_end(state, state.end)
        if pending.removal is not None:
            self.remove(channel, pending.removal)

    def _take_up(self, pending: PendingSubscribe) -> None:
        self._queue.under_way -= 1
        self._queue.put_back(pending.waiting)

    # The info that other clients see.

    def describe(
        self, state: ChannelState, identity: Identity, info: RawJson | None
    ) -> None:
        """Show *info* to others in one channel; None for what was shown before."""
        if info is not None:
            state.info = info
        if state.subscriber is not None:
            state.subscriber.info = identity.in_channel(state.info)

    def describe_all(self, identity: Identity) -> None:
        """Show to others, in every channel, what *identity* says now."""
        for state in self._channels.values():
            self.describe(state, identity, None)

    # Ends.

    def remove(self, channel: Channel, code: Unsubscribe) -> bool:
        """Take the client out of a channel and tell it; False if it is not there."""
        state = self._channels.get(channel)
        if state is None:
            return False
        if state.pending is not None:
            state.pending.removal = code  # once the client knows of the subscription
            return True
        del self._channels[channel]
        self._port.leave(channel)
        self._port.reply(replies.unsubscribe_push(replies.quote(channel), code))
        self._ended(channel)
        return True

    def lost(self, channel: Channel) -> None:
        """Tell the client that a subscription has a gap; it then subscribes again.

        Raises:
            CloseError: The subscription is the server's: the client gets it again only
                when it connects again.
        """
        state = self._channels.pop(channel)
        if state.pending is not None:
            raise AssertionError("only an established subscription can be lost")
        if state.server:
            raise CloseError(INSUFFICIENT_STATE)
        self._port.reply(
            replies.unsubscribe_push(replies.quote(channel), UNSUBSCRIBE_INSUFFICIENT)
        )
        self._ended(channel)

    def set_end(self, state: ChannelState, end: float) -> None:
        """Let a subscription expire at *end*, as `Clock.now`."""
        state.end = end
        if state.pending is None and end < self.next_end:
            self.next_end = end

    def tick(self, now: float) -> Close | None:
        """End what has expired by *now*.

        Returns:
            The close of the connection, if a server-side subscription has expired: the
            client gets it again only when it connects again.
        """
        if now < self.next_end:
            return None
        self.next_end = NEVER
        for channel, state in tuple(self._channels.items()):
            if state.pending is not None:
                continue  # `_establish` looks at its end
            if now < state.end:
                self.next_end = min(self.next_end, state.end)
            elif state.server:
                return SUBSCRIPTION_EXPIRED
            else:
                self.remove(channel, UNSUBSCRIBE_EXPIRED)
        return None
