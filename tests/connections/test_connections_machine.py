"""Connections that come, live, fall silent and end in any order, with every count.

After each step: open sockets == records, slots == the sum over users, no limit is
exceeded, and every ping is answered, given up or waits (R1, R11). After the last step
there is nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from service.core.errors import FORCE_DISCONNECT
from service.core.model import Channel
from service.session.liveness_stats import Level
from service.settings import ChannelSettings
from tests.world.scripted import Client, limited
from tests.world.world import CHANNELS as ALL_CHANNELS

USERS = st.sampled_from(["ann", "bob", "eve", ""])
CHANNELS = st.sampled_from(["a", "b"])
LOST = 1006


def with_window(seconds: float) -> ChannelSettings:
    options = structs.replace(
        ALL_CHANNELS.without_namespace, batch_window=seconds, history_size=100_000
    )
    return ChannelSettings(without_namespace=options)


class Connections(RuleBasedStateMachine):
    policy = "evict_lru"
    channels = with_window(0.0)

    def __init__(self) -> None:
        super().__init__()
        self.world = limited(
            limits={
                "limit": 8,
                "user_limit": 2,
                "address_limit": 2,
                "policy": self.policy,
            },
            max_age=2000.0,
            channels=self.channels,
        )
        self.world.reaper.start()
        self.lost: dict[str, float] = {}

    def pick(self, data: Any) -> Client:
        found = [client for client in self.world.clients if not client.over]
        client: Client = data.draw(st.sampled_from(found))
        return client

    @property
    def here(self) -> bool:
        return any(not client.over for client in self.world.clients)

    @property
    def talking(self) -> list[Client]:
        inside = self.world.inside(*self.world.clients)
        return [c for c, here in zip(self.world.clients, inside, strict=True) if here]

    @rule(user=USERS)
    def connect(self, user: str) -> None:
        if sum(not client.over for client in self.world.clients) < 30:
            self.world.enter(user)

    @precondition(lambda self: self.talking)
    @rule(data=st.data(), channel=CHANNELS)
    def subscribe(self, data: Any, channel: str) -> None:
        client = data.draw(st.sampled_from(self.talking))
        if channel not in client.inside:
            client.say({"subscribe": {"channel": channel, "join_leave": True}})
        else:
            client.say({"unsubscribe": {"channel": channel}})
        self.world.settle()

    @precondition(lambda self: self.talking)
    @rule(data=st.data(), channel=CHANNELS)
    def publish(self, data: Any, channel: str) -> None:
        data.draw(st.sampled_from(self.talking)).say(
            {"publish": {"channel": channel, "data": 1}}
        )
        self.world.settle()

    @precondition(lambda self: any(client.pings for client in self.talking))
    @rule(data=st.data())
    def pong(self, data: Any) -> None:
        asked = [client for client in self.talking if client.pings]
        data.draw(st.sampled_from(asked)).pong()
        self.world.run_due()

    @rule()
    def everybody_pongs(self) -> None:
        for client in self.talking:
            while client.pings and client.close_code is None:
                client.pong()
        self.world.run_due()

    @rule(seconds=st.sampled_from([0.1, 1.9, 2.0, 8.0, 10.0, 25.0, 61.0, 200.0]))
    def silence(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.settle()

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        client = self.pick(data)
        if client.close_code is None:
            self.lost[client.connection.identity.client] = self.world.clock.now()
        client.gone(LOST)
        self.world.settle()

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.pick(data).gone(1000)
        self.world.settle()

    @precondition(lambda self: self.talking)
    @rule(data=st.data())
    def evict(self, data: Any) -> None:
        client = data.draw(st.sampled_from(self.talking))
        client.connection.disconnect(FORCE_DISCONNECT)
        self.world.settle()

    @precondition(lambda self: self.talking)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 5.0, 40.0]))
    def expire(self, data: Any, seconds: float) -> None:
        client = data.draw(st.sampled_from(self.talking))
        client.connection.keepalive.expire(self.world.clock.now() + seconds)
        self.world.settle()

    @rule()
    def sweep(self) -> None:
        rounds = self.world.reaper.rounds
        while self.world.reaper.rounds == rounds:
            self.world.clock.advance(1.0)
            self.world.settle()
        assert self.world.reaper.failures == 0
        assert self.world.reaper.miscounted == 0

    @rule(hours=st.sampled_from([-1, 1]))
    def jump(self, hours: int) -> None:
        self.world.run_due()
        before = [client.close_code for client in self.world.clients]
        self.world.clock.jump(3600.0 * hours)
        self.world.run_due()
        assert [client.close_code for client in self.world.clients] == before  # R33

    @invariant()
    def counts(self) -> None:
        world = self.world
        world.check()
        now = world.clock.now()
        lately = {client for client, at in self.lost.items() if now < at + 10.0}
        for name in ("a", "b"):
            shown = {one.client for one in world.hub.present(Channel(name))}
            inside = {
                client.connection.identity.client
                for client in self.talking
                if name in client.inside
            }
            assert inside <= shown <= inside | lately
        assert len(world.grace_period) <= len(lately)
        for client in world.clients:
            if client.close_code == 3012:
                level = client.connection.keepalive.level
                probed = world.limits.evicted[3012] > 0
                swept = world.reaper.idle > 0
                assert level is Level.DEAD or probed or swept

    def teardown(self) -> None:
        self.world.reaper.stop()
        for client in self.world.clients:
            if not client.over:
                client.gone()
        self.world.run_due()
        self.world.assert_free()
        self.world.check()
        stats = self.world.liveness_stats
        assert stats.sent == stats.answered + stats.orphaned


class Rejecting(Connections):
    policy = "reject"


class Batching(Connections):
    """With a batch window: `Client` sees that no offset is lost or out of order."""

    channels = with_window(0.05)

    @rule(channel=CHANNELS, urgent=st.booleans(), count=st.integers(1, 3))
    def told(self, channel: str, urgent: bool, count: int) -> None:
        self.world.publish(channel, count, urgent=urgent)
        self.world.settle()

    @rule(seconds=st.sampled_from([0.01, 0.02, 0.04]))
    def moment(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.settle()

    @rule()
    def window_over(self) -> None:
        """Whatever was published has arrived, in full."""
        self.world.clock.advance(0.05)
        self.world.settle()
        for client in self.talking:
            for channel, expected in client.inside.items():
                assert expected == self.world.store.stream(channel).top + 1


FEW = settings(max_examples=60, stateful_step_count=40)

TestConnections = pytest.mark.requirement("R1", "R11")(Connections.TestCase)
TestConnections.settings = FEW
TestBatching = pytest.mark.requirement("R20")(Batching.TestCase)
TestBatching.settings = FEW
TestRejecting = Rejecting.TestCase
TestRejecting.settings = FEW
