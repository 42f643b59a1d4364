"""Drain: who is told when, what is answered first, and who is refused meanwhile."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from service.connections import drain as module
from service.connections.drain import Drain
from service.core.errors import StoreUnavailable
from service.core.hooks import ConnectResult
from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import lines, settings
from tests.world.scripted import Client, Question, ScriptedWorld, limited

TIME = 10.0  # s
ANSWERS = 3.0  # s
CLOSING = 2.0  # s


def end(*clients: Client) -> None:
    """Let the transports of those that were closed end."""
    for client in clients:
        if client.close_code is not None and not client.over:
            client.gone(client.close_code)


def pass_time(world: ScriptedWorld, seconds: float) -> None:
    """Move the clock in the steps of a drain; closed transports end at once."""
    for _ in range(round(seconds / module.STEP)):
        world.clock.advance(module.STEP)
        world.flush()
        end(*world.clients)


def pushed(client: Client) -> list[int]:
    return client.offsets.get("ch", [])


@pytest.mark.requirement("R49")
def test_clients_are_sent_away_evenly_over_the_drain_time() -> None:
    world = ScriptedWorld(drain_time=TIME)
    clients = [world.client() for _ in range(50)]
    world.drain.begin()
    gone = []
    for _ in range(10):
        pass_time(world, TIME / 10)
        gone.append(sum(client.over for client in clients))
    assert gone == pytest.approx([5, 10, 15, 20, 25, 30, 35, 40, 45, 50], abs=1)
    pass_time(world, 2 * module.STEP)
    assert {client.close_code for client in clients} == {3001}
    assert world.drain.state == "drained"
    world.assert_free()


@pytest.mark.requirement("R49")
def test_the_order_is_random_and_of_the_seed() -> None:
    def order(seed: int) -> list[int]:
        world = ScriptedWorld()
        clients = [world.client() for _ in range(20)]
        drain = Drain(world.registry, world.clock, Random(seed), time=TIME)
        drain.begin()
        found: list[int] = []
        while len(found) < 20:
            pass_time(world, module.STEP)
            found += [n for n, one in enumerate(clients) if one.over and n not in found]
        return found

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))


@pytest.mark.requirement("R49")
def test_without_a_drain_time_all_go_at_once_in_portions() -> None:
    world = ScriptedWorld()
    clients = [world.client() for _ in range(module.PORTION + 1)]
    world.drain.begin()
    world.flush()
    assert sum(one.close_code == 3001 for one in clients) == module.PORTION
    pass_time(world, module.STEP)
    assert {client.close_code for client in clients} == {3001}


@pytest.mark.requirement("R49")
def test_a_publication_under_way_is_answered_before_the_close() -> None:
    world = ScriptedWorld()
    client, idle = world.client("ch"), world.client()
    numbers = client.say(*[{"publish": {"channel": "ch", "data": 1}}] * 3)
    world.flush()
    world.drain.begin()
    world.flush()
    end(idle)
    assert (client.close_code, idle.close_code) == (None, 3001)
    world.settle()
    assert all("error" not in client.replies[number] for number in numbers)
    assert pushed(client) == [1, 2, 3]
    assert client.close_code == 3001
    end(client)
    pass_time(world, module.STEP)
    assert world.drain.state == "drained"
    world.assert_free()


@pytest.mark.requirement("R49")
def test_one_that_never_stops_publishing_is_read_no_more() -> None:
    world = ScriptedWorld()
    client = world.client("ch")
    client.say({"publish": {"channel": "ch", "data": 1}})
    world.drain.begin()
    assert client.connection.busy
    # The transport was reading already: this frame is still taken, and no other.
    [last] = client.say({"publish": {"channel": "ch", "data": 2}})
    assert client.connection.busy
    world.commit()
    world.flush()
    assert client.close_code is None
    world.settle()
    assert "error" not in client.replies[last]
    assert client.close_code == 3001
    assert not client.connection.busy  # its reader gets to see the end


@pytest.mark.requirement("R49")
@pytest.mark.parametrize("answered", [True, False])
def test_the_store_is_locked_meanwhile(answered: bool) -> None:
    world = ScriptedWorld()
    client = world.client()
    [number] = client.say({"publish": {"channel": "ch", "data": 1}})
    world.drain.begin()
    pass_time(world, ANSWERS - 2 * module.STEP)
    assert client.close_code is None
    if answered:  # in time, with an error that says that nothing was stored
        world.commit(StoreUnavailable("locked"))
        world.flush()
        error = client.replies[number]["error"]
        assert (error["code"], error["temporary"]) == (100, True)
        assert client.close_code == 3001
    else:
        pass_time(world, 4 * module.STEP)
        assert client.close_code == 3001
        assert number not in client.replies  # nothing is acknowledged
        world.commit()  # too late for an answer, and harmless
    end(client)
    pass_time(world, module.STEP)
    assert world.drain.state == "drained"
    world.assert_free()


@pytest.mark.requirement("R49")
def test_during_a_connect() -> None:
    # Before its hook has answered, and before the connect: none gets in, and each comes
    # back elsewhere.
    world = ScriptedWorld(hooks=("connect",))
    asking, silent = world.open(), world.open()
    asking.say({"connect": {"token": "t"}}, {"subscribe": {"channel": "ch"}})
    world.flush()
    world.drain.begin()
    world.flush()
    assert (asking.close_code, silent.close_code) == (3001, 3001)
    world.questions[0].answer(ConnectResult(user="ann"))
    world.flush()
    assert asking.replies == {}
    assert world.registry.connected == 0
    end(asking, silent)
    pass_time(world, module.STEP)
    world.assert_free()


@pytest.mark.requirement("R49")
def test_between_the_handshake_and_the_connect() -> None:
    world = ScriptedWorld()
    world.drain.begin()
    late = world.open()  # the gate had let it in
    late.say({"connect": {}})
    world.flush()
    assert late.close_code == 3001
    assert late.replies == {}
    assert world.registry.connected == 0
    end(late)
    world.assert_free()


@pytest.mark.requirement("R49")
def test_one_that_waits_for_a_slot_gets_none() -> None:
    world = limited(limits={"user_limit": 1, "policy": "reject"})
    first = world.enter("ann")
    world.clock.advance(5)
    second = world.enter("ann")
    assert first.pings  # it is asked whether it lives
    world.drain.begin()
    world.flush()
    assert (first.close_code, second.close_code) == (3001, 3001)
    end(first, second)
    world.clock.advance(10)
    world.assert_free()


@pytest.mark.requirement("R49")
def test_new_subscribes_are_refused_for_a_time_and_the_others_live() -> None:
    world = ScriptedWorld(drain_time=TIME)
    client = world.client("ch")
    [pending] = client.say({"subscribe": {"channel": "other"}})
    world.drain.begin()
    [refused] = client.say({"subscribe": {"channel": "new"}})
    world.publish("ch")
    world.settle()
    assert "subscribe" in client.replies[pending]  # it was under way
    error = client.replies[refused]["error"]
    assert (error["code"], error["temporary"]) == (111, True)
    assert pushed(client) == [1]
    [done] = client.say({"publish": {"channel": "ch", "data": 1}})
    world.settle()
    assert "publish" in client.replies[done]
    assert pushed(client) == [1, 2]


@pytest.mark.requirement("R49")
def test_a_command_that_waits_for_a_hook() -> None:
    world = ScriptedWorld(hooks=("rpc",))
    client = world.client()
    [number] = client.say({"rpc": {"method": "m"}})
    world.flush()
    world.drain.begin()
    assert len(world.questions) == 1
    assert client.close_code is None

    def refuse(question: Question) -> object:
        return RuntimeError("a fault of the hook")

    world.settle(refuse)
    assert client.replies[number]["error"]["code"] == 100
    assert client.close_code == 3001


@pytest.mark.requirement("R49")
def test_twice_changes_nothing() -> None:
    world = ScriptedWorld(drain_time=TIME)
    clients = [world.client() for _ in range(10)]
    world.drain.begin()
    pass_time(world, TIME / 2)
    timers = world.clock.pending
    world.drain.begin()
    assert world.clock.pending == timers
    pass_time(world, 0.1)
    assert sum(client.over for client in clients) == 5
    pass_time(world, TIME / 2)
    assert {client.close_code for client in clients} == {3001}


@pytest.mark.requirement("R49")
def test_hurried() -> None:
    world = ScriptedWorld(drain_time=TIME)
    clients = [world.client() for _ in range(10)]
    world.drain.begin()
    pass_time(world, TIME / 2)
    world.drain.hurry()
    pass_time(world, 2 * module.STEP)
    assert {client.close_code for client in clients} == {3001}
    assert world.drain.state == "drained"


@pytest.mark.requirement("R49")
def test_clients_that_leave_by_themselves_end_it_early() -> None:
    world = ScriptedWorld(drain_time=TIME)
    clients = [world.client("ch") for _ in range(10)]
    world.drain.begin()
    for client in clients:
        client.gone(1000)
    pass_time(world, module.STEP)
    assert world.drain.state == "drained"
    assert {client.close_code for client in clients} == {None}
    world.assert_free()


# On the event loop: what waits for the end, and writes that suspend.


@pytest.mark.requirement("R49")
async def test_nobody_is_there(clock: VirtualClock, make_world: MakeWorld) -> None:
    world = await make_world(settings(server={"drain_time": TIME}))
    assert world.drain.state == "serving"
    assert world.drain.fault() is None
    await world.drain.finish()
    await world.drain.finish()
    assert world.drain.state == "drained"
    fault = world.drain.fault()
    assert fault is not None and fault.failing
    assert clock.pending == []


@pytest.mark.requirement("R49")
async def test_a_slow_client_is_given_what_waits_and_keeps_nobody(
    clock: VirtualClock, make_world: MakeWorld
) -> None:
    world = await make_world()
    slow, slow_socket = await world.connect("ch")
    stuck, stuck_socket = await world.connect("ch")
    slow_socket.stop_reading()
    stuck_socket.stop_reading()
    await world.publish("ch", count=5)
    finished = asyncio.create_task(world.drain.finish())
    await asyncio.sleep(0)
    assert slow_socket.closes == []
    slow_socket.read_on()
    await slow_socket.until(lambda: slow_socket.closes)
    assert slow_socket.offsets("ch") == [1, 2, 3, 4, 5]
    slow.gone(3001)
    # The other one never reads: it is waited for, but not for ever.
    clock.advance(CLOSING - module.STEP)
    await asyncio.sleep(0)
    assert not finished.done()
    clock.advance(4 * module.STEP)
    await finished
    assert world.drain.state == "draining"
    assert stuck_socket.closes == []
    stuck.gone()
    assert world.drain.state == "drained"


@pytest.mark.requirement("R49")
async def test_during_a_recovery_in_portions(make_world: MakeWorld) -> None:
    # Its client has a dense beginning of what it missed, and goes on from there.
    world = await make_world(settings({"recovery_size": 200}))
    await world.publish("ch", size=60, count=20)
    connection, socket = await world.connect()
    connection.receive(
        lines({"id": 2, "subscribe": {"channel": "ch", "recover": True}})
    )
    reply = await socket.reply(2)
    socket.stop_reading()
    assert connection.behind
    finished = asyncio.create_task(world.drain.finish())
    await asyncio.sleep(0)
    socket.read_on()
    await socket.until(lambda: socket.closes)
    assert socket.closes == [3001]
    offsets = socket.offsets("ch")
    assert reply["subscribe"]["recovered"] is True
    assert 0 < len(offsets) < 20
    assert offsets == list(range(1, len(offsets) + 1))
    connection.gone(3001)
    await asyncio.sleep(0)
    finished.cancel()
