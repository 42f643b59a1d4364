"""Refreshes and ends at their exact times, whatever happens in between.

The handlers here are asked and answered by hand; what tokens make of them is tested in
tests/tokens, and both together on real sockets in tests/e2e.
"""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import (
    INTERNAL,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNSUBSCRIBE_SERVER,
    CloseError,
    ReplyError,
)
from service.core.hooks import (
    ConnectResult,
    Handlers,
    RefreshEvent,
    RefreshResult,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeResult,
)
from service.core.model import Channel, Override, RawJson
from service.session.port import Decision
from tests.session.bench import WALL, WRONG_ANSWER, Bench, error, hook

HANDLERS = Handlers(
    connect_token=hook, refresh=hook, subscribe_token=hook, sub_refresh=hook
)
DENIED = error(103, "permission denied")
OFF = error(108, "not available")
MINUTE = WALL + 60.0


def opened(**client: Any) -> Bench:
    return Bench(handlers=HANDLERS, insecure=False, **client)


def connected(result: ConnectResult | None = None, **client: Any) -> Bench:
    """Return a connection of ann's that may refresh, and expires in a minute."""
    bench = opened(**client)
    bench.send({"id": 1, "connect": {"token": "t"}})
    bench.answer(
        result or ConnectResult("ann", expire_at=MINUTE, client_side_refresh=True)
    )
    return bench


def subscribed(expire_at: float = MINUTE, **client: Any) -> Bench:
    """Return a connection that is in ``ch`` by a token."""
    bench = connected(ConnectResult("ann", client_side_refresh=True), **client)
    bench.send({"id": 2, "subscribe": {"channel": "ch", "token": "s"}})
    bench.answer(SubscribeResult(expire_at=expire_at, client_side_refresh=True))
    bench.joined()
    bench.take()
    bench.calls.clear()
    return bench


def refresh(bench: Bench, number: int = 5, token: str = "t2") -> None:
    bench.send({"id": number, "refresh": {"token": token}})


def sub_refresh(bench: Bench, number: int = 5, **fields: Any) -> None:
    bench.send({"id": number, "sub_refresh": {"channel": "ch", "token": "s2"} | fields})


# --- connections


@pytest.mark.parametrize(
    ("seconds", "ttl"), [(60, 60), (60.9, 60), (1, 1), (0.1, 1), (4e9, 2**31 - 1)]
)
def test_the_reply_says_when_to_refresh(seconds: float, ttl: int) -> None:
    result = ConnectResult("ann", expire_at=WALL + seconds, client_side_refresh=True)
    reply = connected(result).one()["connect"]
    assert (reply["expires"], reply["ttl"]) == (True, ttl)


@pytest.mark.parametrize(
    "result",
    [
        ConnectResult("ann", client_side_refresh=True),
        ConnectResult("ann", expire_at=MINUTE),  # it would have nothing to refresh with
    ],
)
def test_the_reply_says_nothing_to_those_who_need_not(result: ConnectResult) -> None:
    reply = connected(result).one()["connect"]
    assert "expires" not in reply and "ttl" not in reply


def test_a_refresh() -> None:
    bench = connected()
    bench.take()
    refresh(bench)
    [(number, event)] = bench.asked
    assert event == RefreshEvent("me", "ann", "t2")  # type: ignore[arg-type]
    assert number == 5
    bench.answer(RefreshResult(expire_at=WALL + 3600, token_id="id2", issued_at=7.0))
    assert bench.one() == {"id": 5, "refresh": {"expires": True, "ttl": 3600}}
    assert (bench.session.token_id, bench.session.issued_at) == ("id2", 7.0)
    assert bench.decisions[-1] == Decision("refresh", "ann")  # type: ignore[arg-type]
    live(bench, 3600 + 25 - 0.001)
    bench.pass_time(0.001)
    assert bench.closes == [3005]


def live(bench: Bench, seconds: float) -> None:
    """Let time pass, and answer every ping."""
    until = bench.now + seconds
    while bench.session.next_tick <= until:
        bench.pass_time(bench.session.next_tick - bench.now)
        if bench.closes:
            return
        for call in bench.calls:
            if call == ("ping",):
                bench.frame("{}")
        bench.calls.clear()
    bench.now = until
    assert bench.closes == []


