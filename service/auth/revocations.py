"""What was revoked: tokens by their id, and a user's tokens by when they were issued.

The State holds the list for all processes; each keeps a copy, with which it decides
without waiting. A revocation here is in the State before it is in the copy, and in
the copy before the caller is told. Others find it at their next look, `LOOK` seconds
later at the most.

Invariants:

* Until the State was read once, nothing is known, and no token is believed.
* A look that fails leaves the copy as it is: what was revoked stays so, `fault` says
  why, and the log, once. An entry is over at its end, whether a look says so or not.
* A look only adds to the copy, so it does not lose what was revoked here while it was
  under way.
* What is new, and only that, is told of: once in each process.

A revoked token counts as an expired one. A live connection that stands on it is closed
with 3005, comes back with the token it has, is answered 109, and gets another from its
application, if that gives it one; a client that cannot stays away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from service.auth.errors import KeysUnavailable
from service.core.errors import SteadwireError, StoreError
from service.core.model import UserId
from service.core.ports import Clock, State, StateEntry, Timer

__all__ = ["DEFAULT_TTL", "Revocations", "Revoked", "RevokedTooMany"]

LOOK = 2.0  # seconds
DEFAULT_TTL = 86400.0  # seconds that a revocation holds unless it says how long
REVOCATIONS = 10_000  # count, of both kinds together

_TOKEN = "revoked_token"
_USER = "revoked_user"


class RevokedTooMany(SteadwireError):
    """No more can be revoked until something that was ends."""


class Revoked(NamedTuple):
    """What was revoked.

    Attributes:
        token_id: The ``jti`` of a token; "" for tokens of a user.
        user: Whose.
        before: Those issued before this, in Unix seconds, or nobody knows when.
    """

    token_id: str
    user: UserId = UserId("")
    before: float = 0.0

    def covers(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Tell whether a token is revoked by it."""
        if self.token_id:
            return token_id == self.token_id
        return user == self.user and issued_at < self.before


class _User(msgspec.Struct):
    user: str
    before: float


class Revocations:
    """`ports.Revocations` on a State.

    Args:
        state: Holds the list.
        clock: Says what is over, and when to look.
        spawn: Runs a look.
        told: Told of each revocation once, when it is in force here.
        failed: Told when looks begin to fail, and why.

    Attributes:
        fault: Why the last look failed; None if it did not.
    """

    def __init__(
        self,
        state: State,
        clock: Clock,
        *,
        spawn: Callable[[Awaitable[None]], object],
        told: Callable[[Revoked], None],
        failed: Callable[[StoreError], None],
    ) -> None:
        self.fault: str | None = None
        self._state = state
        self._clock = clock
        self._spawn = spawn
        self._told = told
        self._failed = failed
        self._tokens: dict[str, float] = {}  # their ends
        self._users: dict[UserId, tuple[float, float]] = {}  # before, and the end
        self._known = False
        self._timer: Timer | None = None
        self._stopped = False

    async def start(self) -> None:
        """Look for the first time, and then every so often."""
        await self._look()
        self._wind()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Tell whether a token admits nobody any more; see the port.

        Raises:
            KeysUnavailable: Nothing is known yet.
        """
        if not self._known:
            raise KeysUnavailable("what is revoked is not known yet")
        now = self._clock.wall()
        if token_id and self._tokens.get(token_id, 0.0) > now:
            return True
        before, end = self._users.get(user, (0.0, 0.0))
        return end > now and issued_at < before

    async def revoke_token(self, token_id: str, expire_at: float) -> None:
        """Revoke a token until *expire_at* (Unix seconds).

        Another call for the same token never makes it revoked for less long.

        Raises:
            RevokedTooMany: The list is full.
            StoreError: It is not known to be revoked.
        """
        expire_at = max(expire_at, self._tokens.get(token_id, 0.0))
        await self._revoke(Revoked(token_id), token_id, token_id, expire_at)

    async def revoke_user(self, user: UserId, before: float, expire_at: float) -> None:
        """Revoke a user's tokens issued before *before*, until *expire_at*.

        Another call for the same user takes the place of the first, but never makes
        fewer tokens revoked, or for less long.

        Raises:
            RevokedTooMany: The list is full.
            StoreError: They are not known to be revoked.
        """
        known, end = self._users.get(user, (0.0, 0.0))
        if end > self._clock.wall():
            before, expire_at = max(before, known), max(expire_at, end)
        value = msgspec.json.encode(_User(user, before)).decode()
        await self._revoke(Revoked("", user, before), user, value, expire_at)

    async def _revoke(
        self, revoked: Revoked, name: str, value: str, expire_at: float
    ) -> None:
        self._drop_expired()
        there = self._tokens if revoked.token_id else self._users
        count = len(self._tokens) + len(self._users)
        if name not in there and count >= REVOCATIONS:
            raise RevokedTooMany("the list of what is revoked is full")
        kind = _TOKEN if revoked.token_id else _USER
        ttl = expire_at - self._clock.wall()
        await self._state.put(kind, _key(name), value, ttl)
        self._take(revoked, expire_at)

    def _take(self, revoked: Revoked, end: float) -> None:
        """Put one into the copy, and tell of it if it is new."""
        if revoked.token_id:
            new = revoked.token_id not in self._tokens
            end = max(end, self._tokens.get(revoked.token_id, 0.0))
            self._tokens[revoked.token_id] = end
        else:
            before, known = self._users.get(revoked.user, (0.0, 0.0))
            new = revoked.before > before
            self._users[revoked.user] = (max(before, revoked.before), max(end, known))
        if new:
            self._told(revoked)

    def _drop_expired(self) -> None:
        now = self._clock.wall()
        for token_id in [one for one, end in self._tokens.items() if end <= now]:
            del self._tokens[token_id]
        for user in [one for one, (_, end) in self._users.items() if end <= now]:
            del self._users[user]

    # Looking.

    def _wind(self) -> None:
        if not self._stopped:
            self._timer = self._clock.call_at(
                self._clock.now() + LOOK, lambda: self._spawn(self._look_again())
            )

    async def _look_again(self) -> None:
        try:
            await self._look()
        finally:
            self._wind()

    async def _look(self) -> None:
        try:
            tokens = await self._state.entries(_TOKEN)
            users = await self._state.entries(_USER)
        except StoreError as error:
            if self.fault is None:
                self._failed(error)
            self.fault = "what is revoked cannot be read"
            return
        self.fault = None
        self._known = True
        self._drop_expired()
        for kept in tokens:
            self._take(Revoked(kept.value), kept.expires)
        for kept in users:
            self._take(_user(kept), kept.expires)


def _user(kept: StateEntry) -> Revoked:
    value = msgspec.json.decode(kept.value, type=_User)
    return Revoked("", UserId(value.user), value.before)


def _key(name: str) -> str:
    """Return a key of a State for a name of any length."""
    return hashlib.sha256(name.encode()).hexdigest()
