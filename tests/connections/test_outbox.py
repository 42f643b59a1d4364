"""The one writer of a socket: order, bounds, deadlines and ends, stepped by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.connections.flusher import Flusher
from service.connections.outbox import Outbox
from service.core.errors import Close
from service.core.ports import Encoding
from service.protocol.json import Json
from service.settings import ClientSettings
from tests.clock import VirtualClock

JSON = Json()


class CallSoon:
    """`loop.call_soon` that runs when told, a turn at a time."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def turn(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    def run(self) -> None:
        while self.callbacks:
            self.turn()


class Bench:
    """An outbox and what is seen of it.

    Attributes:
        frames: Written completely.
        stuck: When set, a write waits for this future first.
        error: When set, a write ends with it (after `stuck`, if that is set).
        events: What the outbox called, and the frames, in order.
        taken: Bytes that the peer's kernel has acknowledged.
    """

    def __init__(self, turns: CallSoon | None = None, **bounds: Any) -> None:
        self.turns = turns or CallSoon()
        self.clock = VirtualClock()
        self.flusher = Flusher(self.turns.call_soon, self.clock)
        self.stuck: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        self.cancelled = 0
        self.events: list[Any] = []
        self.failures: list[int] = []
        self.taken = 0
        self.outbox = self.make(self.flusher, **bounds)

    def make(
        self, flusher: Flusher, encoding: Encoding = JSON, **bounds: Any
    ) -> Outbox:
        return Outbox(
            self.send,
            self.clock,
            ClientSettings(**bounds),
            encoding,
            flusher=flusher,
            progress=lambda: (self.taken, self.taken),
            drained=lambda: self.events.append("drained"),
            failed=self._failed,
        )

    @property
    def frames(self) -> list[str]:
        return [event[1] for event in self.events if isinstance(event, tuple)]

    async def send(self, text: str) -> None:
        try:
            if self.stuck is not None:
                await self.stuck
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        self.events.append(("frame", text))

    def stick(self) -> asyncio.Future[None]:
        self.stuck = asyncio.get_running_loop().create_future()
        return self.stuck

    def free(self) -> None:
        assert self.stuck is not None
        stuck, self.stuck = self.stuck, None
        if not stuck.done():
            stuck.set_result(None)

    def end(self) -> None:
        self.events.append("end")

    def _failed(self, close: Close) -> None:
        self.failures.append(close.code)
        self.events.append("failed")
        self.outbox.close(self.end)


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# Order and joining.


def test_put_writes_nothing_before_the_turn_ends() -> None:
    bench = Bench()
    bench.outbox.put("a")
    assert bench.events == []
    assert not bench.outbox.idle
    bench.turns.run()
    assert bench.events == [("frame", "a"), "drained"]
    assert bench.outbox.idle


def test_what_one_turn_brings_goes_out_in_one_frame() -> None:
    bench = Bench()
    for text in ("1", "2", "3"):
        bench.outbox.put(text)
    assert len(bench.turns.callbacks) == 1
    bench.turns.run()
    assert bench.frames == ["1\n2\n3"]
    assert bench.outbox.size == 0


@pytest.mark.requirement("B64")
def test_a_ping_goes_first() -> None:
    bench = Bench()
    bench.outbox.put("reply")
    bench.turns.run()
    bench.outbox.put("1")
    bench.outbox.put("2")
    bench.outbox.put("{}", first=True)
    bench.turns.run()
    assert bench.frames == ["reply", "{}\n1\n2"]


def test_a_ping_does_not_overtake_the_first_message_of_all() -> None:
    # The reply to the connect: SDKs do not answer a ping that comes before it.
    bench = Bench()
    bench.outbox.put("reply")
    bench.outbox.put("1")
    bench.outbox.put("{}", first=True)
    bench.turns.run()
    assert bench.frames == ["reply\n{}\n1"]


async def test_a_ping_overtakes_what_waits_but_not_the_write_under_way() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("under way")
    bench.turns.run()
    bench.outbox.put("waits")
    bench.outbox.put("{}", first=True)
    bench.free()
    await spin()
    assert bench.frames == ["under way", "{}\nwaits"]


