"""An application's use of an official SDK, against the real server.

Each test runs once for each SDK (see SDKS in tests/conftest.py) and for each store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.backends import BACKENDS, GATEWAYS, PAIRS
from tests.harness.fixtures import backends, server_with
from tests.harness.sdk import SdkError
from tests.harness.server import Server

MakeClient = Callable[..., Any]

# JSON values that careless code would change.
PAYLOADS = [
    {"text": "hello"},
    {},
    [],
    [1, [2, [3, {"deep": None}]]],
    "a string",
    "",
    0,
    -1.5e-7,
    9007199254740991,
    True,
    False,
    {"zero": 0, "empty": "", "none": None, "false": False},
    {"newlines": "one\ntwo\r\nthree\u2028four\n"},
    {"unicode": 'ß Ж 漢字 🎉 \u0000 \\ " / \x7f', "Ключ": 1},
    {"looks like a push": '{"push":{"channel":"x"}}\n{}'},
    {"long": "x" * 60_000},
]


NAMESPACES = [
    {"name": "plain"},
    {"name": "short", "history_size": 3, "history_ttl": 300, "force_recovery": True},
]

backend = backends(*BACKENDS, slow=(*GATEWAYS, *PAIRS))
server = server_with({"STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES)})


async def test_client_connects_and_disconnects(
    server: Server, make_client: MakeClient
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.disconnect()

    connected = client.events["connected"]
    assert len(connected) == 1 and connected[0]["id"]
    assert [event["code"] for event in client.events["connecting"]] == [0]
    assert [event["code"] for event in client.events["disconnected"]] == [0]
    assert client.events["error"] == []


async def test_every_payload_arrives_as_it_was_published(
    server: Server, make_client: MakeClient, channel: str
) -> None:
    publisher, subscriber = [await make_client(server.url) for _ in range(2)]
    await publisher.connect()
    await subscriber.connect()
    subscribed = await subscriber.subscribe(channel)
    assert subscribed["offset"] == 0
    assert subscribed["epoch"]
    assert subscribed["recoverable"] and subscribed["positioned"]
    assert not subscribed["was_recovering"] and not subscribed["recovered"]

    payloads = [each for each in PAYLOADS if len(str(each)) < server.message_size]
    for payload in payloads:
        await publisher.publish(channel, payload)

    await subscriber.seen("publication", len(payloads))
    assert subscriber.publications(channel) == [
        {"offset": offset, "data": payload, "tags": {}}
        for offset, payload in enumerate(payloads, 1)
    ]
    publisher_id = publisher.events["connected"][0]["id"]
    infos = [event["info"] for event in subscriber.events["publication"]]
    assert infos == [{"user": "", "client": publisher_id}] * len(payloads)


async def test_publications_of_the_server_api_arrive_with_tags(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)

    tags = {"kind": "token", "ключ": 'a "quoted" value'}
    assert await api.publish(channel, {"n": 1}, tags=tags) == 1
    assert await api.publish(channel, {"n": 2}) == 2

    await client.seen("publication", 2)
    assert client.publications(channel) == [
        {"offset": 1, "data": {"n": 1}, "tags": tags},
        {"offset": 2, "data": {"n": 2}, "tags": {}},
    ]
    assert [event["info"] for event in client.events["publication"]] == [None, None]


async def test_publisher_that_subscribes_receives_its_own(
    server: Server, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    for n in range(1, 21):
        await client.publish(channel, n)
    await client.seen("publication", 20)
    assert client.publications(channel) == [
        {"offset": n, "data": n, "tags": {}} for n in range(1, 21)
    ]


async def test_history_is_read_in_pages_forwards_and_backwards(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    for n in range(1, 11):
        await api.publish(channel, {"n": n}, tags={"n": str(n)})
    client = await make_client(server.url)
    await client.connect()

    async def read(**options: Any) -> list[int]:
        page = await client.history(channel, **options)
        assert page["offset"] == 10 and page["epoch"] == epoch
        for publication in page["publications"]:
            n = publication["offset"]
            assert publication == {
                "offset": n,
                "data": {"n": n},
                "tags": {"n": str(n)},
                "info": None,
            }
        return [publication["offset"] for publication in page["publications"]]

    epoch = (await client.history(channel, limit=0))["epoch"]
    assert epoch
    assert await read(limit=0) == []
    assert await read(limit=-1) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert await read(limit=3) == [1, 2, 3]
    assert await read(limit=3, reverse=True) == [10, 9, 8]
    assert await read(limit=3, since={"offset": 3, "epoch": epoch}) == [4, 5, 6]
    assert await read(limit=-1, since={"offset": 8, "epoch": epoch}) == [9, 10]
    assert await read(limit=-1, since={"offset": 10, "epoch": epoch}) == []
    assert await read(limit=2, since={"offset": 8, "epoch": epoch}, reverse=True) == [
        7,
        6,
    ]


async def test_history_keeps_no_more_than_the_namespace_allows(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    channel = f"short:{channel}"
    for n in range(1, 6):
        await api.publish(channel, n)
    client = await make_client(server.url)
    await client.connect()
    page = await client.history(channel, limit=-1)
    assert [publication["offset"] for publication in page["publications"]] == [3, 4, 5]
    assert page["offset"] == 5


async def test_unsubscribe_stops_delivery_and_resubscribe_recovers(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    await api.publish(channel, "one")
    await client.seen("publication", 1)

    unsubscribed = await client.unsubscribe(channel)
    assert unsubscribed["code"] == 0
    # A reply to a later command: the server has handled the unsubscribe.
    await client.history(channel, limit=0)
    await api.publish(channel, "two")
    await client.history(channel, limit=0)
    assert client.offsets(channel) == [1]

    subscribed = await client.subscribe(channel)
    assert subscribed["was_recovering"] and subscribed["recovered"]
    await api.publish(channel, "three")
    await client.seen("publication", 3)
    assert client.publications(channel) == [
        {"offset": 1, "data": "one", "tags": {}},
        {"offset": 2, "data": "two", "tags": {}},
        {"offset": 3, "data": "three", "tags": {}},
    ]


async def test_unsubscribe_directly_followed_by_subscribe_is_no_error(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    for n in range(1, 6):
        # Not awaited in between: both commands may leave in one frame.
        await client.do("unsubscribe", channel=channel)
        await client.do("subscribe", channel=channel)
        await client.seen("subscribed", n + 1)
        await api.publish(channel, n)
    await client.seen("publication", 5)
    assert client.offsets(channel) == [1, 2, 3, 4, 5]
    assert client.events["sub_error"] == []


@pytest.mark.requirement("B132")
async def test_two_channels_do_not_mix(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    left, right = f"{channel}-left", f"{channel}-right"
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(left)
    await client.subscribe(right)
    for n in range(1, 11):
        await api.publish(left, f"left {n}")
        await api.publish(right, f"right {n}")
    await client.seen("publication", 20)
    assert client.publications(left) == [
        {"offset": n, "data": f"left {n}", "tags": {}} for n in range(1, 11)
    ]
    assert client.publications(right) == [
        {"offset": n, "data": f"right {n}", "tags": {}} for n in range(1, 11)
    ]


async def test_channel_without_history_delivers_without_offsets(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    channel = f"plain:{channel}"
    client = await make_client(server.url)
    await client.connect()
    subscribed = await client.subscribe(channel)
    assert not subscribed["recoverable"]
    await client.publish(channel, {"n": 1})
    while not (client.events["publication"] or server.load == 1.0):
        # At a gateway it hears such ones when its row is active: after the reply.
        await client.publish(channel, {"n": 1})
    await client.seen("publication", 1)
    publication = client.publications(channel)[0]
    assert publication["data"] == {"n": 1}
    assert publication["offset"] in (0, None)  # Python says 0, JavaScript undefined
    with pytest.raises(SdkError) as refused:
        await client.history(channel, limit=-1)
    assert (refused.value.code, refused.value.message) == (108, "not available")


async def test_rpc_is_not_available(server: Server, make_client: MakeClient) -> None:
    client = await make_client(server.url)
    await client.connect()
    with pytest.raises(SdkError) as refused:
        await client.rpc("anything", {"a": 1})
    assert (refused.value.code, refused.value.message) == (108, "not available")
    assert client.events["disconnected"] == []


async def test_subscribe_to_an_unknown_namespace_is_refused(
    server: Server, make_client: MakeClient
) -> None:
    client = await make_client(server.url)
    await client.connect()
    await client.do("subscribe", channel="nowhere:x")
    (unsubscribed,) = await client.seen("unsubscribed", 1)
    assert unsubscribed["code"] == 102
    assert unsubscribed["reason"] == "unknown channel"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"channel": "nowhere:x"}, 102, "unknown channel"),
        ({"since": {"offset": 1, "epoch": "old"}}, 112, "unrecoverable position"),
        (
            {"since": {"offset": 0, "epoch": ""}, "reverse": True},
            107,
            "bad request",
        ),
    ],
    ids=["namespace", "epoch", "reverse-from-zero"],
)
async def test_history_refusals(
    server: Server,
    make_client: MakeClient,
    channel: str,
    options: dict[str, Any],
    code: int,
    message: str,
) -> None:
    client = await make_client(server.url)
    await client.connect()
    with pytest.raises(SdkError) as refused:
        await client.history(**{"channel": channel, "limit": 10, **options})
    assert (refused.value.code, refused.value.message) == (code, message)
    assert client.events["disconnected"] == []


async def test_publish_refusals(server: Server, make_client: MakeClient) -> None:
    client = await make_client(server.url)
    await client.connect()
    with pytest.raises(SdkError) as refused:
        await client.publish("nowhere:x", 1)
    assert (refused.value.code, refused.value.message) == (102, "unknown channel")
    with pytest.raises(SdkError) as refused:
        await client.publish("x" * 256, 1)
    assert (refused.value.code, refused.value.message) == (107, "bad request")
    assert client.events["disconnected"] == []
