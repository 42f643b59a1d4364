"""Outbox: the one writer of a connection's socket, ordered, bounded, non-blocking.

`put` is synchronous and only queues; what was put during one turn of the event loop
is flushed at its end, joined in one frame: the reply to a publish and its own push, or
all that a commit brought. The flush drives the send coroutine itself, and only if that
suspends (the socket takes no more) does a task take over, with a deadline. So a
delivery to a client that keeps up costs no task, no event and no timeout object.

A message put with a *window* may wait for others: while nothing else asks for a flush,
the outbox waits in a `flusher.Window`, and all that comes meanwhile goes out in one
frame. A message without a window, a full frame, and the end of the connection flush at
the end of the turn, and everything before it in the queue goes with them.

Invariants:

* One write at a time; messages leave in the order of `put`, pings excepted, which go
  to the front: they have no order to keep, and must be on schedule. Nothing goes before
  the first message.
* What waits is at most `queue_size` bytes, as they are on the socket. For a message
  more, what may be dropped (`service.core.priority`) makes room: first everything of
  the lowest priority, and if that is not enough, of the next. A message that may be
  dropped itself displaces its own priority and lower ones; if it still has no room, it
  is the one that is dropped. What stays keeps its order.
* From then on the queue is *pressed*: what was dropped from it is not accepted, until
  the next message finds it half empty. So it is looked through once for each priority
  while it drains by half, and not once for each message. A queue that is not full costs
  nothing: the bound is what tells a message to look.
* Without room for a message that must not be dropped, everything waiting is dropped and
  the connection ends with 3008. The client recovers from its position, so nothing is
  lost that had an offset. Replies and pings are never dropped alone.
* A write of which the peer takes less than `LEAST_RATE` during `write_timeout` is
  final: it may be partial, so the connection ends with 3009 and the socket is not used
  for messages again. So a slow peer gets its time, one that reads nothing has
  `write_timeout`, and no peer holds a full queue for longer than
  ``queue_size / LEAST_RATE`` (17 minutes by default).
* After `close`, nothing is accepted; what waited is written first, then `end` is
  called once. After `drop`, nothing is written at all.
* A message waits for no longer than its window, and then for the socket alone. There is
  one queue, so a window changes when frames are cut, never the order; nor does it close
  anybody: what has waited for a window alone (less than a frame) does not count against
  `queue_size` in the turn that ends the window.
* `put` calls nothing but `failed`, and that at most once.
* A message that has no form in the connection's encoding ends it with 3506, before
  anything that was put after it: no client is left with a hole.
* Every message that was put before the end is counted once: `sent` when its write has
  ended, else `dropped`, and `displaced` too if the connection went on. It leaves the
  queue when its write begins: what a write that fails had taken counts as dropped. The
  failure ends the connection, and the client recovers what had an offset.

Interleavings that could break these, each a test: the queue overflows while a write is
under way, whose messages are not in it any more; between a `put` and the flush that it
asked for, everything waiting is displaced; a ping overflows it; it overflows before the
first message is written; the connection ends, from inside `put`, in the middle of a
fan-out; a pressed queue is emptied by a write, or by `close` and `drop`.
And of the window, each in tests/connections/test_outbox_window.py: a message without a
window, a ping, the end (`close`, `drop`, overflow, 3506) or a shorter window while one
is open; a window that is over in the turn of another put; puts with a window while a
write is under way; a burst in the turn that ends a window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from _speedups import OutboxCore
from service.connections.flusher import Flusher
from service.core.errors import (
    INAPPROPRIATE_PROTOCOL,
    INTERNAL_CLOSE,
    SLOW,
    WRITE_ERROR,
    Close,
    CodecError,
)
from service.core.ports import Clock, Encoding, Frame, Send, Timer
from service.core.priority import Priority, priority_of
from service.settings import ClientSettings

__all__ = ["LEAST_RATE", "Outbox"]

LEAST_RATE = 1024
"""Bytes per second that a peer takes of a write, or it is closed."""


class Outbox(OutboxCore):
    """The queue before one socket, and its writer; the core has what is frequent.

    Args:
        send: Writes one frame.
        clock: Measures the write deadline.
        settings: The bounds.
        encoding: The form of the messages.
        flusher: Calls `flush` at the end of the loop's turn.
        progress: As `ports.Socket.progress`.
        drained: Called when all that was put has been written, while the attributes of
            the core ask for it.
        failed: Called once when the connection must end, and why. The owner then
            calls `close` or `drop`.

    Attributes:
        sent: Messages whose write has ended.
        dropped: Messages that were not.
        displaced: Those of them that made room, or found none, in a full queue.
    """

    __slots__ = (
        "_clock",
        "_drained",
        "_failed",
        "_flusher",
        "_pressed",
        "_progress",
        "_settings",
        "_taken",
        "_timer",
        "displaced",
        "dropped",
    )

    def __init__(
        self,
        send: Send,
        clock: Clock,
        settings: ClientSettings,
        encoding: Encoding,
        *,
        flusher: Flusher,
        progress: Callable[[], tuple[int, int]],
        drained: Callable[[], None],
        failed: Callable[[Close], None],
    ) -> None:
        super().__init__(
            send,
            encoding,
            settings.queue_size,  # where it is asked for room; 0 while pressed
            settings.frame_size,
            flusher,
        )
        self._clock = clock
        self._settings = settings
        self._flusher = flusher
        self._progress = progress
        self._drained = drained
        self._failed = failed
        self._pressed = 0  # what is not accepted: this priority, and lower ones
        self._timer: Timer | None = None
        self._taken = 0  # bytes that the peer had acknowledged when `_timer` was set
        self.dropped = 0
        self.displaced = 0

    @property
    def idle(self) -> bool:
        """True when nothing waits and no write is under way."""
        return not self._queue and self._task is None

    @property
    def size(self) -> int:
        """Bytes waiting."""
        return self._size

    # For the core.

    def _encoded(self, text: str) -> Frame | None:
        """Return a message in the connection's form; fail, and None, without one."""
        try:
            message: Frame = self._encoding.encode(text)
        except CodecError:
            self.dropped += 1
            self._fail(INAPPROPRIATE_PROTOCOL)
            return None
        return message

    def _wait_window(self, seconds: float) -> None:
        self._window = self._flusher.wait(self, seconds, self._window)

    def window_over(self) -> None:
        """Flush at the end of the turn (for the `Flusher`)."""
        self._end_window(self._size)

    def _end_window(self, batched: int) -> None:
        """Flush *batched* bytes that waited for a window at the end of the turn."""
        self._window = None
        self._batched = batched
        self._held = True
        self._flusher.add(self)

    def _admit(self, message: Frame, size: int) -> bool:
        """Make room for a message in a full or pressed queue, or drop it, or fail."""
        bound = self._settings.queue_size
        # What has waited for a window alone is not in the way, and not counted.
        batched = self._batched if self._window is None else self._size
        if self._size - batched <= bound // 2:
            self._limit, self._pressed = bound, 0
        if self._size <= batched:
            return True
        bound += batched
        own = priority_of(message)
        if own is not None and own <= self._pressed:
            self._displace(1)
            return False
        for priority in Priority:
            if not self._queue or self._size + size <= bound:
                return True
            if self._pressed < priority and (own is None or own >= priority):
                self._limit, self._pressed = 0, priority
                self._drop(priority)
        if not self._queue or self._size + size <= bound:
            return True
        if own is not None:
            self._displace(1)
            return False
        self.dropped += 1
        self._fail(SLOW)
        return False

    def _drop(self, priority: Priority) -> None:
        """Take the messages of *priority* out of the queue."""
        queue, size_of = self._queue, self._encoding.size
        kept = [message for message in queue if priority_of(message) != priority]
        self._displace(len(queue) - len(kept))
        queue.clear()
        queue.extend(kept)
        self._size = sum(map(size_of, kept))

    def _displace(self, count: int) -> None:
        self.dropped += count
        self.displaced += count

    def close(self, end: Callable[[], object]) -> None:
        """Accept nothing more, write what waits, then call *end*."""
        self._closing = True
        self._end = end
        if self.idle:
            self._finish()
        elif self._window is not None:
            self._window.remove(self)
            self._end_window(self._size)

    def drop(self) -> None:
        """Forget what waits and stop writing: the socket is gone."""
        self._closing = True
        self._end = None
        self._clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            self._end_task()
        self._write_failed()

    # Writing.

    def _broken(self, error: Exception) -> bool:
        """Fail, for a flush raised; return whether the loop is to log that."""
        self._write_failed()
        if isinstance(error, OSError):
            self._fail(WRITE_ERROR)
            return False
        self._fail(INTERNAL_CLOSE)
        return True

    def _suspended(self, writing: Coroutine[Any, Any, None]) -> None:
        """Drive a write; where it has to wait, a task does."""
        try:
            waits = writing.send(None)
        except StopIteration:
            self._write_ended()
            return
        self._start_timer()
        self._task = asyncio.get_running_loop().create_task(
            self._write(_Resumed(writing, waits))
        )
        self._flusher.stuck.add(self)

    async def _write(self, resumed: _Resumed) -> None:
        try:
            await resumed
            self._write_ended()
            self._stop_timer()
            while self._queue:
                self._start_timer()
                writing = self._send(self._next_frame())
                if writing is not None:
                    await writing
                self._write_ended()
                self._stop_timer()
            self._end_task()
            self._all_written()
        except Exception as error:
            self._stop_timer()
            self._end_task()
            self._write_failed()
            if isinstance(error, OSError):
                self._fail(WRITE_ERROR)
            else:
                self._fail(INTERNAL_CLOSE)
                raise  # to the loop, which logs it

    def _write_ended(self) -> None:
        self.sent += self._writing
        self._writing = 0

    def _write_failed(self) -> None:
        self.dropped += self._writing
        self._writing = 0

    def _end_task(self) -> None:
        self._task = None
        self._flusher.stuck.discard(self)

    # Ending.

    def _finish(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()

    def _fail(self, close: Close) -> None:
        if self._closing:
            # The close frame can still be tried: the owner's deadline bounds that.
            self._clear()
            if self._task is None:
                self._finish()
            return
        self._closing = True
        self._clear()
        self._failed(close)

    def _late(self) -> None:
        self._timer = None
        taken = self._progress()[1] - self._taken
        if taken < LEAST_RATE * self._settings.write_timeout:
            self._fail(WRITE_ERROR)
        else:
            self._start_timer()

    def _clear(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._size = 0
        if self._window is not None:
            self._window.remove(self)
            self._window = None

    def _start_timer(self) -> None:
        self._taken = self._progress()[1]
        when = self._clock.now() + self._settings.write_timeout
        self._timer = self._clock.call_at(when, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Resumed:
    """The rest of a coroutine that was started by hand, for a task to await.

    The coroutine has already yielded *waits*, the future that it wants; the task is
    shown that first, and from then on everything is passed through.
    """

    __slots__ = ("_coroutine", "_waits")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits: Any) -> None:
        self._coroutine = coroutine
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, None]:
        waits = self._waits
        while True:
            try:
                value = yield waits
            except BaseException as error:  # passed on: cancellation above all
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)
            try:
                waits = step()
            except StopIteration:
                return
