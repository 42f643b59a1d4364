"""The streamed answers of this process: viewers over HTTP, and who they are.

A stream is what a connection is for a WebSocket: one user sees one channel through it,
until its token expires or is revoked, the API ends it, or the process drains. It ends
by ending the answer; a client that may come back resumes it after the last event that
it has.

Invariants, all on the event loop:

* At most `limit` streams are open, `user_limit` of one user, and `address_limit` of one
  address without a user. One more is refused, and none that is open ends for it.
* Each stream that was opened is closed once, whatever ended it; then it counts nowhere.
* `end` of a stream is called at most once, inside none of its own calls.

Interleavings that could break them, each a test in tests/connections/test_streams.py:
a stream that ends another, or closes itself, in the middle of a revocation of many; one
that expires in the turn in which it is closed; a drain that begins while one is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.auth.revocations import Revocation
from service.core.errors import TOO_MANY_REQUESTS, ReplyError
from service.core.model import Channel, UserId
from service.core.ports import Clock, Timer
from service.core.rate_limits import Holders

__all__ = ["USER_SHARE", "Stream", "Streams"]

USER_SHARE = 4
"""Streams for each connection that a user may have: a page that runs an agent has one
for the run and one for the thread, and a network that was left keeps some for a time.
"""


class Stream:
    """One streamed answer.

    Args:
        user: Whose it is; "" for an anonymous one.
        channel: What it shows.
        address: The key of the client's address.
        token_id: The ``jti`` of its token, "" for none.
        issued_at: When that was issued, in Unix seconds, 0 for unknown.
        end: Ends the answer, soon and after a whole event.
    """

    __slots__ = (
        "_end",
        "_timer",
        "address",
        "channel",
        "issued_at",
        "token_id",
        "user",
    )

    def __init__(
        self,
        user: UserId,
        channel: Channel,
        address: str,
        token_id: str,
        issued_at: float,
        end: Callable[[], object],
    ) -> None:
        self.user = user
        self.channel = channel
        self.address = address
        self.token_id = token_id
        self.issued_at = issued_at
        self._end: Callable[[], object] | None = end
        self._timer: Timer | None = None

    @property
    def holder(self) -> tuple[str, str]:
        """Whom it counts for: its user, or without one its address."""
        return (self.user, "") if self.user else ("", self.address)

    def send_away(self) -> None:
        """End the answer; harmless when it ends already."""
        end, self._end = self._end, None
        self.stop()
        if end is not None:
            end()

    def expire_at(self, clock: Clock, when: float) -> None:
        """End it at *when*, as `Clock.now`, and at no other time."""
        self.stop()
        if when < float("inf") and self._end is not None:
            self._timer = clock.call_at(when, self.send_away)

    def stop(self) -> None:
        """Do not let it expire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Streams:
    """The streams that are open.

    Args:
        clock: Ends those that expire.
        limit: Most streams of this process.
        user_limit: Most of one user.
        address_limit: Most of one address without a user.
    """

    def __init__(
        self, clock: Clock, *, limit: int, user_limit: int, address_limit: int
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._users = Holders[tuple[str, str]](user_limit)
        self._anonymous = Holders[tuple[str, str]](address_limit)
        self._open: dict[Stream, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._open))

    def open(self, stream: Stream, end_at: float) -> None:
        """Add a stream, which ends at *end_at* as `Clock.now`.

        Raises:
            ReplyError: 111, temporary: there are too many.
        """
        if len(self._open) >= self._limit:
            raise ReplyError(TOO_MANY_REQUESTS, reason="streams of this process")
        if not self._holders(stream).hold(stream.holder):
            raise ReplyError(TOO_MANY_REQUESTS, reason="streams of this client")
        self._open[stream] = None
        stream.expire_at(self._clock, end_at)

    def close(self, stream: Stream) -> None:
        """Forget a stream whose answer has ended; harmless when that was done."""
        if stream in self._open:
            del self._open[stream]
            stream.stop()
            self._holders(stream).release(stream.holder)

    def of_user(self, user: UserId) -> list[Stream]:
        """Return a user's streams."""
        return [stream for stream in self._open if stream.user == user]

    def revoke(self, revoked: Revocation) -> None:
        """End the streams whose token was revoked."""
        for stream in self:
            if revoked.covers(stream.user, stream.token_id, stream.issued_at):
                stream.send_away()

    def end(self, user: UserId, channel: Channel | None = None) -> None:
        """End a user's streams, or those of them that show *channel*."""
        for stream in self.of_user(user):
            if channel in (None, stream.channel):
                stream.send_away()

    def refresh(self, user: UserId, when: float) -> None:
        """Let a user's streams end at *when*, as `Clock.now`."""
        for stream in self.of_user(user):
            stream.expire_at(self._clock, when)

    def _holders(self, stream: Stream) -> Holders[tuple[str, str]]:
        return self._users if stream.user else self._anonymous
