"""The grace period: lost connections are seen for a while, and taken over."""

from __future__ import annotations

from service.connections.grace_period import GracePeriod
from service.core.errors import FORCE_DISCONNECT
from service.core.model import Channel, ClientId, UserId
from tests.clock import VirtualClock
from tests.connections.limited_stack import LimitedStack
from tests.session.stack import Client

LOST = 1006


def present(stack: LimitedStack) -> list[str]:
    return sorted(one.client for one in stack.hub.present(Channel("ch")))


def heard(client: Client) -> list[tuple[str, str]]:
    return client.heard["ch"]


def test_a_lost_connection_is_seen_for_ten_seconds() -> None:  # R5
    stack = LimitedStack()
    other, lost = stack.enter("bob", "ch"), stack.enter("ann", "ch")
    other.heard["ch"].clear()
    lost.gone(LOST)
    stack.settle()
    assert present(stack) == ["client1", "client2"]
    stack.clock.advance(9.999)
    stack.settle()
    assert (present(stack), heard(other)) == (["client1", "client2"], [])
    stack.clock.advance(0.001)
    stack.settle()
    assert (present(stack), heard(other)) == (["client1"], [("leave", "client2")])
    stack.check()
    stack.assert_free()


def test_the_user_s_next_connection_takes_over() -> None:
    stack = LimitedStack()
    other, lost = stack.enter("bob", "ch"), stack.enter("ann", "ch")
    other.heard["ch"].clear()
    lost.gone(LOST)
    stack.clock.advance(5)
    back = stack.enter("ann")
    assert present(stack) == ["client1", "client2"]  # until it is in the channel
    back.say({"subscribe": {"channel": "ch"}})
    stack.settle()
    # First the join: who counts the clients of a user never counts none.
    assert heard(other) == [("join", "client3"), ("leave", "client2")]
    assert present(stack) == ["client1", "client3"]
    stack.clock.advance(60)
    while other.pings:
        other.pong()
    stack.settle()
    assert heard(other)[2:] == []
    grace = stack.grace_period
    assert (grace.hits, grace.misses) == (1, 2)
    stack.check()
    stack.assert_free()


def test_who_said_goodbye_is_gone_at_once() -> None:
    for end in ("client", "server", "unsubscribe", "evicted"):
        stack = LimitedStack(limits={"user_limit": 1})
        other, ann = stack.enter("bob", "ch"), stack.enter("ann", "ch")
        other.heard["ch"].clear()
        if end == "client":
            ann.gone(1000)
        elif end == "server":
            ann.connection.disconnect(FORCE_DISCONNECT)
            ann.gone(LOST)  # it did not take the frame
        elif end == "unsubscribe":
            ann.say({"unsubscribe": {"channel": "ch"}})
        else:
            stack.enter("ann")
        stack.settle()
        assert heard(other) == [("leave", "client2")], end
        assert len(stack.grace_period) == 0
        stack.assert_free()


def test_nobody_waits_for_nobody() -> None:
    stack = LimitedStack()
    other, nobody = stack.enter("bob", "ch"), stack.enter("", "ch")
    other.heard["ch"].clear()
    nobody.gone(LOST)
    stack.settle()
    assert heard(other) == [("leave", "client2")]


def test_another_user_takes_nothing_over() -> None:
    stack = LimitedStack()
    lost = stack.enter("ann", "ch")
    lost.gone(LOST)
    stack.enter("bob", "ch")
    assert present(stack) == ["client1", "client2"]


def test_a_slot_is_kept_for_its_user() -> None:
    stack = LimitedStack(limits={"limit": 2})
    stack.enter("bob")
    stack.enter("ann").gone(LOST)
    stranger = stack.enter("eve")
    stack.clients[0].pong()
    stack.turns()
    assert stranger.close_code == 3013
    assert stack.inside(stack.enter("ann")) == [True]
    stack.check()


def test_a_kept_slot_is_free_after_ten_seconds() -> None:
    stack = LimitedStack(limits={"limit": 1})
    stack.enter("ann").gone(LOST)
    stack.clock.advance(10)
    assert stack.inside(stack.enter("eve")) == [True]


def test_a_user_s_eleventh_parked_connection_evicts_the_first() -> None:  # R5
    stack = LimitedStack(limits={"user_limit": 20})
    clients = [stack.enter("ann", "ch") for _ in range(11)]
    for client in clients:
        client.gone(LOST)
    stack.settle()
    assert len(stack.grace_period) == 10
    assert "client1" not in present(stack)
    assert stack.grace_period.evicted == 1
    stack.clock.advance(10)
    assert (len(stack.grace_period), present(stack)) == (0, [])
    stack.assert_free()


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
    stack = LimitedStack()
    other = stack.enter("bob", "ch")
    client = stack.enter("ann", "ch")
    for _ in range(50):
        client.gone(LOST)
        stack.settle()
        assert {one.user for one in stack.hub.present(Channel("ch"))} == {"ann", "bob"}
        stack.clock.advance(0.5)
        client = stack.enter("ann", "ch")
    kinds = [kind for kind, _ in heard(other)]
    assert kinds == ["join", "join", *["join", "leave"] * 50]
    stack.assert_free()
