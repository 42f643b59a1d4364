"""Hooks on subscribe, publish and rpc: allow, refuse, close, fail, and come late."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.core.errors import (
    FORCE_DISCONNECT,
    FORCE_RECONNECT,
    LIMIT_EXCEEDED,
    TOKEN_EXPIRED,
    CloseError,
    ErrorReply,
    ReplyError,
    StoreUnavailable,
)
from service.core.hooks import (
    Answer,
    ConnectEvent,
    ConnectResult,
    Handlers,
    PublishEvent,
    PublishResult,
    Raw,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
    WrongAnswer,
)
from service.core.model import Channel, ClientId, RawJson, UserId
from service.session.answers import ConnectionRefresh, check
from service.session.expiry import Expiry
from service.settings import ClientSettings
from tests.session.bench import INTERNAL, WRONG_ANSWER, Bench, error, hook

ALL = Handlers(subscribe=hook, publish=hook, rpc=hook)
MY_OWN = ErrorReply(1000, 'come "later"', temporary=True)

SUBSCRIBE = {"subscribe": {"channel": "ch", "data": {"a": 1}, "token": "t"}}
PUBLISH = {"publish": {"channel": "ch", "data": {"a": 1}}}
RPC = {"rpc": {"method": "m", "data": {"a": 1}}}
COMMANDS = [SUBSCRIBE, PUBLISH, RPC]
each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda c: next(iter(c)))

ALLOW: dict[str, Answer] = {
    "subscribe": SubscribeResult(),
    "publish": PublishResult(),
    "rpc": RpcResult(),
}


def connected(**options: Any) -> Bench:
    """Return a client of the user ann, as a connect hook says."""
    handlers = Handlers(connect=hook, subscribe=hook, publish=hook, rpc=hook)
    bench = Bench(handlers=handlers, insecure=False, **options)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult(user="ann", info={"n": "Ann"}))
    bench.take()
    bench.calls.clear()
    return bench


def test_a_hook_is_told_who_wants_what() -> None:
    bench = connected()
    bench.send({"id": 5, **SUBSCRIBE}, {"id": 6, **RPC}, {"id": 7, **PUBLISH})
    assert [event for _, event in bench.asked] == [
        SubscribeEvent("me", "ann", "ch", "t", '{"a": 1}'),  # type: ignore[arg-type]
        RpcEvent("me", "ann", "m", '{"a": 1}'),  # type: ignore[arg-type]
        PublishEvent("me", "ann", "ch", '{"a": 1}'),  # type: ignore[arg-type]
    ]


def test_a_call_without_method_and_data() -> None:
    bench = connected()
    bench.send({"id": 5, "rpc": {}})
    assert bench.asked[0][1] == RpcEvent("me", "ann", "")  # type: ignore[arg-type]


@each_command
@pytest.mark.parametrize(
    ("refusal", "reply"),
    [
        (LIMIT_EXCEEDED, error(106, "limit exceeded")),
        (TOKEN_EXPIRED, error(109, "token expired")),
        (MY_OWN, error(1000, 'come "later"', temporary=True)),
    ],
    ids=repr,
)
def test_a_hook_refuses(
    command: dict[str, Any], refusal: ErrorReply, reply: dict[str, Any]
) -> None:
    bench = connected()
    bench.send({"id": 5, **command})
    assert bench.messages == []
    bench.answer(ReplyError(refusal))
    assert bench.one() == {"id": 5, **reply}
    assert (bench.joins, bench.published) == ([], [])
    assert len(bench.session.subscriptions) == 0
    # And what comes after it is served.
    assert bench.request(unsubscribe={"channel": "x"}) == {"unsubscribe": {}}
    assert not bench.session.busy


@each_command
@pytest.mark.parametrize("close", [FORCE_DISCONNECT, FORCE_RECONNECT], ids=repr)
def test_a_hook_closes(command: dict[str, Any], close: Any) -> None:
    bench = connected()
    bench.send({"id": 5, **command}, {"id": 6, "unsubscribe": {"channel": "x"}})
    bench.answer(CloseError(close))
    assert bench.closes == [close.code]
    assert not any(m["id"] == 5 for m in bench.messages)


@each_command
@pytest.mark.parametrize(
    "answer", [None, "yes", True, ConnectResult(user="eve")], ids=repr
)
def test_an_answer_of_another_kind_is_no_answer(
    command: dict[str, Any], answer: Any
) -> None:
    bench = connected()
    bench.send({"id": 5, **command})
    bench.answer(answer)
    assert bench.one() == {"id": 5, **WRONG_ANSWER}
    assert (bench.joins, bench.published, bench.closes) == ([], [], [])
    assert bench.session.identity.user == "ann"
    assert not bench.session.busy


DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]
CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)

NO_JSON = [object(), float("nan"), float("-inf"), {1, 2}, b"\xff", DEEP, CIRCLE]


@pytest.mark.requirement("B52")
@pytest.mark.parametrize(
    "result",
    [
        lambda value: (SUBSCRIBE, SubscribeResult(data=value)),
        lambda value: (SUBSCRIBE, SubscribeResult(info=value)),
        lambda value: (PUBLISH, PublishResult(data=value)),
        lambda value: (RPC, RpcResult(data=value)),
    ],
    ids=["subscribe-data", "subscribe-info", "publish", "rpc"],
)
@pytest.mark.parametrize("value", range(len(NO_JSON)))
def test_a_result_that_is_no_json_is_made_some_and_harms_nothing(
    result: Callable[[Any], Any], value: int
) -> None:
    command, answer = result(NO_JSON[value])
    bench = connected()
    bench.send({"id": 5, **command})
    bench.answer(answer)
    for join in bench.joins:
        strict(join.listener.info)
    for _, _, draft, _ in bench.published:
        strict(draft.data)
    while bench.joins:
        bench.joined()
    while bench.published:
        bench.append()
    reply = bench.one()
    assert reply["id"] == 5
    strict(json.dumps(reply))
    assert bench.closes == []
    assert not bench.session.busy
    assert bench.request(unsubscribe={"channel": "x"}) == {"unsubscribe": {}}


def strict(text: str) -> None:
    """Check that *text* is a document that any client can read."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)
    assert "\n" not in text