def test_a_refresh_to_never() -> None:
    bench = connected()
    bench.take()
    refresh(bench)
    bench.answer(RefreshResult())
    assert bench.one() == {"id": 5, "refresh": {}}
    live(bench, 10 * 86400)


def test_without_a_refresh_it_is_closed_25_seconds_after_its_expiry() -> None:
    bench = connected()
    live(bench, 84.999)
    bench.pass_time(0.001)
    assert bench.closes == [3005]


def test_the_delay_is_a_setting() -> None:
    bench = connected(expired_close_delay=2.0)
    live(bench, 61.999)
    bench.pass_time(0.001)
    assert bench.closes == [3005]


def test_a_refresh_under_way_does_not_put_the_end_off() -> None:
    bench = connected()
    live(bench, 80)
    refresh(bench)
    live(bench, 4.999)
    bench.pass_time(0.001)
    assert bench.closes == [3005]
    bench.answer(RefreshResult(expire_at=WALL + 3600))  # it comes too late
    assert bench.closes == [3005]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(ReplyError(TOKEN_EXPIRED), 3005), (CloseError(INVALID_TOKEN), 3500)],
)
def test_a_refresh_that_ends_the_connection(outcome: Any, code: int) -> None:
    bench = connected()
    bench.take()
    refresh(bench)
    bench.answer(outcome)
    assert bench.messages == []  # never 109: SDKs would give up
    assert bench.closes == [code]
    assert bench.decisions[-1].code == code


@pytest.mark.requirement("B108")
@pytest.mark.parametrize("answer", [None, SubRefreshResult(), RefreshResult("soon")])  # type: ignore[arg-type]
def test_a_refresh_that_is_not_answered_may_be_repeated(answer: Any) -> None:
    bench = connected()
    bench.take()
    refresh(bench)
    bench.answer(answer)
    assert bench.one() == {"id": 5, **WRONG_ANSWER}
    assert bench.closes == []
    refresh(bench, 6)
    bench.answer(RefreshResult())
    assert bench.one() == {"id": 6, "refresh": {}}


def test_refreshes_at_once_are_done_one_after_the_other() -> None:
    bench = connected()
    bench.take()
    for number in range(10, 20):
        refresh(bench, number, f"t{number}")
    for number in range(10, 20):
        # One at a time, so that the last one holds.
        [(_, event)] = bench.asked
        assert isinstance(event, RefreshEvent) and event.token == f"t{number}"
        bench.answer(RefreshResult(expire_at=MINUTE + number))
        reply = {"expires": True, "ttl": 60 + number}
        assert bench.one() == {"id": number, "refresh": reply}
    assert bench.asked == [] and not bench.session.in_flight


def test_refreshes_are_bounded_as_all_commands_are() -> None:
    bench = connected(in_flight=3)
    for number in range(5):
        refresh(bench, 10 + number)
    assert bench.session.busy
    while bench.asked:
        bench.answer(RefreshResult())
    assert [m["id"] for m in bench.take()[1:]] == [10, 11, 12, 13, 14]
    assert not bench.session.busy


def test_a_refresh_holds_up_nothing() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True, channels=("ch",)))
    bench.joined()
    bench.take()
    refresh(bench)
    assert bench.request(unsubscribe={"channel": "ch"}) == {"unsubscribe": {}}
    bench.answer(RefreshResult())
    assert bench.one()["id"] == 5


@pytest.mark.parametrize(
    "handlers", [Handlers(connect=hook), Handlers(connect=hook, refresh=hook)]
)
def test_who_was_not_told_cannot_refresh(handlers: Handlers) -> None:
    bench = Bench(handlers=handlers, insecure=False)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult("ann", expire_at=MINUTE))
    bench.take()
    # Else a token would outlive what the hook decided.
    assert bench.request(refresh={"token": "t"}) == OFF
    assert bench.asked == []


