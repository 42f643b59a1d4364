"""Tickets: a user's way in once, for clients that get no token of their own.

An application asks the server API for a ticket and hands it to its client, which sends
it as the token of its connect. It is ``tkt_`` and 256 random bits; the State keeps the
claims under its SHA-256 alone, so nobody who reads the State can come in with what he
finds.

* A ticket is good for one connect (or refresh), for as long as it was asked for, and
  from one origin if it was bound to one. Whoever shows it takes it out of the State
  first, whatever happens then: of any number who show it at once, one is let in.
* What looks like a ticket and is not there was used, or its time is over, and nobody
  can tell which. It counts as an expired token: the SDKs fetch another, and one that
  cannot stays away. A reconnect shows the old ticket first, so this is the usual case.
* What does not even look like one is an invalid token, for good.

A process gives out `OUTSTANDING` tickets at once at the most.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import deque
from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec

from service.auth.claims import ConnectionClaims, read_connection
from service.auth.errors import TokenExpired, TokenInvalid
from service.core.errors import SteadwireError
from service.core.model import TICKET_PREFIX, UserId
from service.core.ports import STATE_VALUE_SIZE, Clock, State

__all__ = ["TICKET_TTL", "TicketRefused", "Tickets"]

TICKET_TTL = 60.0  # seconds, at the most
OUTSTANDING = 100_000  # count; each takes some 200 bytes of the State

_KIND = "ticket"
_TICKET = re.compile(TICKET_PREFIX + r"[-_A-Za-z0-9]{43}")


class TicketRefused(SteadwireError):
    """A ticket that is not given out.

    Attributes:
        full: Too many are outstanding; else what it says is too much, or is no claim.
    """

    def __init__(self, reason: str, *, full: bool) -> None:
        super().__init__(reason)
        self.full = full


class _Bound(msgspec.Struct):
    sub: str
    origin: str = ""


class Tickets:
    """Gives tickets out and takes them back. No I/O but the State's.

    Args:
        state: Keeps them.
        clock: Says what time it is.
        chance: Makes them: one that nobody can predict.
    """

    def __init__(self, state: State, clock: Clock, rng: Random) -> None:
        self._state = state
        self._clock = clock
        self._rng = rng
        self._ends: deque[float] = deque()

    async def issue(
        self, claims: Mapping[str, Any], *, origin: str = "", ttl: float = TICKET_TTL
    ) -> str:
        """Return a new ticket.

        Args:
            claims: Those of a connection token, beside ``exp``.
            origin: What the client's Origin header must be; "" for anything.
            ttl: Seconds until it is over, up to `TICKET_TTL`.

        Raises:
            TicketRefused: It cannot be given out.
            StoreError: It was not kept.
        """
        now = self._clock.wall()
        while self._ends and self._ends[0] <= now:
            self._ends.popleft()
        if len(self._ends) >= OUTSTANDING:
            raise TicketRefused("too many tickets are outstanding", full=True)
        value = msgspec.json.encode({**claims, "iat": now, "origin": origin}).decode()
        try:
            self._read(value)
        except (TokenInvalid, TokenExpired) as error:
            raise TicketRefused(str(error), full=False) from None
        if len(value.encode()) > STATE_VALUE_SIZE:
            raise TicketRefused("what it says is too much", full=False)
        bits = base64.urlsafe_b64encode(self._rng.randbytes(32))
        ticket = TICKET_PREFIX + bits.decode().rstrip("=")
        # Not in the order of their ends if those differ: then some count for longer.
        self._ends.append(now + ttl)
        await self._state.put(_KIND, _digest(ticket), value, ttl)
        return ticket

    async def redeem(self, ticket: str, origin: str) -> ConnectionClaims:
        """Return what a ticket says, once.

        Args:
            ticket: What a client shows.
            origin: Its Origin header, "" for none.

        Raises:
            TokenExpired: It is not there: used, over, or never given out.
            TokenInvalid: It is none, or not for this origin.
            StoreError: Nobody can tell now; it may be gone.
        """
        if not _TICKET.fullmatch(ticket):
            raise TokenInvalid("it is no ticket")
        value = await self._state.take(_KIND, _digest(ticket))
        if value is None:
            raise TokenExpired("the ticket was used, or its time is over")
        bound = msgspec.json.decode(value, type=_Bound)
        if bound.origin and bound.origin != origin:
            raise TokenInvalid("the ticket is for another origin")
        return self._read(value)

    async def forget(self, user: UserId) -> int:
        """Take a user's tickets out of the State; return how many.

        Raises:
            StoreError: Some may be left.
        """
        forgotten = 0
        for kept in await self._state.entries(_KIND):
            if msgspec.json.decode(kept.value, type=_Bound).sub == user:
                taken = await self._state.take(_KIND, kept.key)
                forgotten += taken is not None
        return forgotten

    def _read(self, value: str) -> ConnectionClaims:
        return read_connection(
            value.encode(), self._clock.wall(), audience="", issuer=""
        )


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