@each_command
def test_a_hook_that_answers_after_the_end(command: dict[str, Any]) -> None:
    bench = connected()
    bench.send({"id": 5, **command})
    bench.session.ended()
    bench.answer(ALLOW[next(iter(command))])
    assert (bench.messages, bench.joins, bench.published) == ([], [], [])


@each_command
def test_a_hook_that_refuses_after_a_close(command: dict[str, Any]) -> None:
    bench = connected()
    bench.send({"id": 5, **command})
    bench.session.malformed()
    bench.answer(CloseError(FORCE_DISCONNECT))
    assert bench.closes == [3501]


# Subscribe.


def test_a_subscribe_that_is_let_in() -> None:
    bench = connected()
    bench.send({"id": 5, **SUBSCRIBE})
    assert bench.joins == []
    bench.answer(SubscribeResult(info={"role": "x"}, data=[1]))
    [join] = bench.joins
    assert join.listener.info == (
        '{"user":"ann","client":"me","conn_info":{"n":"Ann"},"chan_info":{"role":"x"}}'
    )
    bench.joined()
    result = bench.one()["subscribe"]
    assert result["data"] == [1]
    assert result["recoverable"] is True


def test_a_hook_decides_alone_even_in_a_closed_namespace() -> None:
    bench = connected()
    bench.send({"id": 5, "subscribe": {"channel": "plain:ch"}})
    bench.answer(SubscribeResult())
    bench.joined()
    assert bench.one() == {"id": 5, "subscribe": {}}


@pytest.mark.parametrize(
    ("channel", "reply"),
    [
        ("$ch", error(103, "permission denied")),
        ("nowhere:ch", error(102, "unknown channel")),
        ("x" * 256, error(107, "bad request")),
    ],
)
def test_a_hook_is_not_asked_about_channels_that_cannot_be(
    channel: str, reply: dict[str, Any]
) -> None:
    bench = connected()
    assert bench.request(subscribe={"channel": channel}) == reply
    assert bench.asked == []


def test_a_join_that_fails_after_the_hook_let_it_in() -> None:
    bench = connected()
    bench.send({"id": 5, **SUBSCRIBE})
    bench.answer(SubscribeResult(data=1))
    bench.joined("ch", StoreUnavailable("locked"))
    assert bench.one() == {"id": 5, **INTERNAL}