def test_a_refresh_changes_what_others_see() -> None:
    bench = connected(
        ConnectResult(
            "ann",
            info={"n": 1},
            client_side_refresh=True,
            subs={"ch": ServerSubscription(info={"c": 1})},
        )
    )
    [join] = bench.joins
    bench.joined()
    refresh(bench)
    bench.answer(RefreshResult(info={"n": 2}))
    seen = '{"user":"ann","client":"me","conn_info":{"n":2},"chan_info":{"c":1}}'
    assert join.listener.info == seen
    assert bench.session.identity.conn_info == '{"n":2}'


# --- subscriptions


def test_the_reply_to_subscribe_says_when_to_refresh() -> None:
    bench = connected()
    bench.take()
    bench.send({"id": 2, "subscribe": {"channel": "$ch", "token": "s"}})
    bench.answer(SubscribeResult(expire_at=MINUTE, client_side_refresh=True))
    bench.joined()
    reply = bench.one()["subscribe"]
    assert (reply["expires"], reply["ttl"]) == (True, 60)


def test_a_sub_refresh() -> None:
    bench = subscribed()
    sub_refresh(bench)
    event = SubRefreshEvent("me", "ann", "ch", "s2")  # type: ignore[arg-type]
    assert bench.asked == [(5, event)]
    bench.answer(SubRefreshResult("ch", WALL + 600))
    assert bench.one() == {"id": 5, "sub_refresh": {"expires": True, "ttl": 600}}
    live(bench, 624.999)
    assert not any("push" in m for m in bench.take())
    bench.pass_time(0.001)
    assert bench.one()["push"]["unsubscribe"]["code"] == 2501


def test_a_sub_refresh_that_brings_the_end_nearer() -> None:
    bench = subscribed(expired_sub_close_delay=1.0)
    sub_refresh(bench)
    bench.answer(SubRefreshResult(Channel("ch"), expire_at=WALL + 2.0))
    bench.take()
    live(bench, 2.999)
    assert bench.take() == []
    live(bench, 0.001)
    assert bench.one()["push"]["unsubscribe"]["code"] == 2501


def test_a_subscription_ends_25_seconds_after_its_expiry() -> None:
    bench = subscribed()
    live(bench, 84.999)
    assert bench.take() == []
    bench.pass_time(0.001)
    assert bench.one() == {
        "push": {
            "channel": "ch",
            "unsubscribe": {"code": 2501, "reason": "subscription expired"},
        }
    }
    assert bench.calls == [("unsubscribe", "ch")]
    assert bench.closes == []
    assert bench.session.subscriptions.next_end == float("inf")


def test_many_ends_in_one_connection_are_each_at_their_time() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    bench.take()
    for number in range(100):
        bench.send({"id": 2, "subscribe": {"channel": f"ch{number}", "token": "s"}})
        # In no order, and every tenth never.
        after = 0.0 if number % 10 == 0 else WALL + 10 + (number * 37) % 100
        bench.answer(SubscribeResult(expire_at=after, client_side_refresh=True))
        bench.joined()
    bench.take()
    ends: dict[str, float] = {}
    for _ in range(200):
        live(bench, 1.0)
        for message in bench.take():
            ends[message["push"]["channel"]] = bench.now - 1000.0
    assert ends == {
        f"ch{n}": 10 + (n * 37) % 100 + 25.0 for n in range(100) if n % 10 != 0
    }


def test_a_server_side_subscription_that_ends_closes_with_3006() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    ends = bench.session.expiry.unsubscribe_at(MINUTE, bench.now)
    bench.session.subscribe(Channel("ch"), None, end=ends)
    bench.joined()
    live(bench, 84.999)
    bench.pass_time(0.001)
    assert bench.closes == [3006]


def test_a_server_side_subscription_whose_end_is_put_off() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    for expire_at in (WALL + 10, MINUTE):
        ends = bench.session.expiry.unsubscribe_at(expire_at, bench.now)
        bench.session.subscribe(Channel("ch"), None, end=ends)
    bench.joined()
    live(bench, 84.999)
    bench.pass_time(0.001)
    assert bench.closes == [3006]


def test_an_end_that_comes_before_the_join_does() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    bench.send({"id": 2, "subscribe": {"channel": "ch", "token": "s"}})
    bench.answer(SubscribeResult(expire_at=MINUTE, client_side_refresh=True))
    bench.take()
    live(bench, 90)
    assert bench.take() == []
    bench.joined()
    assert bench.one()["id"] == 2  # the reply first
    bench.pass_time(0)
    assert bench.one()["push"]["unsubscribe"]["code"] == 2501


