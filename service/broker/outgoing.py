"""Hints that wait to be sent, bounded.

While the broker takes hints, they wait in order. Once `LIMIT` bytes wait, and while
there is no connection, only the newest position of each channel is kept, of `MISSED`
channels; it is sent when there is room again. Beyond, the one that was missed first is
forgotten: other processes find its publications by polls. Publications that are not
stored are dropped then: they are delivered at most once. Signals are dropped sooner,
when half of that waits.

Invariants: what was taken and not confirmed as sent is missed when the connection is
lost; so a hint is sent at least once or its position is, unless it is beyond a bound.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
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

    def sent(self) -> None:
        """Confirm that the broker has what was taken."""
        self._taken.clear()

    def lost(self) -> None:
        """Keep the positions of what was not sent: the connection is gone."""
        self.open = False
        for waiting in (*self._taken, *self._queue):
            self._miss(waiting.topic, waiting.top)
        self._taken.clear()
        self._queue.clear()
        self._bytes = 0

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
