"""Who gets a slot, and who has to go for it: every decision, and what comes between."""

from __future__ import annotations

import pytest

from tests.connections.house import House
from tests.session.stack import Client

PROBE = 2.0  # s
REJECT = {"policy": "reject"}


def test_the_least_recently_active_of_a_user_goes() -> None:  # R2, R4
    house = House()
    first, second, third = (house.enter("ann") for _ in range(3))
    house.clock.advance(1)
    first.say({"unsubscribe": {"channel": "x"}})  # not the oldest any more
    house.clock.advance(1)
    fourth = house.enter("ann")
    assert (second.close_code, first.close_code, third.close_code) == (3504, None, None)
    assert house.inside(first, second, third, fourth) == [True, False, True, True]
    assert house.limits.evicted == {3504: 1}
    house.check()
    house.assert_free()


def test_a_pong_is_activity_and_so_is_a_push() -> None:  # R8
    house = House()
    pongs, reads, idle = (house.enter("ann") for _ in range(3))
    house.clock.advance(1)
    reads.say({"subscribe": {"channel": "ch"}})
    house.settle()
    while not (pongs.pings and idle.pings):
        house.clock.advance(1)
        house.settle()
    pongs.pong()
    house.clock.advance(0.5)
    house.publish("ch")
    house.settle()
    house.enter("ann")
    assert idle.close_code == 3504
    assert house.inside(pongs, reads) == [True, True]


def test_nobody_with_a_command_in_flight_goes_if_another_will_do() -> None:  # R4
    house = House()
    busy, idle, other = (house.enter("ann") for _ in range(3))
    busy.say({"publish": {"channel": "ch", "data": 1}})  # never committed here
    house.clock.advance(5)
    other.say({"unsubscribe": {"channel": "x"}})
    house.enter("ann", settle=False)
    assert (busy.close_code, other.close_code) == (None, None)
    house.flush()
    assert idle.close_code == 3504


def test_when_all_have_one_in_flight_the_least_recently_active_goes() -> None:
    house = House()
    clients = [house.enter("ann") for _ in range(3)]
    for client in clients:
        client.say({"publish": {"channel": "ch", "data": 1}})
        house.clock.advance(1)
    house.enter("ann", settle=False)
    house.flush()
    assert [client.close_code for client in clients] == [3504, None, None]


def test_fifty_at_once_leave_three() -> None:  # R2
    house = House()
    clients = [house.open() for _ in range(50)]
    for client in clients:
        client.say({"connect": {"token": "ann"}})
        house.check()
    house.settle()
    assert sum(house.inside(*clients)) == 3
    assert [client.close_code for client in clients].count(3504) == 47
    house.check()
    house.assert_free()


def test_users_do_not_take_each_other_s_slots() -> None:  # L3
    house = House()
    anns = [house.enter("ann") for _ in range(3)]
    bobs = [house.enter("bob") for _ in range(5)]
    assert house.inside(*anns) == [True] * 3
    assert house.inside(*bobs) == [False, False, True, True, True]


def test_who_has_no_user_is_counted_by_address() -> None:
    house = House(limits={"address_limit": 2})
    here = [house.enter("", address="192.0.2.7") for _ in range(3)]
    there = house.enter("", address="192.0.2.8")
    ann = house.enter("ann", address="192.0.2.7")
    assert house.inside(*here, there, ann) == [False, True, True, True, True]
    house.check()


def test_an_evicted_client_s_slot_is_free_before_it_takes_its_close_frame() -> None:
    house = House()  # L27
    clients = [house.enter("ann") for _ in range(4)]
    assert clients[0].close_code == 3504 and not clients[0].over
    assert len(house.registry) == 4
    assert house.registry.connected == 3
    house.clock.advance(30)
    assert clients[0].aborted  # L27: whatever the peer does
    house.check()


# Policy `reject`.


def rejecting(**limits: object) -> tuple[House, list[Client]]:
    house = House(limits={**REJECT, **limits})
    return house, [house.enter("ann") for _ in range(3)]


def test_nobody_is_refused_before_the_others_have_shown_that_they_live() -> None:
    house, (one, two, three) = rejecting()
    newcomer = house.enter("ann")
    assert [client.pings for client in (one, two, three)] == [1, 1, 1]
    assert newcomer.close_code is None and not newcomer.replies
    for client in (one, two, three):
        client.pong()
    house.turns()
    assert newcomer.close_code == 3504  # and that at once, not after the whole wait
    assert house.inside(one, two, three) == [True] * 3
    assert house.limits.refused == {3504: 1}
    house.check()
    house.assert_free()


@pytest.mark.parametrize("ghosts", [1, 2, 3])
def test_ghosts_lock_nobody_out_for_longer_than_one_probe(ghosts: int) -> None:  # L10
    house, clients = rejecting()
    newcomer = house.enter("ann")
    for client in clients[ghosts:]:
        client.pong()
    house.clock.advance(PROBE - 0.001)
    house.settle()
    assert not newcomer.replies
    house.clock.advance(0.001)
    house.settle()
    assert house.inside(newcomer) == [True]
    assert [c.close_code for c in clients] == [3012] * ghosts + [None] * (3 - ghosts)
    assert house.limits.evicted == {3012: ghosts}
    house.check()