def test_a_sub_refresh_that_expired_ends_the_subscription_and_the_client_returns() -> (
    None
):
    bench = subscribed()
    sub_refresh(bench)
    bench.answer(ReplyError(TOKEN_EXPIRED))
    push, reply = bench.take()
    assert push["push"]["unsubscribe"]["code"] == 2501
    # SDKs take no notice of it: they were told before that it is over.
    assert reply == {"id": 5, **DENIED}
    assert bench.calls == [("unsubscribe", "ch")] and bench.closes == []
    assert not bench.session.in_flight


def test_a_sub_refresh_that_is_refused_leaves_the_subscription_to_its_end() -> None:
    bench = subscribed()
    sub_refresh(bench)
    bench.answer(ReplyError(PERMISSION_DENIED, reason="it was revoked"))
    assert bench.one() == {"id": 5, **DENIED}
    assert bench.decisions[-1] == Decision(
        "sub_refresh",
        "ann",  # type: ignore[arg-type]
        103,
        "it was revoked",
    )
    live(bench, 84.999)
    bench.pass_time(0.001)
    assert bench.one()["push"]["unsubscribe"]["code"] == 2501


def test_a_sub_refresh_of_another_user_s_token_closes() -> None:
    bench = subscribed()
    sub_refresh(bench)
    bench.answer(CloseError(INVALID_TOKEN, reason="it is of another user"))
    assert bench.closes == [3500]


def test_a_sub_refresh_of_old_sdks_is_for_the_channel_of_its_token() -> None:
    bench = subscribed()
    bench.send({"id": 5, "sub_refresh": {"token": "s2"}})
    event = SubRefreshEvent("me", "ann", "", "s2")  # type: ignore[arg-type]
    assert bench.asked == [(5, event)]
    bench.answer(SubRefreshResult("ch", WALL + 600))
    assert bench.one() == {"id": 5, "sub_refresh": {"expires": True, "ttl": 600}}
    live(bench, 624.999)


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (SubRefreshResult("other", WALL + 600), DENIED),
        (ReplyError(TOKEN_EXPIRED), error(110, "expired")),
        (ReplyError(INTERNAL), error(100, "internal server error", temporary=True)),
    ],
)
def test_a_sub_refresh_without_channel_that_is_for_none(
    outcome: Any, reply: dict[str, Any]
) -> None:
    bench = subscribed()
    bench.send({"id": 5, "sub_refresh": {"token": "s2"}})
    bench.answer(outcome)
    assert bench.one() == {"id": 5, **reply}
    assert bench.closes == [] and Channel("ch") in bench.session.subscriptions


def test_a_sub_refresh_of_what_is_not_subscribed() -> None:
    bench = subscribed()
    assert bench.request(sub_refresh={"channel": "x", "token": "s"}) == DENIED
    assert bench.asked == []


def test_a_sub_refresh_of_what_the_server_subscribed() -> None:
    bench = connected(ConnectResult("ann", channels=("ch",), client_side_refresh=True))
    bench.joined()
    bench.take()
    assert bench.request(sub_refresh={"channel": "ch", "token": "s"}) == OFF
    assert bench.asked == []


def test_a_sub_refresh_waits_for_its_subscribe() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    bench.take()
    bench.send({"id": 2, "subscribe": {"channel": "ch", "token": "s"}})
    sub_refresh(bench)
    assert len(bench.asked) == 1
    bench.answer(SubscribeResult(expire_at=MINUTE, client_side_refresh=True))
    bench.joined()
    bench.answer(SubRefreshResult("ch"))
    assert [m["id"] for m in bench.take()] == [2, 5]


def test_sub_refreshes_at_once_are_done_one_after_the_other() -> None:
    bench = subscribed()
    sub_refresh(bench, 5, token="a")
    sub_refresh(bench, 6, token="b")
    for number, token in ((5, "a"), (6, "b")):
        [(_, event)] = bench.asked
        assert isinstance(event, SubRefreshEvent) and event.token == token
        bench.answer(SubRefreshResult("ch"))
        assert bench.one() == {"id": number, "sub_refresh": {}}


