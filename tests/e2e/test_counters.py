"""Each counter of a real server counts exactly what happened, as a scrape shows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest

from service.core.model import Channel
from service.stores.sqlite.channel_state import slot_of
from tests.harness.api import Api, ApiError
from tests.harness.metrics import Scrape, scrape
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import Server

CONNECT = {
    "connections_opened_total": 1,
    "commands_total{connect}": 1,
    "connects_total{ok}": 1,
    "auth_total{admitted}": 1,
}
LEFT = {"closes_total{client}": 1}


async def quiet(api: Api) -> Scrape:
    """Scrape once nobody is connected."""
    async with asyncio.timeout(10.0):
        while True:
            now = await scrape(api)
            if not any(now.labels("connections").values()):
                return now


class Change:
    """The growth of the counters while something was done."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.grown: dict[str, float] = {}

    def pop(self, *names: str) -> float:
        """Take out what is of no interest; return the last."""
        return [self.grown.pop(name) for name in names][-1]


@asynccontextmanager
async def change(server: Server) -> AsyncIterator[Change]:
    async with server.api() as api:
        found = Change(api)
        before = await quiet(api)
        yield found
        found.grown = (await quiet(api)).since(before)


async def test_who_leaves_before_it_connects(server: Server) -> None:
    async with change(server) as seen:
        client = await server.raw(connected=False)
        async with asyncio.timeout(10.0):
            while not (await scrape(seen.api)).labels("connections")["pending"]:
                await asyncio.sleep(0.01)
        client.reset()
    assert seen.grown == {
        "connections_opened_total": 1,
        "connects_total{abandoned}": 1,
        **LEFT,
    }


async def test_who_is_closed_before_it_connects(server: Server) -> None:
    async with (
        change(server) as seen,
        await server.raw(connected=False) as client,
    ):
        await client.send_text("no JSON")
        assert (await client.closed()).code == 3501
    assert seen.grown == {
        "connections_opened_total": 1,
        "connects_total{refused}": 1,
        "closes_total{3501}": 1,
    }


async def test_errors_by_their_code(server: Server) -> None:
    async with change(server) as seen, await server.raw() as client:
        for number in range(3):
            reply = await client.request(rpc={"method": "no"})
            assert reply["error"]["code"] == 108, number
        await client.subscribe("c")
        reply = await client.request(subscribe={"channel": "c"})
        assert reply["error"]["code"] == 105
    assert seen.pop("messages_sent_total") == 6
    assert seen.grown == {
        **CONNECT,
        **LEFT,
        "commands_total{rpc}": 3,
        "commands_total{subscribe}": 2,
        "errors_total{108}": 3,
        "errors_total{105}": 1,
    }


async def test_a_method_that_nobody_knows_has_no_series_of_its_own(
    server: Server,
) -> None:
    async with change(server) as seen, await server.raw() as client:
        await client.send({"id": 7, "x" * 1000: {}})
        assert (await client.closed()).code == 3501
    assert seen.pop("messages_sent_total") == 1
    assert seen.grown == {
        **CONNECT,
        "commands_total{other}": 1,
        "closes_total{3501}": 1,
    }


async def test_recoveries_and_whether_they_did(server: Server) -> None:
    history = {"recover": True, "recoverable": True}
    async with change(server) as seen, await server.raw() as client:
        await seen.api.publish("kept", 1)
        await seen.api.publish("kept", 2)
        page = await seen.api.history("kept")
        for epoch in (page["epoch"], page["epoch"], "another"):
            reply = await client.subscribe("kept", offset=1, epoch=epoch, **history)
            assert reply.get("recovered", False) is (epoch == page["epoch"])
            await client.request(unsubscribe={"channel": "kept"})
    seen.pop("messages_sent_total", "commit_batch_size_count")
    seen.pop("api_calls_total{history}", "api_calls_total{publish}")
    assert seen.grown == {
        **CONNECT,
        **LEFT,
        "commands_total{subscribe}": 3,
        "commands_total{unsubscribe}": 3,
        "recoveries_total{yes}": 2,
        "recoveries_total{no}": 1,
        "publications_total": 2,
    }


