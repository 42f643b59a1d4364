"""Admissions and ends of connections at the gateway, call by call.

A step is one call of the table by an actor: a frame that connects its client, the event
that a socket has gone, or a sweep. A sweep takes every connection without a session for
one whose admission has died, though it may be that the process only stood still, for
longer than a minute; and it finds those whose sockets are gone, as their pings are due.
Each uses the real sessions and registry. An actor can crash at any step; an answer can
be lost, of a call that was made, was repeated, or will be made yet.

After each step:

    COUNT   each shard's count is the number of entries that name it
    LIMIT   an owner has no more entries than it may have, the deployment no more in all
    RECORD  each entry has its record, which names its owner

At the end, after a sweep without faults:

    LEFT    every client that is open has its record and its entry, and nobody else
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from service.core.errors import Close, StoreError
from service.core.model import ClientId, UserId
from service.core.sessions import Terms
from service.stores.dynamodb.errors import (
    ConditionFailed,
    OutcomeUnknown,
    TransactionCancelled,
)
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.sessions import DynamodbSessions
from tests.gateway.explorer.loop import StepLoop
from tests.gateway.explorer.table import MemoryTable
from tests.gateway.explorer.world import (
    Actor,
    Choice,
    Crash,
    Violation,
    acting,
    let_act,
)

__all__ = ["AdmissionBounds", "AdmissionWorld"]

NOW = 1_700_000_000.0
TIMEOUT = 4.0  # s of one admission
CALL = 0.5  # s that a call takes
WRITES = ("put_item", "update_item", "delete_item", "transact_write_items")


class AdmissionBounds(NamedTuple):
    """The bounds of an exploration.

    Attributes:
        actors: What happens, in words: ``connect CLIENT USER``, ``leave CLIENT``,
            ``pass CLIENT USER`` for both, ``sweep``.
        before: The same, done one after the other before anything else.
        limit: Connections of one user.
        total: Connections in all.
        crash: Actors that may crash.
        lost: Answers that may be lost, of calls that were made.
        again: Calls that may be made twice, as the first answer was lost.
        late: Calls that may be made when their callers have given up.
    """

    actors: tuple[str, ...]
    before: tuple[str, ...] = ()
    limit: int = 2
    total: int = 6400
    crash: int = 0
    lost: int = 0
    again: int = 0
    late: int = 0
    piece: bool = False  # for `explore`, which knows other worlds too


@dataclass(eq=False)
class _Call:
    actor: Actor
    label: str
    operation: str
    request: dict[str, Any]
    future: asyncio.Future[Any]


class AdmissionWorld:
    """The state of one exploration.

    Attributes:
        clients: All clients.
        closed: Those whose sockets are closed.
        opened: Those that were answered that they are connected.

    Args:
        bounds: What it contains.
        loop: The running loop.
    """

    def __init__(self, bounds: AdmissionBounds, loop: StepLoop) -> None:
        self.bounds = bounds
        self.loop = loop
        self.table = MemoryTable()
        self.budget = {
            name: getattr(bounds, name) for name in ("crash", "lost", "again", "late")
        }
        self.actors: list[Actor] = []
        self.calls: list[_Call] = []
        self.late: list[_Call] = []
        self.closed: set[str] = set()
        self.opened: set[str] = set()
        self.failed = ""
        every = [*bounds.before, *bounds.actors]
        self.clients = {each.split()[1] for each in every if " " in each}
        with_budget, self.budget = self.budget, dict.fromkeys(self.budget, 0)
        for client in sorted(self.clients):
            self._run(f"a{client}", lambda s, c=client: s.arrive(ClientId(c), "{}"))
        for number, what in enumerate(bounds.before):
            self._run(f"b{number}", self._work(what))
        self.budget = with_budget
        for number, what in enumerate(bounds.actors):
            self._spawn(f"{number} {what}", self._work(what))
        loop.settle()

    # Actors

    def _work(self, what: str) -> Callable[[DynamodbSessions], Awaitable[object]]:
        name, *of = what.split()
        work: Any = {
            "connect": self._connect,
            "leave": self._leave,
            "pass": self._come_and_go,
            "sweep": self._sweep,
        }[name]
        return partial(work, *of)

    def _spawn(
        self, name: str, work: Callable[[DynamodbSessions], Awaitable[object]]
    ) -> None:
        actor = Actor(name)
        actor.tools = tools = _Client(self, actor)
        self.actors.append(actor)

        async def act() -> None:
            await work(tools.sessions())

        def died(text: str) -> None:
            self.failed = f"FAILED: {text}"

        let_act(self.loop, actor, act(), died)

    def _run(
        self, name: str, work: Callable[[DynamodbSessions], Awaitable[object]]
    ) -> None:
        """Let an actor do all of its work, without faults."""
        self._spawn(name, work)
        self.loop.settle()
        while choices := [each for each in self.choices() if name in each.label]:
            self.take(choices[0])

    async def _connect(self, name: str, user: str, sessions: DynamodbSessions) -> None:
        client = ClientId(name)
        try:
            admitted = await sessions.admit(client, "192.0.2.1", Terms(UserId(user)))
            if not isinstance(admitted, Close):
                for each in admitted:
                    await self._end(sessions, each)
                    await sessions.settle(each)
                # Its reply is posted then, and says whether the socket is there.
                if await sessions.open(client, user) and client not in self.closed:
                    self.opened.add(client)
                    return
        except StoreError as error:
            acting().note(str(error))
        await self._end(sessions, client)

    async def _come_and_go(
        self, name: str, user: str, sessions: DynamodbSessions
    ) -> None:
        await self._connect(name, user, sessions)
        await self._leave(name, sessions)

    async def _leave(self, name: str, sessions: DynamodbSessions) -> None:
        await self._end(sessions, ClientId(name))

    async def _sweep(self, sessions: DynamodbSessions) -> None:
        for part in sorted({int(pk[-2:]) for pk, _ in self.table.items if "N#" in pk}):
            listing = await sessions.listing(part)
            for client in listing.evicted:
                await self._end(sessions, client)
                await sessions.settle(client)
            for each in listing.arrived:
                await self._end(sessions, each.client)
            for each in listing.admitted:
                stored = await sessions.load(each.client)
                # One that is closed is not there when it is pinged.
                if stored is None or each.client in self.closed:
                    await self._end(sessions, each.client)

    async def _end(self, sessions: DynamodbSessions, client: ClientId) -> None:
        await self.call(acting(), "close", {"client": client})
        await sessions.end(client)

    async def call(self, actor: Actor, operation: str, request: dict[str, Any]) -> Any:
        if actor.is_dead:
            raise Crash
        actor.offset += CALL
        future = self.loop.create_future()
        label = f"{actor.name}: {operation} {sorted(_keys(request))}"
        self.calls.append(_Call(actor, label, operation, request, future))
        return await future

    # What may happen

    def choices(self) -> list[Choice]:
        normal = [Choice(c.label, partial(self._make, c)) for c in self.calls]
        normal += [Choice(f"LATE {c.label}", partial(self._late, c)) for c in self.late]
        faults: list[Choice] = []
        for call in self.calls:
            for name in ("lost", "again", "late"):
                if self.budget[name] and call.operation in WRITES:
                    act = partial(self._fault, name, call)
                    faults.append(Choice(f"{call.label} {name.upper()}", act, True))
            if self.budget["crash"] and not call.actor.name.startswith("end"):
                act = partial(self._fault, "crash", call)
                faults.append(Choice(f"{call.label} CRASH", act, True))
        return normal + faults

    def take(self, choice: Choice) -> None:
        """Let something happen, and everything that it lets run.

        Raises:
            Violation: A guarantee does not hold.
        """
        choice.act()
        self.loop.settle()
        if self.failed:
            raise Violation(self.failed)
        self._check()

    def _make(self, call: _Call) -> None:
        if call.operation == "close":  # the socket
            self.closed.add(call.request["client"])
            self._answer(call, {})
            return
        try:
            result = self.table.call(call.operation, call.request)
        except (ConditionFailed, TransactionCancelled) as error:
            self._raise(call, error)
        else:
            self._answer(call, result)

    def _late(self, call: _Call) -> None:
        self.late.remove(call)
        self._silently(call)

    def _silently(self, call: _Call) -> bool:
        try:
            self.table.call(call.operation, call.request)
        except (ConditionFailed, TransactionCancelled):
            return False
        return True

    def _fault(self, name: str, call: _Call) -> None:
        self.budget[name] -= 1
        if name == "crash":
            self._crash(call.actor)
        elif name == "again":
            # The token makes the second transaction the first one.
            if not self._silently(call) or call.operation != "transact_write_items":
                try:
                    self.table.call(call.operation, call.request)
                except ConditionFailed as error:
                    self._raise(call, ConditionFailed(error.item, repeated=True))
                except TransactionCancelled as error:
                    self._raise(call, error)
                else:
                    self._answer(call, {})
            else:
                self._answer(call, {})
        else:
            if name == "late":
                self.late.append(call)
            else:
                self._silently(call)
            self._raise(call, OutcomeUnknown(name))

    def _crash(self, actor: Actor) -> None:
        actor.is_dead = True
        for call in [each for each in self.calls if each.actor is actor]:
            self._raise(call, Crash())

    def _answer(self, call: _Call, result: Any) -> None:
        self.calls.remove(call)
        call.actor.note((call.label, repr(result)))
        call.future.set_result(result)

    def _raise(self, call: _Call, error: BaseException) -> None:
        self.calls.remove(call)
        what = str(getattr(error, "item", getattr(error, "reasons", "")))
        call.actor.note((call.label, type(error).__name__, what))
        call.future.set_exception(error)

    # What must be true

    def _entries(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (pk, client, entry["M"])
            for (pk, sk), item in self.table.items.items()
            if sk == "CONNS"
            for client, entry in item["conns"]["M"].items()
        ]

    def _check(self) -> None:
        items, entries = self.table.items, self._entries()
        counts = {
            pk[2:]: int(item["n"]["N"])
            for (pk, sk), item in items.items()
            if sk == "COUNT" and item["n"]["N"] != "0"
        }
        named = Counter(entry["shard"]["N"] for _, _, entry in entries)
        if counts != named:
            raise Violation(f"COUNT: {counts} are counted of {dict(named)}")
        of_owner = Counter(pk for pk, _, _ in entries)
        if len(entries) > self.bounds.total or any(
            count > self.bounds.limit for count in of_owner.values()
        ):
            raise Violation(f"LIMIT: {dict(of_owner)} are connected")
        for pk, client, entry in entries:
            record = items.get((f"N#{entry['node']['S']}", f"C#{client}"), {})
            if record.get("book", {}).get("S") != pk:
                raise Violation(f"RECORD: {client} of {pk} will not be found: {record}")

    def check_end(self) -> None:
        """Sweep, and check that only what is open is left.

        Raises:
            Violation: A guarantee does not hold.
        """
        if self.calls or self.late:
            return
        items, closed = dict(self.table.items), set(self.closed)
        count = len(self.actors)
        # A client that is not answered goes away.
        self.closed |= self.clients - self.opened
        for name in ("end1", "end2"):
            self._run(name, self._sweep)
        entries = {client for _, client, _ in self._entries()}
        records = {sk[2:] for pk, sk in self.table.items if pk[:2] == "N#"}
        is_open = self.opened - self.closed
        if not entries == records == is_open:
            raise Violation(
                f"LEFT: {sorted(is_open)} are open, entries {sorted(entries)}, records "
                f"{sorted(records)}"
            )
        self.table.items, self.closed = items, closed
        del self.actors[count:]

    def key(self) -> int:
        """Return a digest of the state: equal ones have the same futures."""
        return hash(
            (
                frozenset((key, repr(item)) for key, item in self.table.items.items()),
                frozenset(
                    (a.name, a.chain)
                    for a in self.actors
                    if not a.has_ended and not a.is_dead
                ),
                tuple(sorted(each.label for each in self.late)),
                frozenset(self.closed),
                frozenset(self.opened),
                tuple(self.budget.values()),
            )
        )

    def finish(self) -> None:
        """Let everything that is left end: nothing is destroyed while it waits."""
        for actor in self.actors:
            self._crash(actor)
        self.loop.settle()


class _Client:
    """The client of one actor's store, its clock, and what makes its versions."""

    table = "table"

    def __init__(self, world: AdmissionWorld, actor: Actor) -> None:
        self._world = world
        self._actor = actor

    def sessions(self) -> DynamodbSessions:
        own: Any = self
        return DynamodbSessions(
            own,
            own,
            AdmissionLimits(self._world.bounds.limit, 3, "evict_lru", 7200.0),
            own,
            client_limit=self._world.bounds.total,
            timeout=TIMEOUT,
            origin=lambda: "table",
            rng=random.Random(1),
        )

    async def call(
        self, operation: str, request: dict[str, Any], *, deadline: float | None = None
    ) -> Any:
        return await self._world.call(self._actor, operation, request)

    def token(self) -> str:
        self._actor.tokens += 1
        return f"{self._actor.name[:1]}-{self._actor.tokens}"

    def now(self) -> float:
        return self._actor.offset

    def wall(self) -> float:
        return NOW


def _keys(request: dict[str, Any]) -> list[str]:
    if "client" in request:
        return [request["client"]]
    if "TransactItems" in request:
        found = [next(iter(each.values())) for each in request["TransactItems"]]
    elif "RequestItems" in request or "KeyConditionExpression" in request:
        return [str(request.get("ExpressionAttributeValues", {}).get(":pk", "counts"))]
    else:
        found = [request]
    keys = [each.get("Item") or each["Key"] for each in found]
    return [f"{key['pk']['S']} {key['sk']['S']}" for key in keys]
