"""The fault proxy on real sockets: every byte, in order, under every fault but an end.

Times are a virtual clock's, so a delay is exact and takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from tests.clock import VirtualClock
from tests.faultproxy import PROFILES, FaultProxy, Profile
from tests.faultproxy import proxy as module
from tests.harness.sockets import TcpClient

pytestmark = pytest.mark.timeout(30)

KIB = 1024
BYTES = random.Random(1).randbytes(200 * KIB)


class Peer:
    """A server that takes connections when it is asked to, and reads nothing itself."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]

    async def accept(self) -> TcpClient:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        sock.setblocking(False)
        return TcpClient(sock)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    made.listener.close()


async def through(proxy: FaultProxy, peer: Peer) -> tuple[TcpClient, TcpClient]:
    """Return both ends of a new connection."""
    client = await TcpClient.connect(proxy.port)
    return client, await peer.accept()


async def exchanged(client: TcpClient, server: TcpClient) -> None:
    """Send different bytes both ways at once, and compare them."""
    back = BYTES[::-1]
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(BYTES))
        group.create_task(server.send(back))
        arrived = group.create_task(server.read_exactly(len(BYTES)))
        returned = group.create_task(client.read_exactly(len(back)))
    assert arrived.result() == BYTES
    assert returned.result() == back


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def nothing_to_read(tcp: TcpClient) -> bool:
    with contextlib.suppress(BlockingIOError):
        tcp.sock.recv(1, socket.MSG_PEEK)
        return False
    return True


@contextlib.asynccontextmanager
async def advancing(clock: VirtualClock) -> AsyncIterator[None]:
    """Let the clock run, a millisecond in each turn of the loop."""

    async def run() -> None:
        while True:
            await asyncio.sleep(0)
            clock.advance(0.001)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("name", [*PROFILES, "throttled"])
async def test_every_byte_arrives_in_order(peer: Peer, name: str) -> None:
    throttled = Profile(rate=50_000.0)
    profile = PROFILES.get(name, throttled)
    calm = Profile(
        delay=profile.delay,
        jitter=profile.jitter,
        loss=profile.loss,
        rate=profile.rate,
    )
    clock = VirtualClock(now=0.0)
    async with (
        FaultProxy(peer.port, profile=calm, seed=7, clock=clock) as proxy,
        advancing(clock),
    ):
        client, server = await through(proxy, peer)
        await exchanged(client, server)
        for tcp, other in ((client, server), (server, client)):
            tcp.sock.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError, match="0 bytes unread"):
                await other.read_exactly(1)
        await until(lambda: not proxy.links)
        assert proxy.up.forwarded == proxy.down.forwarded == len(BYTES)


@pytest.mark.requirement("L24")
async def test_faults_that_change_all_the_time_lose_nothing(peer: Peer) -> None:
    rng = random.Random(11)
    clock = VirtualClock(now=0.0)

    async def change(proxy: FaultProxy) -> None:
        while True:
            fault = rng.choice(["stall", "resume", "throttle", "profile"])
            direction = rng.choice([(), (proxy.up,), (proxy.down,)])
            if fault == "stall":
                proxy.stall(*direction)
            elif fault == "resume":
                proxy.resume()
            elif fault == "throttle":
                proxy.throttle(rng.choice([None, 20_000.0, 1e6]), *direction)
            else:
                name = rng.choice(["clear", "stable", "unstable"])
                proxy.impair(PROFILES[name], *direction)
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)

    async with FaultProxy(peer.port, seed=3, clock=clock) as proxy, advancing(clock):
        client, server = await through(proxy, peer)
        changing = asyncio.create_task(change(proxy))
        await exchanged(client, server)
        changing.cancel()


async def test_a_segment_arrives_after_its_delay_and_not_before(peer: Peer) -> None:
    clock = VirtualClock(now=0.0)
    profile = Profile(delay=0.25)
    async with FaultProxy(peer.port, profile=profile, seed=7, clock=clock) as proxy:
        client, server = await through(proxy, peer)
        await until(lambda: bool(proxy.links))
        (link,) = proxy.links
        await client.send(b"one")
        await until(lambda: link.up.queued == 3)
        clock.advance(0.1875)
        await asyncio.sleep(0)
        assert link.up.queued == 3 and nothing_to_read(server)
        clock.advance(0.0625)
        assert await server.read_exactly(3) == b"one"


@pytest.mark.requirement("L24")
async def test_a_lost_segment_holds_back_what_comes_after_it(peer: Peer) -> None:
    # Of this seed the first segment is lost once, and the second is not.
    clock = VirtualClock(now=0.0)
    profile = Profile(loss=0.2)
    seed = SEED_OF_ONE_LOSS
    async with FaultProxy(peer.port, profile=profile, seed=seed, clock=clock) as proxy:
        client, server = await through(proxy, peer)
        await until(lambda: bool(proxy.links))
        (link,) = proxy.links
        await client.send(b"a")
        await until(lambda: link.up.queued == 1)
        clock.advance(0.125)
        await client.send(b"b")
        await until(lambda: link.up.queued == 2)
        clock.advance(0.0625)
        await asyncio.sleep(0)
        assert link.up.queued == 2 and nothing_to_read(server)
        clock.advance(0.0125)
        assert await server.read_exactly(2) == b"ab"


SEED_OF_ONE_LOSS = 0


async def test_a_rate_is_bytes_over_time(peer: Peer) -> None:
    clock = VirtualClock(now=0.0)
    async with FaultProxy(peer.port, seed=7, clock=clock) as proxy:
        proxy.throttle(1460.0, proxy.up)
        client, server = await through(proxy, peer)
        await client.send(bytes(3 * 1460))
        await until(lambda: bool(proxy.links))
        (link,) = proxy.links
        await until(lambda: link.up.queued == 3 * 1460)
        for second in range(1, 4):
            clock.advance(1.0)
            await server.read_exactly(1460 * second - server.bytes_read)
        assert proxy.up.forwarded == 3 * 1460


