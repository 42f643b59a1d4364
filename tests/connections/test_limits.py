"""Connection limits: every decision, and what may happen between its steps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.world.scripted import Client, ScriptedWorld, limited

PROBE = 2.0  # s
REJECT = {"policy": "reject"}


@pytest.mark.requirement("R4")
def test_the_least_recently_active_of_a_user_goes() -> None:
    world = limited()
    first, second, third = (world.enter("ann") for _ in range(3))
    world.clock.advance(1)
    first.say({"unsubscribe": {"channel": "x"}})  # not the oldest any more
    world.clock.advance(1)
    fourth = world.enter("ann")
    assert (second.close_code, first.close_code, third.close_code) == (3504, None, None)
    assert world.inside(first, second, third, fourth) == [True, False, True, True]
    assert world.limits.evicted == {3504: 1}
    world.check()
    world.assert_free()


@pytest.mark.requirement("R8")
def test_a_pong_is_activity_and_so_is_a_push() -> None:
    world = limited()
    pongs, reads, idle = (world.enter("ann") for _ in range(3))
    world.clock.advance(1)
    reads.say({"subscribe": {"channel": "ch"}})
    world.settle()
    while not (pongs.pings and idle.pings):
        world.clock.advance(1)
        world.settle()
    pongs.pong()
    world.clock.advance(0.5)
    world.publish("ch")
    world.settle()
    world.enter("ann")
    assert idle.close_code == 3504
    assert world.inside(pongs, reads) == [True, True]


@pytest.mark.requirement("R4")
def test_nobody_with_a_command_in_flight_goes_if_another_will_do() -> None:
    world = limited()
    busy, idle, other = (world.enter("ann") for _ in range(3))
    busy.say({"publish": {"channel": "ch", "data": 1}})  # never committed here
    world.clock.advance(5)
    other.say({"unsubscribe": {"channel": "x"}})
    world.enter("ann", settle=False)
    assert (busy.close_code, other.close_code) == (None, None)
    world.flush()
    assert idle.close_code == 3504


def test_when_all_have_one_in_flight_the_least_recently_active_goes() -> None:
    world = limited()
    clients = [world.enter("ann") for _ in range(3)]
    for client in clients:
        client.say({"publish": {"channel": "ch", "data": 1}})
        world.clock.advance(1)
    world.enter("ann", settle=False)
    world.flush()
    assert [client.close_code for client in clients] == [3504, None, None]


@pytest.mark.parametrize(
    ("limits", "pings"),
    # At the limit of the process, those who have just come are not asked.
    [({"limit": 2}, [0, 0, 0, 0]), ({"user_limit": 2, **REJECT}, [1, 1, 0, 0])],
)
def test_a_probe_in_the_turn_of_a_connect_closes_nobody(
    limits: dict[str, Any], pings: list[int]
) -> None:
    world = limited(limits=limits)
    clients = [world.open() for _ in range(4)]
    users = ["ann"] * 4 if "user_limit" in limits else ["ann", "bob", "cid", "dan"]
    for client, user in zip(clients, users, strict=True):
        client.say({"connect": {"token": user}})
    world.settle()  # `Client` holds every ping to come after the reply
    assert [client.pings for client in clients] == pings
    for client in clients:
        if client.pings:
            client.pong()
    world.clock.advance(0)
    world.settle()
    assert world.inside(*clients) == [True, True, False, False]
    assert world.limits.evicted == {}
    world.clock.advance(2 * PROBE)
    world.settle()
    assert world.inside(*clients) == [True, True, False, False]
    world.check()
    world.assert_free()


def test_a_probe_that_is_not_written_yet_ends_nobody() -> None:
    world = limited(limits={"user_limit": 1, **REJECT})
    first = world.enter("ann")
    second = world.open()
    second.say({"connect": {"token": "ann"}})
    world.clock.advance(PROBE)  # the outbox has not been flushed
    assert (first.close_code, first.pings) == (None, 0)
    world.settle()
    assert world.inside(first, second) == [True, False]
    world.check()
    world.assert_free()


@pytest.mark.requirement("R2")
def test_fifty_at_once_leave_three() -> None:
    world = limited()
    clients = [world.open() for _ in range(50)]
    for client in clients:
        client.say({"connect": {"token": "ann"}})
        world.check()
    world.settle()
    assert sum(world.inside(*clients)) == 3
    assert [client.close_code for client in clients].count(3504) == 47
    world.check()
    world.assert_free()


@pytest.mark.requirement("L3")
def test_users_do_not_take_each_other_s_slots() -> None:
    world = limited()
    anns = [world.enter("ann") for _ in range(3)]
    bobs = [world.enter("bob") for _ in range(5)]
    assert world.inside(*anns) == [True] * 3
    assert world.inside(*bobs) == [False, False, True, True, True]


def test_who_has_no_user_is_counted_by_address() -> None:
    world = limited(limits={"address_limit": 2})
    here = [world.enter("", address="192.0.2.7") for _ in range(2)]
    there = world.enter("", address="192.0.2.8")
    ann = world.enter("ann", address="192.0.2.7")
    assert world.inside(*here, there, ann) == [True] * 4
    world.check()


def test_strangers_of_one_address_do_not_evict_each_other() -> None:
    world = limited(limits={"address_limit": 2})
    one, two = [world.enter("", address="192.0.2.7") for _ in range(2)]
    newcomer = world.enter("", address="192.0.2.7")
    assert newcomer.close_code is None and not newcomer.replies  # the others are asked
    one.pong()
    two.pong()
    world.run_due()
    assert newcomer.close_code == 3013  # it comes back by itself
    assert world.inside(one, two) == [True, True]
    assert world.limits.refused == {3013: 1}
    world.check()
    # The dead make room.
    late = world.enter("", address="192.0.2.7")
    two.pong()
    world.clock.advance(2.0)
    world.settle()
    assert world.inside(one, two, late) == [False, True, True]
    assert one.close_code == 3012
    world.check()
    world.assert_free()


@pytest.mark.requirement("L27")
def test_an_evicted_client_s_slot_is_free_before_it_takes_its_close_frame() -> None:
    world = limited()  # L27
    clients = [world.enter("ann") for _ in range(4)]
    assert clients[0].close_code == 3504 and not clients[0].over
    assert len(world.registry) == 4
    assert world.registry.connected == 3
    world.clock.advance(30)
    assert clients[0].aborted  # L27: whatever the peer does
    world.check()


# Policy `reject`.


def rejecting(**limits: object) -> tuple[ScriptedWorld, list[Client]]:
    world = limited(limits={**REJECT, **limits})
    return world, [world.enter("ann") for _ in range(3)]


def test_nobody_is_refused_before_the_others_have_shown_that_they_live() -> None:
    world, (one, two, three) = rejecting()
    newcomer = world.enter("ann")
    assert [client.pings for client in (one, two, three)] == [1, 1, 1]
    assert newcomer.close_code is None and not newcomer.replies
    for client in (one, two, three):
        client.pong()
    world.run_due()
    assert newcomer.close_code == 3504  # and that at once, not after the whole wait
    assert world.inside(one, two, three) == [True] * 3
    assert world.limits.refused == {3504: 1}
    world.check()
    world.assert_free()


@pytest.mark.requirement("L10")
@pytest.mark.parametrize("silent", [1, 2, 3])
def test_dead_clients_lock_nobody_out_for_longer_than_one_probe(
    silent: int,
) -> None:
    world, clients = rejecting()
    newcomer = world.enter("ann")
    for client in clients[silent:]:
        client.pong()
    world.clock.advance(PROBE - 0.001)
    world.settle()
    assert not newcomer.replies
    world.clock.advance(0.001)
    world.settle()
    assert world.inside(newcomer) == [True]
    assert [c.close_code for c in clients] == [3012] * silent + [None] * (3 - silent)
    assert world.limits.evicted == {3012: silent}
    world.check()


def test_any_frame_answers_a_probe() -> None:
    world, clients = rejecting()
    newcomer = world.enter("ann")
    for client in clients:
        client.say({"unsubscribe": {"channel": "x"}})
    world.run_due()
    assert newcomer.close_code == 3504
    assert world.inside(*clients) == [True] * 3


def test_who_is_not_read_may_have_answered() -> None:
    world = limited(limits=REJECT, in_flight=1)
    clients = [world.enter("ann") for _ in range(3)]
    clients[0].say({"publish": {"channel": "ch", "data": 1}})  # we read no further
    newcomer = world.enter("ann", settle=False)
    for client in clients[1:]:
        client.connection.receive("{}")
    world.clock.advance(PROBE)
    world.flush()
    assert newcomer.close_code == 3504
    assert [client.close_code for client in clients] == [None] * 3


def test_newcomers_during_a_round_share_it() -> None:
    world, clients = rejecting()
    newcomers = [world.enter("ann") for _ in range(5)]
    assert [client.pings for client in clients] == [1, 1, 1]
    clients[1].pong()
    world.clock.advance(PROBE)
    world.settle()
    assert world.inside(*newcomers) == [True, True, False, False, False]
    assert [client.close_code for client in newcomers[2:]] == [3504] * 3
    world.check()


def test_a_newcomer_that_ends_while_it_waits() -> None:
    world, _ = rejecting()
    first, second = world.enter("ann"), world.enter("ann")
    first.gone()
    world.clock.advance(PROBE)
    world.settle()
    assert world.inside(second) == [True]
    assert first.replies == {}
    world.check()
    world.assert_free()


def test_who_is_probed_ends_by_itself() -> None:
    world, clients = rejecting()
    newcomer = world.enter("ann")
    clients[0].gone()
    for client in clients[1:]:
        client.pong()
    world.run_due()
    assert world.inside(newcomer) == [True]  # and that before the probe's end
    world.check()


def test_an_answer_in_the_turn_of_the_end_counts() -> None:
    world, clients = rejecting()
    newcomer = world.enter("ann")
    for client in clients[:2]:
        client.pong()
    world.clock.advance(PROBE - 0.001)
    clients[2].pong()
    world.clock.advance(0.001)
    world.settle()
    assert world.inside(*clients) == [True] * 3
    assert newcomer.close_code == 3504


def test_a_round_of_one_user_does_not_hold_up_another() -> None:
    world, _ = rejecting()
    world.enter("ann")
    assert world.inside(world.enter("bob")) == [True]


def test_users_and_addresses_have_rounds_of_their_own() -> None:
    # A user may be named as an address is written.
    world = limited(limits={**REJECT, "user_limit": 1, "address_limit": 1})
    home, road = "192.0.2.7", "192.0.2.8"
    settled = [
        world.enter("ann"),
        world.enter("bob"),
        world.enter(home),
        world.enter("", address=home),
        world.enter("", address=road),
    ]
    newcomers = [
        world.enter("ann"),
        world.enter("bob"),
        world.enter(home),
        world.enter("", address=home),
        world.enter("", address=road),
    ]
    assert [client.pings for client in settled] == [1] * 5
    settled[0].pong()
    settled[3].pong()
    world.run_due()
    assert [client.close_code for client in newcomers] == [3504, None, None, 3013, None]
    world.clock.advance(PROBE)
    world.settle()
    assert world.inside(*newcomers) == [False, True, True, False, True]
    world.check()
    world.assert_free()


# The limit of the process.


def full() -> tuple[ScriptedWorld, list[Client]]:
    world = limited(limits={"limit": 20})
    return world, [world.enter(f"user{number}") for number in range(20)]


@pytest.mark.requirement("R3")
def test_a_full_process_sends_newcomers_away_for_a_while() -> None:
    world, clients = full()
    world.clock.advance(2 * PROBE)  # nobody was heard lately
    newcomer = world.enter("ann")
    assert sum(client.pings for client in clients) == 16
    for client in clients:
        if client.pings:
            client.pong()
    world.run_due()
    assert newcomer.close_code == 3013  # SDKs come back from it, later and later
    # Others that come within the same two seconds cost nobody a ping.
    assert world.enter("bob").close_code == 3013
    assert sum(client.pings for client in clients) == 0
    world.clock.advance(PROBE + 0.1)
    world.enter("bob")
    assert sum(client.pings for client in clients) == 16
    world.check()


def test_newcomers_to_a_full_process_share_a_round() -> None:
    world, clients = full()
    world.clock.advance(2 * PROBE)
    first = world.enter("ann")
    world.clock.advance(PROBE / 2)
    second = world.enter("bob")
    assert [first.close_code, second.close_code] == [None, None]
    assert sum(client.pings for client in clients) == 16
    for client in clients[2:]:
        if client.pings:
            client.pong()
    world.clock.advance(PROBE / 2)
    world.settle()
    assert [client.close_code for client in clients[:3]] == [3012, 3012, None]
    assert world.inside(first, second) == [True, True]
    world.check()


def test_a_full_process_lets_go_of_dead_clients() -> None:
    world, clients = full()
    world.clock.advance(2 * PROBE)
    newcomer = world.enter("ann")
    for client in clients[1:]:
        if client.pings:
            client.pong()
    world.clock.advance(PROBE)
    world.settle()
    assert clients[0].close_code == 3012
    assert world.inside(newcomer) == [True]
    world.check()


def test_nobody_is_evicted_for_a_newcomer_that_is_refused() -> None:
    world = limited(limits={"limit": 3, "user_limit": 3})
    anns = [world.enter("ann") for _ in range(3)]
    fourth = world.enter("ann")  # it has the slot of another of its user
    assert world.inside(*anns, fourth) == [False, True, True, True]
    world.clock.advance(2 * PROBE)
    bob = world.enter("bob")
    for client in (*anns[1:], fourth):
        client.pong()
    world.run_due()
    assert bob.close_code == 3013
    assert world.inside(*anns, fourth) == [False, True, True, True]


@pytest.mark.requirement("R3")
def test_500_at_a_limit_of_100_leave_100() -> None:
    world = limited(limits={"limit": 100})
    clients = [world.open() for _ in range(500)]
    for number, client in enumerate(clients):
        client.say({"connect": {"token": f"user{number}"}})
        if number % 50 == 0:
            world.check()
    world.settle()
    for client in clients:
        if client.pings:
            client.pong()
    world.run_due()
    assert world.inside(*clients) == [True] * 100 + [False] * 400
    assert [client.close_code for client in clients[100:]] == [3013] * 400
    world.check()
    world.assert_free()


@pytest.mark.requirement("R3")
def test_at_the_limit_of_the_process_nobody_waits_for_those_just_heard() -> None:
    world = limited(limits={"limit": 2})
    inside = [world.enter("ann"), world.enter("bob")]
    world.clock.advance(PROBE)
    for client in inside:
        client.say({"unsubscribe": {"channel": "x"}})
    world.settle()
    late = world.enter("cid")  # no time passes
    assert late.close_code == 3013
    assert [client.pings for client in inside] == [0, 0]
    # Later they are asked, and the refusal comes with the last answer.
    world.clock.advance(2 * PROBE)
    late = world.enter("dan")
    assert late.close_code is None
    assert [client.pings for client in inside] == [1, 1]
    for client in inside:
        client.pong()
    world.run_due()
    assert late.close_code == 3013
    # One that does not answer makes room, within the time of a probe.
    world.clock.advance(2 * PROBE)
    late = world.enter("eve")
    inside[0].pong()
    world.clock.advance(PROBE)
    world.settle()
    assert world.inside(*inside, late) == [True, False, True]
    world.check()
    world.assert_free()
