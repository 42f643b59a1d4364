"""Leaves that are held back: a connection that was lost may be about to come back.

A connection is *lost* when its transport ends and neither side meant it: no close frame
came, and we began none. A phone that changes networks is lost and back within seconds,
as another client of the same user. So a lost connection stays in presence for `hold`,
and its slot is kept for its user. The user's next connection takes the slot, and the
place in each channel that it subscribes to: the others see it join, and in the same
frame the lost one leave, so whoever counts a user's clients never counts none. What is
not taken over in time leaves then.

An official SDK is given a new client id with each connection; hence both pushes.
Without a user there is nobody to wait for: an anonymous connection leaves at once.

Bounds: `PER_USER` parked connections of one user, `IN_ALL` of all; one more makes the
one that was parked first leave. Each holds no more than its presence entries.
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


class _Parked:
    __slots__ = ("claimed", "places", "until", "user")

    def __init__(
        self, user: UserId, places: Sequence[Subscription], until: float
    ) -> None:
        self.user = user
        self.places = places
        self.until = until
        self.claimed = False


class GracePeriod:
    """The parked connections of one process.

    Args:
        leave: Ends a place, and tells the others, if nobody took it over.
        clock: For `hold`.
        hold: Seconds.

    Attributes:
        hits: Connections that found a slot of their user's parked.
        misses: Connections of users that did not.
        evicted: Parked connections that left early, for others.
    """

    def __init__(
        self, leave: Callable[[Subscription], None], clock: Clock, hold: float
    ) -> None:
        self._leave = leave
        self._clock = clock
        self._hold = hold
        self._parked: OrderedDict[ClientId, _Parked] = OrderedDict()
        self._users: dict[UserId, OrderedDict[ClientId, _Parked]] = {}
        self._held = 0
        self._timer: Timer | None = None
        self.hits = 0
        self.misses = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._parked)

    def held(self, user: UserId) -> int:
        """Return how many slots are kept that a connection of *user* cannot have."""
        return self._held - self._may_claim(user)

    def park(
        self, user: UserId, client: ClientId, places: Sequence[Subscription]
    ) -> None:
        """Hold the leave of a lost connection back."""
        mine = self._users.get(user, ())
        if len(mine) >= PER_USER:
            self._evict(next(iter(mine)))
        elif len(self._parked) >= IN_ALL:
            self._evict(next(iter(self._parked)))
        parked = _Parked(user, places, self._clock.now() + self._hold)
        self._parked[client] = parked
        self._users.setdefault(user, OrderedDict())[client] = parked
        self._held += 1
        self._wind()

    def claim(self, user: UserId) -> None:
        """Let a new connection of *user* have a slot that is kept for it, if any."""
        if not user:
            return
        for parked in self._users.get(user, {}).values():
            if not parked.claimed:
                parked.claimed = True
                self._held -= 1
                self.hits += 1
                return
        self.misses += 1

    def forget(self, user: UserId) -> None:
        """Let all of a user's lost connections leave now."""
        for client in tuple(self._users.get(user, ())):
            self._end(client)

    def clear(self) -> None:
        """Let all leave now."""
        while self._parked:
            self._end(next(iter(self._parked)))

    def _may_claim(self, user: UserId) -> bool:
        mine = self._users.get(user) if user else None
        return mine is not None and any(not one.claimed for one in mine.values())

    def _evict(self, client: ClientId) -> None:
        self.evicted += 1
        self._end(client)

    def _end(self, client: ClientId) -> None:
        parked = self._parked.pop(client)
        mine = self._users[parked.user]
        del mine[client]
        if not mine:
            del self._users[parked.user]
        if not parked.claimed:
            self._held -= 1
        if not self._parked and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for place in parked.places:
            self._leave(place)

    def _wind(self) -> None:
        if self._timer is None:
            first = next(iter(self._parked.values()))
            self._timer = self._clock.call_at(first.until, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._parked:
            client, parked = next(iter(self._parked.items()))
            if parked.until > now:
                self._wind()
                return
            self._end(client)
