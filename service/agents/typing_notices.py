"""Typing: members of a thread are told who else types there.

A member says that it types, again and again while it does. The other members get
``typing_started`` at once, and again at most every `AGAIN` seconds; ``typing_stopped``
when it says so, when it has said nothing for `LASTS` seconds, and when it leaves the
thread or loses its connection. Nothing is stored, and nothing else is dropped sooner
where a queue is full; so a client also forgets by itself who typed `LASTS` seconds ago.
A user's own other connections are not told.

Where a broker carries signals, members on other processes are told the same. The
process of the typist sends each notice that it gives its own members; the others know
that somebody types until they hear that it has stopped, or nothing for `LASTS` and
`AGAIN` seconds, as when the process has died or the broker is lost. What a signal
promises (signed, once, in order) is what keeps forged or late ones out; one that is
lost is made up for by the next, or by that time.

Bounds: one record for each subscription; `ELSEWHERE` members on other processes, beyond
which nobody is told of one more; `RATE` calls of a client.
"""

from __future__ import annotations

import msgspec

from service.agents.events import dump
from service.core.broker import Signals
from service.core.errors import PERMISSION_DENIED, TOO_MANY_REQUESTS, ReplyError
from service.core.model import Channel, ClientId, RawJson, SubscriberInfo, UserId
from service.core.ports import Clock, Timer
from service.core.priority import Priority
from service.core.rate_limits import Buckets, Rate
from service.hub.hub import Hub
from service.hub.subscription import Subscription

__all__ = ["AGAIN", "LASTS", "Typing"]

LASTS = 5.0  # s
AGAIN = 2.0  # s
RATE = Rate(2.0, 10.0)  # calls of one client
ELSEWHERE = 10_000  # members on other processes
_CLIENTS = 65_536  # clients whose rates are kept


class _Signal(msgspec.Struct, array_like=True, frozen=True):
    user: UserId
    client: ClientId
    info: RawJson
    types: bool


_decode = msgspec.json.Decoder(_Signal).decode


class _Typist:
    __slots__ = ("timer", "told_at")

    def __init__(self) -> None:
        self.told_at = float("-inf")
        self.timer: Timer | None = None


class Typing:
    """Who types in which thread.

    Args:
        hub: Has the members of this process, and tells them.
        clock: Ends what nobody ends.
        signals: Reaches the other processes; None if nothing does.
    """

    def __init__(self, hub: Hub, clock: Clock, signals: Signals | None = None) -> None:
        self._hub = hub
        self._clock = clock
        self._typists: dict[Subscription, _Typist] = {}
        self._rates: Buckets[ClientId] = Buckets(RATE, _CLIENTS)
        self._elsewhere: dict[tuple[Channel, ClientId], Timer] = {}
        self._signals = signals
        if signals is not None:
            signals.on_signal(self._heard)

    def stop(self) -> None:
        """Forget all, and tell nobody."""
        for typist in self._typists.values():
            if typist.timer is not None:
                typist.timer.cancel()
        self._typists.clear()
        for timer in self._elsewhere.values():
            timer.cancel()
        self._elsewhere.clear()

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
            self._tell(subscription, types=True)

    def _stopped(self, subscription: Subscription) -> None:
        typist = self._typists.pop(subscription, None)
        if typist is None:
            return
        if typist.timer is not None:
            typist.timer.cancel()
        self._hub.unwatch(subscription)
        self._tell(subscription, types=False)

    def _tell(self, subscription: Subscription, *, types: bool) -> None:
        channel, subscriber = subscription.topic.channel, subscription.subscriber
        self._notify(channel, subscriber, types=types)
        if self._signals is not None:
            signal = _Signal(subscriber.user, subscriber.client, subscriber.info, types)
            self._signals.signal(channel, msgspec.json.encode(signal).decode())

    def _notify(
        self, channel: Channel, subscriber: SubscriberInfo, *, types: bool
    ) -> None:
        name = "typing_started" if types else "typing_stopped"
        value = {"user": subscriber.user, "client": subscriber.client}
        event = dump({"type": "CUSTOM", "name": name, "value": value})
        self._hub.notify(
            channel,
            event.text,
            priority=Priority.TYPING,
            info=subscriber.info,
            but=subscriber,
        )

    # Of other processes.

    def _heard(self, channel: Channel, text: str) -> None:
        try:
            signal = _decode(text)
        except msgspec.DecodeError:
            return  # of another version
        subscriber = SubscriberInfo(signal.client, signal.user, signal.info)
        key = channel, signal.client
        timer = self._elsewhere.pop(key, None)
        if timer is not None:
            timer.cancel()
        if signal.types:
            if len(self._elsewhere) >= ELSEWHERE:
                return
            self._elsewhere[key] = self._clock.call_at(
                self._clock.now() + LASTS + AGAIN,
                lambda: self._ended(channel, subscriber),
            )
        elif timer is None:
            return  # nobody was told that it types
        self._notify(channel, subscriber, types=signal.types)

    def _ended(self, channel: Channel, subscriber: SubscriberInfo) -> None:
        del self._elsewhere[channel, subscriber.client]
        self._notify(channel, subscriber, types=False)
