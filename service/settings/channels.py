"""Channel settings: the options and permissions of each namespace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from service.core.channel_pattern import ChannelPattern
from service.core.model import Override
from service.settings.sections import (
    Count,
    Delay,
    Seconds,
    Section,
    SizeLimit,
    Window,
)

__all__ = ["ChannelOptions", "ChannelSettings", "Namespace", "RunSettings"]


class ChannelOptions(Section, frozen=True, kw_only=True):
    """Options and permissions of the channels of one namespace.

    *client* is a connection with a user id, *anonymous* one without, *subscriber* one
    that is subscribed to the channel, with a user id or without.

    Attributes:
        history_size: Publications kept per channel; 0, here and in ``history_ttl``,
            switches history off.
        history_ttl: Seconds each publication is kept.
        history_meta_ttl: Seconds the top offset outlives the last publication.
        max_size: SQLite: bytes of the publications kept in all channels of the
            namespace; beyond, its publishes fail with error 111, temporary, until 90 %
            of it are left. 0 for no limit.
        force_positioning: Check the position of every subscription.
        allow_positioning: Check the position for clients that ask.
        force_recovery: Make every subscription recoverable, and so positioned.
        allow_recovery: Make subscriptions recoverable for clients that ask.
        presence: Keep the list of subscribers.
        join_leave: Send a message when a subscriber joins or leaves.
        force_push_join_leave: Send it to every subscriber, not only to those that ask.
        allow_subscribe_for_client: A client may subscribe without a token.
        allow_subscribe_for_anonymous: An anonymous connection may.
        allow_publish_for_client: A client may publish.
        allow_publish_for_subscriber: A subscriber may.
        allow_publish_for_anonymous: An anonymous connection may.
        allow_presence_for_client: A client may ask for presence, and for join and
            leave.
        allow_presence_for_subscriber: A subscriber may.
        allow_presence_for_anonymous: An anonymous connection may.
        allow_history_for_client: A client may read history, and so ask for recovery.
        allow_history_for_subscriber: A subscriber may.
        allow_history_for_anonymous: An anonymous connection may.
        allow_user_limited_channels: To a channel ``name#42,43`` only the users 42 and
            43 may subscribe, without a token.
        allowed_delta_types: Deltas that subscribers may ask for: ``["fossil"]``. One
            that asks is sent publications as their difference from the one before.
        delta_publish: Every publication may be sent so, not only those published with
            ``delta``.
        batch_window: Seconds, up to 0.05, that publications wait for others, so that
            each connection gets them in one frame. Those published as ``urgent``, and
            all that is not a publication, go at once, after what waits. For streams of
            small messages; 0 for no waiting.
        channel_regex: The part of the name after ``namespace:`` must match it as a
            whole; "" allows every name in ASCII. The syntax is RE2's, which matches in
            linear time: without lookaround and references to groups.
    """

    history_size: Count = 0
    history_ttl: Delay = 0.0
    history_meta_ttl: Seconds = 720 * 3600.0
    max_size: SizeLimit = 0
    force_positioning: bool = False
    allow_positioning: bool = False
    force_recovery: bool = False
    allow_recovery: bool = False
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_client: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_anonymous: bool = False
    allow_user_limited_channels: bool = False
    allowed_delta_types: tuple[Literal["fossil"], ...] = ()
    delta_publish: bool = False
    batch_window: Window = 0.0
    channel_regex: str = ""

    def mistakes(self, where: str) -> Iterator[str]:
        """Yield a line for each contradiction between options.

        Args:
            where: The namespace; each line begins with it.
        """
        size, ttl = self.history_size, self.history_ttl
        if (size > 0) != (ttl > 0):
            off, on = ("history_ttl", "history_size")[:: 1 if size else -1]
            yield (
                f"{where}: history_size and history_ttl are both above zero, or both "
                f"0, which switches history off ({off} is 0, {on} is not)"
            )
        if size == 0:
            for name in _NEED_HISTORY:
                if getattr(self, name):
                    yield f"{where}: {name} needs history_size, or must be false"
        if self.history_meta_ttl < ttl:
            yield f"{where}: history_meta_ttl must not be below history_ttl"
        if self.force_push_join_leave and not self.join_leave:
            yield f"{where}: force_push_join_leave needs join_leave"
        if self.delta_publish and not self.allowed_delta_types:
            yield f"{where}: delta_publish needs allowed_delta_types"
        try:
            ChannelPattern(self.channel_regex)
        except ValueError as error:
            yield f"{where}: channel_regex: {error}"

    def changed(self, override: Override) -> ChannelOptions:
        """Return the options with those of *override* in their place."""
        return msgspec.structs.replace(self, **override.changes())


_NEED_HISTORY = (
    "force_positioning",
    "allow_positioning",
    "force_recovery",
    "allow_recovery",
)


class Namespace(ChannelOptions, frozen=True, kw_only=True):
    """Options for the channels ``name:…``.

    Attributes:
        name: Two or more of letters, digits, ``-`` and ``_``.
    """

    name: str


# A chat client must recover after a lunch break, hence a day. A thousand messages of
# 4 KB are at most 4 MB a channel.
_CHAT = ChannelOptions(
    history_size=1000,
    history_ttl=24 * 3600.0,
    force_recovery=True,
    presence=True,
    join_leave=True,
)


# A thread's viewers come late and come back: they may recover, and read what was. The
# whole thread is known beside the history (service.agents.thread).
_THREAD = ChannelOptions(
    history_size=1000,
    history_ttl=24 * 3600.0,
    force_recovery=True,
    presence=True,
    allow_publish_for_subscriber=True,
    allow_history_for_subscriber=True,
    allow_presence_for_subscriber=True,
    allow_user_limited_channels=True,
    batch_window=0.02,
)


class RunSettings(Section, frozen=True, kw_only=True):
    """Runs of agents that speak AG-UI.

    Attributes:
        namespace: The namespace whose channels are threads: only runs publish there.
            Where ``channels.namespaces`` has none of this name, it has options for
            threads: a history of 1,000 events or 24 hours, recovery, presence, a batch
            window of 0.02 s, and channels for the users that they name. "" switches
            runs off.
        lease: Seconds that an agent which pushes its events may be silent; then its
            run ends with ``agent_lost``.
    """

    namespace: str = "thread"
    lease: Seconds = 30.0


class ChannelSettings(Section, frozen=True, kw_only=True):
    """Channels by namespace.

    Attributes:
        without_namespace: Options of channels that have no ``:`` in their name. An
            option that is not named keeps the default shown here.
        namespaces: Options of the other channels; a channel of an unknown namespace is
            refused with 102.
    """

    without_namespace: ChannelOptions = _CHAT
    namespaces: tuple[Namespace, ...] = ()

    def of_threads(self, name: str) -> ChannelOptions:
        """Return the options of the namespace of threads, which is called *name*."""
        found = [each for each in self.namespaces if each.name == name]
        return found[0] if found else _THREAD
