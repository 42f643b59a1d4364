"""Revocations of tokens: by their id, or all of a user's up to a time of issue.

The State holds the list for all processes; each keeps a copy, so that it decides
without waiting. A revocation is in the State before it is in the copy, and in the copy
before its caller gets an answer. Other processes read it at their next poll, at most
`POLL_INTERVAL` seconds later.

Invariants:

* Before the first successful poll no token is accepted.
* A poll that fails leaves the copy as it is: tokens stay revoked, `fault` has the
  reason, and `on_failure` is called once. An entry ends at its time in any case.
* A poll only adds to the copy, so it does not lose a revocation made while it was under
  way.
* `on_revoked` is called once in each process for each new revocation.
* Calls for one token, or one user, write one after the other: each adds to what the one
  before it has written.

A revoked token counts as an expired one. A live connection that was accepted with it
is closed with 3005, reconnects with the same token, is answered 109, and gets another
token if its application issues one; otherwise it stays disconnected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from service.auth.errors import KeysUnavailable
from service.core.errors import SteadwireError, StoreError
from service.core.keyed_lock import KeyedLock
from service.core.model import UserId
from service.core.ports import Clock, State, StateEntry, Timer

__all__ = ["DEFAULT_TTL", "Revocation", "Revocations", "TooManyRevocations"]

POLL_INTERVAL = 2.0  # seconds
DEFAULT_TTL = 86400.0  # seconds that a revocation holds unless its caller says
MAX_REVOCATIONS = 10_000  # of both kinds together

_TOKEN = "revoked_token"
_USER = "revoked_user"


class TooManyRevocations(SteadwireError):
    """The list is full until a revocation ends."""


class Revocation(NamedTuple):
    """The revocation of one token, or of a user's tokens.

    Attributes:
        token_id: The ``jti`` of the token; "" for tokens of a user.
        user: The user whose tokens are revoked.
        before: Unix seconds; tokens issued earlier, or without ``iat``, are revoked.
    """

    token_id: str
    user: UserId = UserId("")
    before: float = 0.0

    def covers(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Return whether it revokes a token."""
        if self.token_id:
            return token_id == self.token_id
        return user == self.user and issued_at < self.before


class _User(msgspec.Struct):
    user: str
    before: float


