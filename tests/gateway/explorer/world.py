"""One channel at the gateway: the real rounds, leases, rows and log, step by step.

A step is one call of the table, one POST that is sent, that reaches the client or whose
answer comes, or one fault. Between two steps everything that can run has run, so the
order of steps is all there is to explore. The sender of each step is an actor: an
invocation, or a piece of a resident process. All of its tasks belong to it.

What a client of an SDK does is modelled: it takes publications in the order in which
they come, and never notices a gap or a double by itself. Safety is asserted there:

    G1, G2  the application sees 1, 2, 3, … of one epoch
    G3      a jump, or another epoch, only after `recovered: false`

and in the log, where no publication is twice.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from service.core.errors import StoreError
from service.core.lease import LEASE_SECONDS, Hold
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Position,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.core.ports import Claim, History, Posted
from service.gateway.rounds import POLL, Rounds
from service.gateway.subscribing import Place, claim, finish, start
from service.protocol import replies
from service.session.record import ChannelRecord
from service.stores.dynamodb.errors import OutcomeUnknown
from service.stores.dynamodb.lease import DynamodbLeases
from service.stores.dynamodb.log.appender import ChannelAppender
from service.stores.dynamodb.log.cache import ChannelCache
from service.stores.dynamodb.log.items import decode_batch, next_epoch
from service.stores.dynamodb.log.planner import BatchPlan, PendingAppend, Taking
from service.stores.dynamodb.log.reader import Reader
from service.stores.dynamodb.log.remover import Remover
from service.stores.dynamodb.subscribers import DynamodbSubscribers
from service.stores.history_cache import ReadRequest
from tests.gateway.explorer.loop import StepLoop
from tests.gateway.explorer.table import MemoryTable

__all__ = [
    "KEPT",
    "NEWS",
    "Actor",
    "ActorClock",
    "Bounds",
    "Choice",
    "Crash",
    "Message",
    "Peer",
    "Timer",
    "Tools",
    "Violation",
    "World",
    "acting",
    "let_act",
]

NEWS = Channel("n")
KEPT = History(100, 3600.0)
NOW = 1_700_000_000.0  # the wall clock stands
OLD = 1  # ms: a time that is long ago
RENEWAL = LEASE_SECONDS / 3

_HEAD = ("H#n", "HEAD")

_actor: ContextVar[Actor] = ContextVar("actor")


def acting() -> Actor:
    """Return whose step this is."""
    return _actor.get()


def let_act(
    loop: StepLoop, actor: Actor, work: Awaitable[object], died: Callable[[str], None]
) -> None:
    """Let *actor* do its work, in a task; *died* is told of an error that ends it."""

    async def run() -> None:
        _actor.set(actor)
        try:
            await work
        except StoreError as error:
            actor.note(str(error))
        except Crash:
            pass
        actor.has_ended = True

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Crash):
            died(f"{actor.name} died: {error!r}")

    loop.create_task(run()).add_done_callback(ended)


class Violation(AssertionError):
    """A guarantee does not hold."""


class Crash(BaseException):
    """The actor is dead: nothing of it has an effect any more."""


@dataclass(frozen=True)
class Bounds:
    """What an exploration contains, and how many faults of each kind.

    Attributes:
        publishers: How each of them delivers: ``d`` at once, ``a`` after its
            acknowledgement was posted, ``h`` hands over to an asynchronous invocation.
        clients: How many.
        is_warm: They are subscribed at the beginning.
        piece: Recoveries and rounds go on one publication at a time.
        behind: "2500" or "kill": whether subscriptions are the client's own.
        crash: Actors that die, between any two steps.
        unknown: POSTs without an answer.
        is_late: They may arrive at any later time.
        zombie: Leases that expire under a living holder.
        gone: Answers 410 for a client that lives.
        leave: Times that a client loses its connection.
        toggle: Times that one unsubscribes, and subscribes on the same connection.
        restart: Times that the epoch ends.
        removal: Times that the history is removed.
        timeout: Living subscribes that are taken for dead.
        lost: Appends without an answer.
        twice: Asynchronous invocations that start twice.
        handover: Holds that are handed over in the middle.
        slow: Rounds that go on without a client that is still waited for.
        whole: Frames are handled by whole invocations (`invocations`).
        apart: Their replies may go out before others of the same frame.
        limit: Connections of one user, who all clients are.
    """

    publishers: str = "dd"
    clients: int = 1
    is_warm: bool = False
    piece: bool = False
    behind: str = "2500"
    crash: int = 0
    unknown: int = 0
    is_late: bool = False
    zombie: int = 0
    gone: int = 0
    leave: int = 0
    toggle: int = 0
    restart: int = 0
    removal: int = 0
    timeout: int = 0
    lost: int = 0
    twice: int = 0
    handover: int = 0
    slow: int = 0
    whole: bool = False
    apart: bool = False
    limit: int = 0


class Choice(NamedTuple):
    """Something that may happen next.

    Attributes:
        label: In words.
        act: Lets it happen.
        is_fault: It comes from a budget, so it need not happen.
    """

    label: str
    act: Callable[[], None]
    is_fault: bool = False


@dataclass(eq=False)
class Actor:
    """An invocation.

    Attributes:
        name: Names it; its tokens begin with it.
        chain: A digest of all that it has been answered: its state, as it is
            deterministic.
        pending: What it waits for.
        offset: How far its clock is ahead.
        tokens: How many it has made.
        polled: The version of the table at its last poll: the next one needs a change.
        cycle: A digest of what it was answered since.
        before: The same of the poll before, and `chain` as it was then.
        is_dead: It has crashed.
        has_ended: It has nothing more to do.
        tools: Its environment, where it has one.
    """

    name: str
    chain: int = 0
    pending: list[Pending] = field(default_factory=list)
    offset: float = 0.0
    tokens: int = 0
    polled: int = -1
    is_dead: bool = False
    has_ended: bool = False
    tools: Any = None

    cycle: int = 0
    before: tuple[int, int] = (0, 0)

    def note(self, what: object) -> None:
        self.chain = hash((self.chain, what))
        self.cycle = hash((self.cycle, what))

    def begin_cycle(self, version: int) -> None:
        """Begin to look again; a look that found what the last one did is forgotten."""
        self.polled = version
        if self.before[0] == self.cycle:
            self.chain = self.before[1]
        else:
            self.before = self.cycle, self.chain
        self.cycle = 0


@dataclass(eq=False)
class Pending:
    """One step that an actor waits for."""

    actor: Actor
    kind: str
    label: str
    future: asyncio.Future[Any]
    act: Callable[[], Any] = lambda: None
    message: Message | None = None
    when: float = 0.0


@dataclass(eq=False)
class Message:
    """A frame on its way to a connection."""

    connection: str
    frame: str
    by: str
    has_arrived: bool = False
    is_awaited: bool = True


@dataclass
class Peer:
    """A client of an SDK, as far as delivery goes.

    Attributes:
        number: Of the client.
        serial: Of its connection.
        state: ``S`` subscribing, ``A`` subscribed.
        command: The id of its last command.
        position: What it would recover from.
        following: The offset that the application has to see next.
    """

    number: int
    serial: int = 1
    state: str = "S"
    command: int = 1
    offset: int = 0
    epoch: str = ""
    following: int = 1

    @property
    def connection(self) -> ClientId:
        return ClientId(f"c{self.number}.{self.serial}")

    def key(self) -> tuple[object, ...]:
        return (
            self.serial,
            self.state,
            self.command,
            self.offset,
            self.epoch,
            self.following,
        )


class ActorClock:
    """Stands, but for the actor's own timers that were let go off."""

    tools: Any = None

    def __init__(self, world: World, actor: Actor) -> None:
        self._world = world
        self._actor = actor

    def now(self) -> float:
        return 1000.0 + self._actor.offset

    def wall(self) -> float:
        return NOW

    def call_at(self, when: float, callback: Callable[[], object]) -> Any:
        return self._world.timer(self._actor, when, callback)