def test_hooks_that_answer_subscribes_out_of_order() -> None:
    bench = connected()
    bench.send(*({"id": n, "subscribe": {"channel": f"ch{n}"}} for n in (5, 6, 7)))
    bench.answer(SubscribeResult(), 2)
    bench.joined("ch7")
    bench.answer(ReplyError(LIMIT_EXCEEDED), 0)
    bench.answer(SubscribeResult(), 0)
    bench.joined("ch6")
    assert [m["id"] for m in bench.messages] == [7, 5, 6]


def test_commands_for_a_channel_wait_for_the_hook_about_it() -> None:
    bench = connected()
    bench.send(
        {"id": 5, "subscribe": {"channel": "ch"}},
        {"id": 6, "unsubscribe": {"channel": "ch"}},
        {"id": 7, "subscribe": {"channel": "ch"}},
        {"id": 8, "unsubscribe": {"channel": "other"}},
    )
    assert [m["id"] for m in bench.take()] == [8]
    bench.answer(SubscribeResult())
    assert bench.messages == []
    bench.joined()
    assert [m["id"] for m in bench.take()] == [5, 6]
    bench.answer(ReplyError(LIMIT_EXCEEDED))
    assert bench.one()["id"] == 7


def test_what_waited_is_taken_up_when_the_hook_refuses() -> None:
    bench = connected()
    bench.send(
        {"id": 5, "subscribe": {"channel": "ch"}},
        {"id": 6, "unsubscribe": {"channel": "ch"}},
    )
    bench.answer(ReplyError(LIMIT_EXCEEDED))
    assert bench.take() == [
        {"id": 5, **error(106, "limit exceeded")},
        {"id": 6, "unsubscribe": {}},
    ]


# Publish.


def test_a_publish_that_is_let_through() -> None:
    bench = connected()
    bench.send({"id": 5, **PUBLISH})
    assert bench.published == []
    bench.answer(PublishResult())
    [(command, channel, draft, history)] = bench.published
    assert (command, channel, draft.data) == (5, "ch", '{"a": 1}')
    assert draft.info == '{"user":"ann","client":"me","conn_info":{"n":"Ann"}}'
    assert history.size == 10
    bench.append()
    assert bench.one() == {"id": 5, "publish": {}}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"b": 2}, '{"b":2}'),
        (0, "0"),
        (False, "false"),
        ("", '""'),
        ([], "[]"),
        (Raw(RawJson("null")), "null"),
        ("</script>\N{EURO SIGN}", '"</script>\N{EURO SIGN}"'),
    ],
)
def test_a_hook_publishes_something_else(data: object, text: str) -> None:
    bench = connected()
    bench.send({"id": 5, **PUBLISH})
    bench.answer(PublishResult(data=data))
    assert bench.published[0][2].data == text


def test_a_publish_that_is_not_kept() -> None:
    bench = connected()
    bench.send({"id": 5, **PUBLISH})
    bench.answer(PublishResult(skip_history=True))
    assert bench.published[0][3].size == 0


def test_publishes_keep_their_order_however_slow_the_hook_is() -> None:
    bench = connected()
    bench.send(*({"id": n, "publish": {"channel": "ch", "data": n}} for n in (5, 6)))
    assert len(bench.asked) == 1
    assert bench.session.busy
    bench.answer(PublishResult())
    assert [p[0] for p in bench.published] == [5]
    bench.answer(PublishResult())
    assert [p[0] for p in bench.published] == [5, 6]
    assert not bench.session.busy


def test_a_publish_the_hook_let_through_may_still_fail() -> None:
    bench = connected()
    bench.send({"id": 5, **PUBLISH})
    bench.answer(PublishResult())
    bench.append(StoreUnavailable("disk full"))
    assert bench.one() == {"id": 5, **INTERNAL}


# Rpc.


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (None, {}),
        ({"b": [2]}, {"data": {"b": [2]}}),
        (0, {"data": 0}),
        (Raw(RawJson("null")), {"data": None}),
    ],
)
def test_what_a_call_returns(data: object, result: dict[str, Any]) -> None:
    bench = connected()
    bench.send({"id": 5, **RPC})
    bench.answer(RpcResult(data=data))
    assert bench.one() == {"id": 5, "rpc": result}