@pytest.mark.parametrize("fault", ["stall", "delay"])
async def test_what_is_held_is_bounded(peer: Peer, fault: str) -> None:
    clock = VirtualClock(now=0.0)
    async with FaultProxy(peer.port, seed=7, buffer=8 * KIB, clock=clock) as proxy:
        if fault == "delay":
            proxy.impair(Profile(delay=60.0))
        client, server = await through(proxy, peer)
        await until(lambda: bool(proxy.links))
        (link,) = proxy.links
        if fault == "stall":
            # A sink that takes nothing: the peer does not read.
            server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        sending = asyncio.create_task(client.send(bytes(16 * KIB * KIB)))
        await until(lambda: link.up.queued == 8 * KIB)
        for _ in range(1000):
            await asyncio.sleep(0)
            assert link.up.queued <= 8 * KIB
        assert not sending.done()
        sending.cancel()


async def test_a_stall_of_one_direction_leaves_the_other(peer: Peer) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        client, server = await through(proxy, peer)
        proxy.stall(proxy.down)
        await server.send(b"answer")
        await client.send(b"question")
        assert await server.read_exactly(8) == b"question"
        assert nothing_to_read(client)
        proxy.resume()
        assert await client.read_exactly(6) == b"answer"


async def test_a_black_hole_swallows_bytes_and_ends(peer: Peer) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        client, server = await through(proxy, peer)
        proxy.black_hole(proxy.up)
        await client.send(b"lost")
        await until(lambda: proxy.up.swallowed == 4)
        client.sock.shutdown(socket.SHUT_WR)
        await server.send(b"down")
        assert await client.read_exactly(4) == b"down"
        assert nothing_to_read(server)
        proxy.resume()  # connections to come are as ever
        again, there = await through(proxy, peer)
        await exchanged(again, there)


async def test_what_follows_swallowed_bytes_is_swallowed(peer: Peer) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        client, server = await through(proxy, peer)
        proxy.black_hole()
        await client.send(b"lost")
        await until(lambda: proxy.up.swallowed == 4)
        proxy.resume()
        await client.send(b"too")
        await until(lambda: proxy.up.swallowed == 7)
        assert nothing_to_read(server)
        await server.send(b"down")  # this direction has lost nothing
        assert await client.read_exactly(4) == b"down"


async def test_a_half_close_ends_one_direction_after_its_bytes(peer: Peer) -> None:
    clock = VirtualClock(now=0.0)
    async with FaultProxy(
        peer.port, profile=Profile(delay=0.1), seed=7, clock=clock
    ) as proxy:
        client, server = await through(proxy, peer)
        await until(lambda: bool(proxy.links))
        (link,) = proxy.links
        await server.send(b"last")
        await until(lambda: link.down.queued == 4)
        proxy.half_close(proxy.down)
        proxy.half_close(proxy.down)
        await server.send(b"dropped")
        async with advancing(clock):
            with pytest.raises(EOFError, match="4 bytes unread"):
                await client.read_exactly(5)
            await client.send(BYTES)
            assert await server.read_exactly(len(BYTES)) == BYTES
            server.close()
            client.close()
            await until(lambda: not proxy.links)


@pytest.mark.requirement("L24")
@pytest.mark.parametrize("fault", ["cut", "reset"])
async def test_a_cut_ends_in_order_and_a_reset_does_not(peer: Peer, fault: str) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        ends = await through(proxy, peer)
        await exchanged(*ends)
        getattr(proxy, fault)()
        for end in ends:
            expected = EOFError if fault == "cut" else ConnectionResetError
            with pytest.raises(expected):
                await end.read_exactly(1)
        assert not proxy.links
        await exchanged(*await through(proxy, peer))


async def test_connections_are_cut_at_their_seeded_times(peer: Peer) -> None:
    profile = Profile(cut_every=10.0)
    lives = []
    for _ in range(2):
        clock = VirtualClock(now=0.0)
        async with FaultProxy(peer.port, profile=profile, seed=7, clock=clock) as proxy:
            ends = [await through(proxy, peer) for _ in range(5)]
            await until(lambda proxy=proxy: len(proxy.links) == 5)
            times = []
            while proxy.links:
                before = len(proxy.links)
                clock.advance(0.01)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                times += [round(clock.now(), 2)] * (before - len(proxy.links))
            for end in (end for pair in ends for end in pair):
                with pytest.raises(EOFError):
                    await end.read_exactly(1)
            lives.append(times)
    assert lives[0] == lives[1] and len(lives[0]) == 5


async def test_no_target_is_a_reset(peer: Peer) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        peer.listener.close()
        client = await TcpClient.connect(proxy.port)
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.read_exactly(1)
        assert not proxy.links


async def test_one_connection_too_many_is_reset(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINKS", 2)
    async with FaultProxy(peer.port, seed=7) as proxy:
        first = await through(proxy, peer)
        await through(proxy, peer)
        third = await TcpClient.connect(proxy.port)
        with pytest.raises(ConnectionResetError):
            await third.read_exactly(1)
        await exchanged(*first)


async def test_what_is_held_comes_after_the_release(peer: Peer) -> None:
    async with FaultProxy(peer.port, seed=7) as proxy:
        proxy.hold()
        client, server = await through(proxy, peer)
        await client.send(b"first")
        assert await server.read_exactly(5) == b"first"
        await client.send(b"second")
        await until(lambda: proxy.held == 1)
        assert nothing_to_read(server)
        await proxy.release()
        assert await server.read_exactly(6) == b"second"
        await exchanged(client, server)
