"""The way of a publication to many sockets: from the hub to each connection's frame.

What is here runs once for each message and subscriber: `deliver`, `OutboxCore.put`,
`FlushQueue` and `OutboxCore.flush`. What is rare is in the classes of the service that
are made of these (`service.connections.outbox` and `flusher`, which have the invariants
and the bounds); it is called as a method whose name says when.

This file is the interpreted fallback and also the source of the compiled
`_speedups.outbox_c`, whose C types are in `outbox_c.pxd`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["PORTION", "FlushQueue", "OutboxCore", "SubscriptionCore", "deliver"]

PORTION = 200
"""Outboxes flushed in one turn of the loop (count): a publication to 10,000 subscribers
must not keep the others' commands waiting until all are served."""


class SubscriptionCore:
    """A member in a channel, as far as each publication needs it.

    Args:
        put: Hands a message to the member.

    Attributes:
        live: It is handed publications as they are committed.
        next: The offset expected next.
        epoch: The run of offsets that `next` belongs to.
        put: As above.
    """

    __slots__ = ("_outbox", "epoch", "live", "next", "put")

    def __init__(self, put: Callable[..., None]) -> None:
        owner = getattr(put, "__self__", None)
        # Its bound method would be one more object to fetch for each message.
        self._outbox = owner if isinstance(owner, OutboxCore) else None
        self.put = put
        self.live = False
        self.next = 0
        self.epoch = ""


def deliver(
    subscriptions: Iterable[SubscriptionCore], offset: int, epoch: str, push: str
) -> list[Any]:
    """Put *push* to every live subscription that expects *offset*.

    Each is looked at before it is written to, for a put may end others.

    Returns:
        Those that expect an earlier one, or another epoch.
    """
    behind = []
    size = len(push) if push.isascii() else len(push.encode())
    for subscription in subscriptions:
        if not subscription.live:
            continue
        expected = subscription.next
        if offset == expected and epoch == subscription.epoch:
            subscription.next = offset + 1
            if subscription._outbox is not None:
                subscription._outbox._put(push, size, False, 0.0)
            else:
                subscription.put(push)
        elif offset > expected or epoch != subscription.epoch:
            behind.append(subscription)
    return behind


class FlushQueue:
    """What is to be flushed at the end of this turn of the event loop.

    Args:
        call_soon: Runs a callback in the next turn, as the loop's method does.
        now: Returns the time.

    Attributes:
        call_soon: As above.
        time: When the last portion was begun.
    """

    __slots__ = (
        "_joined",
        "_now",
        "_scheduled",
        "_taken",
        "_waiting",
        "call_soon",
        "time",
    )

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        now: Callable[[], float],
    ) -> None:
        self.call_soon = call_soon
        self._now = now
        self.time = now()
        self._waiting: deque[Any] = deque()
        self._scheduled = False
        self._taken: list[Any] = []  # the messages that were joined last
        self._joined: Any = None  # the frame that they are

    def add(self, waiting: Any) -> None:
        """Call the *waiting* one's `flush` soon, after those that wait; once."""
        self._add(waiting)

    def _add(self, waiting: Any) -> None:
        self._waiting.append(waiting)
        if not self._scheduled:
            self._scheduled = True
            self.call_soon(self.run)

    def run(self) -> None:
        """Flush a portion of those that wait (for the event loop)."""
        waiting = self._waiting
        self.time = self._now()
        try:
            for _ in range(min(len(waiting), PORTION)):
                self._flush_next()
        finally:
            # A bug met in one connection must not silence all the others.
            self._scheduled = len(waiting) > 0
            if self._scheduled:
                self.call_soon(self.run)
            else:
                self._taken, self._joined = [], None

    def _flush_next(self) -> None:
        each = self._waiting.popleft()
        if isinstance(each, OutboxCore):
            outbox: OutboxCore = each
            outbox._flush()
        else:
            each.flush()

    def _join(self, messages: list[Any], join: Callable[[list[Any]], Any]) -> Any:
        """Return one frame of *messages*: the last one, if they were the same.

        Many subscribers have the same backlog, of the very same objects.
        """
        last = self._taken
        count = len(messages)
        if len(last) == count:
            same = 0
            while same < count and messages[same] is last[same]:
                same += 1
            if same == count:
                return self._joined
        self._taken, self._joined = messages, join(messages)
        return self._joined


