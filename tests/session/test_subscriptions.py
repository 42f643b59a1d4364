"""Subscribe and unsubscribe: replies, recovery, refusals, and what overtakes what."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import (
    UNSUBSCRIBE_SERVER,
    StoreBusy,
    StoreUnavailable,
)
from service.core.hooks import Handlers, SubscribeResult
from service.core.model import Joined, Position
from service.settings import ChannelOptions, ChannelSettings
from tests.session.bench import INTERNAL, Bench, error, hook, publication

UNRECOVERABLE = error(112, "unrecoverable position")


def subscribe(number: int, channel: str = "ch", **fields: Any) -> dict[str, Any]:
    return {"id": number, "subscribe": {"channel": channel, **fields}}


def unsubscribe(number: int, channel: str = "ch") -> dict[str, Any]:
    return {"id": number, "unsubscribe": {"channel": channel}}


# The reply.


def test_a_reply_with_a_position() -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, flag=1))
    [join] = bench.joins
    assert (join.channel, join.asked, join.held) == ("ch", None, False)
    bench.joined("ch", Joined(Position(4, "e"), None))
    assert bench.one() == {
        "id": 7,
        "subscribe": {
            "recoverable": True,
            "positioned": True,
            "epoch": "e",
            "offset": 4,
        },
    }


def test_a_reply_without_history_says_nothing() -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, "plain:ch", recover=True, offset=3, recoverable=True))
    [join] = bench.joins
    assert join.asked is None
    assert not join.listener.positioned
    bench.joined()
    assert bench.one() == {"id": 7, "subscribe": {}}


@pytest.mark.parametrize(
    ("asks", "granted"),
    [
        ({}, {}),
        ({"positioned": False, "recoverable": False}, {}),
        ({"recoverable": True}, {"recoverable": True, "positioned": True}),
        ({"positioned": True}, {"recoverable": True, "positioned": True}),
        ({"recover": True}, {"recoverable": True, "positioned": True}),
    ],
    ids=str,
)
def test_what_is_granted_to_those_who_ask(
    asks: dict[str, bool], granted: dict[str, bool]
) -> None:
    bench = Bench(at_once=True).connect()
    result = bench.request(subscribe={"channel": "asks:ch", **asks})["subscribe"]
    for name in ("recoverable", "positioned"):
        assert result.get(name) == granted.get(name)
    assert ("epoch" in result) is bool(granted)


def test_positions_are_checked_without_recovery() -> None:
    options = ChannelOptions(history_size=5, history_ttl=5.0, force_positioning=True)
    bench = Bench(
        channels=ChannelSettings(without_namespace=options),
        insecure=False,
        handlers=Handlers(connect=hook, subscribe=hook),
    )
    from service.core.hooks import ConnectResult

    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult())
    bench.take()
    bench.send(subscribe(7, recover=True, offset=1))
    bench.answer(SubscribeResult())
    assert bench.joins[0].asked is None
    assert bench.joins[0].listener.positioned
    bench.joined("ch", Joined(Position(4, "e"), None))
    assert bench.one()["subscribe"] == {"positioned": True, "epoch": "e", "offset": 4}


def test_recovered() -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, recover=True, offset=3, epoch="e"))
    assert bench.joins[0].asked == Position(3, "e")
    bench.joined("ch", Joined(Position(5, "e"), [publication(4), publication(5)]))
    assert bench.one()["subscribe"] == {
        "recoverable": True,
        "positioned": True,
        "epoch": "e",
        "offset": 3,  # the one asked from
        "was_recovering": True,
        "recovered": True,
        "publications": [{"data": 1, "offset": 4}, {"data": 1, "offset": 5}],
    }


@pytest.mark.parametrize("flag", [0, 1, 2, 3])
def test_recovered_with_nothing_missed(flag: int) -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, recover=True, offset=5, epoch="e", flag=flag))
    bench.joined("ch", Joined(Position(5, "e"), []))
    result = bench.one()["subscribe"]
    assert result["recovered"] is True
    assert "publications" not in result


@pytest.mark.parametrize("flag", [0, 1, 4, 5])
def test_not_recovered_says_so(flag: int) -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, recover=True, offset=3, epoch="old", flag=flag))
    assert bench.joined("ch", Joined(Position(9, "e"), None)) is True
    assert bench.one()["subscribe"] == {
        "recoverable": True,
        "positioned": True,
        "epoch": "e",
        "offset": 9,
        "was_recovering": True,
    }


@pytest.mark.parametrize("flag", [2, 3, 6])
def test_not_recovered_with_flag_bit_2_is_112(flag: int) -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, recover=True, offset=3, flag=flag))
    assert bench.joined("ch", Joined(Position(9, "e"), None)) is False
    assert bench.one() == {"id": 7, **UNRECOVERABLE}
    assert len(bench.session.subscriptions) == 0
    bench.send(subscribe(8))
    bench.joined()
    assert "subscribe" in bench.one()


def test_flag_bit_2_without_recovery_is_nothing() -> None:
    bench = Bench(at_once=True).connect()
    assert "subscribe" in bench.request(subscribe={"channel": "ch", "flag": 2})


def test_no_position_means_from_the_beginning_in_any_epoch() -> None:
    bench = Bench().connect()
    bench.send(subscribe(7, recover=True))
    assert bench.joins[0].asked == Position(0, "")


# Refusals.


def test_subscribing_twice_is_105_and_changes_nothing() -> None:
    bench = Bench(at_once=True).connect("ch")
    reply = bench.request(subscribe={"channel": "ch", "recover": True})
    assert reply == error(105, "already subscribed")
    assert bench.calls == []
    assert bench.session.subscriptions.is_established("ch")  # type: ignore[arg-type]


@pytest.mark.parametrize("tf", [{}, {"op": "and"}, [], "x", 0, False])
def test_a_tags_filter_is_107(tf: object) -> None:
    bench = Bench().connect()
    reply = bench.request(subscribe={"channel": "ch", "tf": tf})
    assert reply == error(107, "bad request")


def test_what_we_do_not_know_is_ignored() -> None:
    bench = Bench(at_once=True).connect()
    ask = {"channel": "ch", "delta": "fossil", "flag": 1, "unknown": [1], "tf": None}
    result = bench.request(subscribe=ask)["subscribe"]
    assert not result.keys() & {"delta", "id"}


def test_the_channel_limit_is_met_exactly() -> None:
    bench = Bench(channel_limit=2).connect("a")
    bench.send(subscribe(5, "b"), subscribe(6, "c"))
    assert bench.one() == {"id": 6, **error(106, "limit exceeded")}
    bench.joined()
    assert bench.one()["id"] == 5
    assert bench.request(unsubscribe={"channel": "a"}) == {"unsubscribe": {}}
    bench.send(subscribe(8, "c"))
    bench.joined()
    assert "subscribe" in bench.one()


def test_the_limit_is_128_by_default() -> None:
    bench = Bench(at_once=True).connect(*(f"ch{n}" for n in range(128)))
    assert bench.request(subscribe={"channel": "x"}) == error(106, "limit exceeded")


@pytest.mark.parametrize("outcome", [StoreUnavailable("locked"), StoreBusy("full")])
def test_a_join_that_fails_is_temporary_and_can_be_tried_again(outcome: Any) -> None:
    bench = Bench().connect()
    bench.send(subscribe(7))
    assert bench.joined("ch", outcome) is False
    reply = bench.one()
    assert reply["error"]["temporary"] is True
    assert len(bench.session.subscriptions) == 0
    bench.send(subscribe(8))
    bench.joined()
    assert "subscribe" in bench.one()


def test_unsubscribing_from_what_was_never_subscribed_succeeds() -> None:
    bench = Bench().connect()
    for channel in ("ch", "nowhere:ch", "\N{EURO SIGN}"):
        assert bench.request(unsubscribe={"channel": channel}) == {"unsubscribe": {}}
    assert bench.calls == []


def test_unsubscribe_leaves_before_it_is_answered() -> None:
    bench = Bench(at_once=True).connect("ch")
    seen: list[int] = []
    leave = bench.leave

    def spy(channel: Any, command: int = 0) -> None:
        seen.append(len(bench.messages))
        leave(channel, command)

    bench.leave = spy  # type: ignore[method-assign]
    assert bench.request(unsubscribe={"channel": "ch"}) == {"unsubscribe": {}}
    assert seen == [0]


# Interleavings.


def test_unsubscribe_and_subscribe_while_the_first_subscribe_is_under_way() -> None:
    bench = Bench().connect()
    bench.send(subscribe(5), unsubscribe(6), subscribe(7))
    assert [j.channel for j in bench.joins] == ["ch"]
    assert bench.messages == []
    bench.joined()
    assert [m["id"] for m in bench.take()] == [5, 6]
    assert bench.calls == [("unsubscribe", "ch")]
    assert len(bench.joins) == 1
    bench.joined()
    assert bench.one()["id"] == 7


def test_what_waits_for_a_channel_holds_up_no_other() -> None:
    bench = Bench().connect()
    bench.send(
        subscribe(5, "a"),
        unsubscribe(6, "a"),
        subscribe(7, "b"),
        unsubscribe(8, "c"),
        {"id": 9, "publish": {"channel": "a", "data": 1}},
    )
    assert [j.channel for j in bench.joins] == ["a", "b"]
    assert [m["id"] for m in bench.take()] == [8]
    bench.joined("b")
    bench.append()
    assert [m["id"] for m in bench.take()] == [7, 9]
    bench.joined("a")
    assert [m["id"] for m in bench.take()] == [5, 6]


def test_what_waited_comes_before_what_came_later() -> None:
    bench = Bench().connect()
    bench.send(subscribe(5))
    bench.send(unsubscribe(6))
    bench.send({"id": 7, "history": {"channel": "x"}}, subscribe(8))
    bench.joined()
    assert [m["id"] for m in bench.take()] == [5]
    bench.read()
    assert [m["id"] for m in bench.take()] == [7, 6]
    bench.joined()
    assert [m["id"] for m in bench.take()] == [8]


def test_a_second_subscribe_waits_and_is_then_105() -> None:
    bench = Bench().connect()
    bench.send(subscribe(5), subscribe(6), unsubscribe(7))
    bench.joined()
    assert [m["id"] for m in bench.messages] == [5, 6, 7]
    assert bench.messages[1] == {"id": 6, **error(105, "already subscribed")}
    assert not bench.session.busy


def test_a_second_subscribe_takes_the_place_of_a_first_that_fails() -> None:
    bench = Bench().connect()
    bench.send(subscribe(5), subscribe(6))
    bench.joined("ch", StoreUnavailable("locked"))
    assert bench.one() == {"id": 5, **INTERNAL}
    bench.joined()
    assert bench.one()["id"] == 6


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("in_flight", [1, 2, 32])
def test_subscribe_and_unsubscribe_pipelined_ten_times(
    at_once: bool, in_flight: int
) -> None:
    bench = Bench(at_once=at_once, in_flight=in_flight).connect()
    commands = []
    for number in range(10, 30, 2):
        commands += [subscribe(number), unsubscribe(number + 1)]
    bench.send(*commands)
    while bench.joins:
        assert len(bench.joins) == 1
        bench.joined()
    assert [m["id"] for m in bench.messages] == list(range(10, 30))
    assert not any("error" in m for m in bench.messages)
    assert bench.calls == [("unsubscribe", "ch")] * 10
    assert not bench.session.busy


def test_a_subscription_is_lost_while_an_unsubscribe_waits() -> None:
    bench = Bench().connect("ch")
    bench.send({"id": 5, "history": {"channel": "x"}}, unsubscribe(6))
    bench.session.lost("ch")  # type: ignore[arg-type]
    assert bench.one() == {
        "push": {
            "channel": "ch",
            "unsubscribe": {"code": 2500, "reason": "insufficient state"},
        }
    }
    bench.read()
    assert [m["id"] for m in bench.take()] == [5, 6]
    assert bench.calls == []


def test_a_lost_subscription_comes_back() -> None:
    bench = Bench().connect("ch")
    bench.session.lost("ch")  # type: ignore[arg-type]
    bench.take()
    bench.send(subscribe(7, recover=True, offset=3))
    bench.joined("ch", Joined(Position(3, "e"), []))
    assert bench.one()["subscribe"]["recovered"] is True


@pytest.mark.parametrize("left", [0, 1, 2])
def test_the_in_flight_bound_is_met_in_the_middle_of_a_frame(left: int) -> None:
    bench = Bench(in_flight=4).connect()
    assert not bench.session.busy
    numbers = range(10, 10 + 4 + left)
    bench.send(*({"id": n, "publish": {"channel": "ch", "data": n}} for n in numbers))
    assert len(bench.published) == 4
    assert bench.session.busy
    while bench.published:
        assert len(bench.published) <= 4
        bench.append()
    assert [m["id"] for m in bench.messages] == list(numbers)
    assert not bench.session.busy


def test_commands_that_wait_for_a_channel_count_as_in_flight() -> None:
    bench = Bench(in_flight=3).connect()
    bench.send(subscribe(5), unsubscribe(6), subscribe(7), unsubscribe(8))
    assert bench.session.busy
    bench.joined()
    assert [m["id"] for m in bench.take()] == [5, 6]
    bench.joined()
    assert [m["id"] for m in bench.take()] == [7, 8]
    assert not bench.session.busy


def test_nothing_is_taken_up_while_there_is_no_room() -> None:
    bench = Bench().connect()
    bench.has_room = False
    bench.send({"id": 5, "publish": {"channel": "ch", "data": 1}}, unsubscribe(6))
    assert (bench.messages, bench.published) == ([], [])
    assert bench.session.busy
    bench.has_room = True
    bench.session.resume(bench.now)
    assert [p[0] for p in bench.published] == [5]
    assert bench.one()["id"] == 6


# Ends.


def everything(bench: Bench) -> None:
    bench.send(
        subscribe(5, "a"),
        unsubscribe(6, "a"),
        {"id": 7, "publish": {"channel": "b", "data": 1}},
        {"id": 8, "history": {"channel": "b"}},
        {"id": 9, "publish": {"channel": "b", "data": 2}},
    )


def test_outcomes_after_the_end_are_dropped() -> None:
    bench = Bench().connect("ch")
    everything(bench)
    bench.session.ended()
    assert not bench.session.busy
    assert bench.session.next_tick == float("inf")
    assert bench.joined() is False
    bench.append()
    bench.read()
    bench.session.resume(bench.now)
    bench.session.tick(bench.now + 1000)
    assert (bench.messages, bench.closes, bench.calls) == ([], [], [])


def test_outcomes_after_a_close_are_dropped() -> None:
    bench = Bench().connect("ch")
    everything(bench)
    bench.session.malformed()
    assert bench.closes == [3501]
    assert bench.joined() is False
    bench.append()
    bench.read()
    assert bench.messages == []  # and the port asserts that nothing else was asked


# The server's hand.


def test_the_server_takes_a_client_out() -> None:
    bench = Bench(at_once=True).connect("ch")
    bench.session.unsubscribe("ch", UNSUBSCRIBE_SERVER)  # type: ignore[arg-type]
    assert bench.calls == [("unsubscribe", "ch")]
    assert bench.one() == {
        "push": {
            "channel": "ch",
            "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
        }
    }
    bench.session.unsubscribe("ch", UNSUBSCRIBE_SERVER)  # type: ignore[arg-type]
    assert bench.messages == []
    assert "subscribe" in bench.request(subscribe={"channel": "ch"})


def test_the_server_takes_a_client_out_whose_subscribe_is_under_way() -> None:
    # The server API answers success: the client must not be in when all is done.
    bench = Bench().connect()
    bench.send(subscribe(5))
    bench.session.unsubscribe("ch", UNSUBSCRIBE_SERVER)  # type: ignore[arg-type]
    if bench.joins:
        bench.joined()
    assert not bench.session.subscriptions.is_established("ch")  # type: ignore[arg-type]
    messages = bench.take()
    assert [m["id"] for m in messages if "id" in m] == [5]
    refused = "error" in messages[0]
    told = any("unsubscribe" in m.get("push", {}) for m in messages)
    assert refused or told


def test_the_server_takes_a_client_out_whom_a_hook_is_asked_about() -> None:
    bench = Bench(handlers=Handlers(subscribe=hook), at_once=True).connect()
    bench.send(subscribe(5))
    bench.session.unsubscribe("ch", UNSUBSCRIBE_SERVER)  # type: ignore[arg-type]
    bench.answer(SubscribeResult())
    assert not bench.session.subscriptions.is_established("ch")  # type: ignore[arg-type]