def test_an_unsubscribe_does_not_wait_for_a_sub_refresh() -> None:
    bench = subscribed()
    sub_refresh(bench, 5)
    sub_refresh(bench, 6)
    bench.send({"id": 7, "unsubscribe": {"channel": "ch"}})
    assert bench.calls == [("unsubscribe", "ch")]  # at once
    assert bench.take() == [
        {"id": 5, **DENIED},
        {"id": 6, **DENIED},
        {"id": 7, "unsubscribe": {}},
    ]
    bench.answer(SubRefreshResult("ch", WALL + 600))
    assert bench.messages == [] and not bench.session.in_flight


@pytest.mark.parametrize("same_number", [False, True])
def test_an_outcome_does_not_touch_a_channel_that_was_subscribed_anew(
    same_number: bool,
) -> None:
    bench = subscribed()
    sub_refresh(bench, 5)
    bench.send({"id": 6, "unsubscribe": {"channel": "ch"}})
    bench.send({"id": 7, "subscribe": {"channel": "ch", "token": "s"}})
    bench.answer(SubscribeResult(expire_at=MINUTE, client_side_refresh=True), 1)
    bench.joined()
    bench.take()
    # Ids are the client's: the event counts, not its number.
    sub_refresh(bench, 5 if same_number else 8, token="new")
    bench.answer(SubRefreshResult("ch", WALL + 600))
    assert bench.messages == []
    bench.answer(SubRefreshResult("ch", WALL + 70))
    assert bench.one()["sub_refresh"]["ttl"] == 70
    live(bench, 94.999)
    bench.pass_time(0.001)
    assert bench.one()["push"]["unsubscribe"]["code"] == 2501


@pytest.mark.parametrize("outcome", [SubRefreshResult("ch"), ReplyError(TOKEN_EXPIRED)])
def test_a_subscription_that_ends_during_its_sub_refresh(outcome: Any) -> None:
    bench = subscribed()
    sub_refresh(bench)
    bench.session.unsubscribe(Channel("ch"), UNSUBSCRIBE_SERVER)
    push, reply = bench.take()
    assert push["push"]["unsubscribe"]["code"] == 2000
    assert reply == {"id": 5, **DENIED}
    bench.answer(outcome)
    assert bench.messages == [] and bench.closes == []


def test_a_gap_during_a_sub_refresh() -> None:
    bench = subscribed()
    sub_refresh(bench)
    bench.session.lost(Channel("ch"))
    push, reply = bench.take()
    assert push["push"]["unsubscribe"]["code"] == 2500
    assert reply == {"id": 5, **DENIED}


def test_what_a_sub_refresh_says_of_its_user_is_shown() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    bench.send({"id": 2, "subscribe": {"channel": "ch", "token": "s"}})
    bench.answer(SubscribeResult(info={"a": 1}, client_side_refresh=True))
    [join] = bench.joins
    bench.joined()
    sub_refresh(bench)
    bench.answer(SubRefreshResult("ch", info={"a": 2}))
    assert '"chan_info":{"a":2}' in join.listener.info


# --- what tokens say of a subscription


def test_options_of_one_subscription() -> None:
    bench = connected(ConnectResult("ann", client_side_refresh=True))
    bench.send({"id": 2, "subscribe": {"channel": "ch", "token": "s"}})
    hidden = Override(presence=False, join_leave=False, force_recovery=False)
    bench.answer(SubscribeResult(override=hidden))
    [join] = bench.joins
    assert (join.listener.present, join.listener.sends_join_leave) == (False, False)
    assert join.listener.positioned is False


def test_subscriptions_by_the_server_with_all_that_there_is() -> None:
    bench = opened()
    subs = {"b": {"recover": True, "offset": 3, "epoch": "e"}}
    bench.send({"id": 1, "connect": {"token": "t", "subs": subs}})
    bench.answer(
        ConnectResult(
            "ann",
            channels=("a",),
            subs={
                "b": ServerSubscription({"i": 1}, {"d": 1}, Override(presence=False))
            },
        )
    )
    a, b = bench.joins
    assert (a.channel, b.channel) == ("a", "b")
    assert (a.listener.present, b.listener.present) == (True, False)
    assert b.asked is not None and b.asked.offset == 3 and b.held
    assert b.listener.info.endswith('"chan_info":{"i":1}}')
    bench.joined()
    bench.joined()
    results = bench.one()["connect"]["subs"]
    assert results["b"]["data"] == {"d": 1} and results["b"]["recovered"] is True
    assert "data" not in results["a"]


