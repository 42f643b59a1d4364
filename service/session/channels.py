"""The channels of one connection: subscribe, unsubscribe, recovery, from either side.

A channel is *pending* from its subscribe to the outcome, then *established*. While it
is pending, the client's further subscribe and unsubscribe commands for it wait, since
clients pipeline them; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from service.errors import (
    ALREADY_SUBSCRIBED,
    BAD_REQUEST,
    INSUFFICIENT_STATE,
    INTERNAL,
    LIMIT_EXCEEDED,
    UNRECOVERABLE_POSITION,
    UNSUBSCRIBE_INSUFFICIENT,
    CloseError,
    ErrorReply,
    ReplyError,
    StoreError,
    Unsubscribe,
)
from service.handlers import SubscribeEvent
from service.model import Channel, Joined, Listener, Position, RawJson
from service.permissions import ChannelRules, Permissions
from service.protocol import json as wire
from service.session.entry import Entry, Pending, channel_of
from service.session.port import Identity, Port, Work
from service.settings import ClientSettings

__all__ = ["Channels"]

REJECT_UNRECOVERED = 2  # bit of subscribe.flag: error 112 instead of recovered:false


class Channels:
    """The channels of one connection.

    Args:
        port: The session's.
        work: The session's.
        settings: Limits.
        permissions: Decides.
        asks: Whether a hook decides about subscribes.
    """

    def __init__(
        self,
        port: Port,
        work: Work,
        settings: ClientSettings,
        permissions: Permissions,
        *,
        asks: bool,
    ) -> None:
        self._port = port
        self._work = work
        self._settings = settings
        self._permissions = permissions
        self._asks = asks
        self._entries: dict[Channel, Entry] = {}

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._entries

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def is_established(self, channel: Channel) -> bool:
        """Tell whether *channel* is subscribed to, and not only about to be."""
        entry = self._entries.get(channel)
        return entry is not None and entry.pending is None

    def clear(self) -> None:
        """Forget all: the connection is over."""
        self._entries.clear()

    # Commands.

    def subscribe(
        self, identity: Identity, command: int, fields: dict[str, Any]
    ) -> None:
        """Handle a subscribe command.

        Raises:
            ReplyError: It is refused.
            CloseError: It has no channel.
            CodecError: A field has the wrong type.
        """
        channel = channel_of(fields)
        pending = Pending(
            wire.position(fields) if wire.boolean(fields, "recover") else None,
            lambda result: self._reply(command, result),
            flag=wire.integer(fields, "flag"),
            positioned=wire.boolean(fields, "positioned")
            or wire.boolean(fields, "recoverable")
            or wire.boolean(fields, "recover"),
            hears_joins=wire.boolean(fields, "join_leave"),
        )
        token, data = wire.text(fields, "token"), wire.raw(fields, "data")
        if fields.get("tf") is not None:
            raise ReplyError(BAD_REQUEST)  # tags filters are not there
        entry = self._entries.get(channel)
        if entry is not None:
            if self._wait(entry, (command, "subscribe", fields)):
                return
            raise ReplyError(ALREADY_SUBSCRIBED)
        rules = self._permissions.rules(channel)
        if self._asks:
            self._permissions.refuse_private(channel)
        else:
            self._permissions.may_subscribe(rules, channel, identity.user)
        if len(self._entries) >= self._settings.channel_limit:
            raise ReplyError(LIMIT_EXCEEDED)
        self._entries[channel] = entry = Entry(rules, pending, server=False)
        self._work.under_way += 1
        if self._asks:
            self._port.ask(
                command,
                SubscribeEvent(identity.client, identity.user, channel, token, data),
            )
        else:
            self._join(identity, channel, entry)

    def admitted(
        self,
        identity: Identity,
        channel: Channel,
        info: RawJson | None,
        data: RawJson | None,
    ) -> None:
        """Go on with a subscribe that the hook lets in."""
        entry = self._entries[channel]
        entry.data = data
        self._join(identity, channel, entry, info)

    def refused(self, channel: Channel, error: ErrorReply) -> None:
        """End a subscribe that the hook refuses."""
        pending = self._entries.pop(channel).pending
        assert pending is not None
        pending.outcome(error)
        self._take_up(pending)

    def unsubscribe(
        self, identity: Identity, command: int, fields: dict[str, Any]
    ) -> None:
        """Handle an unsubscribe command.

        Raises:
            CloseError: It has no channel.
            CodecError: A field has the wrong type.
        """
        channel = channel_of(fields)
        entry = self._entries.get(channel)
        if entry is not None:
            if self._wait(entry, (command, "unsubscribe", fields)):
                return
            del self._entries[channel]
            self._port.unsubscribe(channel)
        self._port.reply(wire.empty_reply(command, "unsubscribe"))

    def _wait(self, entry: Entry, command: wire.Command) -> bool:
        """Queue a command behind the subscribe of its channel that is under way."""
        if entry.pending is None:
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
        done: Callable[[ErrorReply | None], None] = lambda error: None,
    ) -> None:
        """Subscribe on the server's side and push that to the client.

        *done* is called once, unless the connection ends first.

        Raises:
            ReplyError: As `add`.
        """

        def outcome(result: str | ErrorReply) -> None:
            if isinstance(result, str):
                self._port.reply(wire.subscribe_push(wire.quote(channel), result))
            done(None if isinstance(result, str) else result)

        if not self.add(
            identity, channel, since, outcome, info=info, data=data, rules=rules
        ):
            pending = self._entries[channel].pending
            if pending is None:
                done(None)
            else:
                pending.also(done)

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
        pending = Pending(asked, outcome, positioned=True)
        self._entries[channel] = entry = Entry(rules, pending, server=True)
        entry.data = data
        self._work.under_way += 1
        self._join(identity, channel, entry, info, held=held)
        return True

    def add_all(
        self,
        identity: Identity,
        channels: list[Channel],
        asked: dict[Channel, Position],
        done: Callable[[dict[Channel, str] | ErrorReply], None],
    ) -> None:
        """Subscribe to all of *channels*, held, or say why not to one.

        *done* is called once, with the result to write of each channel.
        """
        missing = set(channels)
        results: dict[Channel, str] = {}
        failed = False

        def outcome(channel: Channel, result: str | ErrorReply) -> None:
            nonlocal failed
            if failed:
                return
            if isinstance(result, ErrorReply):
                failed = True
                done(result)
                return
            results[channel] = result
            missing.discard(channel)
            if not missing:
                done(results)

        if not missing:
            done(results)
        for channel in sorted(missing):
            if failed:
                return
            tell = partial(outcome, channel)
            try:
                self.add(identity, channel, asked.get(channel), tell, held=True)
            except ReplyError as refusal:
                tell(refusal.error)

    def remove(self, channel: Channel, code: Unsubscribe) -> bool:
        """Take the client out of a channel and tell it; False if it was not there."""
        entry = self._entries.get(channel)
        if entry is None:
            return False
        if entry.pending is not None:
            entry.pending.removal = code  # once it is known to the client
            return True
        del self._entries[channel]
        self._port.unsubscribe(channel)
        self._port.reply(wire.unsubscribe_push(wire.quote(channel), code))
        return True

    def lost(self, channel: Channel) -> None:
        """Tell the client that a subscription has a gap: it comes back by itself.

        Raises:
            CloseError: A server-side one comes back only with the connection.
        """
        entry = self._entries.pop(channel)
        if entry.pending is not None:
            raise AssertionError("only an established subscription can be lost")
        if entry.server:
            raise CloseError(INSUFFICIENT_STATE)
        self._port.reply(
            wire.unsubscribe_push(wire.quote(channel), UNSUBSCRIBE_INSUFFICIENT)
        )

    # Outcomes.

    def _join(
        self,
        identity: Identity,
        channel: Channel,
        entry: Entry,
        info: RawJson | None = None,
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
        listener = Listener(
            identity.client,
            user,
            identity.in_channel(info),
            present=options.presence,
            announced=options.join_leave,
            hears_joins=decide.hears_joins(rules, user, asked=pending.hears_joins),
            positioned=entry.positioned,
        )
        self._port.subscribe(channel, listener, rules.history, pending.asked, held=held)

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
            pending.flag & REJECT_UNRECOVERED
            and pending.asked is not None
            and outcome.recovered is None
        ):
            del self._entries[channel]
            pending.outcome(UNRECOVERABLE_POSITION)
        else:
            wanted = True
            entry.pending = None
            pending.outcome(
                wire.subscribe_result(
                    outcome,
                    asked=pending.asked,
                    recoverable=entry.recoverable,
                    positioned=entry.positioned,
                    data=entry.data,
                )
            )
            entry.data = None
            if pending.removal is not None:
                self.remove(channel, pending.removal)
        self._take_up(pending)
        return wanted and channel in self._entries

    def _take_up(self, pending: Pending) -> None:
        self._work.under_way -= 1
        self._work.put_back(pending.waiting)

    def _reply(self, command: int, result: str | ErrorReply) -> None:
        if isinstance(result, ErrorReply):
            self._port.reply_error(command, result)
        else:
            self._port.reply(wire.subscribe_reply(command, result))
