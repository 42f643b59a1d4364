"""The grace period: a lost connection's leave is held back, since it may come back.

A connection is *lost* when its transport ends and neither side meant it: no close frame
came, and we began none. A phone that changes networks is lost and back within seconds,
as another client of the same user. So a lost connection stays in presence for `hold`
seconds, and its slot is reserved for its user. The user's next connection takes the
slot, and the place in each channel that it subscribes to: the others see it join, and
in the same frame the lost one leave, so nobody who counts a user's clients ever counts
zero. What is not taken over in time leaves then.

An official SDK is given a new client id with each connection; hence both pushes.
An anonymous connection leaves at once: it has no user that could come back.

Bounds: `PER_USER` lost connections of one user, `IN_ALL` of all; one more makes the
oldest of them leave. Each holds no more than its presence entries.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from service.core.model import ClientId, UserId
from service.core.ports import Clock, Timer
from service.hub.subscription import Subscription

__all__ = ["GracePeriod"]

PER_USER = 10
IN_ALL = 500


class _Lost:
    __slots__ = ("claimed", "subscriptions", "until", "user")

    def __init__(
        self, user: UserId, subscriptions: Sequence[Subscription], until: float
    ) -> None:
        self.user = user
        self.subscriptions = subscriptions
        self.until = until
        self.claimed = False


class GracePeriod:
    """The lost connections of one process.

    Args:
        leave: Lets a subscription leave, unless it was taken over.
        clock: For `hold`.
        hold: Seconds that a leave is held back.

    Attributes:
        hits: Connections that took a slot reserved for their user.
        misses: Connections of users that found none.
        evicted: Lost connections that left early, for others.
    """

    def __init__(
        self, leave: Callable[[Subscription], None], clock: Clock, hold: float
    ) -> None:
        self._leave = leave
        self._clock = clock
        self._hold = hold
        self._lost: OrderedDict[ClientId, _Lost] = OrderedDict()
        self._users: dict[UserId, OrderedDict[ClientId, _Lost]] = {}
        self._reserved = 0
        self._timer: Timer | None = None
        self.hits = 0
        self.misses = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._lost)

    def reserved(self, user: UserId) -> int:
        """Return how many slots are reserved that *user* cannot claim one of."""
        return self._reserved - self._may_claim(user)

    def begin(
        self, user: UserId, client: ClientId, subscriptions: Sequence[Subscription]
    ) -> None:
        """Hold the leave of a lost connection back."""
        mine = self._users.get(user, ())
        if len(mine) >= PER_USER:
            self._evict(next(iter(mine)))
        elif len(self._lost) >= IN_ALL:
            self._evict(next(iter(self._lost)))
        lost = _Lost(user, subscriptions, self._clock.now() + self._hold)
        self._lost[client] = lost
        self._users.setdefault(user, OrderedDict())[client] = lost
        self._reserved += 1
        self._wind()

    def claim(self, user: UserId) -> None:
        """Give a new connection of *user* a slot that is reserved for it, if any."""
        if not user:
            return
        for lost in self._users.get(user, {}).values():
            if not lost.claimed:
                lost.claimed = True
                self._reserved -= 1
                self.hits += 1
                return
        self.misses += 1

    def end(self, user: UserId) -> None:
        """Let the lost connections of *user* leave now."""
        for client in tuple(self._users.get(user, ())):
            self._end(client)

    def end_all(self) -> None:
        """Let all leave now."""
        while self._lost:
            self._end(next(iter(self._lost)))

    def _may_claim(self, user: UserId) -> bool:
        mine = self._users.get(user) if user else None
        return mine is not None and any(not one.claimed for one in mine.values())

    def _evict(self, client: ClientId) -> None:
        self.evicted += 1
        self._end(client)

    def _end(self, client: ClientId) -> None:
        lost = self._lost.pop(client)
        mine = self._users[lost.user]
        del mine[client]
        if not mine:
            del self._users[lost.user]
        if not lost.claimed:
            self._reserved -= 1
        if not self._lost and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for subscription in lost.subscriptions:
            self._leave(subscription)

    def _wind(self) -> None:
        if self._timer is None:
            first = next(iter(self._lost.values()))
            self._timer = self._clock.call_at(first.until, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._lost:
            client, lost = next(iter(self._lost.items()))
            if lost.until > now:
                self._wind()
                return
            self._end(client)
