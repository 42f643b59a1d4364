"""Publish, history, presence, rpc and the rest: outcomes, refusals, closes."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import SHUTDOWN, StoreBusy, StoreUnavailable
from service.core.model import (
    ClientId,
    HistoryPage,
    Joined,
    Position,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.settings import ChannelOptions, ChannelSettings
from tests.session.bench import INTERNAL, Bench, error, publication

BUSY = error(111, "too many requests", temporary=True)
DENIED = error(103, "permission denied")
OFF = error(108, "not available")


# All commands.


@pytest.mark.parametrize(
    "command",
    [
        {"id": 2, "nonsense": {}},
        {"id": 2},
        {"subscribe": {"channel": "ch"}},  # without an id
        {"publish": {"channel": "ch", "data": 1}},
        {"id": 2, "subscribe": {}},
        {"id": 2, "subscribe": {"channel": ""}},
        {"id": 2, "unsubscribe": {}},
        {"id": 2, "publish": {"data": 1}},
        {"id": 2, "publish": {"channel": "ch"}},
        {"id": 2, "history": {}},
        {"id": 2, "presence": {}},
        {"id": 2, "presence_stats": {}},
        {},
        # Fields of the wrong type.
        {"id": 2, "subscribe": {"channel": 1}},
        {"id": 2, "subscribe": {"channel": ["ch"]}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": 1}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": "true"}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "offset": "1"}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "offset": -1}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "offset": 1.0}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "offset": True}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "offset": 2**53}},
        {"id": 2, "subscribe": {"channel": "ch", "recover": True, "epoch": 1}},
        {"id": 2, "subscribe": {"channel": "ch", "flag": "2"}},
        {"id": 2, "subscribe": {"channel": "ch", "flag": -1}},
        {"id": 2, "subscribe": {"channel": "ch", "token": {}}},
        {"id": 2, "subscribe": {"channel": "ch", "positioned": 0}},
        {"id": 2, "subscribe": {"channel": "ch", "recoverable": 0}},
        {"id": 2, "subscribe": {"channel": "ch", "join_leave": []}},
        {"id": 2, "unsubscribe": {"channel": {}}},
        {"id": 2, "publish": {"channel": 5, "data": 1}},
        {"id": 2, "history": {"channel": "ch", "limit": -2}},
        {"id": 2, "history": {"channel": "ch", "limit": "5"}},
        {"id": 2, "history": {"channel": "ch", "limit": 1.5}},
        {"id": 2, "history": {"channel": "ch", "limit": 2**53}},
        {"id": 2, "history": {"channel": "ch", "reverse": 1}},
        {"id": 2, "history": {"channel": "ch", "since": 1}},
        {"id": 2, "history": {"channel": "ch", "since": []}},
        {"id": 2, "history": {"channel": "ch", "since": {"offset": 2**53}}},
        {"id": 2, "history": {"channel": "ch", "since": {"epoch": 5}}},
        {"id": 2, "presence": {"channel": 1}},
        {"id": 2, "presence_stats": {"channel": 1}},
        {"id": 2, "rpc": {"method": 1}},
    ],
    ids=str,
)
def test_a_malformed_command_closes_with_3501(command: dict[str, Any]) -> None:
    bench = Bench(at_once=True).connect()
    bench.send({"id": 1, "unsubscribe": {"channel": "x"}}, command)
    assert bench.closes == [3501]
    assert bench.messages == [{"id": 1, "unsubscribe": {}}]  # handled in order
    assert (bench.joins, bench.published, bench.histories) == ([], [], [])


def test_nothing_after_a_malformed_command_is_handled() -> None:
    bench = Bench(at_once=True).connect()
    bench.send({"id": 2}, {"id": 3, "publish": {"channel": "ch", "data": 1}})
    assert bench.closes == [3501]
    bench.send({"id": 4, "publish": {"channel": "ch", "data": 1}})
    bench.session.malformed()
    bench.session.disconnect(SHUTDOWN)
    bench.session.tick(bench.now + 100)
    assert bench.closes == [3501]
    assert bench.messages == []
    assert not bench.session.busy


def test_a_frame_that_cannot_be_decoded_closes_with_3501() -> None:
    bench = Bench().connect()
    bench.session.malformed()
    assert bench.closes == [3501]


@pytest.mark.parametrize("method", ["refresh", "sub_refresh", "ping"])
def test_what_is_switched_off_is_108(method: str) -> None:
    bench = Bench().connect()
    assert bench.request(**{method: {"channel": "ch", "token": "t"}}) == OFF
    assert bench.closes == []


@pytest.mark.parametrize("number", [{}, {"id": 5}])
def test_send_closes_with_3508(number: dict[str, int]) -> None:
    bench = Bench().connect()
    bench.send({"send": {"data": {}}, **number})
    assert bench.closes == [3508]
    assert bench.messages == []


def test_rpc_without_a_handler_is_108() -> None:
    assert Bench().connect().request(rpc={"method": "m", "data": 1}) == OFF


@pytest.mark.parametrize(
    "command",
    [
        {"subscribe": {}},
        {"publish": {"data": 1}},
        {"history": {}},
        {"presence": {}},
        {"presence_stats": {}},
    ],
    ids=lambda c: next(iter(c)),
)
@pytest.mark.parametrize(
    ("channel", "reply"),
    [
        ("nowhere:ch", error(102, "unknown channel")),
        (":ch", error(102, "unknown channel")),
        ("$nowhere:ch", error(102, "unknown channel")),
        ("x" * 256, error(107, "bad request")),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", error(107, "bad request")),
        ("numbers:12a", error(107, "bad request")),
        ("numbers:", error(107, "bad request")),
    ],
)
def test_channels_that_cannot_be(
    command: dict[str, Any], channel: str, reply: dict[str, Any]
) -> None:
    [(method, fields)] = command.items()
    bench = Bench(at_once=True).connect()
    assert bench.request(**{method: {**fields, "channel": channel}}) == reply
    assert bench.closes == []


@pytest.mark.parametrize(
    "channel", ["x" * 255, "numbers:12", "plain:a:b", 'quote"\\', "a b"]
)
def test_channels_that_can_be(channel: str) -> None:
    bench = Bench(at_once=True).connect()
    reply = bench.request(publish={"channel": channel, "data": 1})
    assert reply == {"publish": {}}


# Publish.


def test_a_publish_is_answered_with_its_outcome() -> None:
    bench = Bench().connect()
    bench.frame('{"id":7,"publish":{"channel":"ch","data":{"a" : 1}}}')
    [(_, channel, draft, history)] = bench.published
    assert (channel, draft.data, history.size) == ("ch", '{"a" : 1}', 10)
    assert draft.info == '{"user":"","client":"me"}'
    assert draft.idempotency_key == ""
    assert bench.messages == []
    bench.append()
    assert bench.one() == {"id": 7, "publish": {}}


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [(StoreUnavailable("disk full"), INTERNAL), (StoreBusy("queue full"), BUSY)],
)
def test_a_publish_that_fails_is_temporary(outcome: Any, reply: dict[str, Any]) -> None:
    bench = Bench().connect()
    bench.send({"id": 7, "publish": {"channel": "ch", "data": 1}})
    bench.append(outcome)
    assert bench.one() == {"id": 7, **reply}


def test_publishes_are_answered_in_the_order_of_their_outcomes() -> None:
    bench = Bench().connect()
    bench.send(*({"id": n, "publish": {"channel": "ch", "data": n}} for n in (5, 6)))
    assert [p[0] for p in bench.published] == [5, 6]
    bench.published.reverse()
    bench.append()
    bench.append()
    assert [m["id"] for m in bench.take()] == [6, 5]


# History.


@pytest.mark.parametrize(
    ("limit", "read"), [(None, 0), (0, 0), (-1, 300), (5, 5), (300, 300), (301, 300)]
)
def test_the_limit_of_a_history(limit: int | None, read: int) -> None:
    bench = Bench().connect()
    fields: dict[str, Any] = {"channel": "ch"}
    if limit is not None:
        fields["limit"] = limit
    bench.send({"id": 7, "history": fields})
    assert bench.histories[0][4] == read


def test_a_history_reply() -> None:
    bench = Bench().connect()
    since = {"offset": 3, "epoch": "e"}
    bench.send({"id": 7, "history": {"channel": "ch", "limit": 2, "since": since}})
    assert bench.histories[0][3:] == (Position(3, "e"), 2, False)
    bench.read(HistoryPage([publication(4), publication(5)], Position(9, "e")))
    assert bench.one() == {
        "id": 7,
        "history": {
            "publications": [{"data": 1, "offset": 4}, {"data": 1, "offset": 5}],
            "epoch": "e",
            "offset": 9,
        },
    }


def test_an_empty_history_reply_has_every_field() -> None:
    bench = Bench(at_once=True).connect()
    assert bench.request(history={"channel": "ch"}) == {
        "history": {"publications": [], "epoch": "e", "offset": 0}
    }


def test_a_position_without_an_epoch_matches_any() -> None:
    bench = Bench(at_once=True).connect()
    for since in ({}, {"offset": 0, "epoch": ""}, {"epoch": "e"}):
        reply = bench.request(history={"channel": "ch", "since": since})
        assert "history" in reply


@pytest.mark.parametrize("limit", [0, 5])
def test_a_position_of_another_epoch_is_112(limit: int) -> None:
    bench = Bench(at_once=True).connect()
    since = {"offset": 3, "epoch": "other"}
    ask = {"channel": "ch", "limit": limit, "since": since}
    assert bench.request(history=ask) == error(112, "unrecoverable position")


def test_history_backwards() -> None:
    bench = Bench().connect()
    ask = {"channel": "ch", "limit": 2, "reverse": True}
    bench.send({"id": 7, "history": ask})
    assert bench.histories[0][3:] == (None, 2, True)
    bench.read()
    bench.take()
    bench.send({"id": 7, "history": {**ask, "since": {"offset": 4}}})
    assert bench.histories[0][3:] == (Position(4, ""), 2, True)


def test_history_backwards_from_offset_0_is_107() -> None:
    bench = Bench().connect()
    ask = {"channel": "ch", "reverse": True, "since": {"offset": 0}}
    assert bench.request(history=ask) == error(107, "bad request")
    assert bench.request(history={**ask, "since": {"epoch": "e"}}) == error(
        107, "bad request"
    )


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [(StoreUnavailable("locked"), INTERNAL), (StoreBusy("queue full"), BUSY)],
)
def test_a_history_that_cannot_be_read_is_temporary(
    outcome: Any, reply: dict[str, Any]
) -> None:
    bench = Bench().connect()
    bench.send({"id": 7, "history": {"channel": "ch"}})
    bench.read(outcome)
    assert bench.one() == {"id": 7, **reply}


def test_history_where_there_is_none_is_108() -> None:
    assert Bench().connect().request(history={"channel": "plain:ch"}) == OFF


def test_one_history_is_read_at_a_time() -> None:
    bench = Bench().connect()
    bench.send(
        {"id": 5, "history": {"channel": "a"}},
        {"id": 6, "history": {"channel": "b"}},
        {"id": 7, "unsubscribe": {"channel": "c"}},
    )
    assert [h[0] for h in bench.histories] == [5]
    assert bench.session.busy
    bench.read()
    assert [h[0] for h in bench.histories] == [6]
    bench.read(StoreUnavailable("locked"))
    assert [m["id"] for m in bench.messages] == [5, 6, 7]
    assert not bench.session.busy


# Presence.


def someone(client: str, user: str, info: str | None = None) -> SubscriberInfo:
    text = info or f'{{"user":"{user}","client":"{client}"}}'
    return SubscriberInfo(ClientId(client), UserId(user), RawJson(text), present=True)


def test_presence_names_everybody() -> None:
    bench = Bench().connect()
    extra = '{"user":"ann","client":"c2","conn_info":{"n":1},"chan_info":[2]}'
    bench.here = [someone("c1", ""), someone("c2", "ann", extra)]
    assert bench.request(presence={"channel": "ch"}) == {
        "presence": {
            "presence": {
                "c1": {"user": "", "client": "c1"},
                "c2": {
                    "user": "ann",
                    "client": "c2",
                    "conn_info": {"n": 1},
                    "chan_info": [2],
                },
            }
        }
    }


def test_presence_of_nobody() -> None:
    bench = Bench().connect()
    assert bench.request(presence={"channel": "ch"}) == {"presence": {"presence": {}}}
    assert bench.request(presence_stats={"channel": "ch"}) == {
        "presence_stats": {"num_clients": 0, "num_users": 0}
    }


def test_presence_stats_count_users_once_and_nobody_as_one() -> None:
    bench = Bench().connect()
    bench.here = [
        someone("c1", ""),
        someone("c2", ""),
        someone("c3", "ann"),
        someone("c4", "ann"),
        someone("c5", "bob"),
    ]
    assert bench.request(presence_stats={"channel": "ch"}) == {
        "presence_stats": {"num_clients": 5, "num_users": 3}
    }


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
def test_presence_where_there_is_none_is_108(method: str) -> None:
    assert Bench().connect().request(**{method: {"channel": "plain:ch"}}) == OFF


# Permissions.


def denied(**options: bool) -> Bench:
    """Return a connected client whose settings let it do what *options* say."""
    given = ChannelOptions(
        history_size=10,
        history_ttl=60.0,
        presence=True,
        join_leave=True,
        **{"allow_subscribe_for_anonymous": True, **options},
    )
    from service.core.hooks import ConnectResult, Handlers
    from tests.session.bench import hook

    bench = Bench(
        handlers=Handlers(connect=hook),
        insecure=False,
        channels=ChannelSettings(without_namespace=given),
        at_once=True,
    )
    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult())
    bench.take()
    return bench


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("allow_publish_for_subscriber", {"publish": {"channel": "ch", "data": 1}}),
        ("allow_history_for_subscriber", {"history": {"channel": "ch"}}),
        ("allow_presence_for_subscriber", {"presence": {"channel": "ch"}}),
        ("allow_presence_for_subscriber", {"presence_stats": {"channel": "ch"}}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_only_subscribers_may(option: str, command: dict[str, Any]) -> None:
    bench = denied()
    assert bench.request(**command) == DENIED
    bench = denied(**{option: True})
    assert bench.request(**command) == DENIED
    bench.request(subscribe={"channel": "ch"})
    assert "error" not in bench.request(**command)
    bench.request(unsubscribe={"channel": "ch"})
    assert bench.request(**command) == DENIED


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("allow_subscribe_for_anonymous", {"subscribe": {"channel": "ch"}}),
        ("allow_publish_for_anonymous", {"publish": {"channel": "ch", "data": 1}}),
        ("allow_history_for_anonymous", {"history": {"channel": "ch"}}),
        ("allow_presence_for_anonymous", {"presence": {"channel": "ch"}}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_anonymous_may(option: str, command: dict[str, Any]) -> None:
    client = option.replace("anonymous", "client")  # for those with a user id
    never = {"allow_subscribe_for_anonymous": False}
    assert denied(**{**never, client: True}).request(**command) == DENIED
    assert "error" not in denied(**{**never, option: True}).request(**command)


def test_a_subscriber_to_be_is_no_subscriber_yet() -> None:
    bench = denied(allow_publish_for_subscriber=True)
    bench.at_once = False
    bench.send(
        {"id": 5, "subscribe": {"channel": "ch"}},
        {"id": 6, "publish": {"channel": "ch", "data": 1}},
    )
    assert bench.one() == {"id": 6, **DENIED}
    bench.joined("ch", Joined(Position(0, "e"), None))
    assert bench.one()["id"] == 5


def test_a_private_channel_needs_a_token_even_where_everybody_may() -> None:
    bench = Bench(at_once=True).connect()
    assert bench.request(subscribe={"channel": "$ch"}) == DENIED


@pytest.mark.requirement("L20", "B53")
def test_expensive_reads_are_refused_for_overload_and_nothing_else() -> None:
    bench = Bench().connect()
    bench.overloaded = True
    for read in ("history", "presence", "presence_stats"):
        assert bench.request(**{read: {"channel": "ch"}}) == BUSY
        # What is refused for good stays so.
        assert bench.request(**{read: {"channel": "plain:ch"}}) == OFF
    assert not bench.histories
    bench.send({"id": 7, "publish": {"channel": "ch", "data": 1}})
    assert len(bench.published) == 1
