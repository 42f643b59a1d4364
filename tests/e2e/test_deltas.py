"""Deltas on a real server: what is on the wire, and what official SDKs make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server
from tests.speedups.fossil import applied

KEPT = {"history_size": 500, "history_ttl": 300, "force_recovery": True}
MAY = {"name": "may", "allowed_delta_types": ["fossil"], **KEPT}
ALL = {"name": "all", "allowed_delta_types": ["fossil"], "delta_publish": True, **KEPT}
LOOSE = {"name": "loose", "allowed_delta_types": ["fossil"], "delta_publish": True}
CLOSED = {"name": "closed", **KEPT}

server = server_with(
    {"STEADWIRE_CHANNELS_NAMESPACES": json.dumps([MAY, ALL, LOOSE, CLOSED])}
)

WORDS = [
    "Wörter,",
    "語りえぬもの,",
    "🧪",
    '"quoted"',
    "\\",
    "and",
    "\u2028",
    "line\n",
]


def growing(first: int, last: int) -> list[dict[str, Any]]:
    """Return messages whose text grows by a word each."""
    return [
        {"n": n, "text": " ".join(WORDS[i % len(WORDS)] for i in range(n))}
        for n in range(first, last + 1)
    ]


class Reader:
    """The payloads of one subscription, as its client puts them together."""

    def __init__(self) -> None:
        self._held = b""

    def read(self, body: dict[str, Any]) -> tuple[Any, bool]:
        """Return the payload, and whether it came as a delta."""
        data = body["data"].encode()
        self._held = applied(self._held, data) if body.get("delta") else data
        return json.loads(self._held), body.get("delta", False)


async def follow(server: Server, channel: str, **fields: Any) -> RawClient:
    client = await server.raw()
    result = await client.subscribe(channel, delta="fossil", **fields)
    assert result["delta"] is True
    return client


# On the wire.


async def test_live_deltas_of_what_is_published_with_delta(
    server: Server, api: Api, channel: str
) -> None:
    channel = f"may:{channel}"
    payloads = growing(20, 25)
    kinds = [{}, *({"delta": wanted} for wanted in (True, True, False, True, True))]
    async with await follow(server, channel) as client, await server.raw() as plain:
        await plain.subscribe(channel)
        for payload, fields in zip(payloads, kinds, strict=True):
            await api.publish(channel, payload, **fields)
        found = await client.publications(channel, 6)
        others = await plain.publications(channel, 6)
    reader = Reader()
    read = [reader.read(body) for body in found]
    assert [payload for payload, _ in read] == payloads
    assert [delta for _, delta in read] == [False, True, True, False, True, True]
    assert others == [
        {"data": payload, "offset": n} for n, payload in enumerate(payloads, 1)
    ]


async def test_a_broadcast_follows_each_namespace(
    server: Server, api: Api, channel: str
) -> None:
    channels = [f"may:{channel}", f"all:{channel}"]
    clients = [await follow(server, one) for one in channels]
    for payload in growing(20, 21):
        await api.call("broadcast", {"channels": channels, "data": payload})
    kinds = []
    for client, one in zip(clients, channels, strict=True):
        async with client:
            found = await client.publications(one, 2)
        kinds.append([body["delta"] for body in found])
    assert kinds == [[False, False], [False, True]]


async def test_a_recovery_is_one_reply_with_deltas(
    server: Server, api: Api, channel: str
) -> None:
    # 60 texts of some 7 KB: in full, the reply would hold two of them.
    channel = f"all:{channel}"
    payloads = growing(600, 660)
    for payload in payloads[:-1]:
        await api.publish(channel, payload)
    async with await server.raw() as client:
        ask = {"channel": channel, "delta": "fossil", "recover": True}
        reply = (await client.request(subscribe=ask))["subscribe"]
        await api.publish(channel, payloads[-1])
        found = reply["publications"] + await client.publications(channel, 1)
    reader = Reader()
    read = [reader.read(body) for body in found]
    assert [payload for payload, _ in read] == payloads
    assert [delta for _, delta in read] == [False] + [True] * 60
    assert len(json.dumps(reply)) < 2 * len(json.dumps(payloads[0]))


async def test_a_recovery_in_pieces_goes_on_with_deltas(
    server: Server, api: Api, channel: str
) -> None:
    # Texts that have nothing in common are in full, and more than a reply holds.
    channel = f"all:{channel}"
    payloads: list[Any] = []
    for n in range(12):
        long = f"{chr(65 + n)}{n}" * 5000
        payloads += [{"text": long}, {"text": f"{long} and a word"}]
        for payload in payloads[-2:]:
            await api.publish(channel, payload)
    async with await server.raw() as client:
        ask = {"channel": channel, "delta": "fossil", "recover": True}
        reply = (await client.request(subscribe=ask))["subscribe"]
        first = reply.get("publications", [])
        assert len(first) < 24
        found = first + await client.publications(channel, 24 - len(first))
    reader = Reader()
    read = [reader.read(body) for body in found]
    assert [payload for payload, _ in read] == payloads
    assert [delta for _, delta in read] == [False, True] * 12


async def test_a_channel_without_history(
    server: Server, api: Api, channel: str
) -> None:
    channel = f"loose:{channel}"
    payloads = growing(20, 22)
    async with await follow(server, channel) as client:
        for payload in payloads:
            await api.call("publish", {"channel": channel, "data": payload})
        found = await client.publications(channel, 3)
    reader = Reader()
    assert [reader.read(body) for body in found] == [
        (payload, n > 0) for n, payload in enumerate(payloads)
    ]


async def test_history_is_in_full(server: Server, api: Api, channel: str) -> None:
    channel = f"all:{channel}"
    payloads = growing(20, 22)
    for payload in payloads:
        await api.publish(channel, payload)
    async with await follow(server, channel) as client:
        reply = await client.request(history={"channel": channel, "limit": -1})
    kept = [{"data": p, "offset": n} for n, p in enumerate(payloads, 1)]
    assert reply["history"]["publications"] == kept


@pytest.mark.parametrize(
    ("namespace", "delta"), [("closed", "fossil"), ("all", "xdelta3"), ("all", "")]
)
async def test_what_is_not_negotiated(
    server: Server, api: Api, channel: str, namespace: str, delta: str
) -> None:
    channel = f"{namespace}:{channel}"
    async with await server.raw() as client:
        result = await client.subscribe(channel, delta=delta)
        assert "delta" not in result
        await api.publish(channel, {"a": 1}, delta=True)
        (body,) = await client.publications(channel, 1)
    assert body == {"data": {"a": 1}, "offset": 1}


# Official SDKs.

FORMS = (
    "js-5.8.0",
    "js-5.8.0 protobuf",
    "js-5.5.3",
    "js-5.5.3 protobuf",
    "python-0.7.0",
    "python-0.7.0 protobuf",
    "python-0.4.4",
)

LARGE = "語り und more " * 15_000  # 285 KB


@pytest.mark.parametrize("make_client", FORMS, indirect=True)
async def test_an_application_sees_every_payload(
    server: Server, api: Api, make_client: Callable[..., Any], channel: str
) -> None:
    channel = f"all:{channel}"
    payloads: list[Any] = [
        *growing(1, 20),
        {"text": LARGE},
        {"text": f"{LARGE}!"},
        {"text": f"{LARGE[:100_000]} in the middle {LARGE[100_000:]}"},
        7,
        None,
        "🧪",
        *growing(300, 320),
    ]
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel, delta=True)

    async def publish(part: list[Any]) -> None:
        for payload in part:
            await api.publish(channel, payload)

    async with await follow(server, channel) as witness:
        await publish(payloads[:24])
        await client.seen("publication", 24)
        kinds = [body["delta"] for body in await witness.publications(channel, 24)]
    assert kinds.count(True) >= 20

    # Cut, with something to recover or without: live deltas begin anew.
    await client.cut()
    await publish(payloads[24:28])
    await client.seen("subscribed", 2)
    await client.seen("publication", 28)

    # Away: recovered in the reply and in pushes, then live again.
    await client.disconnect()
    await publish(payloads[28:44])
    await client.connect()
    again = (await client.seen("subscribed", 3))[2]
    assert again["was_recovering"] and again["recovered"]
    await publish(payloads[44:])
    await client.seen("publication", len(payloads))
    assert [p["data"] for p in client.publications(channel)] == payloads
    assert client.offsets(channel) == list(range(1, len(payloads) + 1))
    assert client.events["error"] == []
