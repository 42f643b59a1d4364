"""Which heads have to be polled, as the rows of other processes tell.

Every process reads these rows once a second (`registry.nodes`), so it knows without
further cost whether there is another one, and whether each has a broker.

    no other process      nothing is polled: nobody else commits
    one without a broker  covered channels are polled, too: it tells nobody

Invariants:

* Polls rest only where no other process has had a row for `REST` seconds, and no
  function writes to the table. A process has a row from before its first commit until
  after its last request, and `REST` is longer than a commit may take after that. One
  that is marked dead may live: its row is there for an hour more, and counts.
* A process that comes is seen by the next look, and then all channels are polled at
  once. So what it commits is found within a period of looks and a poll.

One that stood still for longer than an hour commits unseen until it registers anew,
with its next heartbeat; the position check and the polls after that find it. While the
rows cannot be read nothing changes: polls of the same table would fail, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.core.ports import Clock
from service.stores.dynamodb.log.head_watch import HeadWatch
from service.stores.dynamodb.registry.nodes import NodeRow

__all__ = ["REST", "Peers"]

REST = 15.0  # s


class Peers:
    """The other processes, as one of them sees them.

    Args:
        heads: Polls what they may commit.
        clock: Tells for how long nobody was there.
        alone: Nobody but processes that have rows commits.
    """

    def __init__(self, heads: HeadWatch, clock: Clock, *, alone: bool) -> None:
        self._heads = heads
        self._clock = clock
        self._alone = alone
        self._seen_at = clock.now()  # when another one may have been there

    def seen(self, rows: Sequence[NodeRow]) -> None:
        """Take note of the rows of all others, the dead ones included."""
        now = self._clock.now()
        if rows:
            self._seen_at = now
        self._heads.rest(self._alone and now - self._seen_at >= REST)
        untold = any(row.dead is None and not row.broker for row in rows)
        self._heads.poll_covered("a server without a broker", untold)
