"""The position check: compare every channel with the top of its stream, in rounds.

A subscription learns of a gap by the publication that follows it. Where that never
comes, because it was the last one and another process committed it, only this check
finds it. A check is one read of a channel's top, from memory as a rule.

A round goes over the channels in the order in which they were first subscribed to.
A round begins every period unless one is under way, which then goes on. A channel
whose read failed is read again in the next round.

Bounds: `IN_FLIGHT` reads are under way, whatever the number of channels; `PORTION`
channels are looked at in one turn of the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from service.core.errors import StoreError
from service.core.model import Channel, HistoryPage
from service.core.ports import Clock, Timer
from service.hub.catchup import CatchUp
from service.hub.subscription import Topic

__all__ = ["PositionCheck"]

IN_FLIGHT = 8
"""Reads under way (count). DynamoDB's client has 16 threads by default: half of them
stay free for publications. If a read takes 5 ms, 64,000 channels are read in 40 s."""

PORTION = 200
"""Channels looked at in one turn of the loop (count): 0.4 ms when all are in memory
(measured on SQLite)."""


class PositionCheck:
    """The position check of one hub.

    Args:
        topics: The channels of the hub.
        catchup: Reads, and fills gaps.
        clock: Times the rounds.
        period: Seconds from the begin of a round to the begin of the next.
    """

    def __init__(
        self,
        topics: Mapping[Channel, Topic],
        catchup: CatchUp,
        clock: Clock,
        period: float,
    ) -> None:
        self._topics = topics
        self._catchup = catchup
        self._clock = clock
        self._period = period
        self._left: deque[Topic] = deque()  # of this round
        self._in_flight = 0
        self._timer: Timer | None = None  # for the next round
        self._turn: Timer | None = None  # for the next portion of this round

    def start(self) -> None:
        """Begin; the first round is a period away."""
        self._timer = self._clock.call_at(self._clock.now() + self._period, self._tick)

    def stop(self) -> None:
        """Begin no more reads."""
        self._left.clear()
        for timer in (self._timer, self._turn):
            if timer is not None:
                timer.cancel()

    def begin_round(self) -> None:
        """Begin a round, or go on with the one that is under way."""
        if not self._left and not self._in_flight:
            self._left.extend(self._topics.values())
        self._go_on()

    def check(self, channel: Channel) -> None:
        """Check one channel now, unless `IN_FLIGHT` reads are under way."""
        topic = self._topics.get(channel)
        if topic is not None and self._in_flight < IN_FLIGHT:
            self._check(topic)

    def _tick(self) -> None:
        self.start()
        self.begin_round()

    def _go_on(self) -> None:
        for _ in range(PORTION):
            if not self._left or self._in_flight >= IN_FLIGHT:
                return
            self._check(self._left.popleft())
        if self._turn is None:
            self._turn = self._clock.call_at(self._clock.now(), self._next_portion)

    def _next_portion(self) -> None:
        self._turn = None
        self._go_on()

    def _check(self, topic: Topic) -> None:
        for subscription in topic.subscriptions:
            if subscription.history.size:
                history = subscription.history
                break
        else:
            return  # nobody is left in it, or it has no history

        def done(page: HistoryPage | StoreError) -> None:
            self._in_flight -= 1
            if not isinstance(page, StoreError):
                self._catchup.compare(topic, page.top)
            self._go_on()

        page = self._catchup.read(topic.channel, history, 0, 0, done)
        if page is None:
            self._in_flight += 1
        else:
            self._catchup.compare(topic, page.top)
