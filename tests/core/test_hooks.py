"""Hooks: the handler that answers each event."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.hooks import (
    ConnectEvent,
    Event,
    Handlers,
    PublishEvent,
    RefreshEvent,
    RpcEvent,
    SubRefreshEvent,
    SubscribeEvent,
)
from service.core.model import Channel, ClientId, RawJson, UserId

ID, ANN, NEWS = ClientId("1"), UserId("ann"), Channel("news")
NAMES = tuple(Handlers.__dataclass_fields__)


def handlers(*names: str) -> Handlers:
    def named(name: str) -> Any:
        async def answer(event: object) -> str:
            return name

        return answer

    return Handlers(**{name: named(name) for name in names})


@pytest.mark.parametrize(
    ("names", "event", "asked"),
    [
        (NAMES, ConnectEvent(ID), "connect"),
        (NAMES, ConnectEvent(ID, "a.b.c"), "connect_token"),
        (NAMES, ConnectEvent(ID, "tkt_x"), "connect_ticket"),
        (("connect", "connect_token"), ConnectEvent(ID, "tkt_x"), "connect_token"),
        (("connect",), ConnectEvent(ID, "a.b.c"), "connect"),
        (NAMES, RefreshEvent(ID, ANN), "refresh"),
        (NAMES, SubscribeEvent(ID, ANN, NEWS), "subscribe"),
        (NAMES, SubscribeEvent(ID, ANN, NEWS, "a.b.c"), "subscribe_token"),
        (("subscribe",), SubscribeEvent(ID, ANN, NEWS, "a.b.c"), "subscribe"),
        (NAMES, SubRefreshEvent(ID, ANN, NEWS), "sub_refresh"),
        (NAMES, PublishEvent(ID, ANN, NEWS, RawJson("1")), "publish"),
        (NAMES, RpcEvent(ID, ANN, "add"), "rpc"),
    ],
)
async def test_the_hook_of_an_event(
    names: tuple[str, ...], event: Event, asked: str
) -> None:
    assert await handlers(*names).answer(event) == asked


def test_tokens_that_a_hook_verifies() -> None:
    assert not handlers("connect").verifies("a.b.c")
    assert handlers("connect_token").verifies("a.b.c")
    assert not handlers("connect_token").verifies("")
    assert handlers("connect_ticket").verifies("tkt_x")
    assert not handlers("connect_ticket").verifies("a.b.c")
