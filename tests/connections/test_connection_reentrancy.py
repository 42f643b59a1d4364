"""Outcomes inside and after the call that asked: the interleavings of `connection`.

Each runs with the outcome in memory (returned inside the call) and read from the store
(called back later).
"""

from __future__ import annotations

import json

import pytest

from service.core.errors import SHUTDOWN, UNSUBSCRIBE_SERVER
from service.core.hooks import ConnectEvent, ConnectResult, Handlers
from service.core.model import Channel
from tests.world.scripted import ScriptedWorld, limited

CH = Channel("ch")
LARGE = json.dumps("x" * 900)

BOTH = pytest.mark.parametrize("in_memory", [True, False])


@BOTH
def test_an_outcome_whose_reply_overflows_the_outbox_leaves_the_channel(
    in_memory: bool,
) -> None:
    world = ScriptedWorld(in_memory=in_memory, queue_size=1500)
    world.publish(CH, text=LARGE)
    client = world.client()
    recover = {"recover": True, "offset": 0, "epoch": ""}
    client.say(
        {"history": {"channel": CH, "limit": 1}},
        {"subscribe": {"channel": CH, **recover}},
    )
    while world.store.reads:
        world.store.reads[0].finish()
    assert client.connection.messages_sent == 1  # of the connect: the rest overflowed
    assert world.hub.counts() == {}
    world.publish(CH)
    world.settle()
    assert client.close_code == 3008
    assert client.offsets.get(CH, []) == []
    world.assert_free()


@BOTH
def test_an_outcome_that_is_unwanted_by_then_leaves_the_channel(
    in_memory: bool,
) -> None:
    world = ScriptedWorld(in_memory=in_memory)
    world.publish(CH, count=3)
    client = world.client()
    # Error 112 instead of recovered:false, bit 2 of the flag: refused by the session.
    client.say(
        {"subscribe": {"channel": CH, "recover": True, "offset": 9, "flag": 2}},
    )
    world.settle()
    assert world.hub.counts() == {}
    world.publish(CH)
    client.say({"subscribe": {"channel": CH}})
    world.settle()
    assert client.inside == {CH: 5}
    world.assert_free()


@BOTH
@pytest.mark.parametrize("end", ["unsubscribe", "disconnect", "gone"])
def test_what_ends_a_join_before_its_outcome(in_memory: bool, end: str) -> None:
    world = ScriptedWorld(in_memory=in_memory)
    client = world.client()
    world.store.in_memory = False
    client.say({"subscribe": {"channel": CH}})
    world.store.in_memory = in_memory  # for what follows
    if end == "unsubscribe":
        client.connection.unsubscribe(CH, UNSUBSCRIBE_SERVER)
    elif end == "disconnect":
        client.connection.disconnect(SHUTDOWN)
    else:
        client.gone()
    world.settle()
    assert world.hub.counts() == {}
    world.publish(CH)
    world.settle()
    assert CH not in client.inside
    world.assert_free()


@BOTH
def test_the_last_of_several_held_joins_activates_them_all(in_memory: bool) -> None:
    async def connect(event: ConnectEvent) -> ConnectResult:
        return ConnectResult(user="ann", channels=("a", "b", "c"))

    world = ScriptedWorld(in_memory=in_memory, handlers=Handlers(connect=connect))
    world.publish("b", count=2)
    client = world.open()
    client.say({"connect": {"subs": {"b": {"recover": True, "offset": 1}}}})
    # Commits before the last outcome are not lost, and not written before the reply.
    while len(world.store.reads) > 1:
        world.store.reads[0].finish()
    world.publish("a")
    world.publish("b")
    world.settle()
    assert client.offsets["b"] == [2, 3]
    assert client.offsets["a"] == [1]
    for channel in ("a", "b", "c"):
        world.publish(channel)
    world.settle()
    assert (client.offsets["a"], client.offsets["b"]) == ([1, 2], [2, 3, 4])
    assert client.offsets["c"] == [1]
    world.assert_free()


@BOTH
def test_commands_behind_a_join_or_a_history_go_on(in_memory: bool) -> None:
    world = ScriptedWorld(in_memory=in_memory, in_flight=1)
    world.publish(CH, count=2)
    client = world.client()
    numbers = client.say(
        {"subscribe": {"channel": CH}},
        {"history": {"channel": CH, "limit": 1}},
        {"unsubscribe": {"channel": CH}},
        {"subscribe": {"channel": CH}},
    )
    world.settle()
    assert [number for number in client.replies if number in numbers] == numbers
    assert client.inside == {CH: 3}
    assert not client.connection.in_flight
    world.assert_free()


def test_a_slot_that_is_given_in_the_turn_in_which_its_connection_ends() -> None:
    world = limited(limits={"policy": "reject", "user_limit": 1})
    first, newcomer = world.enter("ann"), world.enter("ann")
    assert first.pings == 1 and not newcomer.replies
    first.gone(1000)  # its slot is free, and the round ends in the next turn
    newcomer.gone(1000)
    world.run_due()
    assert world.registry.connected == 0
    world.check()
    world.assert_free()


def test_hundreds_whose_queues_overflow_while_they_are_told_of_each_other() -> None:
    world = limited(queue_size=100_000)
    clients = [world.enter(f"user{n}", settle=False) for n in range(300)]
    world.settle()
    for client in clients:
        client.say({"subscribe": {"channel": CH, "join_leave": True}})
    world.settle()
    world.clock.advance(20.0)  # all are told of all joins, and none is pinged yet
    world.settle()
    world.publish(CH, text=json.dumps("x" * 99_900))
    # Not flushed yet: a leave is dropped, and one publication more too much for each.
    clients[0].connection.disconnect(SHUTDOWN)
    world.clock.advance(1.0)
    assert world.hub.counts() == {CH: 299}
    world.publish(CH, text=json.dumps("x" * 99_900))
    assert world.hub.counts() == {}
    world.settle()
    assert [client.close_code for client in clients] == [3001] + [3008] * 299
    world.check()
    world.assert_free()
