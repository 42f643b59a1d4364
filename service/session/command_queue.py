"""How fast the commands of one connection are handled.

Commands come a frame at a time, and a frame has room for thousands. Between two turns
of the event loop at most one portion of them is handled, so that another connection's
command waits for one portion of each, and not for a frame of each. What is spent in a
turn is counted, not measured, in units of a simple command: a presence of many clients
counts as many.

Over its rate (`allowance`) a command is refused with 111, which SDKs repeat; one
without an id is dropped. An unsubscribe is done all the same: it costs little, and an
error would make the SDKs reconnect. Twice over its rate the connection is closed with
3013, and the SDKs come back after their backoff.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.core.errors import (
    TOO_MANY_REQUESTS,
    TOO_MANY_REQUESTS_CLOSE,
    CloseError,
    ReplyError,
)
from service.protocol.commands import Command
from service.session.allowance import CommandQuota
from service.session.port import CommandQueue, Port

__all__ = ["CommandScheduler"]

PORTION = 32
"""Units between two turns of the loop: some 0.1 ms."""


class CommandScheduler:
    """The pace of one connection.

    Args:
        allowance: The commands it may send; None for any number.
        work: What waits and what is under way.
        in_flight: Commands under way at the most.
    """

    __slots__ = ("_allowance", "_in_flight", "_work")

    def __init__(
        self, allowance: CommandQuota | None, work: CommandQueue, in_flight: int
    ) -> None:
        self._allowance = allowance
        self._work = work
        self._in_flight = in_flight

    def portion(self, port: Port) -> Iterator[Command]:
        """Take from the backlog what can be handled now, one after the other.

        What is left is taken up after an outcome, when there is room, or, where a
        portion is spent, in the loop's next turn: *port* is asked for that.
        """
        work = self._work
        limit = self._in_flight
        while work.backlog and work.under_way < limit and not work.blocked:
            if work.spent >= PORTION:
                port.later()
                return
            if not port.has_room:
                return  # replies are small, but histories and recoveries are not
            work.spent += 1
            yield work.backlog.popleft()

    def admits(self, command: int, method: str, now: float) -> bool:
        """Let a command that was taken from the backlog through, or drop it.

        Args:
            command: Its id; 0 for none.
            method: "" for a pong, which is not a command.
            now: The time.

        Raises:
            ReplyError: 111; the command is over the rate.
            CloseError: 3013; the connection is, by far.
        """
        if self._allowance is None or not method:
            return True
        work = self._work
        if not work.granted:
            wanted = min(1 + len(work.backlog), PORTION)
            work.granted = self._allowance.take(wanted, now)
        if work.granted:
            work.granted -= 1
            return True
        if not self._allowance.refuse(now, answered=command > 0):
            raise CloseError(TOO_MANY_REQUESTS_CLOSE)
        if method == "unsubscribe":
            return True
        if command:
            raise ReplyError(TOO_MANY_REQUESTS)
        return False