@pytest.mark.requirement("B41")
async def test_publications_of_all_publishers(server: Server) -> None:
    async with change(server) as seen, await server.raw() as client:
        await client.subscribe("many")
        for number in range(5):
            await client.publish("many", number)
        channels = ["many", "a", "b"]
        await seen.api.call("broadcast", {"channels": channels, "data": 1})
        await seen.api.publish("many", 1, idempotency_key="k")
        await seen.api.publish("many", 1, idempotency_key="k")  # is not one more
        await client.publications("many", 7)
        sizes = await scrape(seen.api)
    commits = seen.pop("commit_batch_size_count")
    assert sizes["commit_batch_size_sum"] >= 9
    assert 1 <= commits <= 9
    assert seen.grown == {
        **CONNECT,
        **LEFT,
        "commands_total{subscribe}": 1,
        "commands_total{publish}": 5,
        "publications_total": 9,
        "api_calls_total{broadcast}": 1,
        "api_calls_total{publish}": 2,
        # connect, subscribe, five replies, seven pushes
        "messages_sent_total": 14,
    }


async def test_calls_of_the_api_and_why_they_were_refused(
    server: Server,
) -> None:
    async with change(server) as seen:
        for body, code in (({}, 107), ({"channel": "no:such", "data": 1}, 102)):
            with pytest.raises(ApiError) as refused:
                await seen.api.call("publish", body)
            assert refused.value.code == code
        await seen.api.call("info", {})
        for key in ("wrong", ""):
            assert (await seen.api.post("info", {}, key=key)).status == 401
    assert seen.grown == {
        "api_calls_total{publish}": 2,
        "api_calls_total{info}": 1,
        "api_errors_total{107}": 1,
        "api_errors_total{102}": 1,
        "api_unauthorized_total": 2,
    }


async def test_who_is_turned_away_at_the_door(server: Server) -> None:
    async with change(server) as seen:
        for _ in range(4):
            with pytest.raises(HandshakeRefused):
                headers = {"Origin": "https://elsewhere.example"}
                await RawClient.open(server.port, headers=headers)
    assert seen.grown == {"connections_refused_total{origin}": 4}


@pytest.mark.parametrize("policy", ["evict_lru", "reject"])
async def test_the_limit_of_connections_without_a_user(
    make_server: Callable[..., Server], policy: str
) -> None:
    server = await make_server(
        {
            "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "2",
            "STEADWIRE_CONNECTIONS_POLICY": policy,
        }
    ).start()
    async with change(server) as seen:
        clients = [await server.raw() for _ in range(2)]
        third = await server.raw(connected=False)
        await third.send({"id": 1, "connect": {}})
        # A client that reads answers the probe.
        reading = [asyncio.create_task(client.message()) for client in clients]
        assert (await third.closed()).code == 3013
        for task in reading:
            task.cancel()
        for client in (*clients, third):
            client.reset()
    seen.pop("messages_sent_total")
    assert seen.grown == {
        "connections_opened_total": 3,
        "commands_total{connect}": 3,
        "auth_total{admitted}": 3,  # whoever the user is
        "closes_total{3013}": 1,
        "closes_total{client}": 2,
        "connects_total{ok}": 2,
        "connects_total{refused}": 1,
        "admissions_refused_total{process}": 1,
        "commands_total{pong}": 2,
        "pings_total{sent}": 2,
        "pings_total{answered}": 2,
        "ping_rtt_seconds_count": 2,
    }


