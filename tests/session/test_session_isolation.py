"""No user ever hears what is another's, nor anything after its time: a random search.

Three users, six sockets, real connections, hub and authenticator, with tokens of the
right user and of others, good ones and expired ones, refreshes, revocations and
time. Each socket holds what comes to it at once to what must be true at any moment:

* its connection stands on a token of a user who owns the channel (L3, R38);
* the connection, and the subscription, have not expired longer ago than the delay;
* its user was not revoked since the token was made.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from service.auth.authenticator import Authenticator
from service.auth.verifier import Verifier
from service.core.errors import INVALID_TOKEN
from service.core.hooks import Handlers
from service.core.model import RawJson, UserId
from service.settings import (
    ChannelOptions,
    ChannelSettings,
    Namespace,
    PersonalChannel,
    Secret,
    Settings,
    TokenSettings,
)
from tests.auth.keyring import SECRET, sign
from tests.clock import VirtualClock
from tests.world.scripted import Client, ScriptedWorld

USERS = ("u0", "u1", "u2")
# The owner of each channel.
OWNERS: dict[str, tuple[str, ...]] = {
    **{f"$of-{user}": (user,) for user in USERS},
    **{f"#{user}": (user,) for user in USERS},
    "limited:x#u0,u1": ("u0", "u1"),
    "limited:x#u2": ("u2",),
    "open:x": USERS,
}
KEPT = {"history_size": 10, "history_ttl": 600.0, "force_recovery": True}
CHANNELS = ChannelSettings(
    without_namespace=ChannelOptions(**KEPT),
    namespaces=(
        # Allowances as wide as they come: they must not open what is limited.
        Namespace(
            name="limited",
            allow_user_limited_channels=True,
            allow_subscribe_for_client=True,
            allow_subscribe_for_anonymous=True,
            **KEPT,
        ),
        Namespace(name="open", allow_subscribe_for_client=True),
    ),
)
DELAY = 25.0


class Revoked:
    """`ports.Revocations`: users, and when."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        return issued_at <= self.since.get(user, 0.0)


class Listening(Client):
    """A client that knows what it may hear.

    Attributes:
        user: Whom its connection stands on; None before it is in.
        issued: When the token was made.
        ends: When the connection has to be over, in Unix seconds.
        sub_ends: The same of each subscription by token.
    """

    def __init__(self, world: VerifiedWorld) -> None:
        self.world = world
        self.user: str | None = None
        self.issued = 0.0
        self.ends = 0.0
        self.sub_ends: dict[str, float] = {}
        self.claims: dict[int, dict[str, Any]] = {}
        self.heard_of = 0
        super().__init__(world)

    def ask(self, method: str, claims: dict[str, Any], **fields: Any) -> None:
        """Send one command, with the token that says *claims* if there are any."""
        if claims:
            fields["token"] = sign(claims)
        # The reply may come before `say` returns.
        self.claims[self.numbers + 1] = claims
        self.say({method: fields})
        self.world.flush()

    def _got(self, message: dict[str, Any]) -> None:
        try:
            super()._got(message)
        except Exception as fault:
            # The outbox takes it for a socket that failed, and goes on.
            self.world.faults.append(fault)
            raise

    def _replied(self, message: dict[str, Any]) -> None:
        method, channel = self.waiting[message["id"]]
        if method in message:
            # First: the reply may hold publications.
            self._granted(method, channel, self.claims[message["id"]])
        super()._replied(message)

    def _granted(self, method: str, channel: str, claims: dict[str, Any]) -> None:
        if method in ("connect", "refresh"):
            assert self.user in (None, claims["sub"]), "another user by a refresh"
            assert not self.world.revoked.is_revoked(
                UserId(claims["sub"]), "", claims["iat"]
            )
            self.user = claims["sub"]
            self.issued = claims["iat"]
            self.ends = claims["exp"] + DELAY
        elif method in ("subscribe", "sub_refresh"):
            if claims:
                assert claims["sub"] == self.user and claims["channel"] == channel
                self.sub_ends[channel] = claims["exp"] + DELAY
            else:
                self.sub_ends.pop(channel, None)
            assert self.user in OWNERS[channel], (self.user, channel)

    def _took(self, channel: str, offset: int) -> None:
        super()._took(channel, offset)
        self._may_hear(channel)

    def _pushed(self, channel: str, push: dict[str, Any]) -> None:
        if "pub" in push:
            self._may_hear(channel)
            assert self.user in push["pub"]["data"], (self.user, push)
        super()._pushed(channel, push)

    def _may_hear(self, channel: str) -> None:
        now = self.world.clock.wall()
        self.heard_of += 1
        assert self.user in OWNERS[channel], (self.user, channel)
        if self.world.registry.find(self.connection.identity.client) is None:
            return  # it is being closed: what was handed over in time is still written
        assert now <= self.ends
        assert now <= self.sub_ends.get(channel, now)
        assert not self.world.revoked.is_revoked(UserId(self.user), "", self.issued)


