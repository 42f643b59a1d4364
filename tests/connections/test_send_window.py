"""The send window: how it finds the speed of a link, whatever that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.connections.flusher import Flusher
from service.connections.outbox import Outbox
from service.connections.send_window import FIRST, LATEST, SOONEST, STEP, SendWindow
from service.protocol.json import Json
from service.settings import ClientSettings
from tests.clock import VirtualClock

KiB = 1024
LIMIT = 256 * KiB


class Link:
    """A link of a speed, with a buffer before it that counts as the peer.

    Attributes:
        most: Bytes that were on their way at once, at the most.
    """

    def __init__(self, rate: float, buffer: int = 0, limit: int = LIMIT) -> None:
        self.clock = VirtualClock()
        self.rate = rate
        self.written = 0
        self.in_flight = 0.0
        self.buffered = 0.0
        self.buffer = buffer
        self.most = 0.0
        self._at = self.clock.now()
        self.opened = 0
        outbox = Outbox(
            self._send,
            self.clock,
            ClientSettings(),
            Json(),
            flusher=Flusher(lambda run: None, self.clock),
            progress=self.progress,
            drained=lambda: None,
            failed=lambda close: None,
        )
        self.outbox = outbox
        self.window = SendWindow(self.clock, limit, outbox, self.progress, self._opened)

    async def _send(self, frame: str | bytes) -> None:
        raise AssertionError("nothing is put")

    def _opened(self) -> None:
        self.opened += 1

    def write(self, size: int) -> None:
        self._flow()
        self.written += size
        self.in_flight += size
        self._fill()
        self.most = max(self.most, self.in_flight)

    def progress(self) -> tuple[int, int]:
        self._flow()
        return self.written, self.written - int(self.in_flight)

    def _flow(self) -> None:
        now = self.clock.now()
        carried = self.rate * (now - self._at)
        self._at = now
        gone = min(carried, self.buffered)
        self.buffered -= gone
        self._fill()
        self.in_flight -= min(carried - gone, self.in_flight)

    def _fill(self) -> None:
        taken = min(self.in_flight, self.buffer - self.buffered)
        self.in_flight -= taken
        self.buffered += taken

    def round(self) -> int:
        """Hand over all that the window takes; return how much that was."""
        size = self.window.left
        assert size > 0
        self.window.give(size)
        self.write(size)
        return size

    def rounds(self, count: int) -> list[int]:
        sizes = []
        for _ in range(count):
            while not self.window.is_open():
                [when] = self.clock.pending
                assert SOONEST <= when - self.clock.now() + 1e-9 <= LATEST + 1e-9
                opened = self.opened
                self.clock.advance(when - self.clock.now())
                assert self.opened == opened + 1
            sizes.append(self.round())
        return sizes


def test_the_first_round_is_small() -> None:
    link = Link(1e9)
    assert link.round() == FIRST == 16 * KiB
    assert link.window.left == 0
    assert not link.window.is_open()


def test_a_fast_link_has_all_of_the_window_after_four_steps() -> None:
    link = Link(1e9)
    began = link.clock.now()
    assert link.rounds(5) == [FIRST << n for n in range(5)]
    assert FIRST << 4 == LIMIT
    assert link.clock.now() - began == pytest.approx(4 * STEP)
    # And from then on nothing is waited for.
    assert link.rounds(100)[1:] == [LIMIT] * 99
    assert link.clock.now() - began < 4 * STEP + 100 * SOONEST + 0.1


@pytest.mark.parametrize("rate", [20_000, 30_000, 50_000, 100_000, 200_000])
def test_a_round_takes_a_slow_link_a_second(rate: int) -> None:
    link = Link(rate)
    sizes = link.rounds(30)
    # Never more on its way than the link carries in a second and a half.
    assert link.most <= 1.5 * rate
    for size in sizes[10:]:
        assert max(FIRST, 0.75 * rate) <= size <= 1.25 * rate
    # And the link is used: three quarters of its time at the least.
    assert sum(sizes) >= 0.75 * rate * (link.clock.now() - 1000.0 - 1.0)


@pytest.mark.parametrize("buffer", [16 * KiB, 64 * KiB])
def test_a_buffer_before_a_slow_link_is_overrun_once_and_by_as_much(
    buffer: int,
) -> None:
    link = Link(20_000, buffer=buffer)
    sizes = link.rounds(20)
    assert max(sizes) <= 2 * buffer
    assert link.most <= 2 * buffer + 0.25 * FIRST
    assert all(size <= 30_000 for size in sizes[10:])


def test_a_link_that_becomes_slow_is_found_out_in_one_round() -> None:
    link = Link(1e9)
    link.rounds(6)
    link.rate = 20_000
    sizes = link.rounds(3)
    assert FIRST <= sizes[-1] <= 25_000


def test_a_link_slower_than_any_gets_the_first_window_again_and_again() -> None:
    link = Link(1000)
    assert link.rounds(5) == [FIRST] * 5


def test_the_channels_of_a_connection_share_the_window() -> None:
    link = Link(1e9)
    link.window.give(10_000)
    link.write(10_000)
    assert link.window.left == FIRST - 10_000
    link.window.give(10_000)  # a publication is not cut
    link.write(10_000)
    assert link.window.left == FIRST - 20_000
    assert not link.window.is_open()
    link.clock.advance(STEP)
    assert link.window.left == 2 * FIRST


def test_a_part_of_a_window_is_no_proof_of_speed() -> None:
    link = Link(1e9)
    link.window.give(5)
    link.write(5)
    link.clock.advance(STEP)
    assert link.window.left == FIRST


def test_a_window_that_lay_unused_begins_anew() -> None:
    link = Link(1e9)
    link.rounds(6)
    link.clock.advance(3600.0)
    assert link.window.left == FIRST


def test_live_publications_do_not_keep_the_window_shut() -> None:
    # More of them are always on their way than a window has; the link is fast.
    link = Link(10_000_000)
    link.rounds(1)
    assert not link.window.is_open()
    for _ in range(100):
        link.write(100_000)
        link.clock.advance(0.01)
        link.in_flight = max(link.in_flight, 64 * KiB)
    assert link.window.left == 2 * FIRST


async def test_the_window_waits_for_what_the_outbox_holds() -> None:
    link = Link(1e9)
    link.window.give(FIRST)
    link.outbox.put("x")  # its flusher never comes
    link.clock.advance(10.0)
    assert link.window.left == 0
    link.outbox.drop()
    assert link.window.left > 0


def test_a_window_smaller_than_the_first() -> None:
    link = Link(1e9, limit=100)
    assert link.rounds(3) == [100] * 3


def test_a_stopped_window_calls_nobody() -> None:
    link = Link(1000)
    link.round()
    assert not link.window.is_open()
    link.window.stop()
    link.window.stop()
    assert link.clock.pending == []


def test_where_nothing_is_known_time_alone_spreads_the_rounds() -> None:
    clock = VirtualClock()
    link = Link(1e9)
    unknown: Callable[[], tuple[int, int]] = lambda: (0, 0)  # noqa: E731
    window = SendWindow(clock, LIMIT, link.outbox, unknown, lambda: None)
    sizes = []
    for _ in range(6):
        sizes.append(window.left)
        window.give(sizes[-1])
        clock.advance(STEP)
    assert sizes == [*(FIRST << n for n in range(5)), LIMIT]
