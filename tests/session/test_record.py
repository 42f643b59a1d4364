"""A session that is restored from its record behaves as the one that made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from service.core.errors import PERMISSION_DENIED, UNSUBSCRIBE_SERVER, ReplyError
from service.core.hooks import (
    ConnectResult,
    Handlers,
    Raw,
    RefreshResult,
    RpcResult,
    ServerSubscription,
    SubRefreshResult,
    SubscribeResult,
)
from service.core.model import Channel, Override, RawJson
from service.session.record import SessionRecord
from tests.session.bench import WALL, Bench, hook

HOOKED = Handlers(
    connect=hook,
    refresh=hook,
    subscribe=hook,
    sub_refresh=hook,
    rpc=hook,
)

BY_TOKEN = Handlers(connect=hook, connect_token=hook, refresh=hook)


def _json(text: str) -> Any:
    return Raw(RawJson(text))


def bench(now: float = 1000.0) -> Bench:
    """Return a session that neither pings nor ages: a record knows of neither."""
    return Bench(
        handlers=HOOKED,
        at_once=True,
        pongs=False,
        timeout=1e9,
        now=now,
        max_age=1e9,
        ping_interval=1e9,
    )


def say(command: dict[str, Any]) -> Callable[[Bench], None]:
    return lambda bench: bench.send(command)


def answer(result: Any) -> Callable[[Bench], None]:
    return lambda bench: bench.answer(result)


def both(*steps: Callable[[Bench], None]) -> Callable[[Bench], None]:
    def run(bench: Bench) -> None:
        for step in steps:
            step(bench)

    return run


def wait(seconds: float) -> Callable[[Bench], None]:
    return lambda bench: bench.pass_time(seconds)


SCRIPT: list[Callable[[Bench], None]] = [
    both(
        say({"id": 1, "connect": {"token": "t"}}),
        answer(
            ConnectResult(
                user="ann",
                expire_at=WALL + 600,
                info=_json('{"name":"Ann"}'),
                meta=_json('{"plan":1}'),
                subs={
                    "own": ServerSubscription(
                        info=_json("1"), override=Override(presence=False)
                    ),
                    "asks:own": ServerSubscription(),
                },
                client_side_refresh=True,
                token_id="jti",
                issued_at=WALL - 5,
            )
        ),
    ),
    both(
        say({"id": 2, "subscribe": {"channel": "a", "join_leave": True}}),
        answer(
            SubscribeResult(
                info=_json('"seat"'),
                expire_at=WALL + 60,
                client_side_refresh=True,
                override=Override(join_leave=True),
            )
        ),
    ),
    both(
        say({"id": 3, "subscribe": {"channel": "asks:b", "recoverable": True}}),
        answer(SubscribeResult(expire_at=WALL + 20)),
    ),
    say({"id": 4, "publish": {"channel": "a", "data": {"n": 1}}}),
    say({"id": 5, "history": {"channel": "a", "limit": 3}}),
    both(
        say({"id": 6, "sub_refresh": {"channel": "a", "token": "t"}}),
        answer(SubRefreshResult(expire_at=WALL + 200, info=_json('"other seat"'))),
    ),
    wait(30.0),
    say({"id": 7, "sub_refresh": {"channel": "asks:b", "token": "t"}}),
    say({"id": 8, "presence_stats": {"channel": "a"}}),
    both(
        say({"id": 9, "rpc": {"method": "m", "data": {}}}),
        answer(RpcResult(data=_json("[1]"))),
    ),
    wait(20.0),
    say({"id": 10, "subscribe": {"channel": "own"}}),
    both(
        say({"id": 11, "refresh": {"token": "t"}}),
        answer(
            RefreshResult(
                expire_at=WALL + 900, info=_json('{"name":"Bo"}'), token_id="later"
            )
        ),
    ),
    lambda bench: bench.session.unsubscribe(Channel("asks:own"), UNSUBSCRIBE_SERVER),
    say({"id": 12, "unsubscribe": {"channel": "asks:b"}}),
    say({"id": 13, "unsubscribe": {"channel": "never"}}),
    say({"id": 14, "publish": {"channel": "plain:x", "data": 5}}),
    wait(250.0),
    say({"id": 15, "history": {"channel": "own", "limit": 1}}),
    wait(700.0),
]


def seen(bench: Bench) -> tuple[Any, ...]:
    """Return what the outside has seen since the last look."""
    found = (
        bench.messages,
        [call for call in bench.calls if call != ("ping",)],
        bench.closes,
        [(command, type(event), event) for command, event in bench.asked],
    )
    bench.messages, bench.calls, bench.closes = [], [], []
    return found


def restored(before: Bench) -> Bench:
    text = msgspec.json.encode(before.session.record())
    after = bench(before.now)
    after.session.restore(msgspec.json.decode(text, type=SessionRecord), after.now)
    after.entered = set(before.entered)
    return after


@pytest.mark.parametrize("point", range(1, len(SCRIPT)))
def test_it_goes_on_as_the_session_that_made_it(point: int) -> None:
    original = bench()
    for step in SCRIPT[:point]:
        step(original)
    copy = restored(original)
    seen(original)
    assert seen(copy) == ([], [], [], [])
    for number, step in enumerate(SCRIPT[point:], point):
        step(original)
        step(copy)
        assert seen(copy) == seen(original), f"step {number}"
        if not copy.session.busy and original.session.next_tick != float("inf"):
            assert copy.session.record() == original.session.record()
    assert original.session.next_tick == float("inf")  # it has expired


def test_what_the_record_says() -> None:
    made = bench()
    for step in SCRIPT[:3]:
        step(made)
    record = made.session.record()
    assert msgspec.to_builtins(record) == {
        "client": "me",
        "user": "ann",
        "conn_info": '{"name":"Ann"}',
        "meta": '{"plan":1}',
        "token_id": "jti",
        "issued_at": WALL - 5,
        "refreshable": True,
        "end": round((WALL + 625) * 1000),
        "connected_at": WALL * 1000,
        "active_at": WALL * 1000,
        "channels": {
            "own": {
                "server": True,
                "positioned": True,
                "recoverable": True,
                "info": "1",
                "override": {"presence": False},
            },
            "asks:own": {"server": True, "positioned": True, "recoverable": True},
            "a": {
                "positioned": True,
                "recoverable": True,
                "hears_joins": True,
                "info": '"seat"',
                "refreshable": True,
                "end": round((WALL + 85) * 1000),
                "override": {"join_leave": True},
            },
            "asks:b": {
                "positioned": True,
                "recoverable": True,
                "end": round((WALL + 45) * 1000),
            },
        },
    }


def test_channels_that_the_token_named_end_with_a_token_that_does_not() -> None:
    made = Bench(handlers=BY_TOKEN, at_once=True)
    made.send({"id": 1, "connect": {"token": "t"}})
    made.answer(
        ConnectResult(user="ann", channels=("a", "plain:b"), client_side_refresh=True)
    )
    text = msgspec.json.encode(made.session.record())
    copy = Bench(handlers=BY_TOKEN, at_once=True)
    copy.session.restore(msgspec.json.decode(text, type=SessionRecord), copy.now)
    copy.send({"id": 2, "refresh": {"token": "t"}})
    copy.answer(RefreshResult(expire_at=WALL + 60, channels=("a",)))
    assert [m["push"]["channel"] for m in copy.take() if "push" in m] == ["plain:b"]
    assert list(copy.session.record().channels) == ["a"]


def test_a_restored_subscription_is_not_in_the_way_of_a_subscribe() -> None:
    """The client may have left it since; only the client's own, not the server's."""
    made = bench()
    for step in SCRIPT[:2]:
        step(made)
    copy = restored(made)
    copy.send({"id": 20, "subscribe": {"channel": "own"}})
    assert copy.one()["error"]["code"] == 105
    copy.send({"id": 21, "subscribe": {"channel": "a"}})
    copy.answer(ReplyError(PERMISSION_DENIED))
    assert copy.one()["error"]["code"] == 103
    assert copy.calls == [("unsubscribe", "a")]
    copy.send({"id": 22, "subscribe": {"channel": "a"}})
    copy.answer(SubscribeResult())
    assert copy.one()["id"] == 22


def test_pongs_that_nobody_asked_for_are_ignored() -> None:
    made = Bench(pongs=False)
    made.send({"id": 1, "connect": {}})
    assert "pong" not in made.one()["connect"]
    made.frame("{}")
    made.frame("{}\n{}")
    assert made.closes == []