@pytest.mark.parametrize(
    ("sizes", "frames"),
    [
        ([10, 10], [21]),  # the newline between them counts
        ([50, 49], [100]),
        ([50, 50], [50, 50]),
        ([99, 1], [99, 1]),
        ([98, 1], [100]),
        ([30, 30, 30, 30], [92, 30]),
        ([100, 1], [100, 1]),
        ([500, 1, 1], [500, 3]),  # larger than a frame: alone
        ([1, 500, 1], [1, 500, 1]),
    ],
)
def test_frames_are_bounded_in_bytes(sizes: list[int], frames: list[int]) -> None:
    bench = Bench(frame_size=100)
    for size in sizes:
        bench.outbox.put("x" * size)
    bench.turns.run()
    assert [len(frame) for frame in bench.frames] == frames


def test_a_frame_s_bytes_are_not_its_characters() -> None:
    bench = Bench(frame_size=100)
    for _ in range(3):
        bench.outbox.put("\N{EURO SIGN}" * 16)  # 48 bytes
    bench.turns.run()
    assert [len(frame.encode()) for frame in bench.frames] == [97, 48]


def test_a_frame_is_64_kib_by_default() -> None:
    bench = Bench()
    for _ in range(3):
        bench.outbox.put("x" * 32767)
    bench.turns.run()
    assert [len(frame) for frame in bench.frames] == [65535, 32767]
    bench.outbox.put("x" * 32768)
    bench.outbox.put("x" * 32767)
    bench.turns.run()
    assert len(bench.frames[-1]) == 65536


@pytest.mark.requirement("B57", "B64")
@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.text("a\N{EURO SIGN}\N{GRINNING FACE}", max_size=40), st.booleans()
        )
    )
)
def test_everything_is_written_once_and_in_order(
    messages: list[tuple[str, bool]],
) -> None:
    bench = Bench(frame_size=60)
    for text, turn in messages:
        bench.outbox.put(f"<{text}>")
        if turn:
            bench.turns.turn()
    bench.turns.run()
    joined = "\n".join(bench.frames)
    assert joined == "\n".join(f"<{text}>" for text, _ in messages)
    assert bench.outbox.size == 0
    longest = max((len(f"<{text}>".encode()) for text, _ in messages), default=0)
    for frame in bench.frames:
        assert len(frame.encode()) <= max(60, longest)


# The bound.


def test_size_is_what_waits_in_bytes() -> None:
    bench = Bench()
    bench.outbox.put("abc")
    bench.outbox.put("\N{EURO SIGN}")
    assert bench.outbox.size == 6
    bench.turns.run()
    assert bench.outbox.size == 0


@pytest.mark.parametrize(
    ("texts", "overflow"),
    [
        (["x" * 50, "x" * 50], False),
        (["x" * 50, "x" * 51], True),
        (["x" * 99, "x", "x"], True),
        (["\N{EURO SIGN}" * 17, "x" * 49], False),  # 51 + 49 bytes
        (["\N{EURO SIGN}" * 17, "x" * 50], True),
        (["x" * 49, "\N{GRINNING FACE}" * 12, "xxx"], False),  # 49 + 48 + 3
        (["x" * 49, "\N{GRINNING FACE}" * 12, "xxxx"], True),
        (["x" * 1000], False),  # larger than the queue, but alone in it
        (["x" * 1000, "x"], True),
    ],
)
def test_overflow_is_met_exactly(texts: list[str], overflow: bool) -> None:
    bench = Bench(queue_size=100)
    for text in texts:
        bench.outbox.put(text)
    assert bench.failures == ([3008] if overflow else [])
    bench.turns.run()
    if overflow:
        assert bench.events == ["failed", "end"]
    else:
        assert bench.frames == ["\n".join(texts)]


@pytest.mark.requirement("R6")
def test_the_bound_is_a_megabyte_by_default() -> None:
    bench = Bench()
    for _ in range(1024):
        bench.outbox.put("x" * 1024)
    assert bench.failures == []
    bench.outbox.put("x")
    assert bench.failures == [3008]


@pytest.mark.requirement("B58")
def test_what_was_written_counts_no_more() -> None:
    bench = Bench(queue_size=100)
    for _ in range(50):
        bench.outbox.put("x" * 60)
        bench.turns.run()
    assert bench.failures == []


@pytest.mark.requirement("B58")
async def test_the_write_under_way_does_not_count() -> None:
    bench = Bench(queue_size=100)
    bench.stick()
    bench.outbox.put("x" * 90)
    bench.turns.run()
    assert bench.outbox.size == 0
    bench.outbox.put("x" * 100)
    assert bench.failures == []
    bench.outbox.put("x")
    assert bench.failures == [3008]
    bench.free()
    await spin()
    assert bench.frames == ["x" * 90]
    assert bench.events[-1] == "end"