def test_any_frame_answers_a_probe() -> None:
    house, clients = rejecting()
    newcomer = house.enter("ann")
    for client in clients:
        client.say({"unsubscribe": {"channel": "x"}})
    house.turns()
    assert newcomer.close_code == 3504
    assert house.inside(*clients) == [True] * 3


def test_who_is_not_read_may_have_answered() -> None:
    house = House(limits=REJECT, in_flight=1)
    clients = [house.enter("ann") for _ in range(3)]
    clients[0].say({"publish": {"channel": "ch", "data": 1}})  # we read no further
    newcomer = house.enter("ann", settle=False)
    for client in clients[1:]:
        client.driver.receive("{}")
    house.clock.advance(PROBE)
    house.flush()
    assert newcomer.close_code == 3504
    assert [client.close_code for client in clients] == [None] * 3


def test_newcomers_during_a_round_share_it() -> None:
    house, clients = rejecting()
    newcomers = [house.enter("ann") for _ in range(5)]
    assert [client.pings for client in clients] == [1, 1, 1]
    clients[1].pong()
    house.clock.advance(PROBE)
    house.settle()
    assert house.inside(*newcomers) == [True, True, False, False, False]
    assert [client.close_code for client in newcomers[2:]] == [3504] * 3
    house.check()


def test_a_newcomer_that_ends_while_it_waits() -> None:
    house, _ = rejecting()
    first, second = house.enter("ann"), house.enter("ann")
    first.gone()
    house.clock.advance(PROBE)
    house.settle()
    assert house.inside(second) == [True]
    assert first.replies == {}
    house.check()
    house.assert_free()


def test_who_is_probed_ends_by_itself() -> None:
    house, clients = rejecting()
    newcomer = house.enter("ann")
    clients[0].gone()
    for client in clients[1:]:
        client.pong()
    house.turns()
    assert house.inside(newcomer) == [True]  # and that before the probe's end
    house.check()


def test_an_answer_in_the_turn_of_the_end_counts() -> None:
    house, clients = rejecting()
    newcomer = house.enter("ann")
    for client in clients[:2]:
        client.pong()
    house.clock.advance(PROBE - 0.001)
    clients[2].pong()
    house.clock.advance(0.001)
    house.settle()
    assert house.inside(*clients) == [True] * 3
    assert newcomer.close_code == 3504


def test_a_round_of_one_user_does_not_hold_up_another() -> None:
    house, _ = rejecting()
    house.enter("ann")
    assert house.inside(house.enter("bob")) == [True]


# The limit of the process.


def full() -> tuple[House, list[Client]]:
    house = House(limits={"limit": 20})
    return house, [house.enter(f"user{number}") for number in range(20)]


def test_a_full_process_sends_newcomers_away_for_a_while() -> None:  # R3
    house, clients = full()
    newcomer = house.enter("ann")
    assert sum(client.pings for client in clients) == 16
    for client in clients:
        if client.pings:
            client.pong()
    house.turns()
    assert newcomer.close_code == 3013  # SDKs come back from it, later and later
    # Others that come within the same two seconds cost nobody a ping.
    assert house.enter("bob").close_code == 3013
    assert sum(client.pings for client in clients) == 0
    house.clock.advance(PROBE)
    house.enter("bob")
    assert sum(client.pings for client in clients) == 16
    house.check()


def test_a_full_process_lets_go_of_ghosts() -> None:
    house, clients = full()
    newcomer = house.enter("ann")
    for client in clients[1:]:
        if client.pings:
            client.pong()
    house.clock.advance(PROBE)
    house.settle()
    assert clients[0].close_code == 3012
    assert house.inside(newcomer) == [True]
    house.check()


def test_nobody_is_evicted_for_a_newcomer_that_is_refused() -> None:
    house = House(limits={"limit": 3, "user_limit": 3})
    anns = [house.enter("ann") for _ in range(3)]
    fourth = house.enter("ann")  # it has the slot of another of its user
    assert house.inside(*anns, fourth) == [False, True, True, True]
    bob = house.enter("bob")
    for client in (*anns[1:], fourth):
        client.pong()
    house.turns()
    assert bob.close_code == 3013
    assert house.inside(*anns, fourth) == [False, True, True, True]


def test_500_at_a_limit_of_100_leave_100() -> None:  # R3
    house = House(limits={"limit": 100})
    clients = [house.open() for _ in range(500)]
    for number, client in enumerate(clients):
        client.say({"connect": {"token": f"user{number}"}})
        if number % 50 == 0:
            house.check()
    house.settle()
    for client in clients:
        if client.pings:
            client.pong()
    house.turns()
    assert house.inside(*clients) == [True] * 100 + [False] * 400
    assert [client.close_code for client in clients[100:]] == [3013] * 400
    house.check()
    house.assert_free()
