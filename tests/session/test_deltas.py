"""Deltas: which subscriptions take them, and which publications may be one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core.hooks import Handlers, PublishResult
from service.core.model import Channel, Joined, Position
from service.settings import ChannelOptions, ChannelSettings, Namespace
from tests.session.bench import Bench, hook, publication

KEPT = {"history_size": 10, "history_ttl": 60.0, "force_recovery": True}
CHANNELS = ChannelSettings(
    without_namespace=ChannelOptions(**KEPT),
    namespaces=(
        Namespace(name="may", allowed_delta_types=("fossil",), **KEPT),
        Namespace(
            name="all", allowed_delta_types=("fossil",), delta_publish=True, **KEPT
        ),
    ),
)


def connected(**options: Any) -> Bench:
    return Bench(channels=CHANNELS, **options).connect()


@pytest.mark.parametrize(
    ("channel", "fields", "takes"),
    [
        ("may:a", {"delta": "fossil"}, True),
        ("all:a", {"delta": "fossil"}, True),
        ("may:a", {}, False),
        ("may:a", {"delta": ""}, False),
        ("may:a", {"delta": None}, False),
        ("may:a", {"delta": "xdelta3"}, False),
        ("a", {"delta": "fossil"}, False),
    ],
)
def test_a_subscription_takes_deltas_if_it_asks_and_the_namespace_allows_it(
    channel: str, fields: dict[str, Any], takes: bool
) -> None:
    bench = connected()
    bench.send({"id": 7, "subscribe": {"channel": channel, **fields}})
    [join] = bench.joins
    assert join.listener.delta is takes
    bench.joined()
    assert bench.one()["subscribe"].get("delta", False) is takes


def test_a_kind_that_is_not_text_is_a_malformed_command() -> None:
    bench = connected()
    bench.send({"id": 7, "subscribe": {"channel": "may:a", "delta": True}})
    assert bench.closes == [3501]


def test_what_is_recovered_is_written_as_deltas() -> None:
    bench = connected()
    ask = {"channel": "may:a", "delta": "fossil", "recover": True, "offset": 1}
    bench.send({"id": 7, "subscribe": ask})
    texts = [json.dumps("a long text " * 9 + tail) for tail in ("a", "b")]
    found = [publication(n, text) for n, text in enumerate(texts, 2)]
    bench.joined("may:a", Joined(Position(3, "e"), found))
    first, second = bench.one()["subscribe"]["publications"]
    assert first == {"data": texts[0], "offset": 2, "delta": False}
    assert (second["offset"], second["delta"]) == (3, True)
    assert len(second["data"]) < 30


def test_a_subscription_of_the_server_takes_none() -> None:
    bench = connected()
    bench.session.subscribe(Channel("all:a"), None)
    [join] = bench.joins
    assert not join.listener.delta
    bench.joined()
    [message] = bench.take()
    assert "delta" not in message["push"]["subscribe"]


@pytest.mark.parametrize(("channel", "delta"), [("may:a", False), ("all:a", True)])
def test_a_client_publishes_as_the_namespace_says(channel: str, delta: bool) -> None:
    bench = connected()
    bench.send({"id": 7, "publish": {"channel": channel, "data": 1}})
    [(_, _, draft, _)] = bench.published
    assert draft.delta is delta


@pytest.mark.parametrize(("channel", "delta"), [("may:a", False), ("all:a", True)])
def test_so_it_is_with_a_publish_hook(channel: str, delta: bool) -> None:
    bench = connected(handlers=Handlers(publish=hook))
    bench.send({"id": 7, "publish": {"channel": channel, "data": 1}})
    bench.answer(PublishResult())
    [(_, _, draft, _)] = bench.published
    assert draft.delta is delta
