"""Rate limits by token bucket, and bounded maps of keys: no clock and no I/O.

A bucket holds up to *burst* tokens and gains *rate* tokens a second; a take beyond that
is refused. A bucket stores when it was last full and how many tokens were taken since,
so nothing is added up and nothing drifts. Times are seconds of a clock that does not go
back; where it does, the bucket waits for it.

The maps are bounded, whoever fills them:

* `Buckets` forgets full buckets first, the least recently used before others: a full
  bucket equals a new one. When no bucket is full, all keys without one share a bucket.
  So many keys cannot use up memory, cannot reset the bucket of a limited key, and
  together cannot take more beyond the capacity than one key.
* `Failures` counts failures of keys and blocks a key for a time. A block is never
  forgotten before its time. When the counts are full, the oldest is forgotten; when
  the blocks are full, a further key is not blocked until one is released.
* `Holders` counts what each key holds. A key that holds nothing is not in the map, so
  the map is as bounded as what is held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Bucket", "Buckets", "Failures", "Holders", "Rate", "rate_of"]

K = TypeVar("K", bound=Hashable)


class Rate(NamedTuple):
    """A rate limit.

    Attributes:
        rate: Tokens a second in the long run; above 0.
        burst: Tokens at once, after a pause of ``burst / rate`` seconds; 1 or more.
    """

    rate: float
    burst: float


def rate_of(per_second: float | None, seconds: float) -> Rate | None:
    """Return a rate whose burst lasts *seconds*; None when there is no limit."""
    return Rate(per_second, max(1.0, per_second * seconds)) if per_second else None


class Bucket:
    """One token bucket, full when it is made."""

    __slots__ = ("_full_at", "_taken")

    def __init__(self, now: float) -> None:
        self._full_at = now
        self._taken = 0

    def take(self, rate: Rate, now: float, wanted: int = 1) -> int:
        """Take up to *wanted* tokens; return how many were taken."""
        per_second, burst = rate
        gained = (now - self._full_at) * per_second
        if gained >= self._taken:
            # Full, also after a pause: tokens gained beyond the burst are lost.
            self._full_at = now
            self._taken = 0
            gained = 0.0
        elif gained < 0.0:
            gained = 0.0
        granted = min(wanted, int(burst - self._taken + gained))
        self._taken += granted
        return granted

    def is_full(self, rate: Rate, now: float) -> bool:
        """Tell whether the bucket is full, and so equal to a new one."""
        return (now - self._full_at) * rate.rate >= self._taken

    def wait(self, rate: Rate, now: float) -> float:
        """Return the seconds until the bucket has a token; 0 when it has one."""
        missing = self._taken + 1 - rate.burst
        return max(0.0, self._full_at + missing / rate.rate - now)


class Buckets(Generic[K]):
    """A bucket for each key, at most *capacity* of them.

    Args:
        rate: The rate of every bucket.
        capacity: Most buckets kept; beyond, keys without one share a bucket.
    """

    def __init__(self, rate: Rate, capacity: int) -> None:
        self.rate = rate
        self._capacity = capacity
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()
        self._shared = Bucket(float("-inf"))

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K, now: float, wanted: int = 1) -> int:
        """Take up to *wanted* tokens of *key*; return how many were taken."""
        return self._of(key, now).take(self.rate, now, wanted)

    def wait(self, key: K, now: float) -> float:
        """Return the seconds until *key* has a token; 0 when it has one."""
        bucket = self._buckets.get(key, self._shared)
        return bucket.wait(self.rate, now)

    def _of(self, key: K, now: float) -> Bucket:
        buckets = self._buckets
        bucket = buckets.get(key)
        if bucket is not None:
            buckets.move_to_end(key)
            return bucket
        self._forget_full(now)
        if len(buckets) >= self._capacity:
            return self._shared
        bucket = buckets[key] = Bucket(now)
        return bucket

    def _forget_full(self, now: float) -> None:
        # Two for each new key, whether there is room or not: unused buckets go by
        # themselves, and no call has much to do.
        for _ in range(2):
            if not self._buckets:
                return
            key = next(iter(self._buckets))
            if self._buckets[key].is_full(self.rate, now):
                del self._buckets[key]
            elif len(self._buckets) >= self._capacity:
                # It is looked at again later. Buckets behind it may be full already:
                # the one used last may have had the most tokens left.
                self._buckets.move_to_end(key)
            else:
                return


class Failures(Generic[K]):
    """Block a key for a time after too many failures within a time.

    Args:
        limit: The failure that blocks its key, counted from 1.
        window: Seconds from a key's first failure in which failures count together.
        block: Seconds that a key is blocked; failures meanwhile do not count.
        capacity: Most keys counted, and most keys blocked.
    """

    def __init__(self, limit: int, window: float, block: float, capacity: int) -> None:
        self._limit = limit
        self._window = window
        self._block = block
        self._capacity = capacity
        # Both are in the order of their times: each time is a constant from now.
        self._counts: OrderedDict[K, tuple[float, int]] = OrderedDict()
        self._until: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts) + len(self._until)

    def failed(self, key: K, now: float) -> bool:
        """Count a failure; return True when it is the one that blocks the key."""
        self._forget(now)
        if key in self._until:
            return False
        since, count = self._counts.get(key, (now, 0))
        count += 1
        if count >= self._limit and len(self._until) < self._capacity:
            self._counts.pop(key, None)
            self._until[key] = now + self._block
            return True
        if key not in self._counts and len(self._counts) >= self._capacity:
            self._counts.popitem(last=False)
        self._counts[key] = (since, count)
        return False

    def blocked(self, key: K, now: float) -> float:
        """Return the seconds until *key* is released; 0 when it is not blocked."""
        until = self._until.get(key)
        return 0.0 if until is None else max(0.0, until - now)

    def _forget(self, now: float) -> None:
        while self._counts:
            key, (since, _) = next(iter(self._counts.items()))
            if now - since < self._window:
                break
            del self._counts[key]
        while self._until:
            key, until = next(iter(self._until.items()))
            if now < until:
                break
            del self._until[key]


class Holders(Generic[K]):
    """Count what each key holds, up to a limit.

    Args:
        limit: Most that a key may hold; 0 for no limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, key: K) -> bool:
        """Count one more of *key*; at the limit, count nothing and return False."""
        held = self._held.get(key, 0)
        if 0 < self._limit <= held:
            return False
        self._held[key] = held + 1
        return True

    def release(self, key: K) -> None:
        """Count one less of *key*, which must hold at least one."""
        held = self._held[key] - 1
        if held:
            self._held[key] = held
        else:
            del self._held[key]
