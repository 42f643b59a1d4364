"""Batch windows: when a frame is cut, and that nothing else changes; by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.connections.outbox import Outbox
from tests.connections.test_outbox import Bench, spin

W = 1 / 32  # s; exact in binary
SHORT = 1 / 64

pytestmark = pytest.mark.requirement("R20")


def later(bench: Bench, *texts: str, window: float = W) -> None:
    for text in texts:
        bench.outbox.put(text, window=window)
        bench.turns.run()


def pass_time(bench: Bench, seconds: float) -> None:
    bench.clock.advance(seconds)
    bench.turns.run()


def test_what_a_window_brings_goes_out_in_one_frame_when_it_is_over() -> None:
    bench = Bench()
    later(bench, "1")
    pass_time(bench, W / 2)
    later(bench, "2", "3")
    pass_time(bench, W / 2 - W / 64)
    assert bench.frames == []
    assert not bench.outbox.idle
    pass_time(bench, W / 64)
    assert bench.frames == ["1\n2\n3"]
    assert bench.events[-1] == "drained"
    assert bench.clock.pending == []


def test_the_next_window_begins_with_the_next_message() -> None:
    bench = Bench()
    later(bench, "1")
    pass_time(bench, W)
    pass_time(bench, W / 2)
    later(bench, "2")
    pass_time(bench, W - W / 64)
    assert bench.frames == ["1"]
    pass_time(bench, W / 64)
    assert bench.frames == ["1", "2"]


def test_a_message_without_a_window_takes_along_what_waits() -> None:
    bench = Bench()
    later(bench, "1", "2")
    bench.outbox.put("reply")
    bench.outbox.put("3", window=W)
    bench.turns.run()
    assert bench.frames == ["1\n2\nreply\n3"]
    assert bench.clock.pending == []
    later(bench, "4")  # its window is its own
    pass_time(bench, W)
    assert bench.frames[1:] == ["4"]


def test_a_ping_goes_first_and_takes_along_what_waits() -> None:
    bench = Bench()
    bench.outbox.put("connected")
    bench.turns.run()
    later(bench, "1")
    bench.outbox.put("{}", first=True)
    bench.turns.run()
    assert bench.frames == ["connected", "{}\n1"]
    assert bench.clock.pending == []


@pytest.mark.parametrize(
    ("first", "second", "after", "due"),
    [
        (W, SHORT, 0.0, SHORT),
        (W, SHORT, W / 4, W / 4 + SHORT),
        (W, SHORT, W - SHORT / 2, W),
        (SHORT, W, 0.0, SHORT),
    ],
)
def test_of_two_windows_the_sooner_end_counts(
    first: float, second: float, after: float, due: float
) -> None:
    bench = Bench()
    later(bench, "1", window=first)
    pass_time(bench, after)
    later(bench, "2", window=second)
    assert bench.clock.pending == [1000.0 + due]
    pass_time(bench, due - after - 1 / 1024)
    assert bench.frames == []
    pass_time(bench, 1 / 1024)
    assert bench.frames == ["1\n2"]
    assert bench.clock.pending == []


def test_a_full_frame_does_not_wait() -> None:
    bench = Bench(frame_size=1024)
    later(bench, "a" * 500, "b" * 500)
    assert bench.frames == []
    later(bench, "c" * 24)
    assert bench.frames == ["a" * 500 + "\n" + "b" * 500, "c" * 24]
    assert bench.clock.pending == []


def test_outboxes_of_one_publication_share_a_timer() -> None:
    bench = Bench()
    others = [bench.make(bench.flusher) for _ in range(300)]
    for outbox in others:
        outbox.put("x", window=W)
    assert len(bench.clock.pending) == 1
    bench.clock.advance(W)
    bench.turns.turn()
    assert len(bench.frames) == 200  # a portion: others get their turn
    bench.turns.run()
    assert len(bench.frames) == 300


def test_windows_that_began_at_different_times_end_at_theirs() -> None:
    bench = Bench()
    others = []
    for _ in range(4):
        others.append(bench.make(bench.flusher))
        others[-1].put("x", window=W)
        pass_time(bench, W / 4)
    for count in (1, 2, 3, 4):
        assert len(bench.frames) == count
        pass_time(bench, W / 4)
    assert bench.clock.pending == []


def test_closing_writes_what_waits_at_once() -> None:
    bench = Bench()
    later(bench, "1", "2")
    bench.outbox.close(bench.end)
    bench.outbox.put("refused", window=W)
    bench.turns.run()
    assert bench.events == [("frame", "1\n2"), "end"]
    assert bench.clock.pending == []


def test_closing_in_the_turn_in_which_the_window_is_over() -> None:
    bench = Bench()
    later(bench, "1")
    bench.clock.advance(W)
    bench.outbox.close(bench.end)
    bench.turns.run()
    assert bench.events == [("frame", "1"), "end"]


def test_a_message_without_a_window_in_the_turn_in_which_it_is_over() -> None:
    bench = Bench()
    later(bench, "1")
    bench.clock.advance(W)
    bench.outbox.put("2")
    bench.turns.run()
    assert bench.frames == ["1\n2"]
    assert bench.events.count("drained") == 1


def test_dropping_forgets_what_waits() -> None:
    bench = Bench()
    later(bench, "1")
    bench.outbox.drop()
    assert bench.clock.pending == []
    pass_time(bench, W)
    assert bench.events == []
    assert (bench.outbox.dropped, bench.clock.pending) == (1, [])


async def test_what_comes_while_a_write_is_under_way_goes_with_the_next() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("slow")
    bench.turns.run()
    later(bench, "1", "2")
    assert bench.flusher.stuck == {bench.outbox}
    bench.free()
    await spin()
    assert bench.frames == ["slow", "1\n2"]
    assert bench.clock.pending == []


def test_an_open_window_does_not_close_a_client_that_keeps_up() -> None:
    bench = Bench(queue_size=1000, frame_size=600)
    later(bench, "a" * 500)
    for _ in range(2):
        bench.outbox.put("b" * 500)  # as much as fits without what waits
    bench.turns.run()
    assert (bench.failures, len("".join(bench.frames))) == ([], 1500)
    later(bench, "c" * 500)
    bench.outbox.put("d" * 5000)  # alone, but for what waits
    bench.turns.run()
    assert bench.failures == []
    later(bench, "e" * 500)
    for _ in range(3):
        bench.outbox.put("f" * 500)
    bench.turns.run()
    assert bench.failures == [3008]


async def test_what_waited_for_a_window_counts_once_it_waits_for_the_socket() -> None:
    bench = Bench(queue_size=1000, frame_size=600)
    later(bench, "a" * 500)
    bench.stick()
    pass_time(bench, W)
    later(bench, "b" * 500, "c" * 500)
    assert bench.failures == []
    later(bench, "d")
    assert bench.failures == [3008]
    bench.outbox.drop()
    await spin()


async def test_a_client_that_reads_nothing_is_closed_as_without_a_window() -> None:
    bench = Bench(queue_size=1000, frame_size=600)
    bench.stick()
    bench.outbox.put("slow")
    bench.turns.run()
    later(bench, "a" * 500, "b" * 500)
    assert bench.failures == []
    later(bench, "c")
    assert bench.failures == [3008]
    bench.outbox.drop()
    await spin()


def test_a_write_that_fails_after_a_window_ends_the_connection() -> None:
    bench = Bench()
    later(bench, "1")
    bench.error = OSError()
    pass_time(bench, W)
    assert bench.failures == [3009]
    pass_time(bench, W)
    assert bench.clock.pending == []


# Any order of all that can happen.

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from([0.0, 0.0, SHORT, W, W]),
            st.integers(1, 400),
        ),
        st.tuples(st.sampled_from(["turn", "ping", "stick", "free"])),
        st.tuples(st.just("advance"), st.integers(1, 12)),
    ),
    max_size=60,
)


class Run:
    """One run of steps on an outbox, with its windows or without any."""

    def __init__(self, *, windows: bool) -> None:
        self.bench = Bench(queue_size=2000, frame_size=600)
        self.bench.outbox.put("connected")
        self.bench.turns.run()
        self.windows = windows
        self.puts: list[str] = []
        self.due: dict[str, float] = {}  # when each must have been handed over
        self.pings = 0

    async def step(self, step: tuple[Any, ...]) -> None:
        bench = self.bench
        match step:
            case "put", window, size:
                text = f"{len(self.puts)}:" + "x" * size
                self.puts.append(text)
                window = window if self.windows else 0.0
                self.due[text] = bench.clock.now() + window
                bench.outbox.put(text, window=window)
            case ("ping",):
                self.pings += 1
                bench.outbox.put("{}", first=True)
            case ("stick",) if bench.stuck is None:
                bench.stick()
            case ("free",) if bench.stuck is not None:
                bench.free()
                await spin()
            case "advance", ticks:
                for _ in range(ticks):
                    bench.clock.advance(1 / 128)
                    self.turn()
            case _:
                self.turn()

    def turn(self) -> None:
        self.bench.turns.run()
        if self.bench.flusher.stuck or self.bench.failures:
            return
        if self.bench.stuck is None:
            now = self.bench.clock.now()
            late = [t for t in self.puts if self.due[t] <= now and t not in self.seen]
            assert late == []

    @property
    def seen(self) -> list[str]:
        texts = "\n".join(self.bench.frames).split("\n")
        return [text for text in texts if text not in ("{}", "connected", "")]

    async def finish(self) -> None:
        if self.bench.stuck is not None:
            self.bench.free()
        self.bench.outbox.close(self.bench.end)
        self.bench.turns.run()
        await spin()


@given(STEPS)
@settings(deadline=None, max_examples=300)
def test_windows_neither_reorder_nor_lose_nor_close(steps: list[Any]) -> None:
    async def run() -> None:
        with_windows, without = Run(windows=True), Run(windows=False)
        for step in steps:
            await with_windows.step(step)
            await without.step(step)
            # A window never closes a client that would have been kept.
            assert without.bench.failures or not with_windows.bench.failures
            if with_windows.bench.failures or without.bench.failures:
                break
        await with_windows.finish()
        await without.finish()
        seen = with_windows.seen
        assert seen == with_windows.puts[: len(seen)]
        if not with_windows.bench.failures:
            assert seen == with_windows.puts
            pings = "\n".join(with_windows.bench.frames).split("\n").count("{}")
            assert pings == with_windows.pings
        assert with_windows.bench.clock.pending == []
        assert with_windows.bench.events[-1] == "end"
        outbox: Outbox = with_windows.bench.outbox
        assert outbox.sent + outbox.dropped >= len(with_windows.puts)

    asyncio.run(run())