@pytest.mark.parametrize(
    "result",
    [
        ConnectResult("ann", expire_at=float("nan")),
        ConnectResult("ann", expire_at=-1.0),
        ConnectResult("ann", subs={"a": {"info": 1}}),  # type: ignore[dict-item]
        ConnectResult("ann", subs={"a": ServerSubscription(override={})}),  # type: ignore[arg-type]
        ConnectResult("ann", channels=(1,)),  # type: ignore[arg-type]
    ],
    ids=["nan", "past", "subs", "override", "channels"],
)
def test_a_connect_that_is_answered_badly(result: ConnectResult) -> None:
    bench = connected(result)
    assert bench.one()["error"]["code"] == 100
    assert bench.joins == [] and bench.session.identity.user == ""
    assert bench.decisions[-1].code == 100


# --- who is told what of whom


def test_hooks_are_told_what_clients_are_not() -> None:
    handlers = Handlers(connect_token=hook, rpc=hook, publish=hook, subscribe=hook)
    bench = Bench(handlers=handlers, insecure=False)
    bench.send({"id": 1, "connect": {"token": "t"}})
    bench.answer(ConnectResult("ann", meta={"plan": "free"}))
    assert "meta" not in str(bench.one())
    bench.send(
        {"id": 2, "rpc": {"method": "m"}},
        {"id": 3, "subscribe": {"channel": "ch"}},
        {"id": 4, "publish": {"channel": "ch", "data": 1}},
    )
    assert [event.meta for _, event in bench.asked] == ['{"plan":"free"}'] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("handlers", "token", "asked"),
    [
        (Handlers(connect_token=hook), "t", True),
        (Handlers(connect_token=hook, connect=hook), "t", True),
        (Handlers(connect_token=hook, connect=hook), "", True),
        (Handlers(connect=hook), "", True),
        (Handlers(connect=hook), "t", True),
        (Handlers(connect_token=hook), "", False),
    ],
)
def test_who_is_asked_about_a_connect(
    handlers: Handlers, token: str, asked: bool
) -> None:
    bench = Bench(handlers=handlers, insecure=False)
    bench.send({"id": 1, "connect": {"token": token}})
    assert len(bench.asked) == asked
    assert bench.closes == ([] if asked else [3501])


@pytest.mark.parametrize(
    ("token", "closes", "decision"),
    [
        ("", [], Decision("connect", "")),  # type: ignore[arg-type]
        ("t", [3500], Decision("connect", "", 3500, "no key can verify it")),  # type: ignore[arg-type]
    ],
)
def test_anonymous_connections_by_setting(
    token: str, closes: list[int], decision: Decision
) -> None:
    bench = Bench(insecure=False, allow_anonymous_connect_without_token=True)
    bench.send({"id": 1, "connect": {"token": token}})
    assert bench.closes == closes and bench.decisions == [decision]
    assert bench.session.identity.user == ""


def test_a_token_is_remembered_from_before_the_channels_are_joined() -> None:
    # A revocation must find the connection, however slow the store is.
    bench = opened()
    bench.send({"id": 1, "connect": {"token": "t"}})
    bench.answer(ConnectResult("ann", channels=("a",), token_id="id1", issued_at=5.0))
    session = bench.session
    assert (session.identity.user, session.token_id, session.issued_at) == (
        "ann",
        "id1",
        5.0,
    )
    assert len(bench.joins) == 1


def test_a_change_from_the_server_is_shown_and_enforced() -> None:
    bench = connected(ConnectResult("ann", channels=("ch",), client_side_refresh=True))
    [join] = bench.joins
    bench.joined()
    bench.session.refresh(WALL + 10, RawJson('{"n":3}'), bench.now)
    assert '"conn_info":{"n":3}' in join.listener.info
    live(bench, 34.999)
    bench.pass_time(0.001)
    assert bench.closes == [3005]