def test_after_an_overflow_nothing_is_accepted_and_nothing_told_again() -> None:
    bench = Bench(queue_size=10)
    for _ in range(20):
        bench.outbox.put("x" * 9)
    bench.turns.run()
    bench.outbox.put("x")
    bench.turns.run()
    assert bench.events == ["failed", "end"]
    assert bench.outbox.size == 0


# A socket that takes no more.


async def test_a_write_that_suspends_and_goes_on() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    assert bench.frames == []
    assert not bench.outbox.idle
    for text in ("2", "3"):
        bench.outbox.put(text)
        bench.turns.run()
    bench.free()
    await spin()
    assert bench.events == [("frame", "1"), ("frame", "2\n3"), "drained"]
    assert bench.outbox.idle
    assert bench.clock.pending == []


async def test_writes_that_suspend_one_after_the_other() -> None:
    bench = Bench(frame_size=1)
    bench.stick()
    for text in "123":
        bench.outbox.put(text)
    bench.turns.run()
    for count in range(1, 4):
        stuck = bench.stuck
        assert stuck is not None
        if count < 3:
            bench.stick()
        stuck.set_result(None)
        await spin()
        assert len(bench.frames) == count
    assert bench.frames == ["1", "2", "3"]
    assert bench.events.count("drained") == 1


async def test_a_write_that_suspends_on_a_bare_yield() -> None:
    seen: list[str] = []

    async def send(text: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        seen.append(text)

    bench = Bench()
    bench.send = send  # type: ignore[method-assign]
    outbox = bench.make(bench.flusher)
    outbox.put("1")
    bench.turns.run()
    for _ in range(3):
        await spin()
    assert seen == ["1"]
    assert outbox.idle


async def test_a_write_that_suspends_several_times() -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
    got: list[object] = []

    async def send(text: str) -> None:
        for future in futures:
            got.append(await future)

    bench = Bench()
    bench.send = send  # type: ignore[method-assign]
    outbox = bench.make(bench.flusher)
    outbox.put("1")
    bench.turns.run()
    for number, future in enumerate(futures):
        assert got == list(range(number))
        future.set_result(number)
        await spin()
    assert got == [0, 1, 2]
    assert outbox.idle


async def test_a_wait_that_is_over_before_the_task_begins() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.free()  # within the same turn
    await spin()
    assert bench.events == [("frame", "1"), "drained"]


# Deadlines.


@pytest.mark.requirement("R13")
async def test_a_write_has_two_seconds() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.outbox.put("2")
    assert bench.clock.pending == [1002.0]
    bench.clock.advance(1.999)
    assert bench.failures == []
    bench.clock.advance(0.001)
    assert bench.failures == [3009]
    assert "end" not in bench.events  # a write is under way
    bench.free()
    await spin()
    assert bench.events == ["failed", ("frame", "1"), "end"]


async def test_a_write_that_makes_progress_has_as_long_as_it_takes() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("x" * 60_000)
    bench.turns.run()
    for _ in range(29):
        bench.taken += 2048
        bench.clock.advance(2.0)
    assert bench.failures == []
    assert bench.clock.pending == [1060.0]
    bench.free()
    await spin()
    assert bench.clock.pending == []
    assert len(bench.frames) == 1


async def test_a_peer_that_takes_less_than_a_kib_a_second_is_closed() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("x" * 60_000)
    bench.turns.run()
    bench.taken += 2048
    bench.clock.advance(2.0)
    assert bench.failures == []
    bench.taken += 2047
    bench.clock.advance(2.0)
    assert bench.failures == [3009]


async def test_what_was_taken_before_a_write_is_no_progress() -> None:
    bench = Bench()
    bench.taken = 1_000_000
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.clock.advance(2.0)
    assert bench.failures == [3009]


async def test_each_write_has_a_deadline_of_its_own() -> None:
    bench = Bench(frame_size=1)
    first = bench.stick()
    bench.outbox.put("1")
    bench.outbox.put("2")
    bench.turns.run()
    bench.clock.advance(1.5)
    bench.stick()
    first.set_result(None)
    await spin()
    assert bench.clock.pending == [1003.5]
    bench.clock.advance(1.9)
    assert bench.failures == []
    bench.free()
    await spin()
    assert bench.frames == ["1", "2"]
    assert bench.clock.pending == []
    bench.clock.advance(100)
    assert bench.failures == []


def test_a_write_that_does_not_suspend_costs_no_timer() -> None:
    bench = Bench()
    bench.outbox.put("1")
    bench.turns.run()
    assert bench.clock.pending == []


async def test_a_write_that_fails_after_its_deadline_is_told_once() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.clock.advance(2)
    bench.error = ConnectionResetError("gone")
    bench.free()
    await spin()
    assert bench.failures == [3009]
    assert bench.events == ["failed", "end"]


# Errors.


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError, OSError])
def test_a_socket_that_is_gone(error: type[OSError]) -> None:
    bench = Bench()
    bench.error = error("gone")
    bench.outbox.put("1")
    bench.turns.run()
    assert bench.failures == [3009]
    assert bench.events == ["failed", "end"]
    bench.outbox.put("2")
    bench.turns.run()
    assert bench.events == ["failed", "end"]


