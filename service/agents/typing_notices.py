"""Typing: members of a thread are told who else types there.

A member says that it types, again and again while it does. The other members get
``typing_started`` at once, and again at most every `AGAIN` seconds; ``typing_stopped``
when it says so, when it has said nothing for `LASTS` seconds, and when it leaves the
thread or loses its connection. Nothing is stored, and nothing else is dropped sooner
where a queue is full; so a client also forgets by itself who typed `LASTS` seconds ago.
A user's own other connections are not told.

Bounds: one record for each subscription; `RATE` calls of a client.
"""

from __future__ import annotations

from service.agents.events import dump
from service.core.errors import PERMISSION_DENIED, TOO_MANY_REQUESTS, ReplyError
from service.core.model import Channel, ClientId
from service.core.ports import Clock, Timer
from service.core.priority import Priority
from service.core.rate_limits import Buckets, Rate
from service.hub.hub import Hub
from service.hub.subscription import Subscription

__all__ = ["Typing"]

LASTS = 5.0  # s
AGAIN = 2.0  # s
RATE = Rate(2.0, 10.0)  # calls of one client
_CLIENTS = 65_536  # clients whose rates are kept


class _Typist:
    __slots__ = ("timer", "told_at")

    def __init__(self) -> None:
        self.told_at = float("-inf")
        self.timer: Timer | None = None


class Typing:
    """Who types in which thread, of the clients of this process.

    Args:
        hub: Has the members, and tells them.
        clock: Ends what nobody ends.
    """

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._typists: dict[Subscription, _Typist] = {}
        self._rates: Buckets[ClientId] = Buckets(RATE, _CLIENTS)

    def stop(self) -> None:
        """Forget all, and tell nobody."""
        for typist in self._typists.values():
            if typist.timer is not None:
                typist.timer.cancel()
        self._typists.clear()

    def says(self, channel: Channel, client: ClientId, *, types: bool) -> None:
        """Take note that a client types, or does not any more.

        Raises:
            ReplyError: 103: it is not subscribed to the thread; 111: it says so too
                often.
        """
        subscription = self._hub.subscription_of(channel, client)
        if subscription is None:
            raise ReplyError(PERMISSION_DENIED)
        now = self._clock.now()
        if not self._rates.take(client, now, 1):
            raise ReplyError(TOO_MANY_REQUESTS)
        if not types:
            self._stopped(subscription)
            return
        typist = self._typists.get(subscription)
        if typist is None:
            typist = self._typists[subscription] = _Typist()
            self._hub.watch(subscription, self._stopped)
        elif typist.timer is not None:
            typist.timer.cancel()
        typist.timer = self._clock.call_at(
            now + LASTS, lambda: self._stopped(subscription)
        )
        if now - typist.told_at >= AGAIN:
            typist.told_at = now
            self._tell(subscription, "typing_started")

    def _stopped(self, subscription: Subscription) -> None:
        typist = self._typists.pop(subscription, None)
        if typist is None:
            return
        if typist.timer is not None:
            typist.timer.cancel()
        self._hub.unwatch(subscription)
        self._tell(subscription, "typing_stopped")

    def _tell(self, subscription: Subscription, name: str) -> None:
        subscriber = subscription.subscriber
        value = {"user": subscriber.user, "client": subscriber.client}
        event = dump({"type": "CUSTOM", "name": name, "value": value})
        self._hub.notify(
            subscription.topic.channel,
            event.text,
            priority=Priority.TYPING,
            info=subscriber.info,
            but=subscriber,
        )
