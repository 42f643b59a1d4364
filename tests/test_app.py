"""The application in the caller's own process and event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service.app import Application
from service.core.errors import (
    UNKNOWN_CHANNEL,
    ReplyError,
    StartupError,
    StoreUnavailable,
)
from service.core.hooks import Handlers, RpcEvent, RpcResult
from service.core.model import Position
from service.core.ports import Committed
from service.hub.hub import Hub
from service.settings import (
    ApiSettings,
    ChannelSettings,
    Namespace,
    ProxySettings,
    Settings,
    StoreSettings,
    TokenSettings,
)
from tests.clock import VirtualClock

KEY = {"X-API-Key": "key"}


def make(
    path: str = ":memory:", handlers: Handlers | None = None, **store: float
) -> Application:
    settings = Settings(
        store=StoreSettings(path=path, **store),
        api=ApiSettings(key="key", publication_size=1000),
        channels=ChannelSettings(namespaces=(Namespace(name="plain"),)),
    )
    return Application(settings, handlers or Handlers())


Clients = list[httpx.AsyncClient]


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    """The HTTP clients that a service makes."""
    made: Clients = []
    initialize = httpx.AsyncClient.__init__

    def noted(self: httpx.AsyncClient, **options: Any) -> None:
        initialize(self, **options)
        if options.get("base_url") is None:  # else it is the test's
            made.append(self)

    monkeypatch.setattr(httpx.AsyncClient, "__init__", noted)
    return made


def asking(path: str = ":memory:") -> Settings:
    """Return settings with endpoints of hooks and of keys, where nobody answers."""
    return Settings(
        store=StoreSettings(path=path),
        proxy=ProxySettings(rpc="http://127.0.0.1:1/rpc"),
        token=TokenSettings(jwks_public_endpoint="http://127.0.0.1:1/jwks"),
        api=ApiSettings(key="key"),
    )


@pytest.fixture
async def application() -> AsyncIterator[Application]:
    application = make()
    yield application
    await application.drain()


def http(application: Application, root: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application, root_path=root)
    return httpx.AsyncClient(transport=transport, base_url="http://x", headers=KEY)


async def test_first_request_starts_it(application: Application) -> None:
    async with http(application) as client:
        response = await client.post("/api/info", json={})
    assert response.json()["result"]["nodes"][0]["num_clients"] == 0


async def test_concurrent_first_requests_start_it_once(
    application: Application,
) -> None:
    async with http(application) as client:
        body = {"channel": "c", "data": 1}
        answers = await asyncio.gather(
            *(client.post("/api/publish", json=body) for _ in range(20))
        )
    results = [answer.json()["result"] for answer in answers]
    assert sorted(result["offset"] for result in results) == list(range(1, 21))
    assert len({result["epoch"] for result in results}) == 1


async def test_first_request_that_gives_up_does_not_stop_the_start(
    application: Application,
) -> None:
    first = asyncio.create_task(application.publish("c", 1))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await application.publish("c", 2)).offset in (1, 2)


async def test_start_that_fails(tmp_path: Path) -> None:
    application = make(str(tmp_path / "absent" / "steadwire.db"))
    with capture_logs() as logs:
        async with http(application) as client:
            answers = await asyncio.gather(
                *(client.post("/api/info", json={}) for _ in range(5))
            )
        assert [answer.status_code for answer in answers] == [503] * 5
        assert await websocket(application) == ["websocket.close"]
    assert [entry["event"] for entry in logs] == ["cannot start"]
    assert isinstance(application.startup_error, StartupError)
    with pytest.raises(StartupError):
        await application.publish("c", 1)
    await application.drain()


async def websocket(application: Application) -> list[str]:
    """Return the types of what is sent to a WebSocket that only connects."""
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/connection/websocket", "headers": []}
    await application(scope, receive, send)
    return sent


async def test_lifespan_starts_and_drains() -> None:
    application = make()
    events: asyncio.Queue[str] = asyncio.Queue()
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def receive() -> dict[str, str]:
        return {"type": await events.get()}

    async def send(message: dict[str, str]) -> None:
        sent.put_nowait(message["type"])

    life = asyncio.create_task(application({"type": "lifespan"}, receive, send))
    events.put_nowait("lifespan.startup")
    assert await sent.get() == "lifespan.startup.complete"
    assert (await application.publish("c", 1)).offset == 1
    events.put_nowait("lifespan.shutdown")
    assert await sent.get() == "lifespan.shutdown.complete"
    await life
    with pytest.raises(StoreUnavailable):
        await application.publish("c", 2)


@dataclass
class Event:
    kind: str
    count: int


@pytest.mark.requirement("R18")
async def test_publish_takes_objects(application: Application) -> None:
    first = await application.publish("c", Event("delta", 1), tags={"a": "b"})
    second = await application.publish("c", ["ß", None, 1.5])
    assert (first.offset, second) == (1, Position(2, first.epoch))
    async with http(application) as client:
        answer = await client.post("/api/history", json={"channel": "c", "limit": -1})
    assert answer.json()["result"]["publications"] == [
        {"data": {"kind": "delta", "count": 1}, "offset": 1, "tags": {"a": "b"}},
        {"data": ["ß", None, 1.5], "offset": 2},
    ]


@pytest.mark.requirement("R17")
async def test_a_broadcast_says_of_each_channel_what_became_of_it(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "store.db")
    application = make(path, lock_timeout=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    channels = ["kept", "plain:live", "nowhere:x"]
    first = await application.broadcast(channels, Event("a", 1), idempotency_key="1")
    assert [each.state for each in first.outcomes] == ["stored", "delivered", "failed"]
    assert (first.delivered, first.stored) == (2, 1)
    assert [each.channel for each in first.outcomes] == channels
    assert [each.position.offset for each in first.outcomes] == [1, 0, 0]
    (unknown,) = first.failed
    assert (unknown.error, unknown.reason) == (UNKNOWN_CHANNEL, "unknown channel")
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):  # the second one opens the breaker
        with pytest.raises(StoreUnavailable):
            await application.publish("kept", 0)
    second = await application.broadcast(channels, 2)
    assert [each.state for each in second.outcomes] == ["failed", "delivered", "failed"]
    kept = second.outcomes[0]
    assert kept.error is not None and kept.error.temporary
    assert "locked" in kept.reason
    assert (second.delivered, second.stored, len(second.failed)) == (1, 0, 2)
    other.close()
    await application.drain()


async def test_publish_options(application: Application) -> None:
    once = await application.publish("c", 1, idempotency_key="k")
    assert await application.publish("c", 2, idempotency_key="k") == once
    assert await application.publish("c", 3, skip_history=True) == Position(0, "")
    assert await application.publish("plain:c", 3) == Position(0, "")
    newest = await application.publish("v", 1, version=2, version_epoch="e")
    await application.publish("v", 1, version=1, version_epoch="e")
    assert (await application.publish("v", 2)).offset == newest.offset + 1


async def test_publish_with_delta_and_urgent(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[bool, bool]] = []
    deliver = Hub.committed

    def committed(hub: Hub, batch: Sequence[Committed]) -> None:
        told.extend((one.delta, one.urgent) for one in batch)
        deliver(hub, batch)

    monkeypatch.setattr(Hub, "committed", committed)
    for delta, urgent in ((False, False), (True, False), (False, True)):
        await application.publish("c", 1, delta=delta, urgent=urgent)
        await application.broadcast(["c"], 1, delta=delta, urgent=urgent)
    assert told == [(False, False)] * 2 + [(True, False)] * 2 + [(False, True)] * 2


async def test_publish_refusals(application: Application) -> None:
    for channel, data, code in (
        ("nowhere:x", 1, 102),
        ("", 1, 107),
        ("ключ", 1, 107),
        ("c", "x" * 1000, 107),
    ):
        with pytest.raises(ReplyError) as refusal:
            await application.publish(channel, data)
        assert refusal.value.error.code == code
    assert (await application.publish("c", "x" * 998)).offset == 1


@pytest.mark.parametrize("root", ["", "/below"])
async def test_mounted(application: Application, root: str) -> None:
    async with http(application, root) as client:
        response = await client.post(f"{root}/api/info", json={})
        assert response.status_code == 200
        assert (await client.post(f"{root}/api/nothing")).status_code == 404


async def test_handlers_answer_the_api() -> None:
    async def rpc(event: RpcEvent) -> RpcResult:
        return RpcResult({"method": event.method, "params": event.data})

    application = make(handlers=Handlers(rpc=rpc))
    async with http(application) as client:
        body = {"method": "m", "params": [1,  2]}  # fmt: skip
        answer = await client.post("/api/rpc", json=body)
    assert answer.json() == {"result": {"data": {"method": "m", "params": "[1,2]"}}}
    await application.drain()


@pytest.mark.parametrize("broken", ["cancelled", "nothing", "wrong"])
async def test_rpc_handler_that_breaks_the_contract_is_100(broken: str) -> None:
    async def rpc(event: RpcEvent) -> RpcResult:
        if broken == "cancelled":
            raise asyncio.CancelledError
        return {"nothing": None, "wrong": "text"}[broken]  # type: ignore[return-value]

    application = make(handlers=Handlers(rpc=rpc))
    async with http(application) as client:
        answer = await client.post("/api/rpc", json={"method": "m"})
        assert answer.json()["error"]["code"] == 100
        assert (await client.post("/api/info", json={})).status_code == 200
    await application.drain()


async def test_drain_closes_the_clients_of_endpoints(clients: Clients) -> None:
    application = Application(asking(), Handlers())
    async with http(application) as client:
        answer = await client.post("/api/rpc", json={"method": "m"})
    assert answer.json()["error"]["code"] == 100
    assert [each.is_closed for each in clients] == [False, False]
    await application.drain()
    assert [each.is_closed for each in clients] == [True, True]


async def test_drain_before_the_start_prevents_it() -> None:
    application = make()
    await application.drain()
    with pytest.raises(StartupError):
        await application.publish("c", 1)


async def test_drain_waits_for_a_start_under_way(tmp_path: Path) -> None:
    path = str(tmp_path / "steadwire.db")
    application = make(path)
    start = asyncio.create_task(application.start())
    for _ in range(3):
        await asyncio.sleep(0)
    await application.drain()
    await start
    await assert_free(path)


STEPS = [
    "service.http.routing.Runtime.open",
    "service.http.routing.add_gauges",
    "service.http.routing.Routing",
    "service.http.hooks_proxy.HooksProxy.handlers",
    "service.auth.jwks.open_endpoints",
    *(
        f"service.foundation.{part}"
        for part in (
            "Verifier",
            "Permissions",
            "make_store",
            "add_store_metrics",
            "changes",
            "Tickets",
            "Revocations",
            "Authenticator.handlers",
        )
    ),
    *(
        f"service.runtime.{part}"
        for part in (
            "Flusher",
            "Hub",
            "Registry",
            "make_upkeep",
            "GracePeriod",
            "ConnectionLimits",
            "Reaper",
            "Reaper.start",
            "LivenessStats",
            "LoopMonitor",
            "LoopMonitor.start",
            "HandshakeGate",
        )
    ),
    "service.foundation.Revocations.start",
]


@pytest.mark.parametrize("step", STEPS)
async def test_a_start_that_fails_closes_what_it_has_opened(
    step: str, tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = str(tmp_path / "steadwire.db"), VirtualClock()
    application = Application(asking(path), Handlers(), clock=clock)
    with monkeypatch.context() as patches:
        patches.setattr(step, fail)
        with pytest.raises(ZeroDivisionError):
            await application.start()
    assert isinstance(application.startup_error, ZeroDivisionError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert clock.pending == []
    assert all(each.is_closed for each in clients)
    # Others are of asyncio's own executor.
    assert not [each for each in threading.enumerate() if "store" in each.name]
    await application.drain()
    await assert_free(path)


def fail(*args: Any, **options: Any) -> Any:
    raise ZeroDivisionError


async def assert_free(path: str) -> None:
    """Check that no store holds the lock of *path*."""
    application = make(path)
    assert (await application.publish("c", 1)).offset == 1
    await application.drain()


class Large:
    """An object whose method blocks until another thread lets it go on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def to_dict(self) -> object:
        self.go.wait(60)
        return {"n": 1}