async def test_a_socket_that_is_gone_while_it_takes_no_more() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.outbox.put("2")
    bench.error = ConnectionResetError("gone")
    bench.free()
    await spin()
    assert bench.events == ["failed", "end"]
    assert bench.clock.pending == []
    assert bench.outbox.size == 0


@pytest.mark.requirement("L28")
async def test_a_socket_that_is_gone_at_the_second_frame() -> None:
    bench = Bench()
    first = bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.outbox.put("2")
    bench.stick()
    first.set_result(None)
    await spin()
    bench.error = ConnectionResetError("gone")
    bench.free()
    await spin()
    assert bench.events == [("frame", "1"), "failed", "end"]
    assert bench.clock.pending == []


@pytest.mark.requirement("L28")
def test_a_bug_in_one_connection_s_socket_does_not_silence_the_others() -> None:
    # The flusher serves every connection of the process: whatever one of them raises,
    # the rest of its turn and all turns to come must take place.
    turns = CallSoon()
    bench = Bench(turns)
    bad = Bench(turns)
    bad.error = RuntimeError("not a socket error")
    broken = bad.make(bench.flusher)
    broken.put("1")
    bench.outbox.put("2")
    try:
        turns.run()
    except RuntimeError:
        turns.run()
    bench.outbox.put("3")
    turns.run()
    assert "\n".join(bench.frames) == "2\n3"


def test_a_bug_in_what_a_drained_connection_does_does_not_silence_the_others() -> None:
    turns = CallSoon()
    bench = Bench(turns)

    def drained() -> None:
        raise KeyError("a bug")

    broken = Outbox(
        Bench().send,
        bench.clock,
        ClientSettings(),
        Json(),
        flusher=bench.flusher,
        progress=lambda: (0, 0),
        drained=drained,
        failed=lambda close: None,
    )
    broken.put("1")
    bench.outbox.put("2")
    try:
        turns.run()
    except KeyError:
        turns.run()
    bench.outbox.put("3")
    turns.run()
    assert "\n".join(bench.frames) == "2\n3"


def test_a_socket_that_raises_anything_else_ends_its_connection() -> None:
    bench = Bench()
    bench.error = RuntimeError("not a socket error")
    bench.outbox.put("1")
    try:
        bench.turns.run()
    except RuntimeError:
        bench.turns.run()
    assert len(bench.failures) == 1
    assert bench.events[-1] == "end"


async def test_a_suspended_socket_that_raises_anything_else_ends_its_connection() -> (
    None
):
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.error = RuntimeError("not a socket error")
    bench.free()
    await spin()
    assert len(bench.failures) == 1
    assert bench.events[-1] == "end"
    assert bench.outbox.idle
    assert bench.clock.pending == []


# Ends.


def test_close_while_idle_ends_at_once() -> None:
    bench = Bench()
    bench.outbox.close(bench.end)
    assert bench.events == ["end"]


def test_close_writes_what_waits_then_ends() -> None:
    bench = Bench(frame_size=1)
    bench.outbox.put("1")
    bench.outbox.put("2")
    bench.outbox.close(bench.end)
    bench.outbox.put("3")
    bench.outbox.put("{}", first=True)
    assert bench.events == []
    bench.turns.run()
    assert bench.events == [("frame", "1"), ("frame", "2"), "end"]


