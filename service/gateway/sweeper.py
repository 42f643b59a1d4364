"""Sweeper: the time-driven work of connections at the gateway, in one call.

Where no process is resident, a schedule has `sweep` called; a container calls it from a
task. For each of the `PARTS` parts over which connections are spread, in this order:

    evicted     connections that lost their slots to others are closed with 3504: the
                invocation that evicted them may have died
    unfinished  sockets whose clients did not connect in time are closed with 3502
    aged        connections that the gateway is about to cut are sent away with 3011,
                each at another moment of `AGE_SPREAD`
    over        connections whose tokens were revoked, and what has expired of a
                connection: itself, or subscriptions
    pinged      once in a period: each connection is pinged, and ended if the gateway
                does not know it; then its channels are looked after, in case that the
                holder of one has died

and once a day the count of connections is compared with their records.

Invariants:

* Everything may be done twice, and at once: what is closed stays closed, a lease is
  taken by one of those who try, and a ping says nothing. So two sweeps at once, one
  that was cut off in the middle, and one that is repeated do no harm.
* Nothing is forgotten: what a sweep does not reach or fails at is due in the next. A
  fault with one connection does not keep the others from being looked at.
* A ping needs no order and no answer: only `Posted.GONE` ends a connection.

What is due is decided by stored times and the clock alone, so that a process which was
frozen, or has just started, decides the same. That a part was pinged is stored too, as
a value that expires when its next ping is due.

Interleavings, each a test: two sweeps at once; a sweep that is cancelled after any call
and begins again; a connection that ends, or connects, while it is looked at.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

import structlog

from service.auth.errors import KeysUnavailable
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    FORCE_RECONNECT,
    STALE,
    Close,
    StoreError,
    describe,
)
from service.core.model import ClientId, UserId
from service.core.ports import Clock, Posted, Posts, State
from service.core.sessions import PARTS, Listed, Listing, Sessions, Terms

__all__ = ["AGE", "AGE_MARGIN", "AGE_SPREAD", "PING", "Sweeper"]

AGE = 7200.0  # s; the gateway's own limit
AGE_MARGIN = 180.0  # s before it at which the last ones are sent away
AGE_SPREAD = 600.0  # s over which those that connected together are sent away

PARALLEL = 64  # connections that are looked at, or pinged, at once
TOGETHER = 4  # parts

PING = "{}"

_PINGED = "ping"  # kind of the stored values

_T = TypeVar("_T")

_log = structlog.get_logger("steadwire")


class Upkeep(Protocol):
    """What the sweeper has done to connections and channels; each may be repeated.

    Every method raises `StoreError` when something of it is left.
    """

    async def hang_up(self, client: ClientId, close: Close | None) -> None:
        """End a connection, and delete all that is stored of it.

        Args:
            client: The connection.
            close: What its client is told; None if the gateway does not know it.
        """

    async def expire(self, client: ClientId) -> None:
        """End what is over: the connection, or some of its subscriptions."""

    async def look_after(self, connections: Iterable[Listed]) -> None:
        """Look after the channels of some connections: a holder may have died."""

    async def recount(self) -> None:
        """Compare the count of connections with their records, at most once a day."""


class Revocations(Protocol):
    """The revoked tokens, in a process that may have stood still."""

    async def refresh(self) -> None:
        """Read the list, unless it is new."""

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Return whether a token is revoked.

        Raises:
            KeysUnavailable: It is not known yet.
        """