@pytest.mark.requirement("B58", "B60")
async def test_every_message_was_sent_or_dropped(
    make_server: Callable[..., Server],
) -> None:
    settings = {
        "STEADWIRE_CLIENT_QUEUE_SIZE": str(256 * 1024),
        "STEADWIRE_CLIENT_RECOVERY_SIZE": str(64 * 1024),
        "STEADWIRE_CLIENT_WRITE_TIMEOUT": "60",
        "STEADWIRE_SERVER_ABORT_TIMEOUT": "1",
    }
    server = await make_server(settings).start()
    async with change(server) as seen:
        client = await server.raw(receive_buffer=4096)
        await client.subscribe("much")
        published = 0
        async with asyncio.timeout(90.0):
            while not (await scrape(seen.api)).labels("connections")["closing"]:
                async with asyncio.TaskGroup() as group:
                    for _ in range(10):
                        group.create_task(seen.api.publish("much", "x" * 10_000))
                published += 10
        after = await scrape(seen.api)
        assert after["publications_total"] == published
        client.reset()
    sent, dropped = (
        seen.pop("messages_sent_total"),
        seen.pop("messages_dropped_total{slow}"),
    )
    assert dropped >= 256 * 1024 // 10_100
    # Publications after the overflow had no subscriber.
    assert published - 10 < sent - 2 + dropped <= published
    assert seen.pop("closes_total{3008}") == 1


async def test_connects_that_fail_for_a_fault_of_ours(
    make_server: Callable[..., Server],
) -> None:
    settings = {"STEADWIRE_PROXY_CONNECT": "http://127.0.0.1:9/nobody"}
    server = await make_server(settings).start()
    async with change(server) as seen, await server.raw(connected=False) as client:
        reply = await client.request(connect={})
        assert reply["error"]["code"] == 100
    assert seen.grown == {
        "connections_opened_total": 1,
        "commands_total{connect}": 1,
        "errors_total{100}": 1,
        "auth_total{unavailable}": 1,
        "hook_failures_total{connect}": 1,
        "connects_total{failed}": 1,
        "messages_sent_total": 1,
        **LEFT,
    }