class Revocations:
    """`ports.Revocations`, kept in a State.

    Args:
        state: Holds the list.
        clock: For the ends of revocations and the interval of polls.
        spawn: Runs a poll.
        on_revoked: Called once for each revocation, when it holds in this process.
        on_failure: Called with the error when polls begin to fail.

    Attributes:
        fault: Why the last poll failed; None if it did not.
    """

    def __init__(
        self,
        state: State,
        clock: Clock,
        *,
        spawn: Callable[[Awaitable[None]], object],
        on_revoked: Callable[[Revocation], None],
        on_failure: Callable[[StoreError], None],
    ) -> None:
        self.fault: str | None = None
        self._state = state
        self._clock = clock
        self._spawn = spawn
        self._on_revoked = on_revoked
        self._on_failure = on_failure
        self._tokens: dict[str, float] = {}  # by jti: their ends
        self._users: dict[UserId, tuple[float, float]] = {}  # `before` and the end
        self._known = False
        self._read_at = float("-inf")  # Unix seconds
        self._timer: Timer | None = None
        self._stopped = False
        self._writes = KeyedLock()

    async def start(self) -> None:
        """Read the list, and then again every `POLL_INTERVAL`."""
        await self._poll()
        self._schedule_poll()

    def stop(self) -> None:
        """End the polls."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def refresh(self) -> None:
        """Read the list, unless it was read in the last `POLL_INTERVAL`.

        For a process that may stand still between two calls, and runs no timer.
        """
        if self._clock.wall() - self._read_at >= POLL_INTERVAL:
            await self._poll()

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Return whether a token is revoked; see the port.

        Raises:
            KeysUnavailable: The list has not been read yet.
        """
        if not self._known:
            raise KeysUnavailable("revocations are not known yet")
        now = self._clock.wall()
        if token_id and self._tokens.get(token_id, 0.0) > now:
            return True
        before, end = self._users.get(user, (0.0, 0.0))
        return end > now and issued_at < before

    async def revoke_token(self, token_id: str, expire_at: float) -> None:
        """Revoke a token until *expire_at* (Unix seconds).

        Another call for the same token never shortens the revocation.

        Raises:
            TooManyRevocations: The list is full.
            StoreError: Whether it is revoked is not known.
        """
        async with self._writes.hold(_TOKEN + token_id):
            expire_at = max(expire_at, self._tokens.get(token_id, 0.0))
            await self._revoke(Revocation(token_id), token_id, token_id, expire_at)

    async def revoke_user(self, user: UserId, before: float, expire_at: float) -> None:
        """Revoke a user's tokens issued before *before*, until *expire_at*.

        Another call for the same user replaces the first, but never revokes fewer
        tokens, or for a shorter time.

        Raises:
            TooManyRevocations: The list is full.
            StoreError: Whether they are revoked is not known.
        """
        async with self._writes.hold(_USER + user):
            known, end = self._users.get(user, (0.0, 0.0))
            if end > self._clock.wall():
                before, expire_at = max(before, known), max(expire_at, end)
            value = msgspec.json.encode(_User(user, before)).decode()
            await self._revoke(Revocation("", user, before), user, value, expire_at)

    async def _revoke(
        self, revocation: Revocation, name: str, value: str, expire_at: float
    ) -> None:
        self._drop_expired()
        known = self._tokens if revocation.token_id else self._users
        count = len(self._tokens) + len(self._users)
        if name not in known and count >= MAX_REVOCATIONS:
            raise TooManyRevocations("the list of revocations is full")
        kind = _TOKEN if revocation.token_id else _USER
        ttl = expire_at - self._clock.wall()
        await self._state.put(kind, _key(name), value, ttl)
        self._apply(revocation, expire_at)

    def _apply(self, revocation: Revocation, end: float) -> None:
        """Add a revocation to the copy, and call `on_revoked` if it is new."""
        token_id, user, before = revocation
        if token_id:
            new = token_id not in self._tokens
            self._tokens[token_id] = max(end, self._tokens.get(token_id, 0.0))
        else:
            known, known_end = self._users.get(user, (0.0, 0.0))
            new = before > known
            self._users[user] = (max(before, known), max(end, known_end))
        if new:
            self._on_revoked(revocation)

    def _drop_expired(self) -> None:
        now = self._clock.wall()
        for token_id in [one for one, end in self._tokens.items() if end <= now]:
            del self._tokens[token_id]
        for user in [one for one, (_, end) in self._users.items() if end <= now]:
            del self._users[user]

    # Polls.

    def _schedule_poll(self) -> None:
        if not self._stopped:
            when = self._clock.now() + POLL_INTERVAL
            self._timer = self._clock.call_at(when, lambda: self._spawn(self._repeat()))

    async def _repeat(self) -> None:
        try:
            await self._poll()
        finally:
            self._schedule_poll()

    async def _poll(self) -> None:
        began = self._clock.wall()
        try:
            tokens = await self._state.entries(_TOKEN)
            users = await self._state.entries(_USER)
        except StoreError as error:
            if self._stopped:
                return  # the store was closed under this poll
            if self.fault is None:
                self._on_failure(error)
            self.fault = "revocations cannot be read"
            return
        self.fault = None
        self._known = True
        self._read_at = began
        self._drop_expired()
        for entry in tokens:
            self._apply(Revocation(entry.value), entry.expires)
        for entry in users:
            self._apply(_user(entry), entry.expires)


def _user(entry: StateEntry) -> Revocation:
    value = msgspec.json.decode(entry.value, type=_User)
    return Revocation("", UserId(value.user), value.before)


def _key(name: str) -> str:
    """Return the key in the State for a name of any length."""
    return hashlib.sha256(name.encode()).hexdigest()