class Sweeper:
    """Does what is due.

    Args:
        sessions: The connections.
        posts: Pings them.
        upkeep: Ends them, and looks after their channels.
        state: Keeps which parts were pinged.
        revocations: The revoked tokens.
        clock: Tells what is due.
        ping_every: Seconds between two pings of a connection.
        stale_timeout: Seconds in which a client has to connect.
    """

    def __init__(
        self,
        sessions: Sessions,
        posts: Posts,
        upkeep: Upkeep,
        state: State,
        revocations: Revocations,
        clock: Clock,
        *,
        ping_every: float,
        stale_timeout: float,
    ) -> None:
        self._sessions = sessions
        self._posts = posts
        self._upkeep = upkeep
        self._state = state
        self._revocations = revocations
        self._clock = clock
        self._ping_every = ping_every
        self._stale_timeout = stale_timeout

    async def sweep(self) -> None:
        """Do what is due, once; what fails is logged, and due again the next time."""
        parts = iter(range(PARTS))
        pinged: set[str] | None = None
        with _Failures() as failures:
            entries = await failures.attempt(self._state.entries(_PINGED))
            await failures.attempt(self._revocations.refresh())
            if entries is not None:
                pinged = {entry.key for entry in entries}

            async def work() -> None:
                for part in parts:
                    # Where it is not known, a ping too many is better than none.
                    ping = pinged is None or str(part) not in pinged
                    await failures.attempt(self._sweep_part(part, failures, ping=ping))

            await asyncio.gather(*(work() for _ in range(TOGETHER)))
            await failures.attempt(self._upkeep.recount())

    async def _sweep_part(self, part: int, failures: _Failures, *, ping: bool) -> None:
        listing = await self._sessions.listing(part)
        closing = dict(self._closes(listing))

        async def evict(client: ClientId) -> None:
            await self._upkeep.hang_up(client, CLOSE_CONNECTION_LIMIT)
            await self._sessions.settle(client)

        await _each(evict, listing.evicted, failures)
        await _each(
            lambda client: self._upkeep.hang_up(client, closing[client]),
            closing,
            failures,
        )
        left = [each for each in listing.admitted if each.client not in closing]
        over = [each.client for each in left if self._is_over(each.terms)]
        await _each(self._upkeep.expire, over, failures)
        if ping:
            await _each(self._ping, [each.client for each in left], failures)
            await self._upkeep.look_after(left)
            await self._state.put(_PINGED, str(part), "", self._ping_every)

    def _closes(self, listing: Listing) -> Iterable[tuple[ClientId, Close]]:
        """Yield the connections that have to go because of their age."""
        now = self._now()
        for each in listing.arrived:
            if now - each.at > self._stale_timeout * 1000.0:
                yield each.client, STALE
        for each in listing.admitted:
            if now - each.at > 1000.0 * _age_of(each):
                yield each.client, FORCE_RECONNECT

    def _is_over(self, terms: Terms) -> bool:
        if 0 < terms.end <= self._now():
            return True
        try:
            return self._revocations.is_revoked(
                terms.user, terms.token_id, terms.issued_at
            )
        except KeysUnavailable:
            return False  # it was let in when they were known

    async def _ping(self, client: ClientId) -> None:
        if await self._posts.post(client, PING) is Posted.GONE:
            await self._upkeep.hang_up(client, None)

    def _now(self) -> float:
        return self._clock.wall() * 1000.0


def _age_of(connection: Listed) -> float:
    """Return the seconds after which a connection is sent away.

    By a hash of its id, so that every sweep says the same.
    """
    share = zlib.crc32(connection.client.encode()) / 2**32
    return AGE - AGE_MARGIN - AGE_SPREAD * share


class _Failures:
    """What failed in one sweep; logged as one line at its end."""

    def __init__(self) -> None:
        self._count = 0
        self._last: BaseException | None = None

    def __enter__(self) -> _Failures:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._last, StoreError):
            _log.info(
                "a part of the sweep has to wait",
                failures=self._count,
                reason=str(self._last),
            )
        elif self._last is not None:
            _log.error(
                "a part of the sweep failed",
                failures=self._count,
                **describe(self._last),
            )

    async def attempt(self, work: Awaitable[_T]) -> _T | None:
        try:
            return await work
        except Exception as error:
            self._count += 1
            self._last = error
            return None


async def _each(
    act: Callable[[ClientId], Awaitable[None]],
    clients: Iterable[ClientId],
    failures: _Failures,
) -> None:
    """Call *act* for each client, `PARALLEL` at once, whatever the others raise."""
    left = iter(clients)

    async def work() -> None:
        for client in left:
            await failures.attempt(act(client))

    await asyncio.gather(*(work() for _ in range(PARALLEL)))
