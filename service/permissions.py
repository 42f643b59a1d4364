"""Which namespace a channel belongs to, and who may do what in it.

The decision order is PROTOCOL.md 6.1: the first rule that matches decides.
"""

from __future__ import annotations

from service.errors import (
    BAD_REQUEST,
    PERMISSION_DENIED,
    UNKNOWN_CHANNEL,
    ReplyError,
)
from service.model import Channel, UserId
from service.ports import History
from service.settings import ChannelOptions, ChannelSettings

__all__ = ["ChannelRules", "Permissions"]

MAX_CHANNEL = 255  # characters, and bytes: names are ASCII


class ChannelRules:
    """The options of one namespace, ready for use on the hot path."""

    __slots__ = ("history", "options")

    def __init__(self, options: ChannelOptions) -> None:
        self.options = options
        kept = options.history_size > 0 and options.history_ttl > 0
        self.history = History(
            options.history_size if kept else 0,
            options.history_ttl if kept else 0.0,
            options.history_meta_ttl,
        )


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
        if ":" not in channel:
            return self._default
        name = channel.removeprefix("$").partition(":")[0]
        rules = self._namespaces.get(name)
        if rules is None:
            raise ReplyError(UNKNOWN_CHANNEL)
        return rules

    def may_subscribe(self, channel: Channel, user: UserId) -> ChannelRules:
        """Return the rules if *user* may subscribe to *channel* without a token.

        Raises:
            ReplyError: 103 when not; 102 and 107 as `rules`.
        """
        rules = self.rules(channel)
        if channel.startswith("$"):
            raise ReplyError(PERMISSION_DENIED)
        if self._insecure or (user and rules.options.allow_subscribe_for_client):
            return rules
        raise ReplyError(PERMISSION_DENIED)

    def may_publish(self, channel: Channel, user: UserId) -> ChannelRules:
        """Return the rules if *user* may publish to *channel*.

        Raises:
            ReplyError: 103 when not; 102 and 107 as `rules`.
        """
        rules = self.rules(channel)
        if self._insecure or (user and rules.options.allow_publish_for_client):
            return rules
        raise ReplyError(PERMISSION_DENIED)

    def may_read_history(self, channel: Channel, user: UserId) -> ChannelRules:
        """Return the rules if *user* may read the history of *channel*.

        Raises:
            ReplyError: 103 when not; 102 and 107 as `rules`.
        """
        rules = self.rules(channel)
        if self._insecure or (user and rules.options.allow_history_for_client):
            return rules
        raise ReplyError(PERMISSION_DENIED)
