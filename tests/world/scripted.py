"""Connections on the real hub, outbox and session, stepped without an event loop.

Reads, commits, hooks and flushes happen when a test says so, and every message that a
client gets is held at once to what must be true of it at any moment (`Client`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from service.connections.connection import ClientConnection
from service.connections.pending_connection import PendingConnection
from service.core.errors import Close, StoreError
from service.core.hooks import ConnectEvent, ConnectResult, Event, Handlers
from service.core.model import Appended, Channel, Joined, Position, UserId
from service.core.ports import Committed
from service.hub.announcements import WINDOW
from service.protocol.json import Json
from service.settings import (
    ChannelSettings,
    ClientSettings,
    ConnectionSettings,
    PersonalChannel,
    ServerSettings,
    Settings,
)
from tests.clock import VirtualClock
from tests.world.script import A, ScriptedMember, ScriptedStore, Seat, Wait
from tests.world.world import CHANNELS, World

UNLIMITED = ConnectionSettings(limit=10_000, user_limit=10_000, address_limit=10_000)
_IN_TURN = ("subscribe", "unsubscribe")  # of one channel, in the order they came


async def as_the_token_says(event: ConnectEvent) -> ConnectResult:
    """Let everybody in as the user that the token names."""
    return ConnectResult(user=event.token)


class Question(Wait):
    """A hook that was asked, and answers when told."""

    def __init__(self, world: ScriptedWorld, event: Event) -> None:
        self.event = event
        self.world = world

    @property
    def under_way(self) -> list[Any]:
        return self.world.questions

    def answer(self, answer: object) -> None:
        """Let the hook return *answer*, or raise it."""
        self.end(answer)


class Client:
    """One client: the commands it sent and the messages it got.

    Attributes:
        waiting: Ids of commands that have no reply yet, oldest first.
        inside: The channels it is in, and the offset expected next (0: none).
        replies: All it got.
        heard: Who came and went, by channel.
        close: The code of the close frame.
        aborted: The transport was dropped.
    """

    def __init__(self, world: ScriptedWorld, address: str = "192.0.2.1") -> None:
        self._world = world
        self.numbers = 0
        self.waiting: dict[int, tuple[str, str]] = {}
        self.inside: dict[str, int] = {}
        self.replies: dict[int, dict[str, Any]] = {}
        self.offsets: dict[str, list[int]] = {}
        self.heard: dict[str, list[tuple[str, str]]] = {}
        self.pings = 0
        self.close_code: int | None = None
        self.aborted = False
        self.over = False
        self.connection = ClientConnection(
            world.context, self, Json(), PendingConnection(address)
        )

    # The client acts.

    def say(self, *commands: dict[str, Any]) -> list[int]:
        """Send commands in one frame, each with an id of its own; return the ids."""
        lines = []
        numbers = []
        for command in commands:
            self.numbers += 1
            numbers.append(self.numbers)
            [(method, fields)] = command.items()
            self.waiting[self.numbers] = (method, fields.get("channel", ""))
            lines.append(json.dumps({"id": self.numbers, **command}))
        self.connection.receive("\n".join(lines))
        return numbers

    def pong(self) -> None:
        self.pings -= 1
        self.connection.receive("{}")

    def gone(self, code: int | None = None) -> None:
        self.over = True
        self.connection.gone(code)

    # The client gets.

    async def send(self, text: str | bytes) -> None:
        assert isinstance(text, str)
        assert not self.over, "written to after it was gone"
        assert self.close_code is None, "written to after the close frame"
        assert text
        for line in text.split("\n"):
            assert line, "a blank line"
            self._got(json.loads(line))

    async def close(self, close: Close) -> None:
        assert self.close_code is None, "closed twice"
        self.close_code = close.code

    def progress(self) -> tuple[int, int]:
        return 0, 0

    def abort(self) -> None:
        self.aborted = True

    def _got(self, message: dict[str, Any]) -> None:
        if not message:
            # SDKs do not answer it before.
            assert 1 in self.replies, "a ping before the reply to the connect"
            self.pings += 1
        elif "id" in message:
            self._replied(message)
        else:
            [push] = message.values()
            self._pushed(push["channel"], push)

    def _replied(self, message: dict[str, Any]) -> None:
        number = message["id"]
        assert number in self.waiting, f"a reply nobody waits for: {message}"
        method, channel = self.waiting.pop(number)
        if method in _IN_TURN:
            earlier = [
                n
                for n, (m, c) in self.waiting.items()
                if n < number and m in _IN_TURN and c == channel
            ]
            assert not earlier, f"{number} was answered before {earlier}"
        assert message.keys() == {"id", method} or message.keys() == {"id", "error"}
        self.replies[number] = message
        if "error" in message:
            error = message["error"]
            assert error["code"] in {*range(100, 114), *range(1000, 2000)}, error
            assert error.get("temporary", True) is (error["code"] in (100, 111)) or (
                "temporary" not in error and error["code"] not in (100, 111)
            )
        elif method == "connect":
            for name, result in message["connect"].get("subs", {}).items():
                self._entered(name, result)
        elif method == "subscribe":
            assert channel not in self.inside, "subscribed twice"
            self._entered(channel, message["subscribe"])
        elif method == "unsubscribe":
            self.inside.pop(channel, None)

    def _entered(self, channel: str, result: dict[str, Any]) -> None:
        self.heard[channel] = []
        self.inside[channel] = 0
        if "offset" not in result:
            return
        self.inside[channel] = result["offset"] + 1
        for publication in result.get("publications", ()):
            assert result["recovered"] is True
            self._took(channel, publication["offset"])

    def _took(self, channel: str, offset: int) -> None:
        assert offset == self.inside[channel], (channel, offset, self.inside[channel])
        self.inside[channel] = offset + 1
        self.offsets.setdefault(channel, []).append(offset)

    def _pushed(self, channel: str, push: dict[str, Any]) -> None:
        if "subscribe" in push:
            assert channel not in self.inside
            self._entered(channel, push["subscribe"])
            return
        assert channel in self.inside, f"a push of a channel it is not in: {push}"
        if "pub" in push:
            offset = push["pub"].get("offset", 0)
            if offset and self.inside[channel]:
                self._took(channel, offset)
        elif "unsubscribe" in push:
            assert push["unsubscribe"]["code"] in (2000, 2500, 2501)
            assert push["unsubscribe"]["reason"]
            del self.inside[channel]
        else:
            kind = "join" if "join" in push else "leave"
            who = push[kind]["info"]["client"]
            heard = self.heard[channel]
            before = [k for k, w in heard if w == who]
            assert not before or before[-1] != kind, f"{who}: {kind} twice"
            heard.append((kind, who))


class ScriptedWorld(World):
    """Connections, and members of the hub, without an event loop.

    Attributes:
        questions: Hooks that were asked, oldest first.
    """

    clock: VirtualClock

    def __init__(
        self,
        *,
        channels: ChannelSettings = CHANNELS,
        hooks: tuple[str, ...] = (),
        insecure: bool = True,
        in_memory: bool = False,
        clock: VirtualClock | None = None,
        handlers: Handlers | None = None,
        personal: PersonalChannel | None = None,
        connections: ConnectionSettings = UNLIMITED,
        drain_time: float = 0.0,
        **client: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.store = ScriptedStore(in_memory=in_memory)
        self.questions: list[Question] = []
        self.clients: list[Client] = []
        self._turns: deque[Callable[[], None]] = deque()
        self._members = 0
        super().__init__(
            Settings(
                server=ServerSettings(drain_time=drain_time),
                client=ClientSettings(**client),
                channels=channels,
                connections=connections,
            ),
            self.clock,
            self.store,
            self._turns.append,
            handlers or Handlers(**dict.fromkeys(hooks, self._hook)),
            insecure=insecure,
            personal=personal,
        )
        self.store.listener = self.hub.committed

    async def _hook(self, event: Any) -> Any:
        return await Question(self, event)

    def spawn(self, work: Awaitable[None]) -> None:
        """Run *work* up to what it waits for."""
        assert isinstance(work, Coroutine)
        try:
            wait = work.send(None)
        except StopIteration:
            return
        assert isinstance(wait, Wait)
        wait.begin(work)

    # Members of the hub, without a connection.

    def member(self, user: str = "") -> ScriptedMember:
        self._members += 1
        size = self.settings.client.recovery_size
        return ScriptedMember(self.hub, size, f"client{self._members}", user)

    def live(self, channel: Channel = A) -> tuple[ScriptedMember, Seat]:
        """Return a member that follows *channel* from its top."""
        member = self.member()
        seat = member.join(channel)
        if self.store.reads:
            self.store.reads[-1].finish()
        member.drain()
        assert isinstance(seat.outcome, Joined)
        return member, seat

    def told(self, *committed: Committed) -> None:
        """Tell the hub of commits again, or in an order of one's own."""
        self.hub.committed(committed)

    # Connections.

    def client(self, *channels: str, **connect: Any) -> Client:
        """Return a client that has connected and is in *channels*."""
        client = self.open()
        client.say({"connect": connect})
        for channel in channels:
            client.say({"subscribe": {"channel": channel}})
        self.settle()
        client.pings = 0
        return client

    def open(self, address: str = "192.0.2.1") -> Client:
        client = Client(self, address)
        self.clients.append(client)
        return client

    def enter(
        self, user: str, *channels: str, address: str = "192.0.2.1", settle: bool = True
    ) -> Client:
        """Let a client ask to connect, and subscribe if it is let in."""
        client = self.open(address)
        client.say({"connect": {"token": user}})
        if settle:
            self.settle()
        for channel in channels:
            client.say({"subscribe": {"channel": channel, "join_leave": True}})
            if settle:
                self.settle()
        return client

    def flush(self) -> bool:
        """Run what is due at the end of this turn of the loop."""
        due = list(self._turns)
        self._turns.clear()
        for callback in due:
            callback()
        return bool(due)

    def commit(self, outcome: StoreError | None = None) -> None:
        """Let the oldest publish be committed, or end with *outcome*."""
        channel, draft, history, done = self.store.appended.pop(0)
        if outcome is not None:
            done(outcome)
            return
        self.store.commit(channel, draft.data, skip_history=history.size == 0)
        self.store.tell()
        if history.size:
            done(Appended(self.store.stream(channel).position, True))
        else:
            done(Appended(Position(0, ""), True))

    def publish(
        self, channel: str, count: int = 1, text: str = "1", *, urgent: bool = False
    ) -> None:
        """Publish from the server's side, all at once."""
        rules = self.context.permissions.rules(channel)
        data = [text] * count
        skip = rules.history.size == 0
        self.store.commit(Channel(channel), *data, skip_history=skip, urgent=urgent)
        self.store.tell()

    def announce(self) -> None:
        """Let the joins and leaves go out that wait for the end of their window."""
        self.settle()
        self.clock.advance(WINDOW)
        self.settle()

    def settle(self, answer: Callable[[Question], object] | None = None) -> None:
        """Let everything come to its end, hooks as *answer* says."""
        for _ in range(100_000):
            if self.store.reads:
                self.store.reads[0].finish()
            elif self.store.appended:
                self.commit()
            elif self.questions and answer is not None:
                question = self.questions[0]
                question.answer(answer(question))
            elif self.store.untold:
                self.store.tell()
            elif not self.flush():
                return
        raise AssertionError("it does not come to an end")

    def assert_free(self) -> None:
        """Check that nothing is left once every client is gone."""
        for client in self.clients:
            if not client.over:
                client.gone()
        self.settle(lambda question: RuntimeError("too late"))
        self.grace_period.end_all()
        assert self.hub.counts() == {}
        assert len(self.registry) == 0
        assert self.registry.users == 0
        assert self.registry.connected == 0
        assert self.clock.pending == []
        for client in self.clients:
            assert client.connection.behind == {}

    def run_due(self) -> None:
        """Run the timers that are due now, and what follows from them."""
        self.clock.advance(0)
        self.settle()

    def inside(self, *clients: Client) -> list[bool]:
        """Tell which of *clients* are connected."""
        return [
            client.close_code is None and not client.over and 1 in client.replies
            for client in clients
        ]

    def check(self) -> None:
        """Hold every count of connections to every other (R1)."""
        registry, clients = self.registry, self.clients
        here = [client for client in clients if not client.over]
        assert len(registry) == len(here)
        slots = list(registry.slots())
        assert len(slots) == registry.connected
        by_user: dict[str, int] = {}
        for record in slots:
            assert record.has_slot and not record.over
            by_user[record.user] = by_user.get(record.user, 0) + 1
            found = registry.of_user(record.user, record.client)
            assert found == [record.connection]
        assert registry.users == len(by_user)
        for user, count in by_user.items():
            assert len(registry.of_user(UserId(user))) == count
            if user:
                assert count <= self.settings.user_limit
        assert len(slots) <= self.settings.connection_limit
        stats = self.liveness_stats
        pending = sum(one.keepalive.pending for one in registry)
        assert stats.sent == stats.answered + stats.orphaned + pending


def limited(*, limits: dict[str, Any] | None = None, **options: Any) -> ScriptedWorld:
    """Return a world with connection limits; the token of a connect is the user."""
    return ScriptedWorld(
        handlers=Handlers(connect=as_the_token_says),
        connections=ConnectionSettings(
            **{"limit": 1000, "user_limit": 3, **(limits or {})}
        ),
        **options,
    )
