"""Permissions: a channel's namespace, and who may subscribe, publish and read there.

Subscribing: the first rule that matches decides.

| | request | decided by |
|---|---|---|
| 1 | a channel ``$…`` without a token, or where no key can verify one | refused: 103 |
| 2 | any channel with a token, where keys can verify it | the token alone |
| 3 | with a token, no key, and no subscribe hook | `insecure`, else 103 |
| 4 | a user-limited channel, by a user that it names | allowed |
| 5 | a user-limited channel, by anybody else | `insecure`, else 103 |
| 6 | where there is a subscribe hook | the hook alone |
| 7 | by a user, `allow_subscribe_for_client` | allowed |
| 8 | by an anonymous one, `allow_subscribe_for_anonymous` | allowed |
| 9 | anything else | `insecure`, else 103 |

User-limited channels are ``name#42,43`` where `allow_user_limited_channels` is set, and
users' personal channels. Rule 5 is there so that neither a hook nor an option made for
ordinary channels opens one user's channel to another.

Publishing: a hook alone, if there is one; `allow_publish_for_client` or
`_for_anonymous`; `_for_subscriber` for those subscribed; `insecure`; else 103. History
and presence are the same without a hook, and 108 where the namespace has none. A token
allows its client to subscribe, and nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import structlog

from service.core.channel_pattern import ChannelPattern
from service.core.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    UNKNOWN_CHANNEL,
    ReplyError,
)
from service.core.model import NO_OVERRIDE, Channel, Override, UserId
from service.core.ports import History
from service.settings import ChannelOptions, ChannelSettings, PersonalChannel

__all__ = ["ChannelRules", "Decider", "Permissions"]

MAX_CHANNEL = 255  # characters, and bytes: names are ASCII
NO_PERSONAL = PersonalChannel()

OnRefusal = Callable[[str, str, str], None]
"""Called with the rule that refused, the channel or "", and the setting to change."""


def _unheard(rule: str, channel: str, remedy: str) -> None:
    """Tell nobody."""


log = structlog.get_logger("steadwire")


class Decider(enum.Enum):
    """The part that still has to decide about a subscribe."""

    NOBODY = enum.auto()  # it is allowed
    TOKEN = enum.auto()
    HOOK = enum.auto()


class ChannelRules:
    """The options of one namespace, prepared for the hot path.

    Attributes:
        options: The options.
        name: The namespace's name; "" for channels without.
        history: What the store keeps of each channel.
        runs_only: The channels are threads: only runs publish there.
    """

    __slots__ = ("_pattern", "history", "name", "options", "runs_only")

    def __init__(
        self, options: ChannelOptions, name: str = "", *, runs_only: bool = False
    ) -> None:
        self.options = options
        self.name = name
        self.runs_only = runs_only
        self.history = History(
            options.history_size, options.history_ttl, options.history_meta_ttl
        )
        regex = options.channel_regex
        self._pattern = ChannelPattern(regex) if regex else None

    @property
    def where(self) -> str:
        """The place of the options in the settings."""
        if self.name:
            return f"channels.namespaces {self.name!r}"
        return "channels.without_namespace"

    def matches(self, name: str) -> bool:
        """Return whether *name* may be a channel's name in this namespace."""
        return self._pattern is None or self._pattern.matches(name)

    def changed(self, override: Override) -> ChannelRules:
        """Return the rules of a subscription with *override*."""
        if override == NO_OVERRIDE:
            return self
        return ChannelRules(
            self.options.changed(override), self.name, runs_only=self.runs_only
        )


