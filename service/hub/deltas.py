"""Deltas: a publication for the live subscriptions that take deltas.

A subscription that takes deltas is sent a publication as the difference from the one
before (`replies.delta_body`), if its client certainly has that one.

Invariants, all on the event loop (numbered with those of `hub`):

I8 `Subscription.base` is the payload that its client was handed last, in the reply or
   in a push, whether or not it had an offset; None before the first, and after a gap
   that was skipped. A delta is made from that payload and from no other, so that a
   client that applies each to what it got before has every payload. It is not the
   publication one offset below: that may have been erased since, or another without
   offset came after it. So no push of these may be dropped from an outbox, not even one
   without offset: they have no `service.core.priority`.
I9 When a publication is committed, it is encoded at most three times, however many
   subscriptions there are: as it is; as a delta from `Topic.newest`, which is what live
   subscriptions were handed last; and in full, for those that were handed something
   else. The last two are not made where no subscription takes deltas, and no payload is
   kept there.

Memory: the newest payload of each channel with such subscriptions, and one for each of
them that is behind: what its next delta is made from.

Interleavings that could break them, each a test in tests/hub: a publication without
offset to a subscription that is behind, or between two with offsets; one that is told
twice, or late; an erasure between a publication and the next; a subscription that
becomes live while the same publication is delivered to the others; a gap, skipped or
filled; the stream restarts; the last subscription that takes deltas leaves.
"""

from __future__ import annotations

from service.core.model import Publication
from service.hub.subscription import Subscription, Topic
from service.protocol import replies

__all__ = ["DeltaPushes"]


class DeltaPushes:
    """The pushes of one publication.

    Args:
        topic: Its channel, where subscriptions take deltas.
        publication: The publication.
        delta: It was published to be sent as a delta.
    """

    __slots__ = ("_delta", "_full", "_newest", "_publication", "_topic")

    def __init__(self, topic: Topic, publication: Publication, *, delta: bool) -> None:
        self._topic = topic
        self._publication = publication
        self._newest = topic.newest if delta else None
        self._delta = ""
        self._full = ""

    def push_for(self, subscription: Subscription) -> str:
        """Return the push for *subscription*, which the member is handed next."""
        topic, publication = self._topic, self._publication
        base, newest = subscription.base, self._newest
        subscription.base = topic.newest = publication.data
        if newest is not None and base == newest:
            if not self._delta:
                self._delta = replies.delta_push(topic.quoted, publication, newest)
            return self._delta
        if not self._full:
            self._full = replies.delta_push(topic.quoted, publication, None)
        return self._full