@pytest.mark.requirement("R19", "B44")
async def test_publications_are_kept_in_order_while_a_large_one_is_encoded(
    application: Application,
) -> None:
    await application.start()
    large = Large()
    calls = [application.publish("c", data) for data in (0, large, 2, [3] * 100, 4)]
    tasks = [asyncio.create_task(call) for call in calls]
    # Other channels, the loop and the store go on meanwhile.
    for number in range(20):
        assert (await application.publish("other", number)).offset == number + 1
    assert [task.done() for task in tasks] == [True, False, False, False, False]
    large.go.set()
    offsets = [position.offset for position in await asyncio.gather(*tasks)]
    assert offsets == [1, 2, 3, 4, 5]


async def test_one_that_is_refused_lets_the_others_through_in_order(
    application: Application,
) -> None:
    await application.start()
    large = Large()
    calls = [application.publish("c", data) for data in (large, "x" * 9000, 2)]
    tasks = [asyncio.create_task(call) for call in calls]
    large.go.set()
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, Position)
    assert isinstance(second, ReplyError)  # `api.publication_size` is 1000
    assert second.error.code == 107
    assert isinstance(third, Position)
    assert (first.offset, third.offset) == (1, 2)


@pytest.mark.requirement("B44", "B51")
async def test_the_loop_turns_while_a_large_object_is_encoded(
    application: Application,
) -> None:
    encoder = (await application.start()).runtime.encoder
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    # Milliseconds of work: far from the second that it may take on a busy machine.
    items = [{"n": n} for n in range(8_000)]
    assert len(await encoder.dump({"type": "state", "items": items})) > 86_000
    assert turns > 0  # there is none while the loop encodes by itself
    text = {"type": "state", "run_id": "r", "text": ["x" * 1024] * 10_240}
    assert await encoder.dump(text) == (
        '{"type":"state","run_id":"r","error":{"reason":"size","limit":1048576}}'
    )
    ticking.cancel()
