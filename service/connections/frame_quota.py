"""Frame quota: what a client may send that is not a command, and how much at a time.

A command has its rate limits (`service.session.command_queue`). A ping or pong of the
WebSocket protocol, and a fragment of a message, cost the server as much, and could be
sent in any number by a peer that never connects. So each socket has a budget for them:
`BEFORE_CONNECT` in all until its client has connected, then `RATE`. A socket that sends
one more is closed with 3013. Fragments of `FRAGMENT` bytes or more are free: the size
of a message is limited, and so they are few.

The sockets of one address share a part of each turn of the event loop
(`service.core.address_shares`): `SHARE` bytes of what they send are handled, the rest
in the turns that follow, in the order in which it was read; so are the portions of a
frame with many commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service.core.address_shares import AddressShares
from service.core.errors import TOO_MANY_REQUESTS_CLOSE, Close
from service.core.ports import Clock
from service.core.rate_limits import Bucket, Rate

__all__ = [
    "BEFORE_CONNECT",
    "PORTION",
    "RATE",
    "READ",
    "FrameQuota",
]

BEFORE_CONNECT = 8
"""Pings, pongs and small fragments of a socket until its client connects (count)."""

RATE = Rate(rate=10.0, burst=100.0)
"""Pings, pongs and small fragments of a socket whose client has connected."""

FRAGMENT = 512
"""Bytes; a smaller fragment of a message counts as a ping does."""

READ = 128
"""Bytes that a read counts for, if it brought less: what its own work is worth."""

PORTION = 2 * 1024
"""Bytes that a portion of the commands of a frame counts for, beyond the first."""


class FrameQuota:
    """The frames that one socket may send.

    Args:
        address: The key of the client's address.
        shares: Those of the process.
        clock: For `RATE`.
        refused: Called once, when the socket has sent a frame too many.
    """

    __slots__ = (
        "_address",
        "_bucket",
        "_clock",
        "_close",
        "_heard",
        "_left",
        "_refused",
        "_shares",
    )

    def __init__(
        self,
        address: str,
        shares: AddressShares,
        clock: Clock,
        refused: Callable[[], None],
    ) -> None:
        self._address = address
        self._shares = shares
        self._clock = clock
        self._refused = refused
        self._left = BEFORE_CONNECT
        self._bucket: Bucket | None = None
        self._heard: Callable[[], None] | None = None
        self._close: Callable[[Close], None] | None = None

    def listen(self, heard: Callable[[], None], close: Callable[[Close], None]) -> None:
        """Tell the socket's connection of frames.

        Args:
            heard: Called for each frame that is counted or free: a sign of life.
            close: Called with a reason when the socket has sent a frame too many.
        """
        self._heard = heard
        self._close = close

    def forget(self) -> None:
        """Forget the connection: it is gone."""
        self._heard = self._close = None

    def connected(self) -> None:
        """Allow `RATE` from now on: the client has connected."""
        self._bucket = Bucket(self._clock.now())

    def take(self, size: int = 0) -> bool:
        """Count a frame that is not a message.

        Args:
            size: Bytes of a fragment.

        Returns:
            False when it is one too many: nothing that follows is to be handled.
        """
        if self._left < 0:
            return False
        if size < FRAGMENT and not self._may():
            self._left = -1
            self._refused()
            if self._close is not None:
                self._close(TOO_MANY_REQUESTS_CLOSE)
            return False
        if self._heard is not None:
            self._heard()
        return True

    def _may(self) -> bool:
        if self._bucket is not None:
            return self._bucket.take(RATE, self._clock.now()) == 1
        if self._left == 0:
            return False
        self._left -= 1
        return True

    def read(self, size: int) -> Awaitable[None] | None:
        """Take *size* bytes of this turn's share; what is returned must be awaited."""
        return self._shares.turn(self._address, max(size, READ))

    def may_read(self, size: int, later: Callable[[], object]) -> bool:
        """Take *size* bytes of this turn's share; if False, *later* is called once."""
        size = max(size, READ)
        if self._shares.take(self._address, size):
            return True
        self._shares.call(self._address, size, later)
        return False

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call *callback*, which handles a portion of commands, in a turn to come."""
        if self._shares.take(self._address, PORTION):
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._shares.call(self._address, PORTION, callback)
