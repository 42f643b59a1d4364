"""Frame quota: exact counts of frames, and of bytes in a turn of the event loop."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from service.connections.frame_quota import (
    BEFORE_CONNECT,
    PORTION,
    RATE,
    READ,
    FrameQuota,
)
from service.core.address_shares import SHARE, AddressShares
from service.core.errors import TOO_MANY_REQUESTS_CLOSE, Close
from tests.clock import VirtualClock


class Socket:
    """A quota, and how often it called."""

    def __init__(self, clock: VirtualClock) -> None:
        self.heard = self.closed = self.refused = 0
        self.quota = FrameQuota(
            "a", AddressShares(asyncio.get_running_loop), clock, self._refuse
        )
        self.quota.listen(self._hear, self._close)

    def _hear(self) -> None:
        self.heard += 1

    def _close(self, close: Close) -> None:
        assert close is TOO_MANY_REQUESTS_CLOSE
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
    shares = AddressShares(asyncio.get_running_loop)
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
    turns = await turns_of(["bad"] * 95 + ["good"], reads=4, size=SHARE // 2)
    assert sum(turn.count("bad") for turn in turns) == 95 * 4
    # A turn of ours may begin in the middle of one of the loop's, hence two shares.
    assert max(turn.count("bad") for turn in turns) <= 2 * 2
    assert sum(turn.count("good") for turn in turns[:8]) == 4


async def test_what_is_more_than_a_share_is_owed() -> None:
    turns = await turns_of(["bad"] * 5 + ["good"], reads=1, size=4 * SHARE)
    found = [number for number, turn in enumerate(turns) if "bad" in turn]
    assert len(found) == 5
    # The first takes its own at once; who waits is woken, and runs a turn later.
    assert {later - sooner for sooner, later in pairwise(found[1:])} == {4}
    assert "good" in turns[found[0]]


async def test_small_reads_count_for_their_own_work() -> None:
    turns = await turns_of(["bad"] * 200, reads=2, size=1)
    assert sum(map(len, turns)) == 400
    assert max(map(len, turns)) <= 2 * SHARE // READ


async def test_portions_of_commands_share_a_turn_in_order() -> None:
    shares = AddressShares(asyncio.get_running_loop)
    loop = asyncio.get_running_loop()
    turns: list[list[int]] = [[]]
    done = loop.create_future()

    def turn() -> None:
        turns.append([])
        if len(turns) < 60:
            loop.call_soon(turn)
        else:
            done.set_result(None)

    loop.call_soon(turn)
    for number in range(40):
        quota = FrameQuota("a", shares, VirtualClock(), lambda: None)
        quota.call_soon(lambda number=number: turns[-1].append(number))
    FrameQuota("b", shares, VirtualClock(), lambda: None).call_soon(
        lambda: turns[-1].append(99)
    )
    await done
    assert 99 in turns[1]
    handled = [number for turn in turns for number in turn if number != 99]
    assert handled == list(range(40))
    assert max(map(len, turns)) == 1 + SHARE // PORTION


async def test_who_waits_may_be_gone() -> None:
    shares = AddressShares(asyncio.get_running_loop)
    quota = FrameQuota("a", shares, VirtualClock(), lambda: None)
    assert quota.read(SHARE) is None
    served: list[int] = []

    async def read(number: int) -> None:
        later = quota.read(SHARE)
        if later is not None:
            await later
        served.append(number)

    tasks = [asyncio.ensure_future(read(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [0, 2, 3]
    for _ in range(5):
        await asyncio.sleep(0)
    assert quota.read(SHARE) is None
