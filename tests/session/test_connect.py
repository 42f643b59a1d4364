"""Connect: who is let in, what the reply says, and what ends a connection before."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    FORCE_DISCONNECT,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    CloseError,
    ReplyError,
    StoreUnavailable,
)
from service.core.errors import INTERNAL as INTERNAL_ERROR
from service.core.hooks import ConnectEvent, ConnectResult, Handlers, Raw
from service.core.model import Joined, Position, RawJson
from tests.session.bench import (
    INTERNAL,
    WRONG_ANSWER,
    Bench,
    error,
    hook,
    publication,
)

HOOKED = Handlers(connect=hook)


def test_an_anonymous_client_of_the_development_profile_is_let_in() -> None:
    bench = Bench()
    bench.send({"id": 1, "connect": {}})
    assert bench.one() == {
        "id": 1,
        "connect": {"client": "me", "version": "test", "ping": 25, "pong": True},
    }
    assert bench.calls == [("admit", ""), ("connected", "")]
    assert bench.closes == []


def test_fractions_of_a_second_are_rounded_up_in_the_reply() -> None:
    bench = Bench(ping_interval=12.5)
    bench.send({"id": 1, "connect": {}})
    assert bench.one()["connect"]["ping"] == 13


def test_the_connect_reply_comes_before_those_of_the_same_frame() -> None:
    bench = Bench(at_once=True)
    bench.send(
        {"connect": {"name": "js"}, "id": 1},
        {"subscribe": {"channel": "ch", "flag": 1}, "id": 2},
    )
    assert [m["id"] for m in bench.take()] == [1, 2]


@pytest.mark.parametrize(
    ("token", "code"), [("anything", 3500), ("", 3501), (None, 3501)]
)
def test_without_insecure_and_without_a_hook_nobody_is_let_in(
    token: str | None, code: int
) -> None:
    bench = Bench(insecure=False)
    bench.send({"id": 1, "connect": {} if token is None else {"token": token}})
    assert bench.closes == [code]
    assert bench.messages == []


@pytest.mark.parametrize(
    "command",
    [
        {"id": 1, "subscribe": {"channel": "ch"}},
        {"id": 1, "unsubscribe": {"channel": "ch"}},
        {"id": 1, "publish": {"channel": "ch", "data": 1}},
        {"id": 1, "history": {"channel": "ch"}},
        {"id": 1, "presence": {"channel": "ch"}},
        {"id": 1, "presence_stats": {"channel": "ch"}},
        {"id": 1, "rpc": {"method": "m"}},
        {"send": {"data": 1}},
        {"id": 1, "refresh": {"token": "t"}},
        {"id": 1, "sub_refresh": {"channel": "ch", "token": "t"}},
        {"id": 1, "ping": {}},
        {"id": 1, "nonsense": {}},
        {"id": 1},
        {"connect": {}},  # without an id
        {"id": 0, "connect": {}},
        {},
    ],
    ids=str,
)
def test_anything_before_connect_closes_with_3501(command: dict[str, Any]) -> None:
    bench = Bench()
    bench.send(command)
    assert bench.closes == [3501]
    assert bench.messages == []


@pytest.mark.requirement("R36")
def test_a_second_connect_closes_with_3501() -> None:
    bench = Bench().connect()
    bench.send({"id": 2, "connect": {}})
    assert bench.closes == [3501]


def test_a_second_connect_while_the_first_is_under_way_closes_with_3501() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}}, {"id": 2, "connect": {}})
    assert bench.closes == []
    bench.answer(ConnectResult())
    assert bench.closes == [3501]
    assert [m["id"] for m in bench.messages] == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {"token": 1},
        {"name": []},
        {"version": {}},
        {"headers": "x"},
        {"subs": []},
        {"subs": {"ch": 1}},
        {"subs": {"ch": {"recover": 1}}},
        {"subs": {"ch": {"recover": True, "offset": -1}}},
        {"subs": {"ch": {"recover": True, "epoch": 1}}},
    ],
    ids=str,
)
def test_a_connect_with_a_field_of_the_wrong_type_closes_with_3501(
    fields: dict[str, Any],
) -> None:
    bench = Bench()
    bench.send({"id": 1, "connect": fields})
    assert bench.closes == [3501]
    assert bench.messages == []


def test_a_client_that_does_not_connect_in_time_is_stale() -> None:
    bench = Bench()
    assert bench.session.next_tick == 1010.0
    bench.pass_time(9.999)
    assert bench.closes == []
    bench.pass_time(0.001)
    assert bench.closes == [3502]
    assert bench.session.next_tick == float("inf")


def test_a_hook_that_never_answers_leaves_a_client_stale() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}})
    bench.pass_time(10)
    assert bench.closes == [3502]
    bench.answer(ConnectResult(user="late"))
    assert bench.messages == []
    assert bench.calls == []


def test_a_tick_before_its_time_does_nothing() -> None:
    bench = Bench()
    bench.session.tick(1009.9)
    assert bench.closes == []


# A hook decides.


def test_a_hook_is_told_everything_the_client_said() -> None:
    bench = Bench(handlers=HOOKED, insecure=False)
    bench.frame(
        '{"id":1,"connect":{"token":"t","data":{"a": [1,\n2]},"name":"js",'
        '"version":"1.2","headers":{"h":"v"}}}'
    )
    [(command, event)] = bench.asked
    assert command == 1
    assert event == ConnectEvent(
        client="me",  # type: ignore[arg-type]
        token="t",
        data=RawJson('{"a": [1,2]}'),
        name="js",
        version="1.2",
        headers={"h": "v"},
    )


def test_a_hook_lets_in_as_whom_it_says() -> None:
    bench = Bench(handlers=HOOKED, insecure=False)
    bench.send({"id": 1, "connect": {}})
    assert bench.messages == []
    bench.answer(ConnectResult(user="ann", info={"name": "Ann"}, data=[1]))
    assert bench.one()["connect"] == {
        "client": "me",
        "version": "test",
        "ping": 25,
        "pong": True,
        "data": [1],
    }
    assert bench.calls == [("admit", "ann"), ("connected", "ann")]
    assert bench.session.identity.user == "ann"


def test_a_payload_that_is_json_already_is_passed_on() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult(data=Raw(RawJson('{"x":1e400}'))))
    assert "x" in bench.one()["connect"]["data"]


@pytest.mark.parametrize(
    ("refusal", "reply"),
    [
        (PERMISSION_DENIED, error(103, "permission denied")),
        (TOKEN_EXPIRED, error(109, "token expired")),
    ],
)
def test_a_hook_refuses_and_the_connection_is_of_no_use(
    refusal: Any, reply: dict[str, Any]
) -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ReplyError(refusal))
    assert bench.one() == {"id": 1, **reply}
    assert bench.closes == []
    bench.send({"id": 2, "history": {"channel": "ch"}})
    assert bench.closes == [3501]


def test_what_was_sent_behind_a_refused_connect_closes() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "ch"}})
    bench.answer(ReplyError(PERMISSION_DENIED))
    assert bench.one() == {"id": 1, **error(103, "permission denied")}
    assert bench.closes == [3501]


def test_a_second_connect_after_a_refused_one_closes() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ReplyError(PERMISSION_DENIED))
    bench.send({"id": 2, "connect": {}})
    assert bench.closes == [3501]


def test_a_refused_client_that_stays_is_stale() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}})
    bench.pass_time(3)
    bench.answer(ReplyError(PERMISSION_DENIED))
    bench.pass_time(7)
    assert bench.closes == [3502]


def test_a_hook_closes() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "ch"}})
    bench.answer(CloseError(FORCE_DISCONNECT))
    assert bench.closes == [3503]
    assert bench.messages == []


@pytest.mark.parametrize(
    "result",
    [
        ConnectResult(user=5),  # type: ignore[arg-type]
        ConnectResult(channels=(5,)),  # type: ignore[arg-type]
        ConnectResult(channels=("ch", 5)),  # type: ignore[arg-type]
        None,
        "ann",
    ],
    ids=repr,
)
def test_an_answer_that_is_no_result_admits_nobody_for_good(
    result: Any,
) -> None:
    bench = Bench(handlers=HOOKED, insecure=False)
    bench.send({"id": 1, "connect": {}})
    bench.answer(result)
    assert bench.one() == {"id": 1, **WRONG_ANSWER}
    assert bench.calls[-1] == ("refused",)
    bench.send({"id": 2, "rpc": {}})
    assert bench.closes == [3501]


# Server-side subscriptions.


def admit(bench: Bench, *channels: str, **connect: Any) -> Bench:
    bench.send({"id": 1, "connect": connect})
    bench.answer(ConnectResult(user="ann", channels=channels))
    return bench


def test_the_reply_waits_for_every_channel_and_nothing_is_released_before() -> None:
    bench = admit(Bench(handlers=HOOKED), "b", "a")
    assert [j.channel for j in bench.joins] == ["a", "b"]
    assert all(j.held for j in bench.joins)
    bench.joined("b")
    assert (bench.messages, bench.calls) == ([], [("admit", "ann")])
    bench.joined("a")
    assert bench.one()["connect"]["subs"] == {
        "a": {"recoverable": True, "positioned": True, "epoch": "e", "offset": 0},
        "b": {"recoverable": True, "positioned": True, "epoch": "e", "offset": 0},
    }
    assert bench.calls[:2] == [("admit", "ann"), ("connected", "ann")]
    assert sorted(bench.calls[2:]) == [("release", "a"), ("release", "b")]


def test_channels_that_join_at_once() -> None:
    bench = admit(Bench(handlers=HOOKED, at_once=True), "a", "b")
    assert set(bench.one()["connect"]["subs"]) == {"a", "b"}
    assert len(bench.calls) == 4


def test_a_channel_named_twice_is_joined_once() -> None:
    bench = admit(Bench(handlers=HOOKED), "a", "a")
    assert len(bench.joins) == 1


def test_recovery_through_connect_subs() -> None:
    ask = {
        "a": {"recover": True, "offset": 3, "epoch": "e"},
        "b": {"offset": 3, "epoch": "e"},  # does not ask for recovery
        "other": {"recover": True, "offset": 1},  # not one of its channels
    }
    bench = admit(Bench(handlers=HOOKED), "a", "b", subs=ask)
    by_name = {j.channel: j for j in bench.joins}
    assert by_name["a"].asked == Position(3, "e")  # type: ignore[index]
    assert by_name["b"].asked is None  # type: ignore[index]
    assert set(by_name) == {"a", "b"}
    bench.joined("a", Joined(Position(5, "e"), [publication(4), publication(5)]))
    bench.joined("b", Joined(Position(5, "e"), None))
    subs = bench.one()["connect"]["subs"]
    assert subs["a"] == {
        "recoverable": True,
        "positioned": True,
        "epoch": "e",
        "offset": 3,
        "was_recovering": True,
        "recovered": True,
        "publications": [{"data": 1, "offset": 4}, {"data": 1, "offset": 5}],
    }
    assert "was_recovering" not in subs["b"]


def test_a_server_side_channel_that_is_not_recovered_says_so() -> None:
    bench = admit(
        Bench(handlers=HOOKED), "a", subs={"a": {"recover": True, "offset": 3}}
    )
    bench.joined("a", Joined(Position(9, "e"), None))
    assert bench.one()["connect"]["subs"]["a"] == {
        "recoverable": True,
        "positioned": True,
        "epoch": "e",
        "offset": 9,
        "was_recovering": True,
    }


def test_one_channel_that_cannot_be_joined_refuses_the_connect() -> None:
    bench = admit(Bench(handlers=HOOKED), "a", "b", "c")
    bench.joined("b")
    bench.joined("a", StoreUnavailable("locked"))
    assert bench.one() == {"id": 1, **INTERNAL}
    assert sorted(bench.calls) == [
        ("admit", "ann"),
        ("refused",),
        ("unsubscribe", "b"),
        ("unsubscribe", "c"),
    ]
    assert len(bench.session.subscriptions) == 0
    bench.send({"id": 2, "rpc": {}})
    assert bench.closes == [3501]


@pytest.mark.parametrize(
    ("channel", "reply"),
    [
        ("nowhere:ch", error(102, "unknown channel")),
        ("x" * 256, error(107, "bad request")),
        ("", error(107, "bad request")),
        ("\N{EURO SIGN}", error(107, "bad request")),
    ],
)
def test_a_channel_that_cannot_be_refuses_the_connect(
    channel: str, reply: dict[str, Any]
) -> None:
    bench = admit(Bench(handlers=HOOKED, at_once=True), "a", channel)
    assert bench.one() == {"id": 1, **reply}
    assert bench.calls[-1] == ("refused",)


def test_more_server_side_channels_than_the_limit_refuse_the_connect() -> None:
    bench = admit(Bench(handlers=HOOKED, channel_limit=2), "a", "b", "c")
    assert bench.one() == {"id": 1, **error(106, "limit exceeded")}
    assert len(bench.session.subscriptions) == 0


def test_as_many_as_the_limit_are_joined() -> None:
    bench = admit(Bench(handlers=HOOKED, channel_limit=2, in_flight=1), "a", "b")
    bench.joined()
    bench.joined()
    assert set(bench.one()["connect"]["subs"]) == {"a", "b"}


def test_the_connection_ends_while_its_channels_are_joined() -> None:
    bench = admit(Bench(handlers=HOOKED), "a", "b")
    bench.session.ended()
    assert bench.joined() is False
    assert bench.joined() is False
    assert (bench.messages, bench.calls) == ([], [("admit", "ann")])


@pytest.mark.requirement("L6")
def test_commands_wait_for_the_channels_of_the_connect() -> None:
    bench = Bench(handlers=HOOKED)
    bench.send({"id": 1, "connect": {}}, {"id": 2, "unsubscribe": {"channel": "a"}})
    bench.answer(ConnectResult(channels=("a",)))
    assert bench.messages == []
    bench.joined()
    assert [m["id"] for m in bench.messages] == [1, 2]
    assert bench.calls[-1] == ("unsubscribe", "a")


def test_subscribing_to_a_server_side_channel_is_105() -> None:
    bench = admit(Bench(handlers=HOOKED, at_once=True), "a")
    bench.take()
    assert bench.request(subscribe={"channel": "a"}) == error(105, "already subscribed")
    assert bench.request(unsubscribe={"channel": "a"}) == {"unsubscribe": {}}
    assert ("unsubscribe", "a") in bench.calls


def test_a_server_side_channel_that_is_lost_closes_with_3010() -> None:
    bench = admit(Bench(handlers=HOOKED, at_once=True), "a")
    bench.take()
    bench.session.lost("a")  # type: ignore[arg-type]
    assert bench.closes == [3010]
    assert bench.messages == []


# The server's own hand.


def test_the_server_subscribes_a_client_and_tells_it() -> None:
    bench = Bench().connect()
    bench.session.subscribe("a", None, data=RawJson("[1]"))  # type: ignore[arg-type]
    assert bench.messages == []
    assert bench.joins[0].held is False
    bench.joined()
    assert bench.one() == {
        "push": {
            "channel": "a",
            "subscribe": {
                "recoverable": True,
                "positioned": True,
                "epoch": "e",
                "offset": 0,
                "data": [1],
            },
        }
    }
    bench.session.subscribe("a", None)  # type: ignore[arg-type]
    assert (bench.messages, bench.joins) == ([], [])


def test_the_server_subscribes_a_client_from_a_position() -> None:
    bench = Bench().connect()
    bench.session.subscribe("a", Position(2, "e"))  # type: ignore[arg-type]
    bench.joined("a", Joined(Position(3, "e"), [publication(3)]))
    first, second = [message["push"] for message in bench.take()]
    assert first["subscribe"]["recovered"] is True
    assert first["subscribe"]["offset"] == 2
    # Pushes of their own: no SDK looks for them in the first.
    assert "publications" not in first["subscribe"]
    assert second["pub"]["offset"] == 3


def test_a_server_side_join_that_fails_tells_the_client_nothing() -> None:
    bench = Bench().connect()
    bench.session.subscribe("a", None)  # type: ignore[arg-type]
    assert bench.joined("a", StoreUnavailable("locked")) is False
    assert bench.messages == []
    assert bench.request(unsubscribe={"channel": "a"}) == {"unsubscribe": {}}
    assert not bench.session.busy


@pytest.mark.parametrize(
    ("channel", "code"), [("nowhere:x", 102), ("", 107), ("x" * 256, 107)]
)
def test_the_server_is_told_of_a_channel_that_cannot_be(
    channel: str, code: int
) -> None:
    bench = Bench().connect()
    with pytest.raises(ReplyError) as refused:
        bench.session.subscribe(channel, None)  # type: ignore[arg-type]
    assert refused.value.error.code == code


def test_the_server_subscribes_nobody_who_has_not_connected() -> None:
    bench = Bench()
    bench.session.subscribe("a", None)  # type: ignore[arg-type]
    assert bench.joins == []


# A slot.


def waiting(**connect: Any) -> Bench:
    """Return a bench that waits for its slot."""
    bench = Bench(handlers=HOOKED)
    bench.full = []
    return admit(bench, "a", **connect)


def test_nothing_is_joined_before_there_is_a_slot() -> None:
    bench = waiting()
    assert (bench.messages, bench.joins) == ([], [])
    assert bench.full is not None
    assert [one.user for one in bench.full] == ["ann"]
    assert bench.session.in_flight
    bench.session.slot_acquired(None)
    bench.joined()
    assert bench.one()["connect"]["client"] == "me"
    assert not bench.session.in_flight


def test_who_gets_no_slot_is_closed() -> None:
    bench = waiting()
    bench.session.slot_acquired(CLOSE_CONNECTION_LIMIT)
    assert (bench.closes, bench.messages, bench.joins) == ([3504], [], [])


def test_who_gets_no_slot_for_now_is_told_to_try_again() -> None:
    bench = waiting()
    bench.session.slot_acquired(INTERNAL_ERROR)
    assert bench.one() == {"id": 1, **INTERNAL}
    assert ("refused",) in bench.calls
    bench.send({"id": 2, "rpc": {}})
    assert bench.closes == [3501]


def test_a_slot_for_a_connection_that_is_over() -> None:
    bench = waiting()
    bench.session.ended()
    for outcome in (None, CLOSE_CONNECTION_LIMIT, INTERNAL_ERROR):
        bench.session.slot_acquired(outcome)
    assert (bench.messages, bench.joins, bench.closes) == ([], [], [])


def test_who_waits_for_a_slot_too_long_is_stale() -> None:
    bench = waiting()
    bench.pass_time(10)
    assert bench.closes == [3502]


# The steps of its life.


def test_a_slot_that_nobody_asked_for_is_a_bug() -> None:
    bench = Bench()
    with pytest.raises(AssertionError, match="NEW"):
        bench.session.slot_acquired(None)
    bench.connect()
    with pytest.raises(AssertionError, match="CONNECTED"):
        bench.session.slot_acquired(None)
    assert bench.closes == []


def test_an_answer_that_nobody_asked_for_is_a_bug() -> None:
    bench = Bench(handlers=Handlers(connect=hook))
    bench.send({"id": 1, "connect": {}})
    [(number, event)] = bench.asked
    bench.answer(ConnectResult(user="ann"))
    with pytest.raises(AssertionError, match="CONNECTED"):
        bench.session.answered(number, event, ConnectResult(user="eve"), bench.now)
    with pytest.raises(AssertionError, match="CONNECTED"):
        bench.session.answered(number, event, ReplyError(INTERNAL_ERROR), bench.now)
    assert bench.session.identity.user == "ann"
