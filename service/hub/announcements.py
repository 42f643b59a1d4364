"""Joins and leaves, as the subscribers of a channel are told of them.

A push for each join and leave would let one user who comes and goes cost a message per
subscriber and step. So they are *changes* of a channel, and go out together:

* The first change of a quiet channel goes out at once. What follows within `WINDOW`
  waits for its end, and then goes to each listener as one message of several lines.
* A join whose leave comes before it went out cancels out with it.
* One user may cause `RATE` messages a second. A join takes two for each listener, for
  itself and for its leave, so a leave never waits for that. A join that cannot pay yet
  waits, and goes out later if its client is still there. Presence knows nothing of
  this. A client without a user pays for itself.
* The process writes `FRAMES` of these messages a second, at most `_PORTION` in a turn
  of the event loop, so that they hold nobody else up. While the listeners of one
  channel are being written to, changes of all channels wait, and more cancels out.
* While the process sheds pushes (`service.core.shedding`), changes of all channels
  wait for the end of that.

Invariants, of what a member is handed (a full outbox may drop it, see `priority`):

A1 Of one client, a listener is told join, leave, join, … in this order, each as it
   happened. The first may be a leave only if the client was in the channel when the
   listener came, which is told only what happens after its own join.
A2 When nothing waits, a listener that applied all it was told to what presence showed
   it has what presence shows now.
A3 A client whose join is about to be told is in presence; if it leaves before all are
   told, its leave follows.
A4 What waits in a channel is at most a join for each of its subscriptions, and a leave
   for each join that was told; nothing where nobody listens. The messages that wait
   are those of one channel, and what lookers are told meanwhile (`_to_lookers`).
A5 `Member.put` may end any member, which then leaves. Such leaves are told by the
   outermost call, so the depth of the stack does not grow with their number.

Interleavings that could break them, each a test in tests/hub/test_announcements.py:

* A listener asks for presence while a join waits; the client then leaves, before the
  join went out (A2: to those that looked in between, both are told at once).
* A listener comes between a change and the end of its window (A1: it is not told of
  that change).
* A client leaves and joins again within a window (A1: both are told, in this order).
* A join waits for its user's rate while its client leaves, or asks for presence; the
  last listener leaves while changes wait (A4).
* A member is ended by being told (A5), or while the others are.
* Pushes are shed for a time, in which clients come, go, or both (A2: when it is over,
  all are told what has changed since).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from service.core.model import ClientId, UserId
from service.core.ports import Clock, Timer
from service.core.priority import DroppableText, Priority
from service.core.rate_limits import Buckets, Rate
from service.core.shedding import Shedding
from service.hub.subscription import Change, Subscription, Topic
from service.protocol import replies

__all__ = ["WINDOW", "Announcements"]

WINDOW = 0.1
"""Seconds between two messages about one channel to a listener."""

RATE = Rate(500.0, 50_000.0)
"""Messages that one user may cause. The burst is 25 joins and leaves in a channel of
1,000 listeners; the rate then one each four seconds."""

FRAMES = 5_000.0
"""Messages a second of the process, some 20 us each; one counts for more if it is large
(`_FRAME_SIZE`)."""

_PORTION = 200  # messages that are written at once after a pause
_PAUSE = 0.02  # s between two portions of many
_FRAME_SIZE = 8192  # characters that cost as much as one message more
_TOGETHER = 64  # changes in one message
_TOGETHER_SIZE = 16_384  # characters of a message, or one change
_LOOKED_AT = 256  # changes of a channel that are looked at in one go
_USERS = 65_536  # users whose rates are kept; some 200 bytes each


class Announcements:
    """Tells listeners of joins and leaves.

    A caller notes changes, then calls `announce`: what it noted goes out together.

    Args:
        clock: Times windows and rates.
        shedding: Tells when all have to wait.

    Attributes:
        outcomes: Joins and leaves so far: ``announced``; ``cancelled`` by each other;
            and ``delayed`` joins, which had to wait for their user's rate.
    """

    def __init__(self, clock: Clock, shedding: Shedding) -> None:
        self._clock = clock
        self._shedding = shedding
        self._number = 0  # of the last change
        self._waiting: dict[Topic, float] = {}  # until when, the soonest first
        self._timer: Timer | None = None
        self._due_at = 0.0
        self._paid_at = float("-inf")  # when FRAMES has paid for all messages so far
        self._rates: Buckets[tuple[UserId, str]] = Buckets(RATE, _USERS)
        self._messages: deque[_Message] = deque()
        self._telling = False
        self.outcomes = Counter(announced=0, cancelled=0, delayed=0)

    def stop(self) -> None:
        """Tell nobody anything more."""
        self._waiting.clear()
        self._messages.clear()
        self._wind()

    # Listeners.

    def listen(self, subscription: Subscription) -> None:
        """Tell a subscription of the changes from now on, if it wants that."""
        if subscription.subscriber.receives_join_leave:
            subscription.topic.listeners[subscription] = self._number

    def forget(self, subscription: Subscription) -> None:
        """Tell a subscription that has left nothing more."""
        topic = subscription.topic
        topic.listeners.pop(subscription, None)
        topic.lookers.pop(subscription, None)
        messages = self._messages
        while messages and messages[0].subscription.left:
            messages.popleft()
        if not topic.listeners:
            self._settled(topic)

    def looked(self, subscription: Subscription) -> None:
        """Take note that a subscription is shown who is present."""
        topic = subscription.topic
        if topic.changes and subscription in topic.listeners:
            topic.lookers.pop(subscription, None)
            topic.lookers[subscription] = self._number

    # Changes.

    def note_join(self, subscription: Subscription) -> None:
        """Take note of a join."""
        topic, subscriber = subscription.topic, subscription.subscriber
        if not topic.listeners or not subscriber.sends_join_leave:
            return
        self._number += 1
        change = topic.changes.setdefault(subscriber.client, Change())
        change.joined, change.joined_at = subscription, self._number

    def note_leave(self, subscription: Subscription) -> None:
        """Take note of a leave, after `forget`."""
        topic, subscriber = subscription.topic, subscription.subscriber
        if not topic.listeners or not subscriber.sends_join_leave:
            return
        self._number += 1
        change = topic.changes.setdefault(subscriber.client, Change())
        if change.joined is not subscription:
            change.left, change.left_at = subscription, self._number
            return
        told = _to_lookers(topic, change, subscription)
        change.joined, change.paid, change.delayed = None, 0, False
        if change.left is None:
            del topic.changes[subscriber.client]
        if not topic.changes:
            self._settled(topic)
        self.outcomes["cancelled"] += 2
        self._messages.extend(told)
        self._tell()

    def announce(self, topic: Topic) -> None:
        """Tell the listeners of a channel what has changed, now or soon."""
        if not topic.changes or topic in self._waiting:
            return
        now = self._clock.now()
        if now < topic.told_at + WINDOW or not self._is_free(now):
            self._wait(topic, now)
        else:
            self._announce(topic, now)

    # Windows.

    def _wait(self, topic: Topic, now: float) -> None:
        self._waiting[topic] = now + WINDOW
        self._wind()

    def _is_free(self, now: float) -> bool:
        if self._messages or self._shedding.holds_joins_and_leaves:
            return False
        return now >= self._paid_at - _PORTION / FRAMES

    def _settled(self, topic: Topic) -> None:
        """Forget what waits in a channel; it has been told, or nobody listens."""
        topic.changes.clear()
        topic.lookers.clear()
        self._waiting.pop(topic, None)
        self._wind()

    def _wind(self) -> None:
        if not self._waiting and not self._messages:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        when = self._paid_at - _PORTION / FRAMES
        if self._messages:
            when += _PAUSE
        else:
            when = max(when, next(iter(self._waiting.values())))
            if self._shedding.holds_joins_and_leaves:
                when = max(when, self._clock.now() + WINDOW)
        if self._timer is not None:
            if self._due_at <= when:
                return
            self._timer.cancel()
        self._due_at = when
        self._timer = self._clock.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.now()
        try:
            self._tell()
            while self._waiting and self._is_free(now):
                topic, until = next(iter(self._waiting.items()))
                if now < until:
                    break
                del self._waiting[topic]
                self._announce(topic, now)
        finally:
            self._wind()

    # Messages.

    def _announce(self, topic: Topic, now: float) -> None:
        told = self._take(topic, now)
        # For the look: a channel whose joins all wait costs something, too.
        self._paid_at = max(self._paid_at, now) + 1 / FRAMES
        if topic.changes:
            self._wait(topic, now)
        else:
            topic.lookers.clear()
        if told:
            topic.told_at = now
            self.outcomes["announced"] += len(told)
            self._messages.extend(_to_listeners(topic.listeners, told))
            self._tell()

    def _take(self, topic: Topic, now: float) -> list[tuple[int, str]]:
        """Take the changes that go out now: the number of each, and its push."""
        told: list[tuple[int, str]] = []
        size = 0
        changes, quoted = topic.changes, topic.quoted
        price = min(2 * len(topic.listeners), int(RATE.burst))
        for _ in range(min(len(changes), _LOOKED_AT)):
            client = next(iter(changes))
            change = changes.pop(client)
            if change.left is not None:
                info = change.left.subscriber.info
                told.append((change.left_at, replies.leave_push(quoted, info)))
                size += len(told[-1][1])
                change.left = None
            if change.joined is not None:
                subscriber = change.joined.subscriber
                if self._pay(change, subscriber.user, client, price, now):
                    push = replies.join_push(quoted, subscriber.info)
                    told.append((change.joined_at, push))
                    size += len(push)
                else:
                    changes[client] = change  # behind those that were not looked at
            if len(told) >= _TOGETHER or size >= _TOGETHER_SIZE:
                break
        return told

    def _pay(
        self, change: Change, user: UserId, client: ClientId, price: int, now: float
    ) -> bool:
        key = (user, "" if user else client)
        change.paid += self._rates.take(key, now, max(0, price - change.paid))
        if change.paid >= price:
            return True
        if not change.delayed:
            change.delayed = True
            self.outcomes["delayed"] += 1
        return False

    def _tell(self) -> None:
        """Write the messages that wait, as far as they are paid for."""
        if self._telling:
            return  # a call further up the stack does (A5)
        messages = self._messages
        now = self._clock.now()
        self._paid_at = max(self._paid_at, now)
        until = now + _PORTION / FRAMES
        self._telling = True
        try:
            while messages and (self._paid_at <= until or not messages[0].price):
                subscription, text, price = messages.popleft()
                if not subscription.left:
                    self._paid_at += price
                    subscription.member.put(text)
        finally:
            self._telling = False
            self._wind()


class _Message(NamedTuple):
    """A message to a listener.

    Attributes:
        price: Seconds that it takes of `FRAMES`; 0 for what a presence command paid.
    """

    subscription: Subscription
    text: DroppableText
    price: float


def _to_listeners(
    listeners: dict[Subscription, int], told: list[tuple[int, str]]
) -> Iterable[_Message]:
    """Yield each listener's message: of the changes that came after it."""
    first = min([number for number, _ in told])
    everything = _droppable([text for _, text in told])
    price = (1 + len(everything) / _FRAME_SIZE) / FRAMES
    for subscription, since in listeners.items():
        if since < first:
            yield _Message(subscription, everything, price)
        elif later := [text for number, text in told if number > since]:
            yield _Message(subscription, _droppable(later), price)


def _to_lookers(topic: Topic, change: Change, left: Subscription) -> list[_Message]:
    """Return messages for those whom presence showed a client that has left unsaid.

    There are no more of them than entries of it that presence has returned, each of
    which counted as a command.
    """
    found = []
    quoted, info = topic.quoted, left.subscriber.info
    for looker, looked in reversed(topic.lookers.items()):
        if looked < change.joined_at:
            break
        since = topic.listeners[looker]
        if change.left is not None and since < change.left_at:
            continue  # the leave before, which waits, tells it the same
        pushes = [replies.leave_push(quoted, info)]
        if since < change.joined_at:
            pushes.insert(0, replies.join_push(quoted, info))
        found.append(_Message(looker, _droppable(pushes), 0.0))
    return found


def _droppable(pushes: list[str]) -> DroppableText:
    return DroppableText("\n".join(pushes), Priority.JOIN_LEAVE)