@pytest.mark.requirement("R46", "B41")
async def test_a_store_that_fails_is_seen(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server({"STEADWIRE_STORE_LOCK_TIMEOUT": "0.1"}).start()
    path = server.settings["STEADWIRE_STORE_PATH"]
    async with server.api() as api:
        assert (await scrape(api)).labels("health")["store"] == 0
        with contextlib.closing(sqlite3.connect(path)) as thief:
            thief.execute("BEGIN IMMEDIATE")
            for health in (0, 2):  # the second one opens the breaker
                with pytest.raises(ApiError) as refused:
                    await api.publish("c", 1)
                assert refused.value.code == 100
                now = await scrape(api)
                assert now.labels("health")["store"] == health
            assert now["api_errors_total{100}"] == 2
            assert now["breaker_openings_total"] == 1
            assert now["breaker_recoveries_total"] == 0
            ready = await api.request("GET", "/health/ready")
            assert ready.status == 503
            assert ready.json["status"] == "unavailable"
            assert ready.json["checks"].keys() == {"store"}
            faults = await stats(api)
            assert faults["faults"]["store"]["failing"] is True
            thief.rollback()
        async with asyncio.timeout(10.0):
            while (await scrape(api)).labels("health")["store"]:
                await asyncio.sleep(0.01)
        assert (await stats(api))["faults"] == {}
        now = await scrape(api)
        assert now["breaker_recoveries_total"] == 1
        assert now.labels("breaker_state")["closed"] == 1
        await server.logged("the store can write again")


async def stats(api: Api) -> Any:
    response = await api.request("GET", "/stats", headers={"X-API-Key": api.key})
    return response.json


@pytest.mark.requirement("R46")
async def test_what_is_degraded_stays_in_service(
    make_server: Callable[..., Server], tmp_path: Any
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("")
    server = await make_server({"STEADWIRE_API_KEYS_FILE": str(file)}).start()
    async with server.api() as api:
        assert (await api.request("GET", "/health/ready")).json == {"status": "ready"}
        file.write_text("no keys")
        async with asyncio.timeout(10.0):
            while not (await scrape(api)).labels("health")["api_keys"]:
                await asyncio.sleep(0.05)
        ready = await api.request("GET", "/health/ready")
        assert ready.status == 200
        assert ready.json["status"] == "degraded"
        assert ready.json["checks"].keys() == {"api_keys"}


@pytest.mark.requirement("R11")
async def test_a_scrape_under_load_is_true(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server().start()
    rounds, each = 12, 40
    async with server.api() as api:
        before = await quiet(api)
        done = asyncio.Event()
        scrapes = 0

        async def look() -> None:
            nonlocal scrapes
            async with server.api() as own:
                while not done.is_set():
                    now = await scrape(own)
                    scrapes += 1
                    grown = now.since(before)
                    opened = grown.get("connections_opened_total", 0)
                    closed = sum(
                        value
                        for name, value in grown.items()
                        if name.startswith("closes_total")
                    )
                    states = now.labels("connections")
                    assert sum(states.values()) == opened - closed
                    assert now["users"] == (1 if states["connected"] else 0)
                    assert now["subscriptions"] <= opened - closed
                    connected = grown.get("connects_total{ok}", 0)
                    assert connected <= opened

        async def churn(number: int) -> None:
            for turn in range(rounds):
                client = await server.raw(connected=bool((number + turn) % 4))
                if (number + turn) % 4:
                    await client.subscribe("busy")
                client.reset()

        watcher = asyncio.create_task(look())
        await asyncio.gather(*(churn(number) for number in range(each)))
        done.set()
        await watcher
        grown = (await quiet(api)).since(before)
    assert scrapes > 5
    total = rounds * each
    assert grown["connections_opened_total"] == total
    assert grown["connects_total{ok}"] == total * 3 // 4
    assert grown["connects_total{abandoned}"] == total // 4
    assert grown["closes_total{client}"] == total
    assert grown["commands_total{subscribe}"] == total * 3 // 4


@pytest.mark.slow
@pytest.mark.requirement("R28", "R30", "R37")
async def test_levels_of_a_heartbeat(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(
        {
            "STEADWIRE_CLIENT_PING_INTERVAL": "1.5",
            "STEADWIRE_CLIENT_PONG_TIMEOUT": "1",
            "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "8",
        }
    ).start()

    async def level(api: Api, name: str, count: int) -> None:
        async with asyncio.timeout(60.0):
            while (await scrape(api)).labels("heartbeat_level")[name] != count:
                await asyncio.sleep(0.02)

    async with change(server) as seen:
        client = await server.raw(connected=False)
        name = (await client.connect())["client"]
        assert (await stats(seen.api))["connections"] == {
            "total": 1,
            "alive": 1,
            "pending": 0,
            "closing": 0,
            "levels": {"healthy": 1},
            "pending_pings": 0,
            "queued_bytes": 0,
        }
        await level(seen.api, "degraded", 1)  # it does not read, nor answer
        await client.send({"id": 5, "presence": {"channel": "c"}})
        await level(seen.api, "healthy", 1)
        await level(seen.api, "suspect", 1)
        await level(seen.api, "dead", 1)
        now = await scrape(seen.api)
        pings = now.labels("pings_total")
        assert pings["sent"] == pings["answered"] + pings["orphaned"]
        await level(seen.api, "dead", 0)  # forgotten after twice the timeout
        client.reset()
    assert seen.pop("pings_total{sent}") == seen.pop("pings_total{orphaned}") >= 4
    seen.pop("messages_sent_total")
    assert seen.grown == {
        **CONNECT,
        "commands_total{presence}": 1,
        "heartbeat_steps_total{degraded}": 2,
        "heartbeat_steps_total{healthy}": 1,
        "heartbeat_steps_total{suspect}": 1,
        "heartbeat_steps_total{dead}": 1,
        "closes_total{3012}": 1,
    }
    await server.logged("connection closed")
    events = [line["event"] for line in server.log() if line.get("connection") == name]
    assert events == [
        "connection opened",
        "connection connected",
        "connection degraded",
        "connection resurrected",
        "connection degraded",
        "connection suspect",
        "connection dead",
        "connection closed",
    ]


async def test_tokens_by_what_became_of_them(
    make_server: Callable[..., Server],
) -> None:
    secret = "a secret of thirty-two bytes or more"
    server = await make_server(
        {
            "STEADWIRE_TOKEN_HMAC_SECRET_KEY": secret,
            "STEADWIRE_CLIENT_INSECURE": "false",
        }
    ).start()

    def token(seconds: int) -> str:
        claims = {"sub": "ann", "exp": int(time.time()) + seconds}
        return jwt.encode(claims, secret, "HS256")

    async with change(server) as seen:
        async with await server.raw(connected=False) as client:
            await client.connect(token=token(60))
            assert (await scrape(seen.api))["users"] == 1
        async with await server.raw(connected=False) as client:
            reply = await client.request(connect={"token": token(-60)})
            assert reply["error"]["code"] == 109
        for wrong in ("none", token(60)[:-3] + "AAA"):
            async with await server.raw(connected=False) as client:
                await client.send({"id": 1, "connect": {"token": wrong}})
                assert (await client.closed()).code == 3500
        async with await server.raw(connected=False) as client:
            await client.send({"id": 1, "connect": {}})
            assert (await client.closed()).code == 3501
    seen.pop("messages_sent_total")
    assert seen.grown == {
        "connections_opened_total": 5,
        "commands_total{connect}": 5,
        "parkings_total{none}": 1,
        "auth_total{admitted}": 1,
        "auth_total{expired}": 1,
        "auth_total{refused}": 3,
        "connects_total{ok}": 1,
        "connects_total{refused}": 4,
        "errors_total{109}": 1,
        "closes_total{3500}": 2,
        "closes_total{3501}": 1,
        "closes_total{client}": 2,
    }
    log = server.output()
    assert token(60).split(".")[0] not in log  # R47
    assert secret not in log


async def test_rates_of_commands(make_server: Callable[..., Server]) -> None:
    settings = {
        "STEADWIRE_LIMITS_COMMANDS_PER_CONNECTION": "1",
        "STEADWIRE_LIMITS_BURST": "5",
    }
    server = await make_server(settings).start()
    async with change(server) as seen, await server.raw() as client:
        commands = [
            {"id": number, "presence_stats": {"channel": "c"}}
            for number in range(101, 109)
        ]
        await client.send(*commands)
        codes = [
            (await client.message()).get("error", {}).get("code") for _ in range(8)
        ]
    refused = codes.count(111)
    assert 1 <= refused <= 4
    seen.pop("messages_sent_total")
    assert seen.grown == {
        **CONNECT,
        **LEFT,
        "commands_total{presence_stats}": 8,
        "commands_refused_total{answered}": refused,
        "errors_total{111}": refused,
        **{f"errors_total{{{code}}}": codes.count(code) for code in codes if code},
    }


async def test_reads_that_memory_could_not_answer(server: Server, channel: str) -> None:
    # Where nothing was published, SQLite knows without a read, but not beside what was.
    names = (Channel(f"{channel}-{number}") for number in itertools.count())
    slot = slot_of(Channel(channel))
    beside = next(name for name in names if slot_of(name) == slot)
    async with server.api() as api:
        await api.publish(beside, {})
        before = (await scrape(api))["store_reads_total"]
        for _ in range(3):
            await api.history(channel)  # the first finds nothing in memory
        assert (await scrape(api))["store_reads_total"] == before + 1
        states = (await scrape(api)).labels("breaker_state")
        assert states == {"closed": 1, "open": 0, "half-open": 0}


async def test_messages_that_no_websocket_may_send(server: Server) -> None:
    async with change(server) as seen, await server.raw() as client:
        await client.send_text("x" * 100_000)
        assert (await client.closed()).code == 1009
    seen.pop("messages_sent_total")
    assert seen.grown == {**CONNECT, "closes_total{1009}": 1}


@pytest.mark.requirement("R7")
async def test_the_sweep_says_when_it_ran(
    make_server: Callable[..., Server],
) -> None:
    settings = {"STEADWIRE_CONNECTIONS_SWEEP_INTERVAL": "0.2"}
    server = await make_server(settings).start()
    async with server.api() as api:
        started = time.time()
        async with asyncio.timeout(20.0):
            while (now := await scrape(api))["sweeps_total"] < 3:
                await asyncio.sleep(0.02)
        assert started - 60 < now["last_sweep_timestamp_seconds"] < time.time() + 60
        found = {"idle": 0, "aborted": 0, "repaired": 0, "failed": 0}
        assert now.labels("swept_total") == found
        assert "sweep" in now.labels("health")