class OutboxCore:
    """The queue before one socket, as far as each message needs it.

    The class made of it has the methods `_encoded`, `_admit`, `_end_window`,
    `_wait_window`, `_suspended`, `_finish`, `_drained` and `_broken`.

    Args:
        send: Writes one frame; returns what must be awaited before the next, or None.
        encoding: The form of the messages.
        queue_size: Bytes that may wait before `_admit` is asked.
        frame_size: Bytes of the frames into which messages are joined.
        flushes: Calls `flush` at the end of the loop's turn.

    Attributes:
        sent: Messages whose write has ended.
        activity: Its `active` is when something was written last; None for nobody's.
        watched: `_drained` is called when all that was put has been written; if not,
            only while there is something in `behind`.
        behind: Subscriptions that wait for room.
    """

    __slots__ = (
        "_batched",
        "_closing",
        "_encoding",
        "_end",
        "_flushes",
        "_frame_size",
        "_gap",
        "_held",
        "_limit",
        "_plain",
        "_queue",
        "_send",
        "_size",
        "_task",
        "_window",
        "_writing",
        "activity",
        "behind",
        "sent",
        "watched",
    )

    def __init__(
        self,
        send: Callable[[Any], Any],
        encoding: Any,
        queue_size: int,
        frame_size: int,
        flushes: FlushQueue,
    ) -> None:
        self._send = send
        self._encoding = encoding
        self._plain = encoding.plain
        self._gap = encoding.gap
        self._frame_size = frame_size
        self._flushes = flushes
        self._queue: list[Any] = []
        self._size = 0  # bytes waiting, not counting the write under way
        self._limit = queue_size
        self._held = False  # `flush` was asked for
        self._window: Any = None  # in which it waits; then it is not held
        self._batched = 0  # bytes that had waited for a window alone when that ended
        self._task: Any = None  # writes, since the socket took no more
        self._writing = 0  # messages of the write under way
        self._closing = False
        self._end: Any = None
        self.sent = 0
        self.activity: Any = None
        self.watched = True
        self.behind: dict[Any, None] = {}

    def put(self, text: str, *, first: bool = False, window: float = 0.0) -> None:
        """Write a message, now or later; dropped when the connection is ending.

        Args:
            text: The message.
            first: Before what waits.
            window: Seconds that it may wait for others; 0 for the end of the turn.
        """
        self._put(text, -1, first, window)

    def _put(self, text: str, size: int, first: bool, window: float) -> None:
        """Put *text*, of *size* bytes in UTF-8; -1 if that is not known."""
        if self._closing:
            return
        message: Any = text
        if not self._plain:
            message = self._encoded(text)  # type: ignore[attr-defined]
            if message is None:
                return
            size = -1
        if size < 0:
            size = self._size_of(message)
        queue = self._queue
        # A message larger than the whole queue is let through alone: refusing it
        # would close every subscriber again and again.
        if (
            self._size + size > self._limit
            and len(queue)
            and not self._admit(message, size)  # type: ignore[attr-defined]
        ):
            return
        self._size += size
        if first:
            # The first message ever is the reply to the connect. SDKs do not answer a
            # ping that comes before it.
            queue.insert(0 if self.sent or self._writing else 1, message)
        else:
            queue.append(message)
        if self._task is None and not self._held:
            if window and self._size < self._frame_size:
                self._wait_window(window)  # type: ignore[attr-defined]
            elif self._window is not None:
                self._window.remove(self)
                self._end_window(self._size - size)  # type: ignore[attr-defined]
            else:
                self._held = True
                self._flushes._add(self)

    def flush(self) -> None:
        """Write what waits until the socket takes no more (for the `FlushQueue`)."""
        self._flush()

    def _flush(self) -> None:
        self._held = False
        self._batched = 0
        try:
            while self._task is None and len(self._queue):
                writing = self._send(self._take())
                if writing is None:
                    self.sent += self._writing
                    self._writing = 0
                else:
                    self._suspended(writing)  # type: ignore[attr-defined]
            if self._task is None:
                self._written()
        except Exception as error:
            if self._broken(error):  # type: ignore[attr-defined]
                raise  # to the loop, which logs it

    def _all_written(self) -> None:
        self._written()

    def _next_frame(self) -> Any:
        return self._take()

    def _written(self) -> None:
        if self._end is not None:
            self._finish()  # type: ignore[attr-defined]
        elif not self._closing:
            if self.activity is not None:
                self.activity.active = self._flushes.time
            if self.watched or self.behind:
                self._drained()  # type: ignore[attr-defined]

    def _take(self) -> Any:
        """Remove and return the next frame: as many messages as fit into one."""
        queue = self._queue
        count = len(queue)
        if count == 1:
            self._size = 0
            self._writing = 1
            return queue.pop()
        size = self._size_of(queue[0])
        taken = 1
        while taken < count:
            more = self._gap + self._size_of(queue[taken])
            if size + more > self._frame_size:
                break
            size += more
            taken += 1
        messages = queue[:taken]
        del queue[:taken]
        self._size -= size - self._gap * (taken - 1)
        self._writing = taken
        if taken == 1:
            return messages[0]
        return self._flushes._join(messages, self._encoding.join)

    def _size_of(self, message: Any) -> int:
        if self._plain:
            return len(message) if message.isascii() else len(message.encode())
        size: int = self._encoding.size(message)
        return size