async def test_close_waits_for_the_write_under_way() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.outbox.put("2")
    bench.outbox.close(bench.end)
    await spin()
    assert bench.events == []
    bench.free()
    await spin()
    assert bench.events == [("frame", "1"), ("frame", "2"), "end"]


async def test_close_of_a_socket_that_never_takes_it_keeps_nothing() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    bench.outbox.put("x" * 1000)
    bench.outbox.close(bench.end)
    bench.clock.advance(2)
    assert bench.outbox.size == 0
    assert bench.events == []  # its owner's deadline decides
    await spin()
    bench.outbox.drop()
    await spin()
    assert bench.events == []
    assert bench.cancelled == 1


def test_a_socket_that_is_gone_while_closing() -> None:
    bench = Bench()
    bench.outbox.put("1")
    bench.outbox.close(bench.end)
    bench.error = ConnectionResetError("gone")
    bench.turns.run()
    assert bench.events == ["end"]
    assert bench.failures == []


def test_drop_forgets_everything() -> None:
    bench = Bench()
    bench.outbox.put("1")
    bench.outbox.drop()
    bench.outbox.put("2")
    bench.turns.run()
    assert bench.events == []
    assert (bench.outbox.size, bench.outbox.idle) == (0, True)
    bench.outbox.drop()


@pytest.mark.requirement("B59")
async def test_drop_cancels_the_write_under_way() -> None:
    bench = Bench()
    bench.stick()
    bench.outbox.put("1")
    bench.turns.run()
    await spin()
    bench.outbox.drop()
    assert bench.clock.pending == []
    await spin()
    assert bench.cancelled == 1
    assert bench.events == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_drop_before_the_task_of_a_write_has_begun() -> None:
    closed: list[str] = []
    future = asyncio.get_running_loop().create_future()

    async def send(text: str) -> None:
        try:
            await future
        finally:
            closed.append(text)

    bench = Bench()
    bench.send = send  # type: ignore[method-assign]
    outbox = bench.make(bench.flusher)
    outbox.put("1")
    bench.turns.run()
    outbox.drop()
    await spin()
    assert closed == ["1"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_drop_between_close_and_the_last_write() -> None:
    bench = Bench()
    bench.outbox.put("1")
    bench.outbox.close(bench.end)
    bench.outbox.drop()
    bench.turns.run()
    assert bench.events == []


# Drained.


def test_what_is_put_by_drained_is_written_in_a_turn_of_its_own() -> None:
    # A client that is caught up piece by piece does not hold up the others.
    turns = CallSoon()
    events: list[str] = []
    left = [3]

    async def send(text: str) -> None:
        events.append(text)

    def drained() -> None:
        if left[0]:
            left[0] -= 1
            outbox.put(f"piece {left[0]}")

    flusher = Flusher(turns.call_soon, VirtualClock())
    outbox = Outbox(
        send,
        VirtualClock(),
        ClientSettings(),
        Json(),
        flusher=flusher,
        progress=lambda: (0, 0),
        drained=drained,
        failed=lambda close: None,
    )
    outbox.put("reply")
    turns.turn()
    assert events == ["reply"]
    turns.turn()
    assert events == ["reply", "piece 2"]
    turns.run()
    assert events == ["reply", "piece 2", "piece 1", "piece 0"]


def test_drained_is_not_told_of_a_closing_outbox() -> None:
    bench = Bench()
    bench.outbox.put("1")
    bench.outbox.close(bench.end)
    bench.turns.run()
    assert "drained" not in bench.events


# Fairness.


def test_a_turn_serves_200_sockets_at_the_most() -> None:
    turns = CallSoon()
    flusher = Flusher(turns.call_soon, VirtualClock())
    written: list[int] = []

    def sender(number: int) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def send(text: str) -> None:
            written.append(number)

        return send

    outboxes = [
        Outbox(
            sender(number),
            VirtualClock(),
            ClientSettings(),
            Json(),
            flusher=flusher,
            progress=lambda: (0, 0),
            drained=lambda: None,
            failed=lambda close: None,
        )
        for number in range(501)
    ]
    for outbox in outboxes:
        outbox.put("x")
    assert len(turns.callbacks) == 1
    for served in (200, 400, 501):
        turns.turn()
        assert written == list(range(served))
    assert turns.callbacks == []
    outboxes[7].put("x")
    turns.turn()
    assert written[501:] == [7]