class World:
    """The state of one exploration.

    Args:
        bounds: What it contains.
        loop: The running loop.
    """

    def __init__(self, bounds: Bounds, loop: StepLoop) -> None:
        self.bounds = bounds
        self.budget = {
            name: getattr(bounds, name)
            for name in [
                "crash",
                "unknown",
                "zombie",
                "gone",
                "leave",
                "toggle",
                "restart",
                "removal",
                "timeout",
                "lost",
                "twice",
                "handover",
                "slow",
            ]
        }
        self.loop = loop
        self.table = MemoryTable()
        self.actors: list[Actor] = []
        self.messages: list[Message] = []
        self.commands: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []  # asynchronous invocations to come
        self.late: list[tuple[str, dict[str, Any]]] = []  # appends that may be done yet
        self.peers = [Peer(number) for number in range(bounds.clients)]
        self.watching = 0
        self.log: dict[str, tuple[str, int]] = {}  # where each publication is
        self.failed: str | None = None
        self._prepare()
        for number, kind in enumerate(bounds.publishers):
            self.spawn(f"p{number}", self._publish(f"p{number}", kind))
        self.loop.settle()

    def _prepare(self) -> None:
        for peer in self.peers:
            if self.bounds.is_warm:
                self._warm(peer)
            else:
                self.commands.append(("sub", peer.connection, peer.command, 0, ""))

    def _warm(self, peer: Peer) -> None:
        """Subscribe a client as if it had done so before."""
        tools = Tools(self, Actor("before"))
        epoch = _epoch(tools)
        peer.state, peer.epoch = "A", epoch
        self.table.items["S#n", peer.connection] = {
            "pk": {"S": "S#n"},
            "sk": {"S": peer.connection},
            "st": {"S": "C"},
            "cmd": {"N": "1"},
            "at": {"N": str(int(NOW * 1000))},
            "user": {"S": ""},
            "info": {"S": "{}"},
            "off": {"N": "0"},
            "epoch": {"S": epoch},
            **({"srv": {"BOOL": True}} if self.bounds.behind == "kill" else {}),
        }

    # Actors

    def spawn(self, name: str, work: Awaitable[None]) -> None:
        actor = Actor(name)
        self.actors.append(actor)

        def died(text: str) -> None:
            self.failed = text

        let_act(self.loop, actor, work, died)

    async def step(
        self, label: str, act: Callable[[], Any], kind: str = "call", **more: Any
    ) -> Any:
        actor = _actor.get()
        if actor.is_dead:
            raise Crash
        future = self.loop.create_future()
        pending = Pending(actor, kind, label, future, act, **more)
        actor.pending.append(pending)
        return await future

    def timer(self, actor: Actor, when: float, callback: Callable[[], object]) -> Timer:
        seconds = when - 1000.0 - actor.offset
        kind = "poll"
        if seconds > RENEWAL - 0.01:
            kind = "never"  # a renewal only; that leases expire is a step of its own
        elif seconds > 0.9:
            kind = "slow"
        future = self.loop.create_future()
        pending = Pending(
            actor,
            kind,
            f"{kind} timer",
            future,
            callback,
            when=when,
        )
        if not actor.is_dead:
            actor.pending.append(pending)
        else:
            self.loop.call_soon(callback)
        return Timer(pending)

    # What each actor does

    async def _publish(self, name: str, kind: str) -> None:
        tools = Tools(self, _actor.get(), hands_over=kind == "h")
        hold = await tools.append(name)
        if kind == "h" and hold is not None:
            await self.step(f"{name} invokes", lambda: self.invoke(hold))
            return
        if kind == "a":
            await self.step(f"{name} posts its acknowledgement", lambda: None)
        if hold is not None:
            await self._deliver(tools, hold)

    async def _deliver(self, tools: Tools, hold: Hold) -> None:
        until = float("inf")
        # Handing over in the middle is a fault of its own: it may happen or not, at
        # once or after the first pause.
        if self.budget["handover"]:
            until = await self.step("decides", lambda: None, kind="decide")
            until += tools.clock.now()
        handed = await tools.rounds.deliver(hold, until=until)
        if handed is not None:
            await self.step("hands over", lambda: self.invoke(handed))

    def invoke(self, hold: Hold) -> None:
        self.events.append(tuple(json.dumps(hold.record()).split("\0")))

    async def _asynchronous(self, record: str) -> None:
        tools = Tools(self, _actor.get())
        hold = await tools.rounds.claim(Hold.restore(json.loads(record)))
        if hold is not None:
            await self._deliver(tools, hold)

    async def _watch(self) -> None:
        tools = self._tools()
        hold = await tools.rounds.watch(NEWS)
        if hold is not None:
            await self._deliver(tools, hold)

    async def _subscribe(
        self, connection: ClientId, command: int, offset: int, epoch: str
    ) -> None:
        tools = Tools(self, _actor.get())
        since = Position(offset, epoch)
        try:
            is_open = await self._joined(tools, connection, command, since)
        except StoreError:
            is_open = False
        if not is_open:
            await tools.rounds.kill(NEWS, connection, Posted.UNKNOWN)

    async def _joined(
        self, tools: Tools, connection: ClientId, command: int, since: Position
    ) -> bool:
        """Handle a subscribe as an invocation does; False to close the connection."""
        context: Any = SimpleNamespace(
            subscribers=tools.subscribers,
            clock=tools.clock,
            delivery=tools,
            client=SimpleNamespace(recovery_limit=100),
        )
        subscriber = SubscriberInfo(connection, UserId(""), RawJson("{}"))
        place = Place(NEWS, subscriber, command, KEPT, tools.clock.now())
        record = ChannelRecord(server=self.bounds.behind == "kill")
        claimed = await claim(context, place, record)
        if claimed is not Claim.MINE:
            return claimed is Claim.STALE
        joined = await start(context, place, since, 1 << 20)
        result = replies.subscribe_result(
            joined, asked=since, recoverable=True, positioned=True
        )
        reply = replies.subscribe_reply(command, result)
        if await tools.post(connection, reply) is not Posted.DELIVERED:
            return False

        async def post(pushes: list[str]) -> Posted:
            return await tools.post(connection, "\n".join(pushes))

        return await finish(context, place, post)

    async def _unsubscribe(self, connection: ClientId, command: int) -> None:
        tools = Tools(self, _actor.get())
        if await tools.subscribers.leave(NEWS, connection, command) is Claim.PIECES:
            await tools.rounds.kill(NEWS, connection, Posted.UNKNOWN)

    def _tools(self) -> Any:
        return Tools(self, _actor.get())

    async def _remove(self) -> None:
        tools = Tools(self, _actor.get())
        head = await tools.reader.head(NEWS, int(NOW * 1000), 0.0)
        if head.top:
            remover = Remover(tools)  # type: ignore[arg-type]
            await remover.hide(NEWS, head)
            await remover.remove(NEWS, head)

    # What may happen next

    def choices(self) -> list[Choice]:
        """Return all that may happen next, faults last.

        A step that no other step can tell from a later one is the only choice.
        """
        for actor in self.actors:
            for pending in actor.pending:
                eager = self._eager(pending)
                if eager is not None:
                    return [eager]
        normal: list[Choice] = []
        faults: list[Choice] = []
        for actor in self.actors:
            for pending in list(actor.pending):
                self._of_pending(pending, normal, faults)
            if self.budget["crash"] and self._may_crash(actor):
                faults.append(
                    Choice(
                        f"{actor.name} CRASHES",
                        self._spending("crash", self._crash, actor),
                        True,
                    )
                )
        self._of_messages(normal)
        self._of_commands(normal)
        self._of_events(normal, faults)
        self._of_table(normal, faults)
        self._of_peers(normal, faults)
        if not normal:
            normal = self._idle()
        return normal + faults

    def _eager(self, pending: Pending) -> Choice | None:
        """Return a step that commutes with every other, and with every fault."""
        budget, message = self.budget, pending.message
        if pending.kind == "call" and pending.label.startswith("query L#"):
            # It reads below a top that was read before: only a removal changes that.
            if not self.bounds.removal:
                return Choice(pending.label, partial(self._do, pending))
        elif message is not None and not (budget["unknown"] or budget["gone"]):
            if message.has_arrived:
                outcome = Posted.DELIVERED
            elif not self._is_open(message.connection):
                outcome = Posted.GONE
            else:
                return None
            return Choice(outcome.value, partial(self._posted, pending, outcome))
        return None

    def _is_turn(self, actor: Actor) -> bool:
        """Return whether a publisher may begin: those of a kind differ by name."""
        kinds = self.bounds.publishers
        number = int(actor.name[1:])
        return all(
            other.chain or other.is_dead or kinds[index] != kinds[number]
            for index, other in enumerate(self.actors[:number])
        )

    def _spending(
        self, name: str, act: Callable[..., object], *arguments: Any
    ) -> Callable[[], None]:
        def spend() -> None:
            self.budget[name] -= 1
            act(*arguments)

        return spend

    def _may_crash(self, actor: Actor) -> bool:
        return not actor.is_dead and not actor.has_ended and actor.chain != 0

    def _of_pending(
        self, pending: Pending, normal: list[Choice], faults: list[Choice]
    ) -> None:
        name = f"{pending.actor.name}: {pending.label}"
        if pending.kind == "call":
            if (
                pending.actor.name[0] == "p"
                and not pending.actor.chain
                and not self._is_turn(pending.actor)
            ):
                return
            if self.budget["lost"] and "transact" in pending.label:
                for outcome in ("not done", "done", "done later"):
                    faults.append(
                        Choice(
                            f"{name}, no answer: {outcome}",
                            self._spending("lost", self._lose, pending, outcome),
                            True,
                        )
                    )
            normal.append(Choice(name, lambda: self._do(pending)))
        elif pending.kind == "post":
            self._of_post(pending, name, normal, faults)
        elif pending.kind == "poll":
            if pending.actor.polled != self.table.version:
                normal.append(Choice(name, lambda: self._fire(pending)))
        elif pending.kind == "apart":
            normal.append(Choice(name, lambda: self._part(pending)))
        elif pending.kind == "decide":
            self._of_decision(pending, name, normal, faults)
        elif pending.kind == "slow" and self.budget["slow"]:
            faults.append(
                Choice(name, self._spending("slow", self._fire, pending), True)
            )

    def _of_decision(
        self, pending: Pending, name: str, normal: list[Choice], faults: list[Choice]
    ) -> None:
        normal.append(
            Choice(f"{name}: goes on", lambda: self._answer(pending, float("inf")))
        )
        for when, left in (("", 0.0), (" after a pause", POLL[0] / 2)):
            if self.budget["handover"]:
                faults.append(
                    Choice(
                        f"{name}: its time is over{when}",
                        self._spending("handover", self._answer, pending, left),
                        True,
                    )
                )

    def _of_post(
        self, pending: Pending, name: str, normal: list[Choice], faults: list[Choice]
    ) -> None:
        message = pending.message
        assert message is not None
        if message.has_arrived:
            normal.append(
                Choice(
                    f"{name} is delivered",
                    lambda: self._posted(pending, Posted.DELIVERED),
                )
            )
        elif not self._is_open(message.connection):
            normal.append(
                Choice(f"{name}: 410", lambda: self._posted(pending, Posted.GONE))
            )
        if self._is_open(message.connection):
            for fault, outcome in (("unknown", Posted.UNKNOWN), ("gone", Posted.GONE)):
                if not self.budget[fault]:
                    continue
                faults.append(
                    Choice(
                        f"{name}: {outcome.value}",
                        self._spending(fault, self._posted, pending, outcome),
                        True,
                    )
                )
                if self.bounds.is_late and not message.has_arrived:
                    faults.append(
                        Choice(
                            f"{name}: {outcome.value}, and it may arrive",
                            self._spending(fault, self._posted, pending, outcome, True),
                            True,
                        )
                    )

    def _of_messages(self, normal: list[Choice]) -> None:
        for message in self.messages:
            if not message.has_arrived and self._is_open(message.connection):
                late = "" if message.is_awaited else " (late)"
                normal.append(
                    Choice(
                        f"{message.connection} receives {message.frame} of "
                        f"{message.by}{late}",
                        lambda message=message: self._arrive(message),
                    )
                )

    def _of_commands(self, normal: list[Choice]) -> None:
        for command in self.commands:
            normal.append(
                Choice(
                    f"{command} arrives", lambda command=command: self._begin(command)
                )
            )

    def _of_events(self, normal: list[Choice], faults: list[Choice]) -> None:
        for event in self.events:
            normal.append(
                Choice(
                    "an asynchronous invocation starts",
                    lambda event=event: self._start(event),
                )
            )
            if self.budget["twice"]:
                faults.append(
                    Choice(
                        "an asynchronous invocation starts, and will again",
                        self._spending("twice", self._start, event, True),
                        True,
                    )
                )
        for late in self.late:
            faults.append(
                Choice(
                    "a late append is done", lambda late=late: self._do_late(late), True
                )
            )

    def _of_table(self, normal: list[Choice], faults: list[Choice]) -> None:
        head = self.table.items.get(_HEAD)
        if head is None:
            return
        if "owner" in head and int(head["until"]["N"]) > OLD:
            holder = head["owner"]["S"].partition(".")[0]
            lives = any(
                a.name == holder and not a.is_dead and not a.has_ended
                for a in self.actors
            )
            expire = Choice(f"the lease of {holder} expires", self._expire)
            if not lives:
                if not any(
                    json.loads(e[0])["token"] == head["owner"]["S"] for e in self.events
                ):
                    normal.append(expire)
            elif self.budget["zombie"]:
                faults.append(
                    Choice(
                        f"the lease of {holder} expires while it lives",
                        self._spending("zombie", self._expire),
                        True,
                    )
                )
        self._of_rows(normal, faults)
        if self.budget["restart"] and int(head["ends"]["N"]) > OLD:
            faults.append(
                Choice(
                    "the epoch ends", self._spending("restart", self._end_epoch), True
                )
            )
        if self.budget["removal"]:
            faults.append(
                Choice(
                    "the history is removed",
                    self._spending(
                        "removal",
                        lambda: self.spawn(f"x{len(self.actors)}", self._remove()),
                    ),
                    True,
                )
            )

    def _of_rows(self, normal: list[Choice], faults: list[Choice]) -> None:
        head = self.table.items[_HEAD]
        is_watched = any(
            a.name[0] == "w" and not a.is_dead and not a.has_ended for a in self.actors
        )
        rows = self._rows()
        overdue = any(r["st"]["S"] == "Q" and int(r["at"]["N"]) == OLD for r in rows)
        expired = "owner" in head and int(head["until"]["N"]) == OLD
        if not is_watched and (expired or overdue):
            normal.append(Choice("the watchdog looks", self._look))
        for row in rows:
            if row["st"]["S"] in "PQ" and int(row["at"]["N"]) != OLD:
                lives = self._handler_lives(row)
                age = self._aging(row["sk"]["S"])
                if not lives:
                    normal.append(Choice(f"row {row['sk']['S']} grows old", age))
                elif self.budget["timeout"]:
                    faults.append(
                        Choice(
                            f"row {row['sk']['S']} grows old, its subscribe lives",
                            self._spending("timeout", age),
                            True,
                        )
                    )

    def _of_peers(self, normal: list[Choice], faults: list[Choice]) -> None:
        for peer in self.peers:
            for how, leave in self._leaves(peer) if self.budget["leave"] else ():
                faults.append(
                    Choice(
                        f"{peer.connection} is lost{how}",
                        self._spending("leave", leave),
                        True,
                    )
                )
            if self.budget["toggle"] and peer.state == "A":
                faults.append(
                    Choice(
                        f"{peer.connection} unsubscribes and subscribes",
                        self._spending("toggle", self._toggle, peer),
                        True,
                    )
                )
            if peer.state == "S" and not self._is_served(peer):
                normal.append(
                    Choice(
                        f"{peer.connection} gives its subscribe up",
                        lambda peer=peer: self.close(peer.connection),
                    )
                )

    def _leaves(self, peer: Peer) -> list[tuple[str, Callable[[], None]]]:
        """Return the ways in which a connection may be lost."""
        return [("", partial(self.close, peer.connection))]

    def _is_served(self, peer: Peer) -> bool:
        """Return whether an answer to a subscribe may still come."""
        name = f"s{peer.connection}.{peer.command}"
        return (
            any(
                c[0] == "sub" and c[1:3] == (peer.connection, peer.command)
                for c in self.commands
            )
            or any(
                a.name == name and not a.is_dead and not a.has_ended
                for a in self.actors
            )
            or any(
                m.connection == peer.connection and not m.has_arrived and m.by == name
                for m in self.messages
            )
        )

    def _handler_lives(self, row: dict[str, Any]) -> bool:
        name = f"s{row['sk']['S']}.{row['cmd']['N']}"
        return any(
            a.name == name and not a.is_dead and not a.has_ended for a in self.actors
        )

    def _idle(self) -> list[Choice]:
        """Return what happens when nothing else does: polls end without a change."""
        return [
            Choice(f"{p.actor.name}: {p.label}", lambda p=p: self._fire(p))
            for actor in self.actors
            for p in actor.pending
            if p.kind == "slow"
        ]

    # What happens

    def take(self, choice: Choice) -> None:
        """Let something happen, and everything that it lets run.

        Raises:
            Violation: A guarantee does not hold.
        """
        choice.act()
        self.loop.settle()
        if self.failed is not None:
            raise Violation(self.failed)

    def _answer(self, pending: Pending, result: object) -> None:
        pending.actor.pending.remove(pending)
        pending.actor.note((pending.label, repr(result)))
        if not pending.future.done():
            pending.future.set_result(result)

    def _raise(self, pending: Pending, error: BaseException) -> None:
        pending.actor.pending.remove(pending)
        pending.actor.note(
            (
                pending.label,
                type(error).__name__,
                str(getattr(error, "item", getattr(error, "reasons", ""))),
            )
        )
        if not pending.future.done():
            pending.future.set_exception(error)

    def _do(self, pending: Pending) -> None:
        try:
            result = pending.act()
        except Exception as error:
            self._raise(pending, error)
        else:
            self._answer(pending, result)
        if "transact" in pending.label:
            self._check_log()

    def _lose(self, pending: Pending, outcome: str) -> None:
        if outcome == "done":
            try:
                pending.act()
            except Exception:  # then it is not done
                outcome = "not done"
            else:
                self._check_log()
        elif outcome == "done later":
            self.late.append((pending.actor.name, pending.act))  # type: ignore[arg-type]
        self._raise(pending, OutcomeUnknown(outcome))

    def _do_late(self, late: Any) -> None:
        self.late.remove(late)
        try:
            late[1]()
        except Exception:
            return
        self._check_log()

    def _fire(self, pending: Pending) -> None:
        pending.actor.pending.remove(pending)
        pending.actor.offset = max(pending.actor.offset, pending.when - 1000.0)
        pending.actor.begin_cycle(self.table.version)
        pending.act()

    def _part(self, pending: Pending) -> None:
        pending.actor.pending.remove(pending)
        pending.actor.note("apart")
        pending.act()

    def _posted(
        self, pending: Pending, outcome: Posted, may_arrive: bool = False
    ) -> None:
        message = pending.message
        assert message is not None
        if may_arrive:
            message.is_awaited = False
        else:
            self.messages.remove(message)
        self._answer(pending, outcome)

    def _crash(self, actor: Actor) -> None:
        actor.is_dead = True
        actor.chain = 0
        for pending in list(actor.pending):
            if pending.message is not None and pending.message in self.messages:
                if pending.message.has_arrived or not self.bounds.is_late:
                    self.messages.remove(pending.message)
                else:
                    pending.message.is_awaited = False
            if pending.kind in ("poll", "never", "slow", "apart"):
                pending.act()
            elif not pending.future.done():
                pending.future.set_exception(Crash())
        actor.pending.clear()

    def _expire(self) -> None:
        self._patch(_HEAD, until={"N": str(OLD)})

    def _end_epoch(self) -> None:
        self._patch(_HEAD, ends={"N": str(OLD)})

    def _aging(self, connection: str) -> Callable[[], None]:
        return lambda: self._patch(("S#n", connection), at={"N": str(OLD)})

    def _patch(self, key: tuple[str, str], **attributes: Any) -> None:
        self.table.items[key] = {**self.table.items[key], **attributes}
        self.table.version += 1

    def _look(self) -> None:
        self.watching += 1
        self.spawn(f"w{self.watching}", self._watch())

    def _start(self, event: tuple[Any, ...], again: bool = False) -> None:
        if not again:
            self.events.remove(event)
        serial = sum(a.name[0] == "e" for a in self.actors)
        self.spawn(f"e{serial}", self._asynchronous(event[0]))

    def _begin(self, command: tuple[Any, ...]) -> None:
        self.commands.remove(command)
        kind, connection, number, *rest = command
        if kind == "sub":
            work = self._subscribe(connection, number, *rest)
            self.spawn(f"s{connection}.{number}", work)
        else:
            self.spawn(f"u{connection}.{number}", self._unsubscribe(connection, number))

    # Clients

    def _is_open(self, connection: str) -> bool:
        return any(peer.connection == connection for peer in self.peers)

    def close(self, connection: str) -> None:
        """End a connection: its client comes back with another, and recovers."""
        for peer in self.peers:
            if peer.connection != connection:
                continue
            peer.serial += 1
            peer.command += 1
            peer.state = "S"
            self.messages = [
                m for m in self.messages if m.connection != connection or m.is_awaited
            ]
            self.commands.append(
                ("sub", peer.connection, peer.command, peer.offset, peer.epoch)
            )

    def _toggle(self, peer: Peer) -> None:
        peer.command += 2
        peer.state = "S"
        connection = peer.connection
        self.commands.append(("unsub", connection, peer.command - 1))
        self.commands.append(("sub", connection, peer.command, peer.offset, peer.epoch))

    def _arrive(self, message: Message) -> None:
        if message.is_awaited:
            message.has_arrived = True
        else:
            self.messages.remove(message)
        for text in message.frame.split("\n"):
            for peer in self.peers:
                if peer.connection == message.connection:
                    self._receive(peer, json.loads(text))

    def _receive(self, peer: Peer, message: dict[str, Any]) -> None:
        push = message.get("push", {})
        if "disconnect" in push:
            self.close(peer.connection)
        elif "unsubscribe" in push:
            if peer.state == "A":
                peer.command += 1
                peer.state = "S"
                self.commands.append(
                    ("sub", peer.connection, peer.command, peer.offset, peer.epoch)
                )
        elif "pub" in push:
            if peer.state == "A":
                self._see(peer, push["pub"])
        elif (
            "subscribe" in message
            and message["id"] == peer.command
            and peer.state == "S"
        ):
            self._subscribed(peer, message["subscribe"])

    def _subscribed(self, peer: Peer, result: dict[str, Any]) -> None:
        peer.state = "A"
        epoch = result["epoch"]
        if not result.get("recovered"):
            peer.epoch, peer.offset = epoch, result.get("offset", 0)
            peer.following = peer.offset + 1
            return
        if peer.epoch not in ("", epoch):
            raise Violation(f"{peer.connection} recovered in another epoch")
        peer.epoch = epoch
        for publication in result.get("publications", ()):
            self._see(peer, publication)

    def _see(self, peer: Peer, publication: dict[str, Any]) -> None:
        """Hand a publication to the application."""
        offset = publication["offset"]
        epoch, stored = self.log[publication["data"]]
        assert stored == offset
        if epoch != peer.epoch:
            raise Violation(
                f"EPOCH: {peer.connection} got {offset} of {epoch}, and is in "
                f"{peer.epoch}"
            )
        if offset != peer.following:
            what = "DOUBLE" if offset < peer.following else "GAP"
            raise Violation(
                f"{what}: {peer.connection} got {offset}, and expects {peer.following}"
            )
        peer.offset = offset
        peer.following = offset + 1

    # What must hold

    def _check_log(self) -> None:
        for (partition, _), item in self.table.items.items():
            if not partition.startswith("L#"):
                continue
            stored = decode_batch([item])
            assert stored is not None
            for publication in stored.publications:
                name = json.loads(publication.data)
                place = partition.rpartition("#")[2], publication.offset
                if self.log.setdefault(name, place) != place:
                    raise Violation(f"TWICE: {name} is at {place}, and before")

    def check_end(self) -> None:
        """Check that everybody has everything when nothing more will happen.

        Raises:
            Violation: A client lacks something, and nothing will ever happen.
        """
        head = self.table.items.get(_HEAD)
        top, epoch, ended = 0, "", False
        if head is not None:
            top, epoch = int(head["top"]["N"]), head["epoch"]["S"]
            ended = int(head["ends"]["N"]) == OLD
        for peer in self.peers:
            has_all = peer.epoch == epoch and peer.following > top
            is_ahead = ended and peer.epoch not in ("", epoch)
            if peer.state != "A" or not (has_all or is_ahead or not epoch):
                rows = [(r["sk"]["S"], r["st"]["S"]) for r in self._rows()]
                raise Violation(
                    f"STUCK: top is {top} of {epoch}, {peer} lacks something; "
                    f"owner {head and head.get('owner')}, rows {rows}"
                )

    def _rows(self) -> list[dict[str, Any]]:
        return [item for (pk, _), item in self.table.items.items() if pk == "S#n"]

    def key(self) -> int:
        """Return a digest of the state: equal ones have the same futures."""
        return hash(
            (
                frozenset(
                    (key, _frozen(item)) for key, item in self.table.items.items()
                ),
                frozenset(
                    (a.name, a.chain, a.cycle, a.polled == self.table.version)
                    for a in self.actors
                    if not a.has_ended and not a.is_dead
                ),
                tuple(
                    sorted(
                        (m.connection, m.frame, m.by, m.has_arrived, m.is_awaited)
                        for m in self.messages
                    )
                ),
                tuple(sorted(map(str, self.commands))),
                tuple(sorted(map(str, self.events))),
                tuple(sorted(name for name, _ in self.late)),
                tuple(peer.key() for peer in self.peers),
                tuple(self.budget.values()),
            )
        )

    def finish(self) -> None:
        """Let everything that is left end: nothing is destroyed while it waits."""
        for actor in self.actors:
            if not actor.is_dead:
                self._crash(actor)
        self.loop.settle()


