"""Connections that are lost: who still sees them, for how long, and who takes over."""

from __future__ import annotations

from service.connections.grace_period import GracePeriod
from service.core.errors import FORCE_DISCONNECT
from service.core.model import Channel, ClientId, UserId
from tests.clock import VirtualClock
from tests.connections.house import House
from tests.session.stack import Client

LOST = 1006


def present(house: House) -> list[str]:
    return sorted(one.client for one in house.hub.present(Channel("ch")))


def heard(client: Client) -> list[tuple[str, str]]:
    return client.heard["ch"]


def test_a_lost_connection_is_seen_for_ten_seconds() -> None:  # R5
    house = House()
    other, lost = house.enter("bob", "ch"), house.enter("ann", "ch")
    other.heard["ch"].clear()
    lost.gone(LOST)
    house.settle()
    assert present(house) == ["client1", "client2"]
    house.clock.advance(9.999)
    house.settle()
    assert (present(house), heard(other)) == (["client1", "client2"], [])
    house.clock.advance(0.001)
    house.settle()
    assert (present(house), heard(other)) == (["client1"], [("leave", "client2")])
    house.check()
    house.assert_free()


def test_the_user_s_next_connection_takes_over() -> None:
    house = House()
    other, lost = house.enter("bob", "ch"), house.enter("ann", "ch")
    other.heard["ch"].clear()
    lost.gone(LOST)
    house.clock.advance(5)
    back = house.enter("ann")
    assert present(house) == ["client1", "client2"]  # until it is in the channel
    back.say({"subscribe": {"channel": "ch"}})
    house.settle()
    # First the join: who counts the clients of a user never counts none.
    assert heard(other) == [("join", "client3"), ("leave", "client2")]
    assert present(house) == ["client1", "client3"]
    house.clock.advance(60)
    while other.pings:
        other.pong()
    house.settle()
    assert heard(other)[2:] == []
    grace = house.grace_period
    assert (grace.hits, grace.misses) == (1, 2)
    house.check()
    house.assert_free()


def test_who_said_goodbye_is_gone_at_once() -> None:
    for end in ("client", "server", "unsubscribe", "evicted"):
        house = House(limits={"user_limit": 1})
        other, ann = house.enter("bob", "ch"), house.enter("ann", "ch")
        other.heard["ch"].clear()
        if end == "client":
            ann.gone(1000)
        elif end == "server":
            ann.driver.disconnect(FORCE_DISCONNECT)
            ann.gone(LOST)  # it did not take the frame
        elif end == "unsubscribe":
            ann.say({"unsubscribe": {"channel": "ch"}})
        else:
            house.enter("ann")
        house.settle()
        assert heard(other) == [("leave", "client2")], end
        assert len(house.grace_period) == 0
        house.assert_free()


def test_nobody_waits_for_nobody() -> None:
    house = House()
    other, nobody = house.enter("bob", "ch"), house.enter("", "ch")
    other.heard["ch"].clear()
    nobody.gone(LOST)
    house.settle()
    assert heard(other) == [("leave", "client2")]


def test_another_user_takes_nothing_over() -> None:
    house = House()
    lost = house.enter("ann", "ch")
    lost.gone(LOST)
    house.enter("bob", "ch")
    assert present(house) == ["client1", "client2"]


def test_a_slot_is_kept_for_its_user() -> None:
    house = House(limits={"limit": 2})
    house.enter("bob")
    house.enter("ann").gone(LOST)
    stranger = house.enter("eve")
    house.clients[0].pong()
    house.turns()
    assert stranger.close_code == 3013
    assert house.inside(house.enter("ann")) == [True]
    house.check()


def test_a_kept_slot_is_free_after_ten_seconds() -> None:
    house = House(limits={"limit": 1})
    house.enter("ann").gone(LOST)
    house.clock.advance(10)
    assert house.inside(house.enter("eve")) == [True]


def test_a_user_s_eleventh_parked_connection_evicts_the_first() -> None:  # R5
    house = House(limits={"user_limit": 20})
    clients = [house.enter("ann", "ch") for _ in range(11)]
    for client in clients:
        client.gone(LOST)
    house.settle()
    assert len(house.grace_period) == 10
    assert "client1" not in present(house)
    assert house.grace_period.evicted == 1
    house.clock.advance(10)
    assert (len(house.grace_period), present(house)) == (0, [])
    house.assert_free()


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


def test_presence_never_flaps_for_a_client_that_comes_and_goes() -> None:
    house = House()
    other = house.enter("bob", "ch")
    client = house.enter("ann", "ch")
    for _ in range(50):
        client.gone(LOST)
        house.settle()
        assert {one.user for one in house.hub.present(Channel("ch"))} == {"ann", "bob"}
        house.clock.advance(0.5)
        client = house.enter("ann", "ch")
    kinds = [kind for kind, _ in heard(other)]
    assert kinds == ["join", "join", *["join", "leave"] * 50]
    house.assert_free()
