"""Connection limits: every decision, and what may happen between its steps."""

from __future__ import annotations

import pytest

from tests.connections.limited_stack import LimitedStack
from tests.session.stack import Client

PROBE = 2.0  # s
REJECT = {"policy": "reject"}


def test_the_least_recently_active_of_a_user_goes() -> None:  # R2, R4
    stack = LimitedStack()
    first, second, third = (stack.enter("ann") for _ in range(3))
    stack.clock.advance(1)
    first.say({"unsubscribe": {"channel": "x"}})  # not the oldest any more
    stack.clock.advance(1)
    fourth = stack.enter("ann")
    assert (second.close_code, first.close_code, third.close_code) == (3504, None, None)
    assert stack.inside(first, second, third, fourth) == [True, False, True, True]
    assert stack.limits.evicted == {3504: 1}
    stack.check()
    stack.assert_free()


def test_a_pong_is_activity_and_so_is_a_push() -> None:  # R8
    stack = LimitedStack()
    pongs, reads, idle = (stack.enter("ann") for _ in range(3))
    stack.clock.advance(1)
    reads.say({"subscribe": {"channel": "ch"}})
    stack.settle()
    while not (pongs.pings and idle.pings):
        stack.clock.advance(1)
        stack.settle()
    pongs.pong()
    stack.clock.advance(0.5)
    stack.publish("ch")
    stack.settle()
    stack.enter("ann")
    assert idle.close_code == 3504
    assert stack.inside(pongs, reads) == [True, True]


def test_nobody_with_a_command_in_flight_goes_if_another_will_do() -> None:  # R4
    stack = LimitedStack()
    busy, idle, other = (stack.enter("ann") for _ in range(3))
    busy.say({"publish": {"channel": "ch", "data": 1}})  # never committed here
    stack.clock.advance(5)
    other.say({"unsubscribe": {"channel": "x"}})
    stack.enter("ann", settle=False)
    assert (busy.close_code, other.close_code) == (None, None)
    stack.flush()
    assert idle.close_code == 3504


def test_when_all_have_one_in_flight_the_least_recently_active_goes() -> None:
    stack = LimitedStack()
    clients = [stack.enter("ann") for _ in range(3)]
    for client in clients:
        client.say({"publish": {"channel": "ch", "data": 1}})
        stack.clock.advance(1)
    stack.enter("ann", settle=False)
    stack.flush()
    assert [client.close_code for client in clients] == [3504, None, None]


def test_fifty_at_once_leave_three() -> None:  # R2
    stack = LimitedStack()
    clients = [stack.open() for _ in range(50)]
    for client in clients:
        client.say({"connect": {"token": "ann"}})
        stack.check()
    stack.settle()
    assert sum(stack.inside(*clients)) == 3
    assert [client.close_code for client in clients].count(3504) == 47
    stack.check()
    stack.assert_free()


def test_users_do_not_take_each_other_s_slots() -> None:  # L3
    stack = LimitedStack()
    anns = [stack.enter("ann") for _ in range(3)]
    bobs = [stack.enter("bob") for _ in range(5)]
    assert stack.inside(*anns) == [True] * 3
    assert stack.inside(*bobs) == [False, False, True, True, True]


def test_who_has_no_user_is_counted_by_address() -> None:
    stack = LimitedStack(limits={"address_limit": 2})
    here = [stack.enter("", address="192.0.2.7") for _ in range(3)]
    there = stack.enter("", address="192.0.2.8")
    ann = stack.enter("ann", address="192.0.2.7")
    assert stack.inside(*here, there, ann) == [False, True, True, True, True]
    stack.check()


def test_an_evicted_client_s_slot_is_free_before_it_takes_its_close_frame() -> None:
    stack = LimitedStack()  # L27
    clients = [stack.enter("ann") for _ in range(4)]
    assert clients[0].close_code == 3504 and not clients[0].over
    assert len(stack.registry) == 4
    assert stack.registry.connected == 3
    stack.clock.advance(30)
    assert clients[0].aborted  # L27: whatever the peer does
    stack.check()


# Policy `reject`.


def rejecting(**limits: object) -> tuple[LimitedStack, list[Client]]:
    stack = LimitedStack(limits={**REJECT, **limits})
    return stack, [stack.enter("ann") for _ in range(3)]


def test_nobody_is_refused_before_the_others_have_shown_that_they_live() -> None:
    stack, (one, two, three) = rejecting()
    newcomer = stack.enter("ann")
    assert [client.pings for client in (one, two, three)] == [1, 1, 1]
    assert newcomer.close_code is None and not newcomer.replies
    for client in (one, two, three):
        client.pong()
    stack.turns()
    assert newcomer.close_code == 3504  # and that at once, not after the whole wait
    assert stack.inside(one, two, three) == [True] * 3
    assert stack.limits.refused == {3504: 1}
    stack.check()
    stack.assert_free()


@pytest.mark.parametrize("ghosts", [1, 2, 3])
def test_ghosts_lock_nobody_out_for_longer_than_one_probe(ghosts: int) -> None:  # L10
    stack, clients = rejecting()
    newcomer = stack.enter("ann")
    for client in clients[ghosts:]:
        client.pong()
    stack.clock.advance(PROBE - 0.001)
    stack.settle()
    assert not newcomer.replies
    stack.clock.advance(0.001)
    stack.settle()
    assert stack.inside(newcomer) == [True]
    assert [c.close_code for c in clients] == [3012] * ghosts + [None] * (3 - ghosts)
    assert stack.limits.evicted == {3012: ghosts}
    stack.check()


