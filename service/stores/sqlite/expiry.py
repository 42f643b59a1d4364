"""Deleting what has expired, in steps that appends need not wait for.

A channel's row says when it must be looked at next (``due``): when its oldest
publication expires, or, if none is stored, its metadata. An append touches that only
when it is the first one stored. So a sweep costs what it deletes, however many
channels there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import structlog

from service.core.model import Channel
from service.core.ports import Clock, Timer
from service.stores.sqlite.channel_state import ChannelStateCache
from service.stores.sqlite.schema import reason
from service.stores.sqlite.state import StateTable
from service.stores.sqlite.writer import Job

__all__ = ["Expiry", "Sweeper"]

SWEPT_CHANNELS = 64  # count per step, which is one transaction of some milliseconds
SWEPT_ROWS = 512  # count per step

_log = structlog.get_logger(__name__)


class Swept(NamedTuple):
    """What one step of the sweep did.

    Attributes:
        more: There is more to do at once.
        expired: Channels whose metadata was deleted.
    """

    more: bool
    expired: list[Channel]


class Expiry:
    """The sweep of one database; on the writer's thread.

    Args:
        book: Of the writer.
        shelf: Of the same connection.
    """

    def __init__(self, book: ChannelStateCache, shelf: StateTable) -> None:
        self._book = book
        self._shelf = shelf

    def step(self, now: int) -> Swept:
        """Delete some of what has expired at *now* (Unix ms)."""
        expired: list[Channel] = []
        with self._book.transaction():
            more = self._sweep_keys(now)
            more = self._shelf.sweep(now, SWEPT_ROWS) or more
            rows = self._book.execute(
                "SELECT id, name, epoch, ttl FROM channels WHERE due <= ?"
                " ORDER BY due LIMIT ?",
                (now, SWEPT_CHANNELS),
            ).fetchall()
            left = SWEPT_ROWS
            for number, name, epoch, ttl in rows:
                left -= self._sweep_publications(name, number, now - ttl, left)
                if not left:
                    break
                due = self._due(number)
                if due > now:
                    self._book.execute(
                        "UPDATE channels SET due = ? WHERE id = ?", (due, number)
                    )
                else:
                    self._book.expire(name, number, epoch)
                    expired.append(name)
        return Swept(more or not left or len(rows) == SWEPT_CHANNELS, expired)

    def _sweep_keys(self, now: int) -> bool:
        """Delete expired idempotency keys; return whether there may be more."""
        # All live equally long, so in the order of their ids.
        rows = self._book.execute(
            "SELECT id, expires FROM idempotency ORDER BY id LIMIT ?", (SWEPT_ROWS,)
        ).fetchall()
        count = 0
        while count < len(rows) and rows[count][1] <= now:
            count += 1
        if count:
            self._book.execute(
                "DELETE FROM idempotency WHERE id <= ?", (rows[count - 1][0],)
            )
        return count == SWEPT_ROWS

    def _sweep_publications(
        self, channel: Channel, number: int, cutoff: int, limit: int
    ) -> int:
        """Delete up to *limit* of the oldest; return how many."""
        rows = self._book.execute(
            "SELECT offset, time FROM publications WHERE channel_id = ?"
            " ORDER BY offset LIMIT ?",
            (number, limit),
        ).fetchall()
        count = 0
        while count < len(rows) and rows[count][1] <= cutoff:
            count += 1
        if count:
            last = rows[count - 1][0]
            self._book.delete(number, last)
            state = self._book.states.get(channel)
            if state is not None:
                state.first = last + 1
        return count

    def _due(self, number: int) -> int:
        """Return when the next of a channel's rows expires, Unix milliseconds."""
        due: int
        (due,) = self._book.execute(
            "SELECT coalesce((SELECT time FROM publications WHERE channel_id = c.id"
            " ORDER BY offset LIMIT 1) + ttl, touched + meta_ttl)"
            " FROM channels AS c WHERE id = ?",
            (number,),
        ).fetchone()
        return due


class Sweeper:
    """Has the sweep done every so often. Event loop only.

    Args:
        clock: Calls it.
        interval: Seconds from one sweep to the next.
        submit: Queues work on the writer's thread.
        step: Makes one step there.
        expired: Told of the channels whose metadata was deleted.
    """

    def __init__(
        self,
        clock: Clock,
        interval: float,
        submit: Callable[[Job[Swept]], None],
        step: Callable[[], Swept],
        expired: Callable[[list[Channel]], None],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._submit = submit
        self._step = step
        self._expired = expired
        self._busy = False
        self._stopped = False
        self._timer = self._wind()

    def stop(self) -> None:
        """Begin no further step."""
        self._stopped = True
        self._timer.cancel()

    def _wind(self) -> Timer:
        return self._clock.call_at(self._clock.now() + self._interval, self._begin)

    def _begin(self) -> None:
        self._timer = self._wind()
        if not self._busy:
            self._go_on()

    def _go_on(self) -> None:
        self._busy = not self._stopped
        if self._busy:
            self._submit(Job(self._step, self._swept))

    def _swept(self, swept: Swept | None, error: BaseException | None) -> None:
        self._busy = False
        if swept is None:
            _log.warning("the sweep failed", reason=reason(error))
            return
        if swept.expired:
            self._expired(swept.expired)
        if swept.more:
            self._go_on()