class VerifiedWorld(ScriptedWorld):
    """Connections whose tokens are verified as in the service."""

    def __init__(self) -> None:
        clock = VirtualClock()
        self.revoked = Revoked()
        self.faults: list[Exception] = []
        own = Settings(token=TokenSettings(hmac_secret_key=Secret(SECRET)))
        verifier = Verifier(own, clock.wall)
        handlers = Authenticator(verifier, self.revoked).handlers(Handlers(), own)
        super().__init__(
            channels=CHANNELS,
            clock=clock,
            handlers=handlers,
            insecure=False,
            personal=PersonalChannel(enabled=True),
        )

    def open(self) -> Listening:
        client = Listening(self)
        self.clients.append(client)
        return client


class Machine(RuleBasedStateMachine):
    """Six sockets, and whatever their users and others do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = VerifiedWorld()
        self.sockets: list[Listening] = [self.world.open() for _ in range(6)]
        self._serial = itertools.count()

    def claims(self, user: str, seconds: float, **more: Any) -> dict[str, Any]:
        now = self.world.clock.wall()
        return {"sub": user, "iat": now, "exp": now + seconds, **more}

    def ready(self, number: int) -> Listening | None:
        client = self.sockets[number]
        if client.over or client.close_code is not None or client.connection.busy:
            return None
        return client

    @rule(
        number=st.integers(0, 5),
        user=st.sampled_from(USERS),
        seconds=st.sampled_from([-1, 20, 60]),
        channels=st.booleans(),
        recover=st.booleans(),
    )
    def connect(
        self, number: int, user: str, seconds: int, channels: bool, recover: bool
    ) -> None:
        client = self.ready(number)
        if client is None or client.numbers:
            self.sockets[number].gone()
            client = self.sockets[number] = self.world.open()
        more = {"channels": [f"$of-{user}"]} if channels else {}
        subs = {
            name: {"recover": True, "offset": 0, "epoch": ""}
            for name in OWNERS
            if recover
        }
        claims = self.claims(user, seconds, **more)
        client.ask("connect", claims, subs=subs)

    @rule(
        number=st.integers(0, 5),
        channel=st.sampled_from(sorted(OWNERS)),
        other=st.sampled_from(USERS),
        kind=st.sampled_from(["none", "own", "own", "other", "expired", "wrong"]),
        recover=st.booleans(),
    )
    def subscribe(
        self, number: int, channel: str, other: str, kind: str, recover: bool
    ) -> None:
        client = self.ready(number)
        if client is None or client.user is None:
            return
        fields: dict[str, Any] = {"channel": channel}
        if recover:
            fields |= {"recover": True, "offset": 0, "epoch": ""}
        user = client.user if kind != "other" else other
        named = channel if kind != "wrong" else "$of-u0"
        # The issuer is honest: it gives tokens for what is one's own.
        if kind == "none" or user not in OWNERS[named]:
            client.ask("subscribe", {}, **fields)
            return
        seconds = -1 if kind == "expired" else 30
        claims = self.claims(user, seconds, channel=named)
        client.ask("subscribe", claims, **fields)

    @rule(number=st.integers(0, 5), channel=st.sampled_from(sorted(OWNERS)))
    def unsubscribe(self, number: int, channel: str) -> None:
        client = self.ready(number)
        if client is not None and client.user is not None:
            client.ask("unsubscribe", {}, channel=channel)

    @rule(
        number=st.integers(0, 5),
        other=st.sampled_from([None, None, *USERS]),
        seconds=st.sampled_from([-1, 40, 40, 90]),
    )
    def refresh(self, number: int, other: str | None, seconds: int) -> None:
        client = self.ready(number)
        if client is not None and client.user is not None:
            claims = self.claims(other or client.user, seconds)
            client.ask("refresh", claims)

    @rule(
        number=st.integers(0, 5),
        channel=st.sampled_from(sorted(OWNERS)),
        other=st.sampled_from([None, None, *USERS]),
        seconds=st.sampled_from([-1, 40, 40]),
    )
    def sub_refresh(
        self, number: int, channel: str, other: str | None, seconds: int
    ) -> None:
        client = self.ready(number)
        if client is None or client.user is None:
            return
        user = other or client.user
        if user in OWNERS[channel]:
            claims = self.claims(user, seconds, channel=channel)
            client.ask("sub_refresh", claims, channel=channel)

    @rule(channel=st.sampled_from(sorted(OWNERS)), count=st.integers(1, 3))
    def publish(self, channel: str, count: int) -> None:
        owners = "[" + ",".join(f'"{user}"' for user in OWNERS[channel]) + "]"
        self.world.publish(channel, count, RawJson(owners))

    @rule(user=st.sampled_from(USERS))
    def revoke(self, user: str) -> None:
        self.world.flush()  # what was written before is not taken back
        self.world.revoked.since[user] = self.world.clock.wall()
        for connection in tuple(self.world.registry):
            if connection.identity.user == user:
                connection.disconnect(INVALID_TOKEN)
        self.world.clock.advance(0.001)  # tokens made from now on are newer

    @rule(number=st.integers(0, 5))
    def disconnect(self, number: int) -> None:
        self.sockets[number].gone()
        self.sockets[number] = self.world.open()

    @rule(seconds=st.sampled_from([1.0, 5.0, 12.0, 30.0]))
    def time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.world.clock.advance(1.0)
            self.world.flush()
            for client in self.sockets:
                while client.pings and not client.over and client.close_code is None:
                    client.pong()

    @rule()
    def read(self) -> None:
        self.world.settle()
        self.look()

    def look(self) -> None:
        for fault in self.world.faults:
            raise fault

    def teardown(self) -> None:
        self.world.settle()
        self.look()
        now = self.world.clock.wall()
        for client in self.sockets:
            if client.close_code is None and client.user is not None:
                assert now <= client.ends
                for channel in client.inside:
                    assert client.user in OWNERS[channel]
                    assert now <= client.sub_ends.get(channel, now)
        self.world.assert_free()


@pytest.mark.requirement("R38", "L3")
def test_no_user_hears_what_is_another_s() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def walk(seed: int) -> int:
    """Take 150 steps at random, and return how much was heard."""
    random = Random(seed)
    pick = random.choice
    m = Machine()
    number = lambda: random.randrange(6)  # noqa: E731
    channel = lambda: pick(sorted(OWNERS))  # noqa: E731
    other = lambda: pick([None, None, None, *USERS])  # noqa: E731
    kinds = ["none", "own", "own", "own", "other", "expired", "wrong"]
    steps: list[Any] = [
        lambda: m.connect(
            number(), pick(USERS), pick([60, 60, 20, -1]), pick([0, 1]), pick([0, 1])
        ),
        *(
            lambda: m.subscribe(
                number(), channel(), pick(USERS), pick(kinds), pick([True, False])
            )
            for _ in range(4)
        ),
        *(lambda: m.publish(channel(), random.randint(1, 3)) for _ in range(4)),
        lambda: m.unsubscribe(number(), channel()),
        lambda: m.refresh(number(), other(), pick([-1, 40, 40, 90])),
        lambda: m.sub_refresh(number(), channel(), other(), pick([-1, 40, 40])),
        lambda: random.random() < 0.2 and m.revoke(pick(USERS)),
        lambda: random.random() < 0.2 and m.disconnect(number()),
        lambda: m.time(pick([1.0, 5.0, 12.0])),
        *(m.read for _ in range(3)),
    ]
    for _ in range(150):
        pick(steps)()
    heard = sum(c.heard_of for c in m.world.clients if isinstance(c, Listening))
    m.teardown()
    return heard


@pytest.mark.requirement("R38")
def test_many_walks() -> None:
    heard = 0
    for seed in range(400):
        try:
            heard += walk(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert heard > 10000  # else it would show nothing


@pytest.mark.parametrize("owner", ["u1", "u2"])
def test_the_search_finds_a_leak(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A check of the check: as if a channel belonged to fewer than it does.
    monkeypatch.setitem(OWNERS, "open:x", (owner,))
    with pytest.raises(AssertionError):
        for seed in range(20):
            walk(seed)
