"""The same world, in which all frames of clients are handled by whole invocations.

Each frame is text that is given to the application of the gateway, as the entry point
does: the session is restored from the table, handles the commands, and is stored; its
replies are posted as text, and what it has published is delivered before it returns.
Clients connect and subscribe in one frame. Besides what `world` asserts:

* at the end, whoever is subscribed has a row;
* a client is answered that it is connected before anything else;
* what is acknowledged to a publisher is stored, and the acknowledgement is sent before
  anybody is sent the publication by the same invocation;
* nothing of an invocation is left when it has returned: its environment is frozen then;
* nothing that the application would log as an error of its own happens.

What belongs to one connection alone (its session, its slot) is read and written in the
step before; with `toggle`, where frames of one client are handled at once, its session
takes steps of its own, and with `limit`, where all clients are one user, the slots do.
A client that lost its slot to another does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from service.auth.permissions import Permissions
from service.connections.hook_health import HookHealth
from service.connections.refused_credentials import RefusedCredentials
from service.core.clock import SystemClock
from service.core.errors import CLOSE_CONNECTION_LIMIT, StoreError
from service.core.hooks import ConnectEvent, ConnectResult, Handlers
from service.core.lease import Hold
from service.core.model import ClientId, Draft, RawJson
from service.core.ports import Posted
from service.core.refusal_log import RefusalLog
from service.gateway import invocation
from service.gateway.application import GatewayApplication
from service.gateway.context import GatewayContext
from service.gateway.delivery import GatewayDelivery
from service.gateway.events import Arrival, Kind
from service.gateway.rounds import Rounds
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.session.command_queue import CommandLimits
from service.session.liveness_stats import LivenessStats
from service.settings import LimitSettings, load
from service.stores.dynamodb import store, table
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.sessions import DynamodbSessions
from service.stores.dynamodb.subscribers import KEPT as KEPT_SECONDS
from tests.gateway.explorer.loop import StepLoop
from tests.gateway.explorer.world import (
    KEPT,
    NEWS,
    Actor,
    ActorClock,
    Bounds,
    Crash,
    Message,
    Peer,
    Timer,
    Tools,
    Violation,
    World,
    acting,
)

__all__ = ["InvocationWorld", "patched"]

CONNECT = 1  # the id of the first command of each connection
ORIGIN = "table"  # the id of the table
EVICTED = "X"  # the state of a peer that does not come back

_SETTINGS = load(
    {
        "STEADWIRE_CLIENT_INSECURE": "true",
        "STEADWIRE_STORE_BACKEND": "dynamodb",
        "STEADWIRE_DYNAMODB_TABLE": "table",
        "STEADWIRE_GATEWAY_ENDPOINT": "https://gateway.test/prod",
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(
            {
                "history_size": KEPT.size,
                "history_ttl": round(KEPT.ttl),
                "force_recovery": True,
                "join_leave": False,
            }
        ),
    },
    {},
)
_OWN = ("N#", "A#", "G#")  # partitions that concern one connection at a time


class InvocationWorld(World):
    """The state of one exploration.

    Attributes:
        publishers: Open connections that publish, and never subscribe.
        opened: Connections whose clients were told that they are connected.
        begun: Connections that have sent their first frame.
    """

    def __init__(self, bounds: Bounds, loop: StepLoop) -> None:
        self.publishers: set[str] = set()
        self.opened: set[str] = set()
        self.begun: set[str] = set()
        kinds = enumerate(bounds.publishers)
        self.audible = {f"p{number}" for number, kind in kinds if kind == "a"}
        super().__init__(bounds, loop)

    def _prepare(self) -> None:
        """Begin when publishers, and clients that are warm, have connected."""
        bounds = self.bounds
        clients = bounds.clients if bounds.is_warm else 0
        before = _beginning(bounds.publishers, clients, bounds.behind, bounds.limit)
        self.table.items.update(before.table.items)
        self.publishers = set(before.publishers)
        self.opened, self.begun = set(before.opened), set(before.begun)
        if bounds.is_warm:
            self.peers = [replace(each) for each in before.peers]
        else:
            self._set_out()

    def _set_out(self) -> None:
        for peer in self.peers:
            peer.command = CONNECT if self.bounds.behind == "kill" else CONNECT + 1
        super()._prepare()

    # What each actor does

    async def _publish(self, name: str, kind: str) -> None:
        """Publish as a client whose session is stored; ``h``: over the server API."""
        tools = self._tools()
        if kind == "h":
            tools.delivery.hands_over = True
            done: asyncio.Future[Any] = self.loop.create_future()
            draft = Draft(RawJson(json.dumps(name)))
            tools.delivery.publish(NEWS, draft, KEPT, done.set_result)
            outcome = await done
            if not isinstance(outcome, StoreError):
                self._acknowledged(name)
            tools.answered = True
            await self._end(tools)
            return
        await self._decide(tools)
        command = {"id": 2, "publish": {"channel": NEWS, "data": name}}
        await self._handle(tools, Kind.MESSAGE, f"q{name[1:]}", command)

    async def _subscribe(
        self, connection: ClientId, command: int, offset: int, epoch: str
    ) -> None:
        tools = self._tools()
        since = {"recover": True, "offset": offset, "epoch": epoch}
        commands: list[dict[str, Any]] = []
        if connection not in self.begun:
            self.begun.add(connection)
            await self._handle(tools, Kind.CONNECT, connection)
            subs = {"subs": {NEWS: since}} if self.bounds.behind == "kill" else {}
            commands.append({"id": CONNECT, "connect": subs})
        if self.bounds.behind != "kill":
            subscribe = {"channel": NEWS, **since}
            commands.append({"id": command, "subscribe": subscribe})
        await self._handle(tools, Kind.MESSAGE, connection, *commands)

    async def _unsubscribe(self, connection: ClientId, command: int) -> None:
        unsubscribe = {"id": command, "unsubscribe": {"channel": NEWS}}
        await self._handle(self._tools(), Kind.MESSAGE, connection, unsubscribe)

    async def _disconnected(self, connection: str) -> None:
        await self._handle(self._tools(), Kind.DISCONNECT, connection)

    async def _asynchronous(self, record: str) -> None:
        tools = self._tools()
        await self._decide(tools)
        await tools.application.deliver(json.loads(record))
        await self._end(tools)

    async def _deliver(self, tools: Any, hold: Hold) -> None:
        await self._decide(tools)
        await tools.delivery.deliver(hold)
        await self._end(tools)

    def _tools(self) -> InvocationTools:
        return InvocationTools(self, acting())

    async def _decide(self, tools: InvocationTools) -> None:
        if self.budget["handover"]:
            until = await self.step("decides", lambda: None, kind="decide")
            tools.delivery.until = tools.clock.now() + until

    async def _handle(
        self,
        tools: InvocationTools,
        kind: Kind,
        connection: str,
        *commands: Mapping[str, Any],
    ) -> None:
        text = "\n".join(json.dumps(each) for each in commands)
        arrival = Arrival(
            kind, ClientId(connection), address=_address(connection), text=text
        )
        await tools.application.handle(arrival)
        await self._end(tools)

    async def _end(self, tools: InvocationTools) -> None:
        """Wait as the entry point does; then the environment may be frozen."""
        await tools.delivery.drain()
        left = [each.label for each in tools.actor.pending]
        if left and not tools.actor.is_dead:
            self.failed = f"LEFT: {tools.actor.name} has returned, and {left} goes on"

    def timer(self, actor: Actor, when: float, callback: Any) -> Timer:
        timer = super().timer(actor, when, callback)
        if abs(when - 1000.0 - actor.offset - invocation.TOGETHER) < 1e-6:
            # Replies wait for all others of their frame, unless the bounds say more.
            timer.pending.kind = "apart" if self.bounds.apart else "never"
        return timer

    # Clients

    def _is_open(self, connection: str) -> bool:
        return connection in self.publishers or super()._is_open(connection)

    def close(self, connection: str) -> None:
        self.publishers.discard(connection)
        super().close(connection)

    def _leaves(self, peer: Peer) -> list[tuple[str, Any]]:
        def told() -> None:
            connection = peer.connection
            self.close(connection)
            self.commands.append(("gone", connection, 0))

        return [*super()._leaves(peer), (", and the gateway says so", told)]

    def _begin(self, command: tuple[Any, ...]) -> None:
        if command[0] != "gone":
            super()._begin(command)
            return
        self.commands.remove(command)
        self.spawn(f"d{command[1]}", self._disconnected(command[1]))

    def _handler_lives(self, row: dict[str, Any]) -> bool:
        if self.bounds.behind != "kill":
            return super()._handler_lives(row)
        prefix = f"s{row['sk']['S']}."
        return any(
            a.name.startswith(prefix) and not a.is_dead and not a.has_ended
            for a in self.actors
        )

    def _arrive(self, message: Message) -> None:
        super()._arrive(message)
        if message.connection in self.publishers:
            self.publisher_receives(message.connection, message.frame)

    def publisher_receives(self, connection: str, frame: str) -> None:
        for text in frame.split("\n"):
            found = json.loads(text)
            if "publish" in found:
                self._acknowledged(f"p{connection[1:]}")
            elif "disconnect" in found.get("push", {}):
                self.close(connection)

    def _acknowledged(self, name: str) -> None:
        if name not in self.log:
            raise Violation(f"LOST: {name} is acknowledged, and not stored")

    def _receive(self, peer: Peer, message: dict[str, Any]) -> None:
        connection = peer.connection
        number = message.get("id")
        told = message.get("push", {}).get("disconnect", {})
        if told.get("code") == CLOSE_CONNECTION_LIMIT.code:
            self.close(connection)
            self.commands = [
                each for each in self.commands if each[1] != peer.connection
            ]
            peer.state = EVICTED
        elif number == CONNECT:
            if "error" in message:
                self.close(connection)
                return
            self.opened.add(connection)
            subs = message["connect"].get("subs", {})
            if NEWS in subs:
                self._subscribed(peer, subs[NEWS])
        elif number and connection not in self.opened:
            raise Violation(f"ORDER: {connection} got {message} before it is connected")
        elif "error" in message and number == peer.command and peer.state == "S":
            peer.command += 1
            self.commands.append(
                ("sub", connection, peer.command, peer.offset, peer.epoch)
            )
        else:
            super()._receive(peer, message)

    def check_end(self) -> None:
        """Check that nobody is deaf, too: what is published next would reach all."""
        everybody = self.peers
        self.peers = [each for each in everybody if each.state != EVICTED]
        super().check_end()
        if self.bounds.limit and len(self.peers) != min(
            self.bounds.limit, len(everybody)
        ):
            raise Violation(f"LIMIT: {len(self.peers)} are connected")
        states = {each["sk"]["S"]: each["st"]["S"] for each in self._rows()}
        for peer in self.peers:
            state = states.get(peer.connection, "none")
            if state in ("T", "none"):
                raise Violation(f"DEAF: {peer} is subscribed, and its row is {state}")
        self.peers = everybody

    def key(self) -> int:
        return hash(
            (
                super().key(),
                frozenset(self.publishers),
                frozenset(self.opened),
                frozenset(self.begun),
            )
        )


class InvocationTools(Tools):
    """One environment: the real store, and the application of the gateway on it."""

    world: InvocationWorld

    def __init__(self, world: InvocationWorld, actor: Actor) -> None:
        self.table, self.world, self.actor = "table", world, actor
        clock: Any = ActorClock(world, actor)
        self.clock = clock
        clock.tools = actor.tools = self  # see `patched`
        self.answered = False  # the publisher that this is an invocation of
        own = store.DynamodbStore(
            _SETTINGS.table, _SETTINGS.store, clock, rng=random.Random(1)
        )
        client: Any = self
        sessions = DynamodbSessions(
            client,
            own.subscribers,
            AdmissionLimits(world.bounds.limit or 3, 3, "evict_lru", KEPT_SECONDS),
            clock,
            client_limit=1000,
            timeout=4.0,
            origin=lambda: ORIGIN,
            rng=random.Random(1),
        )
        self.rounds = Rounds(
            own.leases,
            own.subscribers,
            own.leases,
            self,
            clock,
            token=self.token,
            forget=self.forget,
        )
        self.delivery = GatewayDelivery(
            own, self.rounds, self.spawn, present=_nobody, invoker=self
        )
        with contextlib.suppress(StopIteration):  # it waits for nothing here
            own.start(self.delivery.committed).send(None)
        own.holder = self.delivery
        self.context = GatewayContext(
            client=_SETTINGS.client,
            insecure=True,
            permissions=_shared().permissions,
            handlers=_shared().handlers[
                "limit" if world.bounds.limit else world.bounds.behind
            ],
            revocations=_shared().revocations,
            encoder=_shared().encoder,
            clock=clock,
            rng=random.Random(1),
            version="0",
            metrics=_shared().metrics,
            hook_health=_shared().hook_health,
            refused=_shared().refused,
            liveness_stats=_shared().liveness_stats,
            limits=_shared().limits,
            sessions=sessions,
            subscribers=own.subscribers,
            posts=self,
            delivery=self.delivery,
            spawn=self.spawn,
        )
        self.application = GatewayApplication(self.context, (), _nothing)

    def spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.world.loop.create_task(work)  # type: ignore[arg-type]
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Crash):
            self.world.failed = f"{self.actor.name} died: {error!r}"

    async def start(self) -> None:
        """Connect to nothing, as the client of the store."""

    async def forget(self, client: ClientId) -> None:
        await self.context.forget(client)

    async def deliver(self, hold: Mapping[str, Any]) -> bool:
        """Take a hold over, as `ports.Invoker`."""
        event = Hold.restore(dict(hold))
        await self.world.step("hands over", lambda: self.world.invoke(event))
        return True

    async def call(
        self, operation: str, request: dict[str, Any], *, deadline: float | None = None
    ) -> dict[str, Any]:
        bounds = self.world.bounds
        own = ("C#",) if not bounds.toggle else ()
        if not bounds.limit:
            own += _OWN
        if self.actor.is_dead:
            raise Crash
        if all(each.startswith(own) for each in _partitions(request)):
            return self.world.table.call(operation, request)
        label = f"{operation} {sorted(_partitions(request))}"
        if "TransactItems" in request:
            label = f"transact {label}"
        answer: dict[str, Any] = await self.world.step(
            label, lambda: self.world.table.call(operation, request)
        )
        return answer

    async def post(self, client: ClientId, text: str) -> Posted:
        world = self.world
        if client in world.publishers and f"p{client[1:]}" not in world.audible:
            # It matters only to publishers of the kind ``a`` when this arrives.
            self.answered = True
            world.publisher_receives(client, text)
            return Posted.DELIVERED
        if client in world.publishers:
            self.answered = True
        elif not self.answered and self.actor.name[0] == "p" and '"pub"' in text:
            world.failed = f"LATE: {self.actor.name} delivers, and was not acknowledged"
        return await super().post(client, text)


class _Shared:
    """The parts that all environments share; none of them changes."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.metrics = Metrics()
        self.encoder = PayloadEncoder(clock)
        self.hook_health = HookHealth(clock, self.metrics)
        self.refused = RefusedCredentials(LimitSettings(), clock, RefusalLog())
        self.liveness_stats = LivenessStats(float("inf"))
        self.limits = CommandLimits(_SETTINGS.effective_limits)
        self.permissions = Permissions(_SETTINGS.channels, insecure=True)
        self.revocations: Any = SimpleNamespace(
            refresh=_nothing, is_revoked=lambda *of: False
        )
        self.handlers = {
            "2500": Handlers(),
            "kill": Handlers(connect=_let_in),
            "limit": Handlers(connect=_let_in_ann),
        }


