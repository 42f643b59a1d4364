"""Frame quota: exact counts of frames, and of bytes in a turn of the event loop."""

from __future__ import annotations

import asyncio

from service.connections.frame_quota import (
    BEFORE_CONNECT,
    RATE,
    SHARE,
    AddressShares,
    FrameQuota,
)
from tests.clock import VirtualClock


class Socket:
    """A quota, and how often it called."""

    def __init__(self, clock: VirtualClock) -> None:
        self.heard = self.closed = self.refused = 0
        self.quota = FrameQuota("a", AddressShares(), clock, self._refuse)
        self.quota.listen(self._hear, self._close)

    def _hear(self) -> None:
        self.heard += 1

    def _close(self) -> None:
        self.closed += 1

    def _refuse(self) -> None:
        self.refused += 1

    def send(self, count: int, size: int = 0) -> int:
        return sum(self.quota.take(size) for _ in range(count))


async def test_a_socket_that_does_not_connect_has_eight_frames() -> None:
    clock = VirtualClock()
    socket = Socket(clock)
    assert BEFORE_CONNECT == 8
    assert socket.send(20, size=512) == 20  # large fragments are free
    assert socket.send(8) == 8
    assert (socket.heard, socket.closed) == (28, 0)
    clock.advance(3600)
    assert socket.send(100, size=511) == 0
    assert (socket.heard, socket.closed, socket.refused) == (28, 1, 1)
    assert socket.send(1, size=512) == 0  # it is over


async def test_a_connected_socket_has_a_rate() -> None:
    clock = VirtualClock()
    socket = Socket(clock)
    socket.send(8)
    socket.quota.connected()
    assert socket.send(int(RATE.burst)) == 100
    for _ in range(50):
        clock.advance(1.0)
        assert socket.send(10) == 10
    assert socket.closed == 0
    assert socket.send(2) == 0
    assert (socket.closed, socket.refused) == (1, 1)


async def turns_of(addresses: list[str], reads: int, size: int) -> list[list[str]]:
    """Return which addresses were handled in each turn, a socket an address named."""
    shares = AddressShares()
    loop = asyncio.get_running_loop()
    turns: list[list[str]] = [[]]

    def turn() -> None:
        turns.append([])
        loop.call_soon(turn)

    async def read(address: str) -> None:
        quota = FrameQuota(address, shares, VirtualClock(), lambda: None)
        for _ in range(reads):
            later = quota.read(size)
            if later is not None:
                await later
            turns[-1].append(address)
            await asyncio.sleep(0)

    ticking = loop.call_soon(turn)
    await asyncio.gather(*map(read, addresses))
    ticking.cancel()
    return turns


async def test_an_address_gets_its_share_of_a_turn_and_no_more() -> None:
    per_turn = SHARE // 4096
    turns = await turns_of(["bad"] * 95 + ["good"], reads=4, size=4096)
    assert sum(turn.count("bad") for turn in turns) == 95 * 4
    # A turn of ours may begin in the middle of one of the loop's, hence two shares.
    assert max(turn.count("bad") for turn in turns) <= 2 * per_turn
    last = max(number for number, turn in enumerate(turns) if "good" in turn)
    assert sum(turn.count("good") for turn in turns[:8]) == 4, last


async def test_small_reads_count_for_their_own_work() -> None:
    turns = await turns_of(["bad"] * 200, reads=2, size=1)
    assert sum(map(len, turns)) == 400
    assert max(map(len, turns)) <= 2 * SHARE // 128


async def test_who_waits_is_served_in_order_and_may_be_gone() -> None:
    shares = AddressShares()
    assert shares.take("a", SHARE)
    served: list[int] = []

    async def wait(number: int) -> None:
        await shares.wait("a", SHARE)
        served.append(number)

    tasks = [asyncio.ensure_future(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert not shares.take("a", 1)
    assert shares.take("b", 1)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [0, 2, 3]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert shares.take("a", 1)
