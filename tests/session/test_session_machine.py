"""Every command with an id gets exactly one reply, whatever happens in which order.

Random commands of two clients in random frames, and random outcomes: reads that fail,
commits that fail, hooks that refuse, close, raise or answer nonsense, flushes, time,
the server's own hand. `Client` checks each message as it comes: replies that somebody
waits for, no push of a channel outside [subscribe reply, unsubscribe reply), dense
offsets, joins and leaves in turn. At the end everything has been answered or closed,
and once the clients are gone nothing is left.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.core.errors import (
    FORCE_RECONNECT,
    LIMIT_EXCEEDED,
    SHUTDOWN,
    TOKEN_EXPIRED,
    UNSUBSCRIBE_SERVER,
    CloseError,
    ReplyError,
    StoreBusy,
    StoreUnavailable,
)
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    PublishEvent,
    PublishResult,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.core.model import Position
from tests.world.scripted import Client, Question, ScriptedWorld

CHANNELS = ["a", "a", "b", "plain:c", "asks:d"]
WRONG = ["nowhere:x", "$a", "x" * 256]


def allow(question: Question) -> object:
    soon = question.world.clock.wall() + 5.0
    match question.event:
        case ConnectEvent():
            return ConnectResult(
                user="ann", channels=("a", "plain:c"), client_side_refresh=True
            )
        case RefreshEvent():
            return RefreshResult(expire_at=soon, info={"n": 1})
        case SubRefreshEvent(channel=channel):
            return SubRefreshResult(channel or "b", soon, info={"c": 1})
        case SubscribeEvent(token="t"):
            return SubscribeResult(expire_at=soon, client_side_refresh=True)
        case SubscribeEvent():
            return SubscribeResult(info=[1], data={"x": 1})
        case PublishEvent():
            return PublishResult(data=[2])
        case RpcEvent():
            return RpcResult(data="done")
    raise AssertionError(question.event)


def command(random: Random) -> dict[str, Any]:
    channel = random.choice(CHANNELS)
    if random.random() < 0.05:
        channel = random.choice(WRONG)
    since = {"offset": random.randint(0, 3), "epoch": random.choice(["", "epoch1"])}
    subscribe = {"channel": channel, "flag": random.randint(0, 3)}
    if random.random() < 0.5:
        subscribe |= {"recover": True, **since}
    commands: list[dict[str, Any]] = [
        {"subscribe": subscribe},
        {"subscribe": {"channel": channel, "join_leave": True}},
        {"unsubscribe": {"channel": channel}},
        {"unsubscribe": {"channel": channel}},
        {"publish": {"channel": channel, "data": {"n": random.randint(0, 9)}}},
        {"history": {"channel": channel, "limit": random.randint(-1, 3)}},
        {"history": {"channel": channel, "limit": 2, "since": since}},
        {"history": {"channel": channel, "limit": 2, "reverse": True}},
        {"presence": {"channel": channel}},
        {"presence_stats": {"channel": channel}},
        {"rpc": {"method": "m"}},
        {"refresh": {"token": ""}},
        {"refresh": {"token": "t"}},
        {"subscribe": {"channel": channel, "token": "t"}},
        {"sub_refresh": {"channel": channel, "token": "t"}},
        {"sub_refresh": {"channel": channel, "token": "t"}},
        {"sub_refresh": {"token": "t"}},
    ]
    return random.choice(commands)


class Machine(RuleBasedStateMachine):
    """Without hooks."""

    hooks: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.world = ScriptedWorld(hooks=self.hooks, in_flight=3, channel_limit=3)
        self.store = self.world.store
        self.clients = [self.world.open() for _ in range(2)]

    @rule(number=st.integers(0, 1), seed=st.integers(0, 2**32 - 1))
    def say(self, number: int, seed: int) -> None:
        random = Random(seed)
        client = self.clients[number]
        if client.connection.busy or client.over:
            return  # we would not read it
        if not client.numbers:
            subs = {"a": {"recover": True, "offset": random.randint(0, 2)}}
            client.say({"connect": {"subs": subs} if random.random() < 0.5 else {}})
        else:
            client.say(*(command(random) for _ in range(random.randint(1, 5))))

    @rule(seed=st.integers(0, 1), bad=st.sampled_from(["", "{}", "[]", '{"id":9}']))
    def nonsense(self, seed: int, bad: str) -> None:
        client = self.clients[seed]
        if not client.over and client.replies and not client.connection.busy:
            if bad == "{}" and client.pings:
                client.pings -= 1
            client.connection.receive(bad)

    @precondition(lambda self: self.store.reads)
    @rule(number=st.integers(0, 9), look=st.booleans())
    def read(self, number: int, look: bool) -> None:
        read = self.store.reads[number % len(self.store.reads)]
        if look:
            read.look()
        read.finish()

    @precondition(lambda self: self.store.reads)
    @rule(number=st.integers(0, 9), busy=st.booleans())
    def fail_a_read(self, number: int, busy: bool) -> None:
        read = self.store.reads[number % len(self.store.reads)]
        read.finish(StoreBusy("full") if busy else StoreUnavailable("locked"))

    @precondition(lambda self: self.store.appended)
    @rule(fails=st.sampled_from([None, None, None, StoreUnavailable("disk full")]))
    def commit(self, fails: StoreUnavailable | None) -> None:
        self.world.commit(fails)

    @rule(channel=st.sampled_from(CHANNELS), count=st.integers(1, 3))
    def publish(self, channel: str, count: int) -> None:
        self.world.publish(channel, count)

    @rule(channel=st.sampled_from(["a", "b"]), keep=st.integers(0, 2))
    def trim(self, channel: Any, keep: int) -> None:
        self.store.trim(channel, keep)

    @rule(memory=st.booleans())
    def memory(self, memory: bool) -> None:
        self.store.in_memory = memory

    @rule()
    def flush(self) -> None:
        self.world.flush()

    @precondition(lambda self: self.world.questions)
    @rule(number=st.integers(0, 9), how=st.integers(0, 9))
    def answer(self, number: int, how: int) -> None:
        questions = self.world.questions
        question = questions[number % len(questions)]
        bad: list[object] = [
            ReplyError(LIMIT_EXCEEDED),
            ReplyError(TOKEN_EXPIRED),
            CloseError(FORCE_RECONNECT),
            ValueError("a bug"),
            None,
        ]
        question.answer(bad[how] if how < len(bad) else allow(question))

    @rule(seconds=st.sampled_from([0.5, 3.0, 8.0, 20.0]))
    def time(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.flush()
        for client in self.clients:
            while client.pings and not client.over and seconds != 20.0:
                if client.connection.busy:
                    break
                client.pong()

    @rule(
        number=st.integers(0, 1),
        channel=st.sampled_from(["a", "b"]),
        since=st.none() | st.integers(0, 2),
    )
    def server_subscribes(self, number: int, channel: Any, since: int | None) -> None:
        position = None if since is None else Position(since, "")
        try:
            self.clients[number].connection.subscribe(channel, position)
        except ReplyError as refused:
            assert refused.error.code == 106

    @rule(number=st.integers(0, 1), channel=st.sampled_from(["a", "b"]))
    def server_unsubscribes(self, number: int, channel: Any) -> None:
        self.clients[number].connection.unsubscribe(channel, UNSUBSCRIBE_SERVER)

    @rule(number=st.integers(0, 1), how=st.integers(0, 15))
    def end(self, number: int, how: int) -> None:
        client = self.clients[number]
        if how == 0:
            client.connection.disconnect(SHUTDOWN)
        elif how == 1:
            client.gone()
            self.clients[number] = self.world.open()

    @rule()
    def check_positions(self) -> None:
        self.world.hub.position_check.begin_round()

    def finish(self) -> None:
        self.world.settle(allow)
        for client in self.clients:
            self._complete(client)
        self.world.assert_free()

    def _complete(self, client: Client) -> None:
        connection = client.connection
        if client.over or client.close_code is not None:
            assert not connection.busy
            return
        assert not client.waiting, client.waiting
        if "connect" in client.replies.get(1, {}):
            # Else it would have fewer places from now on.
            assert not connection.in_flight
        assert not connection.busy
        assert not client.connection.behind
        # It is in the channels that it believes to be in, and it has everything.
        assert set(client.inside) == set(connection.channels)
        for channel, expected in client.inside.items():
            if expected:
                stream = self.store.stream(channel)  # type: ignore[arg-type]
                assert expected == stream.top + 1, channel

    def teardown(self) -> None:
        self.finish()


class WithHooks(Machine):
    """With every hook."""

    hooks = ("connect", "subscribe", "publish", "rpc")


class WithTokens(Machine):
    """With tokens that end, and are refreshed."""

    hooks = ("connect", "refresh", "subscribe_token", "sub_refresh")


@pytest.mark.requirement("L6")
@pytest.mark.parametrize("machine", [Machine, WithHooks, WithTokens])
def test_every_command_gets_one_reply(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def walk(machine: type[Machine], seed: int) -> None:
    """Take sixty steps at random: many runs find what a few shrunk ones miss."""
    random = Random(seed)
    m = machine()
    pick = random.choice
    one = lambda: random.randint(0, 1)  # noqa: E731
    steps: list[Any] = [
        lambda: m.say(one(), random.getrandbits(32)),
        lambda: m.say(one(), random.getrandbits(32)),
        lambda: m.say(one(), random.getrandbits(32)),
        lambda: m.store.reads and m.read(random.randint(0, 9), random.random() < 0.3),
        lambda: m.store.reads and m.read(random.randint(0, 9), random.random() < 0.3),
        lambda: (
            m.store.reads
            and random.random() < 0.2
            and m.fail_a_read(random.randint(0, 9), random.random() < 0.5)
        ),
        lambda: (
            m.store.appended
            and m.commit(StoreUnavailable("x") if random.random() < 0.2 else None)
        ),
        lambda: m.publish(pick(CHANNELS), random.randint(1, 3)),
        lambda: random.random() < 0.2 and m.trim(pick("ab"), random.randint(0, 2)),
        lambda: random.random() < 0.3 and m.memory(random.random() < 0.3),
        m.flush,
        m.flush,
        lambda: (
            m.world.questions and m.answer(random.randint(0, 9), random.randint(0, 29))
        ),
        lambda: (
            m.world.questions and m.answer(random.randint(0, 9), random.randint(0, 29))
        ),
        lambda: random.random() < 0.3 and m.time(pick([0.5, 3.0, 8.0])),
        lambda: m.server_subscribes(one(), pick("ab"), pick([None, 0, 1, 2])),
        lambda: m.server_unsubscribes(one(), pick("ab")),
        lambda: random.random() < 0.1 and m.end(one(), random.randint(0, 3)),
        lambda: (
            random.random() < 0.1
            and m.nonsense(one(), pick(["", "{}", "[]", '{"id":9}']))
        ),
        m.check_positions,
    ]
    for _ in range(60):
        pick(steps)()
    m.finish()


@pytest.mark.requirement("R45")
@pytest.mark.parametrize("machine", [Machine, WithHooks, WithTokens])
def test_many_walks(machine: type[Machine]) -> None:
    for seed in range(400):
        try:
            walk(machine, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
