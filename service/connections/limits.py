"""Connection limits: which connection gets a slot, and which is closed for it.

    identity ──► slot free? ──► the directory ──► has its slot
                    │ no            │ refused, or not known
                    ▼               ▼
                  probe ──► free? ──► refused

Connections without a user are strangers who share an address: none of them is evicted
for another, whatever the policy. Over their limit a newcomer is closed with 3013, and
comes back later.

Where everything is in this process, a decision and what follows from it are one
synchronous step, so a limit is never exceeded, not for a moment, by however many at
once. A newcomer is refused only after the others have been seen alive: the longest
silent of them, `PROBED` at most, are pinged, each that does not answer within
`probe_timeout` is closed with 3012, and the newcomer is looked at again. So a refusal
comes when all that were asked have answered, and within `probe_timeout`; at the limit
of the process it comes at once where every client was heard within that time. One such
round is under way per user (or address) and one for the process, for all newcomers that
come meanwhile; the process's are `probe_timeout` apart too, so a flood of newcomers
does not multiply the pings.

At the limit of a user, who may be connected to other processes, those are asked to
probe, too: each closes its dead, takes them out of the directory, and answers. One such
question is under way per user. Where a process does not answer, perhaps because it has
died, nobody knows whether its connections live: the newcomer is refused with 3013, so
that it comes back. When all have answered, the directory is asked again: a process that
was not asked counts as dead by then, and its connections keep nobody out.

Invariants:

* An outcome that is known at once is returned by `acquire`. Otherwise `done` is called
  exactly once, later, or never if the connection ends first; then nothing of it is left
  anywhere, whatever was under way.
* A slot is taken before the directory is asked, and given back when it refuses: it
  counts for the newcomers that come meanwhile. A client that was entered there is taken
  out on every path.
* No connection is closed for a newcomer who is refused, other than the dead.
* 3504, which is for good, comes only after all processes have seen the others alive.

Interleavings that could break them, each a test: the newcomer ends while it waits for a
probe, here or elsewhere, and while the directory is asked; a probed connection ends, or
is evicted for another newcomer, before it answers; newcomers come during a round; the
answer to a probe comes in the same turn as its end; another process answers after this
one, before it, or never.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from msgspec.json import decode, encode

from service.connections.cluster_calls import ClusterCalls
from service.connections.grace_period import GracePeriod
from service.connections.registry import Record, Registry
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    INTERNAL,
    NO_PONG,
    TOO_MANY_REQUESTS,
    TOO_MANY_REQUESTS_CLOSE,
    Close,
    ErrorReply,
    StoreError,
)
from service.core.model import ClientId, UserId
from service.core.ports import Clock, Directory, Timer
from service.core.rate_limits import Buckets, Rate
from service.session.port import Identity
from service.settings import ConnectionSettings

__all__ = ["ConnectionLimits", "Slot"]

PROBED = 16
"""Connections asked in one round (count)."""

ANSWER_TIME = 2.0
"""Seconds, beside those of a probe, for other processes to answer: with the probe, less
than SDKs wait for their connect."""

USERS = 65536
"""Users whose rates of connects are kept (count); some 200 bytes each."""

_Done = Callable[[Close | ErrorReply | None], None]
"""Told why a connection gets no slot, or None when it has its slot."""


class Slot(enum.Enum):
    """The outcome for a connection that is not refused."""

    TAKEN = enum.auto()
    WAITING = enum.auto()


class _Elsewhere(NamedTuple):
    """What other processes say about a user's connections.

    Attributes:
        dead: Some were, and are out of the directory.
        known: All processes have answered.
    """

    dead: bool
    known: bool


class _Round:
    """Connections that were pinged, and the newcomers that wait for their answers."""

    __slots__ = ("silent", "timer", "waiting")

    def __init__(self) -> None:
        self.silent: set[Record] = set()
        self.waiting: list[Callable[[list[ClientId]], None]] = []
        self.timer: Timer | None = None


class ConnectionLimits:
    """Decides who gets a slot of a registry, and gives it back.

    Args:
        registry: Holds the slots.
        settings: Limits and policy.
        limit: Slots of this process.
        user_limit: Slots of one user.
        clock: Measures probes.
        spawn: Runs a coroutine in the background.
        grace_period: Reserves slots for the users of lost connections.
        directory: Counts the connections of all processes of a deployment; None if
            this is the only one.
        calls: Reaches the other processes; None if there are none.
        connects: Rate of one user's connects, anonymous ones excepted. Above it, error
            111, before any connection is evicted for it. None for any number.

    Attributes:
        evicted: Connections that were closed for another (count), by close code.
        refused: Connections that got no slot (count), by the code they got.
    """

    def __init__(
        self,
        registry: Registry,
        settings: ConnectionSettings,
        *,
        limit: int,
        user_limit: int,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        grace_period: GracePeriod,
        directory: Directory | None = None,
        calls: ClusterCalls | None = None,
        connects: Rate | None = None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._limit = limit
        self._user_limit = user_limit
        self._clock = clock
        self._spawn = spawn
        self._grace_period = grace_period
        self._directory = directory
        self._calls = calls
        if calls is not None:
            calls.serve("probe", self._on_probe)
        self._asking: dict[UserId, asyncio.Future[_Elsewhere]] = {}
        self._connects = Buckets[UserId](connects, USERS) if connects else None
        self._rounds: dict[str, _Round] = {}
        self._next_round = float("-inf")  # of the process
        self._entered: set[ClientId] = set()  # in the directory, as far as we know
        self.evicted: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()

    def acquire(
        self, record: Record, identity: Identity, done: _Done
    ) -> Slot | Close | ErrorReply:
        """Take a slot for *record*.

        Args:
            record: Whose connection has been identified.
            identity: As who.
            done: Called once, later, if the outcome is `Slot.WAITING`, unless the
                connection ends first: with None when it has its slot, else with why
                it gets none.

        Returns:
            Whether it has its slot or waits for it, or why it gets none.
        """
        rate, user = self._connects, identity.user
        if rate is None or not user or rate.take(user, self._clock.now()):
            return self._acquire(record, identity, done, probed=False)
        return self._refused(record, TOO_MANY_REQUESTS)

    def release(self, record: Record) -> None:
        """Give a slot back: the connection is ending. Safe to call again."""
        self._registry.release(record)
        client = record.client
        if client in self._entered:
            self._entered.discard(client)
            self._spawn(self._leave([client]))

    def remove(self, record: Record) -> None:
        """Forget a connection: it is over. Safe to call again."""
        self.release(record)
        self._registry.remove(record)

    # In this process.

    def _acquire(
        self, record: Record, identity: Identity, done: _Done, *, probed: bool
    ) -> Slot | Close | ErrorReply:
        registry, settings = self._registry, self._settings
        again = partial(self._acquire_again, record, identity, done)
        victims: list[Record] = []
        if self._directory is None:
            peers = registry.peers(identity, record.address)
            surplus = 1 + len(peers) - self._peers_limit(identity)
            if surplus > 0 and identity.user and settings.policy == "evict_lru":
                victims = heapq.nsmallest(surplus, peers, key=_worth)
            elif surplus > 0:
                key = _key(identity.user, record.address)
                if not probed and self._probe(key, peers, again):
                    return self._wait(record)
                return self._refused(record, _over_limit(identity.user))
        reserved = self._grace_period.reserved(identity.user)
        if registry.connected + reserved - len(victims) >= self._limit:
            now = self._clock.now()
            if not probed and ("" in self._rounds or now >= self._next_round):
                self._next_round = now + settings.probe_timeout
                # One that was heard a moment ago has answered already. Not so at the
                # limit of a user: 3504 is for good, and their own dead keep nobody out.
                latest = now - settings.probe_timeout
                silent = (each for each in registry.slots() if each.heard < latest)
                if self._probe("", silent, again):
                    return self._wait(record)
            return self._refused(record, TOO_MANY_REQUESTS_CLOSE)
        for victim in victims:
            self._evict(victim, CLOSE_CONNECTION_LIMIT)
        self._grace_period.claim(identity.user)
        registry.take(record, identity)
        if self._directory is None:
            return Slot.TAKEN
        # After a round of the process, nobody knows whether the user's others live.
        refusal = TOO_MANY_REQUESTS_CLOSE if probed else None
        self._spawn(self._enter(self._directory, record, done, refusal))
        return Slot.WAITING

    def _acquire_again(
        self, record: Record, identity: Identity, done: _Done, dead: list[ClientId]
    ) -> None:
        if record.over:
            return
        outcome = self._acquire(record, identity, done, probed=True)
        if outcome is Slot.TAKEN:
            done(None)
        elif outcome is not Slot.WAITING:
            done(outcome)

    def _wait(self, record: Record) -> Slot:
        self._registry.wait(record)
        return Slot.WAITING

    def _peers_limit(self, identity: Identity) -> int:
        return self._user_limit if identity.user else self._settings.address_limit

    def _refused(
        self, record: Record, refusal: Close | ErrorReply
    ) -> Close | ErrorReply:
        self.refused[refusal.code] += 1
        self.release(record)
        return refusal

    def _evict(self, record: Record, close: Close) -> None:
        self.evicted[close.code] += 1
        record.connection.disconnect(close)

    # Probes.

    def _probe(
        self,
        key: str,
        candidates: Iterable[Record],
        again: Callable[[list[ClientId]], None],
    ) -> bool:
        """Ping the longest silent, and call *again* with the dead once it is known.

        Returns:
            False if nobody can be pinged: *again* is not called.
        """
        found = self._rounds.get(key)
        if found is not None:
            found.waiting.append(again)
            return True
        begun = _Round()
        for record in heapq.nsmallest(PROBED, candidates, key=_silence):
            if record.connection.probe() and not record.over:
                begun.silent.add(record)
        if not begun.silent:
            return False
        begun.waiting.append(again)
        self._rounds[key] = begun
        for record in begun.silent:
            record.settled.append(partial(self._settled, key, begun, record))
        when = self._clock.now() + self._settings.probe_timeout
        begun.timer = self._clock.call_at(when, partial(self._end, key, begun))
        return True

    def _dead(
        self, key: str, candidates: Iterable[Record]
    ) -> asyncio.Future[list[ClientId]]:
        """Probe, and return who is dead, once that is known."""
        found: asyncio.Future[list[ClientId]]
        found = asyncio.get_running_loop().create_future()

        def tell(dead: list[ClientId]) -> None:
            if not found.done():  # nobody waits any more
                found.set_result(dead)

        if not self._probe(key, candidates, tell):
            tell([])
        return found

    def _settled(self, key: str, round_: _Round, record: Record) -> None:
        round_.silent.discard(record)
        if not round_.silent and self._rounds.get(key) is round_:
            # Not now: this may be the middle of that connection's end.
            if round_.timer is not None:
                round_.timer.cancel()
            now = self._clock.now()
            round_.timer = self._clock.call_at(now, partial(self._end, key, round_))

    def _end(self, key: str, round_: _Round) -> None:
        del self._rounds[key]
        dead: list[ClientId] = []
        for record in tuple(round_.silent):
            # The pong of a connection that is not read may wait in its socket. And one
            # that is not written to has not got the ping; it has its own deadline.
            connection = record.connection
            if record.has_slot and not connection.busy and not connection.queued_bytes:
                dead.append(record.client)
                self._evict(record, NO_PONG)
        for again in round_.waiting:
            again(dead)

    # In the whole deployment.

    async def _enter(
        self,
        directory: Directory,
        record: Record,
        done: _Done,
        refusal: Close | None,
        dead: Sequence[ClientId] = (),
    ) -> None:
        """Let a newcomer in, or close it with *refusal*; None: after probes."""
        client = record.client
        answer: list[ClientId] | Close | ErrorReply
        try:
            for each in dead:
                await directory.leave(each)
            answer = await directory.admit(record.user, client, record.address)
        except StoreError:
            answer = INTERNAL
        if record.over or isinstance(answer, ErrorReply):
            # It left before it was in; or nobody knows whether it is.
            await self._leave([client])
        if record.over:
            return
        if isinstance(answer, list):
            self._entered.add(client)
            self.evict(answer)
            done(None)
        elif answer is CLOSE_CONNECTION_LIMIT and refusal is None:
            await self._probe_all(directory, record, done)
        else:
            if answer is CLOSE_CONNECTION_LIMIT and refusal is not None:
                answer = refusal
            done(self._refused(record, answer))

    async def _probe_all(
        self, directory: Directory, record: Record, done: _Done
    ) -> None:
        user = record.user
        everybody = self._registry.peers(record.connection.identity, record.address)
        peers = [peer for peer in everybody if peer is not record]
        here = self._dead(_key(user, record.address), peers)
        elsewhere: _Elsewhere | None = None
        counted = sum(peer.client in self._entered for peer in peers)
        if self._calls is not None and user and counted < self._user_limit:
            elsewhere = await self._ask(self._calls, user)
        dead = await here
        if record.over:
            return
        refusal, again = _over_limit(user), bool(dead)
        if elsewhere is not None:
            again = again or elsewhere.dead or elsewhere.known
            if not elsewhere.known:
                refusal = TOO_MANY_REQUESTS_CLOSE
        if again:
            await self._enter(directory, record, done, refusal, dead)
        else:
            done(self._refused(record, refusal))

    async def _ask(self, calls: ClusterCalls, user: UserId) -> _Elsewhere:
        """Let the other processes probe a user's connections."""
        under_way = self._asking.get(user)
        if under_way is not None:
            return await asyncio.shield(under_way)
        asking = self._asking[user] = asyncio.get_running_loop().create_future()
        found = _Elsewhere(dead=False, known=False)
        try:
            within = self._settings.probe_timeout + ANSWER_TIME
            answers = await calls.ask("probe", encode(user).decode(), within)
            found = _Elsewhere(any(map(int, answers.bodies)), not answers.missing)
        except StoreError:
            pass  # it is unknown
        finally:
            del self._asking[user]
            asking.set_result(found)
        return found

    async def _on_probe(self, body: str) -> str:
        """Probe a user's connections here for another process; return the dead."""
        assert self._directory is not None
        user = decode(body, type=UserId)
        peers = self._registry.peers(Identity(ClientId(""), user), "")
        dead = await self._dead(_key(user, ""), peers)
        for client in dead:
            await self._directory.leave(client)
        return str(len(dead))

    async def _leave(self, clients: Sequence[ClientId]) -> None:
        assert self._directory is not None
        for client in clients:
            # A client that cannot be taken out expires there: nobody reports it.
            with suppress(StoreError):
                await self._directory.leave(client)

    def evict(self, clients: Iterable[ClientId]) -> None:
        """Close those of *clients* that are here: others have their places."""
        for client in clients:
            record = self._registry.find(client)
            if record is not None:
                self._evict(record, CLOSE_CONNECTION_LIMIT)


def _key(user: UserId, address: str) -> str:
    """Return the key of the probe round of a user, or of an address without one."""
    return f"user {user}" if user else f"address {address}"


def _over_limit(user: UserId) -> Close:
    """Return the close of a newcomer over the limit of a user, or of an address.

    A user can end another connection of theirs. Those behind one address are strangers
    to each other: each comes back until there is room.
    """
    return CLOSE_CONNECTION_LIMIT if user else TOO_MANY_REQUESTS_CLOSE


def _worth(record: Record) -> tuple[bool, float, float]:
    """Return a key by which the connection that is evicted first is the smallest.

    That is the least recently active one with no command under way, if there is one.
    """
    return record.connection.in_flight, record.active, record.heard


def _silence(record: Record) -> float:
    return record.heard