def test_calls_are_answered_as_they_return() -> None:
    bench = connected(in_flight=2)
    bench.send(*({"id": n, "rpc": {"method": str(n)}} for n in (5, 6, 7)))
    assert [e.method for _, e in bench.asked if isinstance(e, RpcEvent)] == ["5", "6"]
    bench.answer(RpcResult(data=6), 1)
    assert bench.one() == {"id": 6, "rpc": {"data": 6}}
    assert len(bench.asked) == 2
    bench.answer(RpcResult(data=7), 1)
    bench.answer(RpcResult(data=5), 0)
    assert [m["id"] for m in bench.take()] == [7, 5]
    assert not bench.session.busy


def test_newlines_of_a_result_do_not_break_the_framing() -> None:
    bench = connected()
    bench.send({"id": 5, **RPC})
    bench.answer(RpcResult(data={"text": "a\nb"}))  # the port looks at the text
    assert bench.one()["rpc"]["data"] == {"text": "a\nb"}


def test_every_hook_is_the_application_s_own_choice() -> None:
    bench = Bench(handlers=Handlers(rpc=hook), at_once=True).connect()
    assert "subscribe" in bench.request(subscribe={"channel": "ch"})
    assert bench.request(publish={"channel": "ch", "data": 1}) == {"publish": {}}
    assert bench.asked == []
    assert ALL.connect is None


@pytest.mark.parametrize("allowed", [True, False])
def test_the_server_is_told_of_a_subscribe_that_the_client_had_begun(
    allowed: bool,
) -> None:
    bench = connected()
    bench.send({"id": 2, **SUBSCRIBE})
    told: list[ErrorReply | None] = []
    bench.session.subscribe(Channel("ch"), None, done=told.append)
    assert told == []  # not before it is known
    if allowed:
        bench.answer(SubscribeResult())
        bench.joined()
    else:
        bench.answer(ReplyError(MY_OWN))
    assert told == [None if allowed else MY_OWN]


# An internal error after an answer is not the answer's fault.


class Broken(Bench):
    """A port on which everything that an answer leads to fails, and is counted."""

    broken = False
    failures = 0

    def _open(self) -> None:
        super()._open()
        if self.broken:
            self.failures += 1
            raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ({"connect": {}}, ConnectResult(user="ann")),
        (SUBSCRIBE, SubscribeResult()),
        (PUBLISH, PublishResult()),
        (RPC, RpcResult()),
        ({"refresh": {"token": "t"}}, RefreshResult()),
        ({"sub_refresh": {"channel": "here", "token": "t"}}, SubRefreshResult()),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_an_internal_error_is_not_a_wrong_answer(
    command: dict[str, Any], answer: Answer
) -> None:
    handlers = Handlers(
        connect=hook,
        subscribe=hook,
        publish=hook,
        rpc=hook,
        refresh=hook,
        sub_refresh=hook,
    )
    bench = Broken(handlers=handlers, insecure=False)
    if "connect" not in command:
        bench.send({"id": 1, "connect": {}})
        bench.answer(ConnectResult(user="ann", client_side_refresh=True))
        bench.send({"id": 2, "subscribe": {"channel": "here"}})
        bench.answer(SubscribeResult(client_side_refresh=True))
        bench.joined()
    bench.send({"id": 5, **command})
    bench.broken = True
    with pytest.raises(RuntimeError, match="a bug"):
        bench.answer(answer)
    assert bench.failures == 1  # nothing was done a second time
    assert not any("error" in message for message in bench.messages)


