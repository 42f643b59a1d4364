"""The grace period: lost connections are seen for a while, and taken over."""

from __future__ import annotations

import pytest

from service.connections.grace_period import GracePeriod
from service.core.errors import FORCE_DISCONNECT
from service.core.model import Channel, ClientId, UserId
from tests.clock import VirtualClock
from tests.world.scripted import Client, ScriptedWorld, limited

LOST = 1006


def present(world: ScriptedWorld) -> list[str]:
    return sorted(one.client for one in world.hub.present(Channel("ch")))


def heard(client: Client) -> list[tuple[str, str]]:
    return client.heard["ch"]


@pytest.mark.requirement("R5")
def test_a_lost_connection_is_seen_for_ten_seconds() -> None:
    world = limited()
    other, lost = world.enter("bob", "ch"), world.enter("ann", "ch")
    world.announce()
    other.heard["ch"].clear()
    lost.gone(LOST)
    world.settle()
    assert present(world) == ["client1", "client2"]
    world.clock.advance(9.999)
    world.settle()
    assert (present(world), heard(other)) == (["client1", "client2"], [])
    world.clock.advance(0.001)
    world.settle()
    assert (present(world), heard(other)) == (["client1"], [("leave", "client2")])
    world.check()
    world.assert_free()


def test_the_user_s_next_connection_takes_over() -> None:
    world = limited()
    other, lost = world.enter("bob", "ch"), world.enter("ann", "ch")
    world.announce()
    other.heard["ch"].clear()
    lost.gone(LOST)
    world.clock.advance(5)
    back = world.enter("ann")
    assert present(world) == ["client1", "client2"]  # until it is in the channel
    back.say({"subscribe": {"channel": "ch"}})
    world.settle()
    # First the join: who counts the clients of a user never counts none.
    assert heard(other) == [("join", "client3"), ("leave", "client2")]
    assert present(world) == ["client1", "client3"]
    world.clock.advance(60)
    while other.pings:
        other.pong()
    world.settle()
    assert heard(other)[2:] == []
    grace = world.grace_period
    assert (grace.hits, grace.misses) == (1, 2)
    world.check()
    world.assert_free()


def test_who_said_goodbye_is_gone_at_once() -> None:
    for end in ("client", "server", "unsubscribe", "evicted"):
        world = limited(limits={"user_limit": 1})
        other, ann = world.enter("bob", "ch"), world.enter("ann", "ch")
        world.announce()
        other.heard["ch"].clear()
        if end == "client":
            ann.gone(1000)
        elif end == "server":
            ann.connection.disconnect(FORCE_DISCONNECT)
            ann.gone(LOST)  # it did not take the frame
        elif end == "unsubscribe":
            ann.say({"unsubscribe": {"channel": "ch"}})
        else:
            world.enter("ann")
        world.announce()
        assert heard(other) == [("leave", "client2")], end
        assert len(world.grace_period) == 0
        world.assert_free()


def test_nobody_waits_for_nobody() -> None:
    world = limited()
    other, nobody = world.enter("bob", "ch"), world.enter("", "ch")
    world.announce()
    other.heard["ch"].clear()
    nobody.gone(LOST)
    world.announce()
    assert heard(other) == [("leave", "client2")]


def test_another_user_takes_nothing_over() -> None:
    world = limited()
    lost = world.enter("ann", "ch")
    lost.gone(LOST)
    world.enter("bob", "ch")
    assert present(world) == ["client1", "client2"]


def test_a_slot_is_kept_for_its_user() -> None:
    world = limited(limits={"limit": 2})
    world.enter("bob")
    world.enter("ann").gone(LOST)
    stranger = world.enter("eve")
    world.clients[0].pong()
    world.run_due()
    assert stranger.close_code == 3013
    assert world.inside(world.enter("ann")) == [True]
    world.check()


@pytest.mark.requirement("R6")
def test_a_kept_slot_is_free_after_ten_seconds() -> None:
    world = limited(limits={"limit": 1})
    world.enter("ann").gone(LOST)
    world.clock.advance(10)
    assert world.inside(world.enter("eve")) == [True]


@pytest.mark.requirement("R5")
def test_a_user_s_eleventh_parked_connection_evicts_the_first() -> None:
    world = limited(limits={"user_limit": 20})
    clients = [world.enter("ann", "ch") for _ in range(11)]
    for client in clients:
        client.gone(LOST)
    world.settle()
    assert len(world.grace_period) == 10
    assert "client1" not in present(world)
    assert world.grace_period.evicted == 1
    world.clock.advance(10)
    assert (len(world.grace_period), present(world)) == (0, [])
    world.assert_free()


def test_five_hundred_are_parked_and_no_more() -> None:
    left: list[str] = []
    grace = GracePeriod(left.append, VirtualClock(), 10.0)
    for number in range(501):
        grace.begin(UserId(f"user{number}"), ClientId(f"c{number}"), [f"p{number}"])
    assert (len(grace), left, grace.evicted) == (500, ["p0"], 1)
    grace.end(UserId("user7"))
    assert left == ["p0", "p7"]
    grace.end_all()
    assert len(left) == 501
    assert (len(grace), grace.reserved(UserId(""))) == (0, 0)


def test_each_leaves_at_its_own_time() -> None:
    left: list[str] = []
    clock = VirtualClock()
    grace = GracePeriod(left.append, clock, 10.0)
    for number in range(3):
        grace.begin(UserId("ann"), ClientId(f"c{number}"), [f"p{number}"])
        clock.advance(3)
    clock.advance(0.999)
    assert left == []
    clock.advance(0.001)
    assert left == ["p0"]
    clock.advance(3)
    assert left == ["p0", "p1"]
    clock.advance(3)
    assert (left, clock.pending) == (["p0", "p1", "p2"], [])


@pytest.mark.requirement("B77")
def test_presence_never_flaps_for_a_client_that_comes_and_goes() -> None:
    world = limited()
    other = world.enter("bob", "ch")
    client = world.enter("ann", "ch")
    for _ in range(50):
        client.gone(LOST)
        world.settle()
        assert {one.user for one in world.hub.present(Channel("ch"))} == {"ann", "bob"}
        world.clock.advance(0.5)
        client = world.enter("ann", "ch")
    kinds = [kind for kind, _ in heard(other)]
    assert kinds == ["join", "join", *["join", "leave"] * 50]
    world.assert_free()
