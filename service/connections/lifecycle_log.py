"""The life of one connection in the log and in the counters, a line for each step.

    opened ──► connected ──► closing ──► closed        each once, in this order;
       └───────────┴────────────┴──────────┘           any but the first may be missing

A search for a connection's id in the log finds its whole life. Each connection has one
`opened` and one `closed`, so opened less closed is the number that is open. A
connection's own counts are on its last line.
"""

from __future__ import annotations

import structlog

from service.core.errors import (
    INTERNAL_CLOSE,
    SLOW,
    WRITE_ERROR,
    Close,
    ErrorReply,
    StoreError,
    describe,
)
from service.core.model import Channel, ClientId, Joined, Position, UserId
from service.metrics import PROTOCOL_CLOSES, Metrics
from service.protocol.commands import Command
from service.session.liveness_stats import Level

__all__ = ["LifecycleLog", "log_level"]

log = structlog.get_logger("steadwire")

_OURS = (INTERNAL_CLOSE.code, SLOW.code, WRITE_ERROR.code)  # faults before the connect


class LifecycleLog:
    """The log and counters of one connection.

    Args:
        metrics: Counts.
        client: The connection's id.
        now: When it was opened.

    Attributes:
        commands: Commands that it sent.
    """

    __slots__ = (
        "_client",
        "_close",
        "_connected",
        "_ended",
        "_error",
        "_metrics",
        "_opened_at",
        "commands",
    )

    def __init__(self, metrics: Metrics, client: ClientId, now: float) -> None:
        self._metrics = metrics
        self._client = client
        self._opened_at = now
        self._connected = False
        self._ended = False
        self._error: ErrorReply | None = None  # the last, before it has connected
        self._close: Close | None = None
        self.commands = 0
        metrics.opened.add()
        log.info("connection opened", connection=client)

    def received(self, commands: list[Command]) -> None:
        """Count the commands of a frame."""
        count = self._metrics.commands.add
        for _, method, _ in commands:
            self.commands += 1
            count(method or "pong")

    def connected(self, user: UserId, now: float) -> None:
        """Log that it has connected as *user*."""
        self._connected = True
        self._metrics.connects.add("ok")
        log.info(
            "connection connected",
            connection=self._client,
            user=user,
            seconds=round(now - self._opened_at, 6),
        )

    def refused(self, error: ErrorReply) -> None:
        """Count a command that is answered with an error."""
        self._metrics.errors.add(error.code)
        if not self._connected:
            self._error = error
            log.info(
                "connection refused", connection=self._client, error_code=error.code
            )

    def joined(
        self,
        channel: Channel,
        asked: Position | None,
        outcome: Joined | StoreError,
        *,
        wanted: bool,
    ) -> None:
        """Count the outcome of a join; *wanted* if it is in the channel now."""
        if asked is not None and isinstance(outcome, Joined):
            recovered = "no" if outcome.recovered is None else "yes"
            self._metrics.recoveries.add(recovered)
        if wanted:
            log.debug("channel subscribed", connection=self._client, channel=channel)

    def left(self, channel: Channel) -> None:
        """Log that it left a channel; not called for each when the connection ends."""
        log.debug("channel unsubscribed", connection=self._client, channel=channel)

    def failed(self, error: Exception) -> None:
        """Log an internal error that ends it."""
        log.error("connection failed", connection=self._client, **describe(error))

    def closing(self, close: Close) -> None:
        """Note that the server ends it; the first reason counts."""
        if self._close is None:
            self._close = close
            log.debug("connection closing", connection=self._client, code=close.code)

    def closed(
        self, code: int | None, now: float, *, sent: int, dropped: int, displaced: int
    ) -> None:
        """Log and count its end; only the first call counts.

        Args:
            code: Of the peer's close frame, 1006 without one, None if it is not known.
            now: The time.
            sent: Messages that were written.
            dropped: Messages that were not.
            displaced: Those of them that were dropped while it went on.
        """
        if self._ended:
            return
        self._ended = True
        close, metrics = self._close, self._metrics
        by = "client"
        if close is not None:
            by, code = "server", close.code
        elif code in PROTOCOL_CLOSES:
            by = "protocol"
        metrics.closes.add(by if code is None or by == "client" else code)
        metrics.sent.add(sent)
        metrics.displaced.add(displaced)
        if dropped > displaced:
            metrics.drops.add(_cause(close), dropped - displaced)
        if not self._connected:
            metrics.connects.add(self._outcome())
        log.info(
            "connection closed",
            connection=self._client,
            by=by,
            code=code,
            reason="" if close is None else close.reason,
            seconds=round(now - self._opened_at, 6),
            commands=self.commands,
            messages=sent,
            dropped=dropped,
        )

    def _outcome(self) -> str:
        if self._error is not None:
            return "failed" if self._error.temporary else "refused"
        if self._close is None:
            return "abandoned"
        return "failed" if self._close.code in _OURS else "refused"


def log_level(client: ClientId, before: Level, after: Level) -> None:
    """Log that a connection is at another level of liveness."""
    what = "resurrected" if after is Level.HEALTHY else after.value
    log.info(
        f"connection {what}",
        connection=client,
        before=before.value,
    )


def _cause(close: Close | None) -> str:
    if close is SLOW:
        return "slow"
    return "write_error" if close is WRITE_ERROR else "gone"