class Permissions:
    """Decides who may do what in which channel, by the settings.

    Args:
        settings: The channels' section.
        insecure: Everybody may subscribe and publish.
        personal: Users' own channels.
        on_refusal: Is told each refusal, with the setting to change.
        threads: The namespace of threads; "" for none.
    """

    def __init__(
        self,
        settings: ChannelSettings,
        *,
        insecure: bool,
        personal: PersonalChannel = NO_PERSONAL,
        on_refusal: OnRefusal = _unheard,
        threads: str = "",
    ) -> None:
        self._insecure = insecure
        self._on_refusal = on_refusal
        self._personal = ""
        if personal.enabled:
            self._personal = f"{personal.namespace}:#" if personal.namespace else "#"
        self._default = ChannelRules(settings.without_namespace)
        self._namespaces = {
            namespace.name: ChannelRules(namespace, namespace.name)
            for namespace in settings.namespaces
        }
        if threads:
            options = settings.of_threads(threads)
            self._namespaces[threads] = ChannelRules(options, threads, runs_only=True)
        self._unrecoverable: set[str] = set()  # namespaces that the log has told of

    def batch_window(self, channel: str) -> float:
        """Return the seconds that publications of a channel with rules may wait."""
        return self.rules(channel).options.batch_window

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
            remedy = "add its namespace to channels.namespaces"
            self._on_refusal("namespace", channel, remedy)
            raise ReplyError(UNKNOWN_CHANNEL)
        if not rules.matches(rest):
            remedy = f"its name does not match channel_regex in {rules.where}"
            self._on_refusal("channel_regex", channel, remedy)
            raise ReplyError(BAD_REQUEST)
        return rules

    def may_subscribe(
        self,
        rules: ChannelRules,
        channel: str,
        user: UserId,
        *,
        token: bool,
        verified: bool,
        hook: bool,
    ) -> Decider:
        """Return what still has to decide whether *user* may subscribe to *channel*.

        Args:
            rules: Those of the channel.
            channel: The channel.
            user: The user of the connection.
            token: Whether the client sent a token.
            verified: Whether there are keys that verify tokens.
            hook: Whether there is a subscribe hook.

        Raises:
            ReplyError: 103: the user may not.
        """
        if token and verified:
            return Decider.TOKEN
        options = rules.options
        if channel.startswith("$"):
            lacks = (
                "a channel that begins with $ needs a subscription token"
                if verified
                else "no key verifies tokens: set one in token or subscription_token"
            )
            self._on_refusal("subscribe", channel, lacks)
            raise ReplyError(PERMISSION_DENIED)
        if token and not hook:
            allowed = False
            lacks = "no key verifies tokens: set one in token or subscription_token"
        elif (named := self._named(options, channel)) is not None:
            allowed = user != "" and user in named
            lacks = "the channel's name does not name the user"
        elif hook:
            return Decider.HOOK
        elif user:
            allowed = options.allow_subscribe_for_client
            lacks = f"set allow_subscribe_for_client in {rules.where}, or give a token"
        else:
            allowed = options.allow_subscribe_for_anonymous
            lacks = f"set allow_subscribe_for_anonymous in {rules.where}"
        if not allowed and not self._insecure:
            self._on_refusal("subscribe", channel, lacks)
            raise ReplyError(PERMISSION_DENIED)
        return Decider.NOBODY

    def _named(self, options: ChannelOptions, channel: str) -> list[str] | None:
        """Return the users named by a user-limited channel; None for other channels."""
        if "#" not in channel:
            return None
        personal = self._personal != "" and channel.startswith(self._personal)
        if personal or options.allow_user_limited_channels:
            return channel.rpartition("#")[2].split(",")
        return None

    def personal_channel(self, user: UserId) -> Channel | None:
        """Return a user's personal channel; None without one.

        Raises:
            ReplyError: 107 for a user id that would name another user's channel.
        """
        if not user or not self._personal:
            return None
        if "#" in user or "," in user:
            raise ReplyError(BAD_REQUEST)
        return Channel(self._personal + user)

    def may_publish(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Return if *user* may publish.

        Raises:
            ReplyError: 103 if not.
        """
        options = rules.options
        # As `_allowed`, written out: each message calls this.
        if (
            (subscribed and options.allow_publish_for_subscriber)
            or self._insecure
            or (
                options.allow_publish_for_client
                if user
                else options.allow_publish_for_anonymous
            )
        ):
            return
        self._refuse("publish", rules, user)
        raise ReplyError(PERMISSION_DENIED)

    def may_read_history(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Return if *user* may read history.

        Raises:
            ReplyError: 108 without history, 103 if not.
        """
        if rules.history.size == 0:
            raise ReplyError(NOT_AVAILABLE)
        if not self._may_history(rules.options, user, subscribed=subscribed):
            self._refuse("history", rules, user)
            raise ReplyError(PERMISSION_DENIED)

    def may_see_presence(
        self, rules: ChannelRules, user: UserId, *, subscribed: bool
    ) -> None:
        """Return if *user* may read presence.

        Raises:
            ReplyError: 108 without presence, 103 if not.
        """
        if not rules.options.presence:
            raise ReplyError(NOT_AVAILABLE)
        if not self._may_presence(rules.options, user, subscribed=subscribed):
            self._refuse("presence", rules, user)
            raise ReplyError(PERMISSION_DENIED)

    def is_recoverable(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Return whether a new subscription is recoverable; *asked*: by the client."""
        options = rules.options
        if rules.history.size == 0:
            return False
        if options.force_recovery:
            return True
        return asked and (
            options.allow_recovery or self._may_history(options, user, subscribed=True)
        )

    def is_positioned(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Return whether a new subscription's position is checked."""
        options = rules.options
        if rules.history.size == 0:
            return False
        if options.force_positioning or options.force_recovery:
            return True
        return asked and (
            options.allow_positioning
            or self._may_history(options, user, subscribed=True)
        )

    def recovery_refused(self, rules: ChannelRules) -> None:
        """Say in the log, once for each namespace, why clients recover nothing there.

        Call it when a client asked for recovery or a check of its position and got
        neither: clients are not told, so that nothing else says so.
        """
        if rules.name in self._unrecoverable:
            return
        self._unrecoverable.add(rules.name)
        if rules.history.size == 0:
            lacks, remedy = "has no history", "set history_size and history_ttl"
        else:
            lacks = "does not allow it"
            remedy = "set allow_recovery, force_recovery or allow_history_for_client"
        log.warning(
            f"clients ask to recover messages, and {rules.where} {lacks}", remedy=remedy
        )

    def hears_joins(self, rules: ChannelRules, user: UserId, *, asked: bool) -> bool:
        """Return whether a new subscription gets joins and leaves."""
        options = rules.options
        if not options.join_leave:
            return False
        return options.force_push_join_leave or (
            asked and self._may_presence(options, user, subscribed=True)
        )

    def _refuse(self, what: str, rules: ChannelRules, user: UserId) -> None:
        whom = "client" if user else "anonymous"
        self._on_refusal(what, "", f"set allow_{what}_for_{whom} in {rules.where}")

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
        self, user: UserId, *, client: bool, anonymous: bool, subscriber: bool
    ) -> bool:
        return subscriber or self._insecure or (client if user else anonymous)
