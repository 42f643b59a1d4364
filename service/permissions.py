"""Which namespace a channel belongs to, and who may do what in it.

The decision order is PROTOCOL.md 6.1: the first rule that matches decides.
"""

from __future__ import annotations

import re

from service.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    UNKNOWN_CHANNEL,
    ReplyError,
)
from service.model import UserId
from service.ports import History
from service.settings import ChannelOptions, ChannelSettings

__all__ = ["ChannelRules", "Permissions"]

MAX_CHANNEL = 255  # characters, and bytes: names are ASCII


class ChannelRules:
    """The options of one namespace, ready for use on the hot path."""

    __slots__ = ("_pattern", "history", "options")

    def __init__(self, options: ChannelOptions) -> None:
        self.options = options
        self.history = History(
            options.history_size, options.history_ttl, options.history_meta_ttl
        )
        regex = options.channel_regex
        self._pattern = re.compile(regex) if regex else None

    def admits(self, name: str) -> bool:
        """Tell whether a channel of this namespace may be called *name*."""
        return self._pattern is None or self._pattern.fullmatch(name) is not None


class Permissions:
    """The decisions about channels, for one set of settings."""

    def __init__(self, settings: ChannelSettings, *, insecure: bool) -> None:
        self._insecure = insecure
        self._default = ChannelRules(settings.without_namespace)
        self._namespaces = {
            namespace.name: ChannelRules(namespace) for namespace in settings.namespaces
        }

    def rules(self, channel: str) -> ChannelRules:
        """Return the rules of the namespace that *channel* belongs to.

        Raises:
            ReplyError: 107 when the name cannot be a channel's, 102 when its
                namespace is unknown.
        """
        if not channel or len(channel) > MAX_CHANNEL or not channel.isascii():
            raise ReplyError(BAD_REQUEST)
        name, colon, rest = channel.removeprefix("$").partition(":")
        if not colon:
            rules, rest = self._default, name
        elif name in self._namespaces:
            rules = self._namespaces[name]
        else:
            raise ReplyError(UNKNOWN_CHANNEL)
        if not rules.admits(rest):
            raise ReplyError(BAD_REQUEST)
        return rules

    def may_subscribe(self, rules: ChannelRules, channel: str, user: UserId) -> None:
        """Let *user* subscribe to *channel* without a token.

        Raises:
            ReplyError: 103 when it may not.
        """
        self.refuse_private(channel)
        options = rules.options
        if not self._allowed(
            user,
            client=options.allow_subscribe_for_client,
            anonymous=options.allow_subscribe_for_anonymous,
        ):
            raise ReplyError(PERMISSION_DENIED)

    def refuse_private(self, channel: str) -> None:
        """Refuse a channel that needs a token, whatever else is allowed.

        Raises:
            ReplyError: 103 for a name that begins with ``$``.
        """
        if channel.startswith("$"):
            raise ReplyError(PERMISSION_DENIED)

    def may_publish(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Let *user* publish.

        Raises:
            ReplyError: 103 when it may not.
        """
        options = rules.options
        if not self._allowed(
            user,
            client=options.allow_publish_for_client,
            anonymous=options.allow_publish_for_anonymous,
            subscriber=subscribed and options.allow_publish_for_subscriber,
        ):
            raise ReplyError(PERMISSION_DENIED)

    def may_read_history(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Let *user* read history.

        Raises:
            ReplyError: 108 without history, 103 when it may not.
        """
        if rules.history.size == 0:
            raise ReplyError(NOT_AVAILABLE)
        if not self._may_history(rules.options, user, subscribed=subscribed):
            raise ReplyError(PERMISSION_DENIED)

    def may_see_presence(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Let *user* ask who is there.

        Raises:
            ReplyError: 108 without presence, 103 when it may not.
        """
        if not rules.options.presence:
            raise ReplyError(NOT_AVAILABLE)
        if not self._may_presence(rules.options, user, subscribed=subscribed):
            raise ReplyError(PERMISSION_DENIED)

    def is_recoverable(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Tell whether a new subscription can be recovered; *asked* by the client."""
        options = rules.options
        if rules.history.size == 0:
            return False
        if options.force_recovery:
            return True
        return asked and (
            options.allow_recovery or self._may_history(options, user, subscribed=True)
        )

    def is_positioned(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Tell whether a new subscription's position is checked."""
        options = rules.options
        if rules.history.size == 0:
            return False
        if options.force_positioning or options.force_recovery:
            return True
        return asked and (
            options.allow_positioning
            or self._may_history(options, user, subscribed=True)
        )

    def hears_joins(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Tell whether a new subscription is told of who comes and goes."""
        options = rules.options
        if not options.join_leave:
            return False
        return options.force_push_join_leave or (
            asked and self._may_presence(options, user, subscribed=True)
        )

    def _may_history(
        self, options: ChannelOptions, user: UserId, *, subscribed: bool
    ) -> bool:
        return self._allowed(
            user,
            client=options.allow_history_for_client,
            anonymous=options.allow_history_for_anonymous,
            subscriber=subscribed and options.allow_history_for_subscriber,
        )

    def _may_presence(
        self, options: ChannelOptions, user: UserId, *, subscribed: bool
    ) -> bool:
        return self._allowed(
            user,
            client=options.allow_presence_for_client,
            anonymous=options.allow_presence_for_anonymous,
            subscriber=subscribed and options.allow_presence_for_subscriber,
        )

    def _allowed(
        self, user: UserId, *, client: bool, anonymous: bool, subscriber: bool = False
    ) -> bool:
        return subscriber or self._insecure or (client if user else anonymous)
