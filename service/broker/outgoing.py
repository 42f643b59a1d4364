"""Hints and messages that wait to be sent, bounded.

While the broker takes hints, they wait in order. Once `LIMIT` bytes wait, and while
there is no connection, only the newest position of each channel is kept, of `MISSED`
channels; it is sent when there is room again. Beyond, the one that was missed first is
forgotten: other processes find its publications by polls. Publications that are not
stored are dropped then: they are delivered at most once. Signals are dropped sooner,
when half of that waits. A message to one process waits as a hint does; beyond the
bound, without a connection, or if nobody has it in the end, its sender is told.

Invariants: what was taken and not confirmed as sent is missed when the connection is
lost; so a hint is sent at least once or its position is, unless it is beyond a bound.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.broker.hints import Hints
from service.core.model import Position
from service.core.ports import Committed

__all__ = ["LIMIT", "Outgoing"]

LIMIT = 4 * 1024 * 1024  # bytes
MISSED = 10_000  # channels
PORTION = 64  # hints sent before an answer


class _Waiting(NamedTuple):
    topic: bytes
    data: bytes
    top: Position
    failed: Callable[[bool], None] | None = None


_NOWHERE = Position(0, "")


class Outgoing:
    """The hints of one process on their way to the broker.

    Args:
        hints: Makes them.

    Attributes:
        open: Whether there is a connection.
        dropped: Publications without an offset, notices and signals that were dropped.
    """

    def __init__(self, hints: Hints) -> None:
        self.open = False
        self.dropped = 0
        self._hints = hints
        self._queue: deque[_Waiting] = deque()
        self._taken: list[_Waiting] = []
        self._bytes = 0
        self._missed: OrderedDict[bytes, Position] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._queue and not self._missed

    def add(self, topic: bytes, batch: Sequence[Committed]) -> None:
        """Tell of a commit of one channel."""
        if self.open and self._bytes < LIMIT:
            top = _top_of(batch)
            for data in self._hints.of_commit(topic, batch):
                self._put(_Waiting(topic, data, top))
            return
        self._miss(topic, _top_of(batch))
        self.dropped += sum(not committed.publication.offset for committed in batch)

    def notify(self, topic: bytes) -> None:
        """Send a notice, if there is a connection."""
        if self.open and self._bytes < LIMIT:
            self._put(_Waiting(topic, self._hints.of_notice(topic), _NOWHERE))
        else:
            self.dropped += 1

    def signal(self, topic: bytes, text: str) -> None:
        """Send a signal, if there is a connection and nothing is late."""
        if self.open and self._bytes < LIMIT // 2:
            self._put(_Waiting(topic, self._hints.of_signal(topic, text), _NOWHERE))
        else:
            self.dropped += 1

    def send(self, topic: bytes, data: bytes, failed: Callable[[bool], None]) -> None:
        """Send a message to one process (`core.broker.Broker.send`)."""
        if self.open and self._bytes < LIMIT:
            message = self._hints.of_message(topic, data)
            self._put(_Waiting(topic, message, _NOWHERE, failed))
        else:
            failed(False)

    def take(self) -> list[tuple[bytes, bytes]]:
        """Return the topics and data of what is to be sent next."""
        while self._queue and len(self._taken) < PORTION:
            waiting = self._queue.popleft()
            self._bytes -= len(waiting.data)
            self._taken.append(waiting)
        while self._missed and len(self._taken) < PORTION:
            topic, top = self._missed.popitem(last=False)
            data = self._hints.of_position(topic, top)
            self._taken.append(_Waiting(topic, data, top))
        return [(waiting.topic, waiting.data) for waiting in self._taken]

    def sent(self, heard: Sequence[object] = ()) -> None:
        """Confirm that the broker has what was taken.

        Args:
            heard: To how many processes each was given, as the broker says.
        """
        taken, self._taken = self._taken, []
        for waiting, count in zip(taken, heard, strict=False):
            if count == 0 and waiting.failed is not None:
                waiting.failed(False)

    def lost(self) -> None:
        """Keep the positions of what was not sent: the connection is gone."""
        self.open = False
        taken, queue = self._taken, self._queue
        self._taken, self._queue, self._bytes = [], deque(), 0
        for waiting in (*taken, *queue):
            self._miss(waiting.topic, waiting.top)
        for maybe, several in ((True, taken), (False, queue)):
            for waiting in several:
                if waiting.failed is not None:
                    waiting.failed(maybe)

    def _put(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._bytes += len(waiting.data)

    def _miss(self, topic: bytes, top: Position) -> None:
        if not top.offset:
            return
        self._missed[topic] = top
        self._missed.move_to_end(topic)
        if len(self._missed) > MISSED:
            self._missed.popitem(last=False)


def _top_of(batch: Sequence[Committed]) -> Position:
    for committed in reversed(batch):
        if committed.publication.offset:
            return Position(committed.publication.offset, committed.epoch)
    return _NOWHERE
