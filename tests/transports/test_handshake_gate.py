"""The handshake gate on real sockets: refusals, and clients that are let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.http2 import Stream
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import Server
from tests.harness.sockets import TcpClient

BEHIND_A_PROXY = {"STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]'}


def limits(**settings: float) -> dict[str, str]:
    return {
        f"STEADWIRE_LIMITS_{name.upper()}": str(value)
        for name, value in settings.items()
    }


# One server behind a proxy, so that each test has addresses of its own.
server = server_with(
    {
        **BEHIND_A_PROXY,
        "STEADWIRE_SERVER_ORIGINS": json.dumps(
            ["https://chat.example.org", "https://*.example.com"]
        ),
        # One in 1,000 s: nobody's bucket fills while the tests run.
        **limits(connects_per_address=0.001, burst=4000),
        **limits(unauthenticated=6, unauthenticated_per_address=3),
        **limits(commands_per_connection=0.01),
    }
)


async def refused(server: Server, **headers: str) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        await RawClient.open(
            server.port, headers={n.replace("_", "-"): v for n, v in headers.items()}
        )
    return caught.value


@pytest.mark.requirement("B110")
async def test_connects_of_an_address_over_its_rate(server: Server) -> None:
    ours = {"X-Forwarded-For": "192.0.2.1"}
    for _ in range(4):
        async with await server.raw(headers=ours):
            pass
    for claimed in ("192.0.2.1", "198.51.100.9, 192.0.2.1", "garbage, 192.0.2.1"):
        refusal = await refused(server, X_Forwarded_For=claimed)
        assert refusal.status == 429
        head = refusal.head.lower().splitlines()
        [wait] = [line for line in head if line.startswith("retry-after: ")]
        assert 900 < int(wait.removeprefix("retry-after: ")) <= 1000
    # Nobody else is.
    async with await server.raw(headers={"X-Forwarded-For": "192.0.2.2"}) as other:
        await other.subscribe("ch")
    # Addresses of one /64 are one.
    for number in range(4):
        v6 = {"X-Forwarded-For": f"2001:db8::{number}"}
        async with await server.raw(headers=v6):
            pass
    assert (await refused(server, X_Forwarded_For="2001:db8::9:9:9:9")).status == 429
    async with await server.raw(headers={"X-Forwarded-For": "2001:db8:0:1::1"}):
        pass


@pytest.mark.requirement("B110")
async def test_a_claimed_address_changes_nothing(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(limits(connects_per_address=0.001, burst=3000))
    await server.start()
    for number in range(3):
        claimed = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": "for=192.0.2.9"}
        async with await server.raw(headers=claimed):
            pass
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP"):
        assert (await refused(server, **{name: "192.0.2.77"})).status == 429
    await server.logged('"cause": "connects"')
    assert server.output().count('"cause": "connects"') == 1
    assert "192.0.2" not in server.output()


@pytest.mark.requirement("B97", "B99")
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://chat.example.org", 101),
        ("https://a.b.example.com", 101),
        ("http://localhost:{port}", 101),  # any page of this machine, in development
        ("http://localhost:5173", 101),
        ("http://127.0.0.1:{port}", 101),
        ("https://example.com", 403),
        ("http://chat.example.org", 403),
        ("https://evil.example", 403),
        ("https://chat.example.org.evil.example", 403),
        ("null", 403),
        ("https://" + "a." * 3000 + "example.com", 403),
    ],
)
async def test_origins(server: Server, origin: str, status: int) -> None:
    headers = {
        "Origin": origin.format(port=server.port),
        "X-Forwarded-For": f"198.51.100.{len(origin) % 250}",
    }
    if status == 101:
        async with await server.raw(headers=headers) as client:
            await client.subscribe("ch")
    else:
        with pytest.raises(HandshakeRefused) as caught:
            await server.raw(headers=headers)
        assert caught.value.status == status


async def test_two_origins_are_refused(server: Server) -> None:
    good = "https://chat.example.org"
    both = {"Origin": good, "origin": good, "X-Forwarded-For": "192.0.2.20"}
    assert (await refused(server, **both)).status == 403


async def test_sockets_that_do_not_connect_of_one_address(server: Server) -> None:
    ours = {"X-Forwarded-For": "192.0.2.30"}
    waiting = [await server.raw(connected=False, headers=ours) for _ in range(3)]
    refusal = await refused(server, X_Forwarded_For="192.0.2.30")
    assert (refusal.status, "retry-after: 1" in refusal.head.lower()) == (429, True)
    # Nobody else is refused.
    other = {"X-Forwarded-For": "192.0.2.31"}
    async with await server.raw(headers=other) as client:
        await client.subscribe("ch")
    for client in waiting:
        client.tcp.close()


async def test_who_connects_makes_room(server: Server) -> None:
    ours = {"X-Forwarded-For": "192.0.2.40"}
    one, two = [await server.raw(connected=False, headers=ours) for _ in range(2)]
    await one.connect()
    async with await server.raw(connected=False, headers=ours) as third:
        await two.connect()
        await third.connect()
    one.tcp.close()
    two.tcp.close()


async def test_of_too_many_the_one_that_has_waited_longest_goes(server: Server) -> None:
    opened = []
    for number in range(6):
        headers = {"X-Forwarded-For": f"192.0.2.{50 + number // 3}"}
        opened.append(await server.raw(connected=False, headers=headers))
    # A client that connects at once gets in, and pushes out only the silent one.
    async with await server.raw(headers={"X-Forwarded-For": "192.0.2.60"}) as late:
        await late.subscribe("ch")
    end = await opened[0].closed()
    assert (end.code, end.reason) == (3013, "too many requests")
    for client in opened[1:]:
        await client.connect()
    for client in opened:
        client.tcp.close()


@pytest.mark.requirement("B117")
async def test_a_flood_of_commands_is_refused_and_then_ended(
    server: Server, channel: str
) -> None:
    # 40 at once, and then one in 100 s.
    bystander = await server.raw(headers={"X-Forwarded-For": "192.0.2.70"})
    await bystander.subscribe(channel)
    client = await server.raw(headers={"X-Forwarded-For": "192.0.2.71"})
    await client.subscribe(channel)
    numbers = range(10, 510)
    await client.send(
        *({"id": n, "presence_stats": {"channel": channel}} for n in numbers)
    )
    end = await client.closed()
    assert (end.code, end.reason) == (3013, "too many requests")
    replies = [m for m in client.pushes if "id" in m]
    assert [m["id"] for m in replies] == list(range(10, 10 + 39 + 40))
    stats = {"num_clients": 2, "num_users": 1}
    assert [m.get("presence_stats") for m in replies[:39]] == [stats] * 39
    too_many = {"code": 111, "message": "too many requests", "temporary": True}
    assert [m.get("error") for m in replies[39:]] == [too_many] * 40
    client.tcp.close()
    # The others' rates are their own.
    for number in range(1, 21):
        assert await bystander.publish(channel, number) == {}
    await bystander.publications(channel, 20)
    bystander.tcp.close()


async def test_a_websocket_over_http2_is_refused_too(
    make_server: Callable[..., Server],
) -> None:
    settings = limits(connects_per_address=0.001, burst=1000)
    server = make_server({**settings, "STEADWIRE_SERVER_CLEARTEXT_HTTP2": "true"})
    await server.start()
    statuses = []
    for _ in range(2):
        stream = Stream(await TcpClient.connect(server.port))
        async with asyncio.timeout(10.0):
            await stream.open(server.port, "/connection/websocket")
        statuses.append(stream.status)
        stream.tcp.close()
    assert statuses == [b"200", b"429"]


async def test_what_is_refused_is_counted_and_logged_once(
    make_server: Callable[..., Server],
) -> None:
    settings = limits(connects_per_address=0.001, burst=1000)
    server = make_server({**BEHIND_A_PROXY, **settings})
    await server.start()
    secret = "Bearer very-secret"
    await refused(server, Origin="https://evil.example/x", Authorization=secret)
    for _ in range(19):
        await refused(server, Cookie=secret)
    await server.logged('"cause": "connects"')
    output = server.output()
    assert output.count('"event": "refused"') == 2
    assert output.count('"cause": "origin"') == output.count('"cause": "connects"') == 1
    assert "very-secret" not in output
    origin = next(line for line in server.log() if line.get("cause") == "origin")
    assert origin["origin"] == "https://evil.example/x"
    assert origin["remedy"] == "add the origin to server.origins"
    async with server.api() as api:
        key = {"X-API-Key": server.key}
        text = (await api.request("GET", "/metrics", headers=key)).body.decode()
    assert 'steadwire_connections_refused_total{cause="origin"} 1.0' in text
    assert 'steadwire_connections_refused_total{cause="connects"} 19.0' in text
    assert await server.terminate() == 0
    assert '"not_logged": 18' in server.output()


async def test_a_socket_that_does_not_connect_is_closed_as_stale(
    make_server: Callable[..., Server],
) -> None:
    server = make_server({"STEADWIRE_CLIENT_STALE_TIMEOUT": "0.5"})
    await server.start()
    silent = await server.raw(connected=False)
    pinging = await server.raw(connected=False)
    half = await server.raw(connected=False)
    await pinging.send_frame(0x9, b"ping")
    await half.tcp.send(b"\x81\xfe\xff\xff")
    ends = await asyncio.gather(*(c.closed() for c in (silent, half)))
    assert [(end.code, end.reason) for end in ends] == [(3502, "stale")] * 2
    assert (await pinging.frame()).opcode == 0xA
    assert (await pinging.closed()).code == 3502
    for client in (silent, pinging, half):
        client.tcp.close()


async def test_a_client_that_was_refused_comes_back(
    make_server: Callable[..., Server], make_client: Callable[..., Any]
) -> None:
    # One a second, and one at once: the second client is refused, and then it is not.
    server = make_server(limits(connects_per_address=1, burst=1))
    await server.start()
    first = await make_client(server.url)
    second = await make_client(server.url)
    await asyncio.gather(first.connect(), second.connect())
    await server.logged('"cause": "connects"')
    assert server.output().count('"cause": "connects"') == 1
