"""Tickets: random one-time credentials for clients that do not get a token.

An application asks the server API for a ticket and hands it to its client, which sends
it as the token of its connect. It is ``tkt_`` and 256 random bits. The State keeps the
claims under the ticket's SHA-256, so a reader of the State cannot connect with its
contents.

* A ticket is good for one connect or refresh, during its time to live, and from one
  origin if it was bound to one. A client that presents it takes it out of the State
  before anything else is checked: of several that present it at once, one is accepted.
* A well-formed ticket that is not in the State was used or has expired; the State does
  not say which. It counts as an expired token: the SDKs fetch another, and those that
  cannot stay disconnected. A reconnect presents the old ticket first, so this is the
  usual case.
* Any other text that begins with ``tkt_`` is an invalid token.

A process has at most `OUTSTANDING` tickets that were issued and have not expired.
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

TICKET_TTL = 60.0  # seconds; the longest time to live
OUTSTANDING = 100_000  # count; each takes some 200 bytes of the State

_KIND = "ticket"
_TICKET = re.compile(TICKET_PREFIX + r"[-_A-Za-z0-9]{43}")


class TicketRefused(SteadwireError):
    """A ticket cannot be issued.

    Attributes:
        full: True if too many are outstanding, False if its claims are not valid or
            too long.
    """

    def __init__(self, reason: str, *, full: bool) -> None:
        super().__init__(reason)
        self.full = full


class _Bound(msgspec.Struct):
    sub: str | None = None
    origin: str = ""


class Tickets:
    """Issues and redeems tickets. All I/O is the State's.

    Args:
        state: Keeps the claims of tickets.
        clock: For their time to live.
        rng: Makes tickets, so it has to be unpredictable.
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
            origin: The client's Origin header must be this; "" for any.
            ttl: Seconds until the ticket expires, up to `TICKET_TTL`.

        Raises:
            TicketRefused: It cannot be issued.
            StoreError: It was not stored.
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
            raise TicketRefused("its claims are too long", full=False)
        bits = base64.urlsafe_b64encode(self._rng.randbytes(32))
        ticket = TICKET_PREFIX + bits.decode().rstrip("=")
        # Tickets with different times to live are not in order: some count for longer.
        self._ends.append(now + ttl)
        await self._state.put(_KIND, _digest(ticket), value, ttl)
        return ticket

    async def redeem(self, ticket: str, origin: str) -> ConnectionClaims:
        """Return the claims of a ticket, and use it up.

        Args:
            ticket: The text that a client sent.
            origin: The client's Origin header, "" without one.

        Raises:
            TokenExpired: It was used, has expired, or was never issued.
            TokenInvalid: It is not a ticket, or not for this origin.
            StoreError: It cannot be looked up; it may be used up.
        """
        if not _TICKET.fullmatch(ticket):
            raise TokenInvalid("it is not a ticket")
        value = await self._state.take(_KIND, _digest(ticket))
        if value is None:
            raise TokenExpired("the ticket was used or has expired")
        bound = msgspec.json.decode(value, type=_Bound)
        if bound.origin and bound.origin != origin:
            raise TokenInvalid("the ticket is for another origin")
        return self._read(value)

    async def forget(self, user: UserId) -> int:
        """Delete a user's tickets; return how many there were.

        Raises:
            StoreError: Some may be left.
        """
        forgotten = 0
        for entry in await self._state.entries(_KIND):
            if (msgspec.json.decode(entry.value, type=_Bound).sub or "") == user:
                taken = await self._state.take(_KIND, entry.key)
                forgotten += taken is not None
        return forgotten

    def _read(self, value: str) -> ConnectionClaims:
        return read_connection(
            value.encode(), self._clock.wall(), audience="", issuer=""
        )


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