class Timer:
    def __init__(self, pending: Pending) -> None:
        self.pending = pending

    def cancel(self) -> None:
        if self.pending in self.pending.actor.pending:
            self.pending.actor.pending.remove(self.pending)


class Tools:
    """The real parts of the store and the gateway, for one actor.

    It is the `Client` of the store too.
    """

    def __init__(self, world: World, actor: Actor, *, hands_over: bool = False) -> None:
        self.table = "t"
        self.world = world
        self.actor = actor
        self.hands_over = hands_over
        self.clock = ActorClock(world, actor)
        client: Any = self
        self.reader = Reader(client, 1)
        self.reader.origin = "table"
        self.cache = ChannelCache(
            self.reader, self.clock, timeout=4.0, cache_size=1 << 20, at_once=8
        )
        self.leases = DynamodbLeases(client, self.reader, self.clock, 4.0, 1)
        self.subscribers = DynamodbSubscribers(client, self.leases, self.clock)
        self.rounds = Rounds(
            self.leases,
            self.subscribers,
            self.leases,
            self,
            self.clock,
            token=self.token,
            forget=self.forget,
        )

    def token(self) -> str:
        self.actor.tokens += 1
        return f"{self.actor.name}.{self.actor.tokens}"

    async def forget(self, client: ClientId) -> None:
        """The record of a connection is not part of this world."""

    # The client of the store

    async def call(
        self, operation: str, request: dict[str, Any], *, deadline: float | None = None
    ) -> dict[str, Any]:
        world = self.world
        if self.actor.is_dead:
            raise Crash
        where = request.get("Item") or request.get("Key") or {}
        if where and where["pk"]["S"].startswith("C#"):
            # Only this connection's own commands see it: no step of its own.
            return world.table.call(operation, request)
        label = f"{operation} {_what(operation, request)}"
        answer: dict[str, Any] = await world.step(
            label, lambda: world.table.call(operation, request)
        )
        return answer

    # Posts

    async def post(self, client: ClientId, text: str) -> Posted:
        world = self.world
        if self.actor.is_dead:
            raise Crash
        message = Message(client, text, self.actor.name)
        world.messages.append(message)
        outcome: Posted = await world.step(
            f"POST {text} to {client}", lambda: None, kind="post", message=message
        )
        return outcome

    async def delete(self, client: ClientId) -> bool:
        await self.world.step(f"DELETE {client}", lambda: self.world.close(client))
        return True

    # The log

    async def read_fresh(
        self, channel: Channel, history: History, since: int | None, limit: int
    ) -> HistoryPage:
        request = ReadRequest(history.size, history.ttl, since, limit, False)
        return await self.cache.read_fresh(channel, request)

    async def append(self, name: str) -> Hold | None:
        """Append a publication; return the hold that it took.

        Raises:
            StoreError: It is not known whether it is stored.
        """
        done: asyncio.Future[Any] = self.world.loop.create_future()
        data = RawJson(json.dumps(name))
        appender = ChannelAppender(
            NEWS,
            self,  # type: ignore[arg-type]
            self.clock,
            random.Random(1),
            asyncio.Semaphore(1),
            self.cache,
            _Sink(self, done),
            lambda channel: None,
            lambda: Taking(self.token(), self.hands_over),
        )
        pending = PendingAppend(
            Draft(data), KEPT, lambda outcome: None, 1, self.clock.now() + 4.0
        )
        appender.add(pending)
        plan: BatchPlan = await done
        return plan.hold


class _Sink:
    def __init__(self, tools: Tools, done: asyncio.Future[Any]) -> None:
        self._done = done

    def committed(self, plan: BatchPlan, batch: list[PendingAppend]) -> None:
        if not self._done.done():
            self._done.set_result(plan)

    def failed(self, batch: list[PendingAppend], error: StoreError) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _epoch(tools: Tools) -> str:
    return next_epoch(tools.reader.origin, NEWS, "")


def _frozen(item: Any) -> Any:
    if isinstance(item, dict):
        return frozenset((key, _frozen(value)) for key, value in item.items())
    return item


def _what(operation: str, request: dict[str, Any]) -> str:
    if operation == "transact_write_items":
        return "+".join(
            f"{next(iter(a))} {_of(next(iter(a.values())))}"
            for a in request["TransactItems"]
        )
    if operation == "query":
        return str(request["ExpressionAttributeValues"][":pk"]["S"])
    return f"{_of(request)} {request.get('UpdateExpression', '')}".strip()


def _of(request: dict[str, Any]) -> str:
    where = (
        request.get("Item") or request.get("Key") or {"pk": {"S": "?"}, "sk": {"S": ""}}
    )
    return f"{where['pk']['S']}/{where['sk']['S']}"
