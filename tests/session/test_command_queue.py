"""Portions, and rates of commands: a session stepped by hand, on a clock of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core.hooks import Handlers, RpcResult
from service.core.model import ClientId, HistoryPage, RawJson, SubscriberInfo, UserId
from service.session.command_queue import CommandLimits, CommandQuota
from service.settings import LimitSettings
from tests.session.bench import Bench, error, hook, publication

TOO_MANY = error(111, "too many requests", temporary=True)
PORTION = 32


def unsubscribes(first: int, count: int) -> list[dict[str, Any]]:
    numbers = range(first, first + count)
    return [{"id": n, "unsubscribe": {"channel": "x"}} for n in numbers]


def held(**options: Any) -> Bench:
    """Return a connected session whose turns of the loop the test takes."""
    bench = Bench(**options).connect()
    bench.turning = False
    bench.session.turn()
    return bench


# Portions (G7).


def test_a_frame_is_handled_in_portions() -> None:
    bench = held()
    bench.send(*unsubscribes(10, 100))
    for done in (32, 64, 96):
        assert [m["id"] for m in bench.messages] == list(range(10, 10 + done))
        assert bench.turns == 1 and bench.session.busy
        bench.turn()
    assert [m["id"] for m in bench.messages] == list(range(10, 110))
    assert bench.turns == 0 and not bench.session.busy


def test_many_small_frames_are_a_portion_too() -> None:
    bench = held()
    for number in range(10, 110):
        bench.send({"id": number, "unsubscribe": {"channel": "x"}})
    assert len(bench.messages) == PORTION
    bench.turn()
    assert len(bench.messages) == 2 * PORTION


def test_outcomes_do_not_buy_a_second_portion() -> None:
    bench = held()
    frame: list[dict[str, Any]] = []
    for number in range(0, 3200, 32):
        frame.append({"id": 1000 + number, "publish": {"channel": "c", "data": 1}})
        frame += unsubscribes(1001 + number, 31)
    bench.send(*frame)
    before = len(bench.messages)
    for _ in range(len(bench.published)):
        bench.append()
    # Their own replies, and nothing else until the loop has turned.
    assert len(bench.messages) - before <= PORTION
    taken = 0
    while bench.turns or bench.published:
        taken += 1
        before = len(bench.messages) + len(bench.published)
        if bench.turns:
            bench.turn()
        assert len(bench.messages) + len(bench.published) - before <= PORTION
        while bench.published:
            bench.append()
    assert len(bench.messages) == 3200
    assert taken >= 100


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
def test_a_presence_of_many_is_more_than_one_command(method: str) -> None:
    bench = held()
    bench.here = [
        SubscriberInfo(ClientId(f"c{n}"), UserId(f"u{n}"), RawJson("{}"))
        for n in range(400)
    ]
    bench.send(*({"id": n, method: {"channel": "c"}} for n in range(10, 20)))
    # 400 members are 12 units, and the command is one: 32 are spent by the third.
    assert len(bench.messages) == 3
    bench.turn()
    assert len(bench.messages) == 6


def test_a_history_of_many_is_more_than_one_command() -> None:
    bench = held()
    bench.send(*({"id": n, "history": {"channel": "c"}} for n in range(10, 20)))
    page = HistoryPage([publication(n) for n in range(1, 301)], bench.top)
    for answered in range(1, 5):
        bench.read(page)
        assert len(bench.messages) == answered
    # 300 are 9 units, and the command is one; the fifth waits for a turn.
    assert bench.histories == [] and bench.turns == 1
    bench.turn()
    assert len(bench.histories) == 1


def test_a_flood_of_rpcs_is_asked_in_portions() -> None:
    bench = held(handlers=Handlers(rpc=hook), in_flight=100)
    bench.send(*({"id": n, "rpc": {"method": "m"}} for n in range(10, 110)))
    assert len(bench.asked) == PORTION
    bench.answer(RpcResult())
    assert len(bench.asked) == PORTION - 1
    bench.turn()
    assert len(bench.asked) == 2 * PORTION - 1


def test_a_turn_after_the_end_does_nothing() -> None:
    bench = held()
    bench.send(*unsubscribes(10, 100))
    bench.session.malformed()
    assert bench.closes == [3501]
    bench.session.turn()
    bench.session.resume(bench.now)
    assert len(bench.messages) == PORTION


def test_a_portion_may_end_between_connect_and_what_follows() -> None:
    bench = Bench()
    bench.turning = False
    bench.send({"id": 1, "connect": {}}, *unsubscribes(2, 40))
    assert len(bench.messages) == PORTION
    bench.turn()
    assert [m["id"] for m in bench.messages] == list(range(1, 42))


# Rates (L117, R35).


def limited(**limits: float) -> tuple[Bench, CommandLimits]:
    shared = CommandLimits(LimitSettings(**{"burst": 1.0, **limits}))  # type: ignore[arg-type]
    return sender(shared), shared


def sender(shared: CommandLimits, user: str = "", address: str = "a") -> Bench:
    quota = shared.quota(address, 1000.0)
    assert quota is not None
    quota.user = UserId(user)
    bench = Bench(quota=quota).connect()
    return bench


def ask(bench: Bench, count: int) -> list[bool]:
    """Send *count* commands; return which were let through."""
    bench.send(
        *({"id": n, "presence_stats": {"channel": "c"}} for n in range(10, 10 + count))
    )
    messages = bench.take()
    assert [m.pop("id") for m in messages] == list(range(10, 10 + len(messages)))
    for message in messages:
        assert "presence_stats" in message or message == TOO_MANY
    return ["presence_stats" in message for message in messages]


def test_commands_over_the_rate_are_refused_for_a_while() -> None:
    bench, shared = limited(commands_per_connection=8)
    assert ask(bench, 10) == [True] * 8 + [False] * 2
    assert shared.refused == 2
    bench.pass_time(0.125)
    assert ask(bench, 2) == [True, False]
    bench.pass_time(0.5)
    assert ask(bench, 5) == [True] * 4 + [False]
    bench.pass_time(10.0)
    assert ask(bench, 8) == [True] * 8
    assert bench.closes == []


def test_twice_over_the_rate_the_connection_is_closed() -> None:
    bench, shared = limited(commands_per_connection=8)
    assert ask(bench, 100) == [True] * 8 + [False] * 8
    assert bench.closes == [3013]
    assert shared.refused == 9


def test_a_client_that_slows_down_in_time_is_not_closed() -> None:
    bench, _ = limited(commands_per_connection=8)
    ask(bench, 16)
    for _ in range(100):
        bench.pass_time(0.125)
        assert ask(bench, 2) == [True, False]
    assert bench.closes == []


def test_a_send_over_the_rate_is_dropped_and_counted() -> None:
    bench, shared = limited(commands_per_connection=8)
    ask(bench, 8)
    bench.frame('{"send":{"data":1}}\n{"send":{"data":2}}')
    assert bench.messages == [] and bench.closes == []
    assert (shared.refused, shared.dropped) == (0, 2)


def test_an_unsubscribe_over_the_rate_is_done() -> None:
    # Its error would make the SDKs reconnect.
    bench, _ = limited(commands_per_connection=8)
    ask(bench, 8)
    bench.send(*unsubscribes(10, 8))
    assert bench.take() == [{"id": n, "unsubscribe": {}} for n in range(10, 18)]
    bench.send(*unsubscribes(20, 1))
    assert bench.closes == [3013]


def test_a_pong_is_no_command() -> None:
    bench, _ = limited(commands_per_connection=8, commands_per_address=8)
    ask(bench, 8)
    for _ in range(3):
        bench.pass_time(25.0)
        ask(bench, 8)
        bench.frame("{}")
    bench.pass_time(25.0)
    ask(bench, 8)
    bench.frame('{}\n{"id":9,"presence_stats":{"channel":"c"}}')
    assert bench.one() == {"id": 9, **TOO_MANY}
    assert bench.closes == []


def test_a_connect_is_no_command_and_what_comes_with_it_is() -> None:
    shared = CommandLimits(LimitSettings(commands_per_connection=2, burst=1.0))
    bench = Bench(quota=shared.quota("a", 1000.0))
    bench.send({"id": 1, "connect": {}}, *unsubscribes(2, 2), {"id": 4, "rpc": {}})
    assert [m["id"] for m in bench.messages] == [1, 2, 3, 4]
    assert bench.messages[3] == {"id": 4, **TOO_MANY}


def test_what_waited_for_a_subscribe_counts_once() -> None:
    bench, _ = limited(commands_per_connection=4)
    bench.send(
        {"id": 10, "subscribe": {"channel": "c"}},
        {"id": 11, "unsubscribe": {"channel": "c"}},
    )
    bench.joined()
    assert [m["id"] for m in bench.take()] == [10, 11]
    assert ask(bench, 3) == [True, True, False]


def test_connections_of_a_user_share_its_rate() -> None:
    shared = CommandLimits(LimitSettings(commands_per_user=8, burst=1.0))
    one, two = sender(shared, "ann"), sender(shared, "ann", "b")
    other = sender(shared, "bob")
    assert ask(one, 5) == [True] * 5
    assert ask(two, 5) == [True] * 3 + [False] * 2
    assert ask(other, 8) == [True] * 8
    # Anonymous users are not one user.
    assert ask(sender(shared), 20) == [True] * 20
    assert ask(sender(shared), 20) == [True] * 20


def test_connections_from_an_address_share_its_rate() -> None:
    shared = CommandLimits(LimitSettings(commands_per_address=8, burst=1.0))
    one, two = sender(shared, "ann"), sender(shared, "bob")
    other = sender(shared, "ann", "b")
    assert ask(one, 5) == [True] * 5
    assert ask(two, 5) == [True] * 3 + [False] * 2
    assert ask(other, 8) == [True] * 8


def test_the_strictest_of_three_holds() -> None:
    shared = CommandLimits(
        LimitSettings(
            commands_per_connection=8,
            commands_per_user=6,
            commands_per_address=4,
            burst=1.0,
        )
    )
    assert ask(sender(shared, "ann"), 8) == [True] * 4 + [False] * 4


def test_without_limits_there_is_no_allowance() -> None:
    assert CommandLimits(LimitSettings()).quota("a", 0.0) is None
    assert isinstance(
        CommandLimits(LimitSettings(commands_per_user=1)).quota("a", 0.0),
        CommandQuota,
    )


def test_defaults_by_environment() -> None:
    strict = LimitSettings().resolved(strict=True)
    assert (strict.connects_per_address, strict.connects_per_user) == (20.0, 2.0)
    assert strict.commands_per_connection == 1000.0
    assert strict.channels_per_user == 20.0
    assert strict.unauthenticated_per_address == 200
    assert strict.failures_per_address == 20
    loose = LimitSettings().resolved(strict=False)
    assert json.dumps([loose.connects_per_address, loose.failures_per_address]) == (
        "[0.0, 0]"
    )
    assert loose.commands_per_connection == 0.0
    assert loose.channels_per_user == 0.0
    # A value that is set stays.
    own = LimitSettings(connects_per_address=5, failures_per_address=0)
    for each in (own.resolved(strict=True), own.resolved(strict=False)):
        assert (each.connects_per_address, each.failures_per_address) == (5, 0)


def publish(bench: Bench, *channels: str) -> list[bool]:
    """Publish to channels; return which took it."""
    bench.send(
        *(
            {"id": n, "publish": {"channel": channel, "data": 1}}
            for n, channel in enumerate(channels, 10)
        )
    )
    taken = []
    for message in bench.take():
        if "publish" not in message:
            assert {"error": message["error"]} == TOO_MANY
        taken.append("publish" in message)
    return taken


def creator(shared: CommandLimits, user: str = "", address: str = "a") -> Bench:
    bench = sender(shared, user, address)
    bench.at_once = True
    return bench


def test_a_user_creates_channels_at_a_rate_over_all_connections() -> None:
    shared = CommandLimits(LimitSettings(channels_per_user=2.0, burst=1.0))
    first, second = creator(shared, "42"), creator(shared, "42", "b")
    assert publish(first, "a", "b", "c") == [True, True, False]
    assert publish(second, "d") == [False]
    assert publish(creator(shared, "43"), "e") == [True]  # another user
    first.known |= {"c", "d"}
    assert publish(first, "c", "d", "e") == [True, True, False]
    first.pass_time(0.5)
    assert publish(first, "e", "f") == [True, False]
    assert first.closes == []


def test_without_a_user_the_address_creates_channels() -> None:
    shared = CommandLimits(LimitSettings(channels_per_user=1.0, burst=1.0))
    assert publish(creator(shared), "a") == [True]
    assert publish(creator(shared), "b") == [False]
    assert publish(creator(shared, address="b"), "b") == [True]
    # No user is taken for an address.
    assert publish(creator(shared, "a"), "c") == [True]
