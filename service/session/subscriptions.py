"""What one connection is subscribed to, and how that ends.

A subscription may have an end. One time is kept for all of a connection's: the soonest
there may be. It is never moved later, only found to be early, so that a refresh costs
nothing and the channels are looked through when one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.core.errors import (
    INSUFFICIENT_STATE,
    SUBSCRIPTION_EXPIRED,
    UNSUBSCRIBE_EXPIRED,
    UNSUBSCRIBE_INSUFFICIENT,
    Close,
    CloseError,
    Unsubscribe,
)
from service.core.model import Channel, RawJson
from service.protocol import replies
from service.session.entry import ChannelState
from service.session.expiry import NEVER
from service.session.port import Identity, Port

__all__ = ["Subscriptions"]


class Subscriptions:
    """The channels of one connection, pending and established.

    Args:
        port: The session's.
        left: Told of each channel that ends, after the client was.

    Attributes:
        next_end: When the first subscription may end, as `Clock.now`.
    """

    def __init__(self, port: Port, left: Callable[[Channel], None]) -> None:
        self._port = port
        self._left = left
        self._entries: dict[Channel, ChannelState] = {}
        self.next_end = NEVER

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._entries

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def is_established(self, channel: Channel) -> bool:
        """Tell whether *channel* is subscribed to, and not only about to be."""
        return self.established(channel) is not None

    def established(self, channel: Channel) -> ChannelState | None:
        """Return the subscription to *channel*, None if there is none yet."""
        entry = self._entries.get(channel)
        return None if entry is None or entry.pending is not None else entry

    def clear(self) -> None:
        """Forget all: the connection is over."""
        self._entries.clear()
        self.next_end = NEVER

    # What others see.

    def describe(
        self, entry: ChannelState, identity: Identity, info: RawJson | None
    ) -> None:
        """Show others *info* of the client in a channel; None: what was shown."""
        if info is not None:
            entry.info = info
        if entry.listener is not None:
            entry.listener.info = identity.in_channel(entry.info)

    def describe_all(self, identity: Identity) -> None:
        """Show others, in every channel, what *identity* says now."""
        for entry in self._entries.values():
            self.describe(entry, identity, None)

    # Ends.

    def remove(self, channel: Channel, code: Unsubscribe) -> bool:
        """Take the client out of a channel and tell it; False if it was not there."""
        entry = self._entries.get(channel)
        if entry is None:
            return False
        if entry.pending is not None:
            entry.pending.removal = code  # once it is known to the client
            return True
        del self._entries[channel]
        self._port.leave(channel)
        self._port.reply(replies.unsubscribe_push(replies.quote(channel), code))
        self._left(channel)
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
            replies.unsubscribe_push(replies.quote(channel), UNSUBSCRIBE_INSUFFICIENT)
        )
        self._left(channel)

    def ends(self, entry: ChannelState, at: float) -> None:
        """Let a subscription end at *at* and not when it would have."""
        entry.ends = at
        if entry.pending is None and at < self.next_end:
            self.next_end = at

    def tick(self, now: float) -> Close | None:
        """End what ends by *now*.

        Returns:
            The connection's end, if a server-side one does: it comes back only with
            the connection.
        """
        if now < self.next_end:
            return None
        self.next_end = NEVER
        for channel, entry in tuple(self._entries.items()):
            if entry.pending is not None:
                continue  # its end is looked at once it is established
            if now < entry.ends:
                self.next_end = min(self.next_end, entry.ends)
            elif entry.server:
                return SUBSCRIPTION_EXPIRED
            else:
                self.remove(channel, UNSUBSCRIBE_EXPIRED)
        return None