@lru_cache(None)
def _shared() -> _Shared:
    return _Shared()


async def _let_in(event: ConnectEvent) -> ConnectResult:
    return ConnectResult(user="", channels=(NEWS,))


async def _let_in_ann(event: ConnectEvent) -> ConnectResult:
    return ConnectResult(user="ann" if event.client.startswith("c") else "publisher")


async def _nothing() -> None:
    """Do nothing."""


async def _nobody(channel: str) -> tuple[()]:
    return ()


class _Beginning(InvocationWorld):
    """In which publishers connect, and clients connect and subscribe."""

    def __init__(self, connecting: str, bounds: Bounds, loop: StepLoop) -> None:
        self._connecting = connecting
        super().__init__(bounds, loop)

    def _prepare(self) -> None:
        self._set_out()
        for number, kind in enumerate(self._connecting):
            if kind != "h":
                self.publishers.add(f"q{number}")
                self.spawn(f"q{number}", self._connect(f"q{number}"))

    async def _connect(self, connection: str) -> None:
        await self._handle(self._tools(), Kind.CONNECT, connection)
        command = {"id": CONNECT, "connect": {}}
        await self._handle(self._tools(), Kind.MESSAGE, connection, command)


@lru_cache(None)
def _beginning(
    connecting: str, clients: int, behind: str, limit: int
) -> InvocationWorld:
    """Return a world in which *clients* have subscribed, and publishers connected."""
    bounds = Bounds("", clients, behind=behind, limit=limit)
    loop = StepLoop()
    with loop.running():
        world = _Beginning(connecting, bounds, loop)
        while choices := world.choices():
            world.take(choices[0])
        world.check_end()
    return world


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Let stores call the table of the world, and ids be those of their actors."""

    def client(settings: object, clock: ActorClock, **options: object) -> Any:
        return clock.tools

    def uuid4() -> Any:
        return SimpleNamespace(hex=acting().tools.token())

    async def verify(*_: object) -> str:
        return ORIGIN

    with (
        patch.object(store, "Client", client),
        patch.object(table, "verify", verify),
        patch.object(uuid, "uuid4", uuid4),
    ):
        yield


def _address(connection: str) -> str:
    """Return an address that no other connection has."""
    number, _, serial = connection[1:].partition(".")
    return f"192.0.{int(number)}.{int(serial or 200)}"


def _partitions(request: Mapping[str, Any]) -> set[str]:
    if "ExpressionAttributeValues" in request and ":pk" in (
        values := request["ExpressionAttributeValues"]
    ):
        return {values[":pk"]["S"]}
    found = [request]
    if "TransactItems" in request:
        found = [next(iter(each.values())) for each in request["TransactItems"]]
    elif "RequestItems" in request:
        [entries] = request["RequestItems"].values()
        found = [each["DeleteRequest"] for each in entries]
    return {(each.get("Item") or each["Key"])["pk"]["S"] for each in found}