def test_any_frame_answers_a_probe() -> None:
    stack, clients = rejecting()
    newcomer = stack.enter("ann")
    for client in clients:
        client.say({"unsubscribe": {"channel": "x"}})
    stack.turns()
    assert newcomer.close_code == 3504
    assert stack.inside(*clients) == [True] * 3


def test_who_is_not_read_may_have_answered() -> None:
    stack = LimitedStack(limits=REJECT, in_flight=1)
    clients = [stack.enter("ann") for _ in range(3)]
    clients[0].say({"publish": {"channel": "ch", "data": 1}})  # we read no further
    newcomer = stack.enter("ann", settle=False)
    for client in clients[1:]:
        client.connection.receive("{}")
    stack.clock.advance(PROBE)
    stack.flush()
    assert newcomer.close_code == 3504
    assert [client.close_code for client in clients] == [None] * 3


def test_newcomers_during_a_round_share_it() -> None:
    stack, clients = rejecting()
    newcomers = [stack.enter("ann") for _ in range(5)]
    assert [client.pings for client in clients] == [1, 1, 1]
    clients[1].pong()
    stack.clock.advance(PROBE)
    stack.settle()
    assert stack.inside(*newcomers) == [True, True, False, False, False]
    assert [client.close_code for client in newcomers[2:]] == [3504] * 3
    stack.check()


def test_a_newcomer_that_ends_while_it_waits() -> None:
    stack, _ = rejecting()
    first, second = stack.enter("ann"), stack.enter("ann")
    first.gone()
    stack.clock.advance(PROBE)
    stack.settle()
    assert stack.inside(second) == [True]
    assert first.replies == {}
    stack.check()
    stack.assert_free()


def test_who_is_probed_ends_by_itself() -> None:
    stack, clients = rejecting()
    newcomer = stack.enter("ann")
    clients[0].gone()
    for client in clients[1:]:
        client.pong()
    stack.turns()
    assert stack.inside(newcomer) == [True]  # and that before the probe's end
    stack.check()


def test_an_answer_in_the_turn_of_the_end_counts() -> None:
    stack, clients = rejecting()
    newcomer = stack.enter("ann")
    for client in clients[:2]:
        client.pong()
    stack.clock.advance(PROBE - 0.001)
    clients[2].pong()
    stack.clock.advance(0.001)
    stack.settle()
    assert stack.inside(*clients) == [True] * 3
    assert newcomer.close_code == 3504


def test_a_round_of_one_user_does_not_hold_up_another() -> None:
    stack, _ = rejecting()
    stack.enter("ann")
    assert stack.inside(stack.enter("bob")) == [True]


# The limit of the process.


def full() -> tuple[LimitedStack, list[Client]]:
    stack = LimitedStack(limits={"limit": 20})
    return stack, [stack.enter(f"user{number}") for number in range(20)]


def test_a_full_process_sends_newcomers_away_for_a_while() -> None:  # R3
    stack, clients = full()
    newcomer = stack.enter("ann")
    assert sum(client.pings for client in clients) == 16
    for client in clients:
        if client.pings:
            client.pong()
    stack.turns()
    assert newcomer.close_code == 3013  # SDKs come back from it, later and later
    # Others that come within the same two seconds cost nobody a ping.
    assert stack.enter("bob").close_code == 3013
    assert sum(client.pings for client in clients) == 0
    stack.clock.advance(PROBE)
    stack.enter("bob")
    assert sum(client.pings for client in clients) == 16
    stack.check()


def test_a_full_process_lets_go_of_ghosts() -> None:
    stack, clients = full()
    newcomer = stack.enter("ann")
    for client in clients[1:]:
        if client.pings:
            client.pong()
    stack.clock.advance(PROBE)
    stack.settle()
    assert clients[0].close_code == 3012
    assert stack.inside(newcomer) == [True]
    stack.check()


def test_nobody_is_evicted_for_a_newcomer_that_is_refused() -> None:
    stack = LimitedStack(limits={"limit": 3, "user_limit": 3})
    anns = [stack.enter("ann") for _ in range(3)]
    fourth = stack.enter("ann")  # it has the slot of another of its user
    assert stack.inside(*anns, fourth) == [False, True, True, True]
    bob = stack.enter("bob")
    for client in (*anns[1:], fourth):
        client.pong()
    stack.turns()
    assert bob.close_code == 3013
    assert stack.inside(*anns, fourth) == [False, True, True, True]


def test_500_at_a_limit_of_100_leave_100() -> None:  # R3
    stack = LimitedStack(limits={"limit": 100})
    clients = [stack.open() for _ in range(500)]
    for number, client in enumerate(clients):
        client.say({"connect": {"token": f"user{number}"}})
        if number % 50 == 0:
            stack.check()
    stack.settle()
    for client in clients:
        if client.pings:
            client.pong()
    stack.turns()
    assert stack.inside(*clients) == [True] * 100 + [False] * 400
    assert [client.close_code for client in clients[100:]] == [3013] * 400
    stack.check()
    stack.assert_free()