WRONG_FIELDS: list[tuple[dict[str, Any], Any]] = [
    ({"connect": {}}, ConnectResult(**{field: value}))
    for field, values in {
        "user": [None, 5],
        "channels": ["ch", 5, (5,), None],
        "expire_at": ["1", -1.0, float("inf"), float("nan"), None],
        "subs": [None, [], {"ch": None}, {5: ServerSubscription()}],
        "client_side_refresh": [1, None],
        "token_id": [None, 5],
        "issued_at": ["1", None],
    }.items()
    for value in values
]
WRONG_FIELDS += [
    (SUBSCRIBE, SubscribeResult(expire_at="1")),  # type: ignore[arg-type]
    (SUBSCRIBE, SubscribeResult(override=None)),  # type: ignore[arg-type]
    (SUBSCRIBE, SubscribeResult(client_side_refresh=1)),  # type: ignore[arg-type]
    (PUBLISH, PublishResult(skip_history=None)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("command", "answer"), WRONG_FIELDS, ids=repr)
def test_an_answer_with_a_field_of_the_wrong_type_does_nothing(
    command: dict[str, Any], answer: Any
) -> None:
    if "connect" in command:
        bench = Bench(handlers=Handlers(connect=hook), insecure=False)
    else:
        bench = connected()
    bench.send({"id": 5, **command})
    [(number, event)] = bench.asked
    wrong = bench.session.answered(number, event, answer, bench.now)
    assert isinstance(wrong, WrongAnswer)
    assert " must be " in str(wrong)  # after the name of the field
    assert bench.one() == {"id": 5, **WRONG_ANSWER}
    assert (bench.joins, bench.published, bench.closes) == ([], [], [])
    assert bench.session.identity.user == ("" if "connect" in command else "ann")


CLIENT, ANN, CH = ClientId("me"), UserId("ann"), Channel("ch")


@pytest.mark.parametrize(
    ("event", "answer", "text"),
    [
        (RefreshEvent(CLIENT, ANN), RefreshResult(token_id=1), "token_id must be str"),
        (
            RefreshEvent(CLIENT, ANN),
            RefreshResult(issued_at=""),
            "issued_at must be int or float",
        ),
        (
            RefreshEvent(CLIENT, ANN),
            RefreshResult(expire_at=""),
            "expire_at must be int or float",
        ),
        (RefreshEvent(CLIENT, ANN), RefreshResult(channels=(1,)), "a channel must be"),
        (
            SubscribeEvent(CLIENT, ANN, CH),
            SubscribeResult(override=1),
            "override must be Override",
        ),
        (
            SubscribeEvent(CLIENT, ANN, CH),
            SubscribeResult(client_side_refresh=1),
            "client_side_refresh must be bool",
        ),
        (
            SubRefreshEvent(CLIENT, ANN, CH),
            SubRefreshResult(channel=1),
            "channel must be str",
        ),
        (
            PublishEvent(CLIENT, ANN, CH, RawJson("1")),
            PublishResult(skip_history=1),
            "skip_history must be bool",
        ),
        (ConnectEvent(CLIENT), ConnectResult(user=1), "user must be str"),
        (ConnectEvent(CLIENT), ConnectResult(token_id=1), "token_id must be str"),
        (ConnectEvent(CLIENT), ConnectResult(subs=[1]), "subs must be Mapping"),
        (
            ConnectEvent(CLIENT),
            ConnectResult(channels="ch"),
            "channels must be a tuple",
        ),
        (
            ConnectEvent(CLIENT),
            ConnectResult(subs={1: ServerSubscription()}),
            "a channel must be str",
        ),
        (
            ConnectEvent(CLIENT),
            ConnectResult(subs={"ch": 1}),
            "a subscription must be ServerSubscription",
        ),
        (
            ConnectEvent(CLIENT),
            ConnectResult(client_side_refresh=1),
            "client_side_refresh must be bool",
        ),
        (RpcEvent(CLIENT, ANN, "m"), PublishResult(), "RpcEvent answered with Publish"),
    ],
)
def test_a_wrong_answer_names_what_is_wrong(event: Any, answer: Any, text: str) -> None:
    with pytest.raises(WrongAnswer) as wrong:
        check(event, answer, Expiry(ClientSettings(), 0.0), 0.0)
    assert str(wrong.value).startswith(text)


def test_a_refresh_may_list_channels() -> None:
    expiry = Expiry(ClientSettings(), 0.0)
    event = RefreshEvent(CLIENT, ANN)
    found = check(event, RefreshResult(channels=("a", "b")), expiry, 0.0)
    assert isinstance(found, ConnectionRefresh)
    assert found.channels == {"a", "b"}
    found = check(event, RefreshResult(), expiry, 0.0)
    assert isinstance(found, ConnectionRefresh)
    assert found.channels is None
