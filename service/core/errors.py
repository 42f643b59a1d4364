"""Exceptions, and the wire tables of errors, closes and unsubscribes.

    SteadwireError
    ├── SettingsError            a setting is missing, unknown or contradictory
    ├── StartupError             the service cannot start; one line says why
    │   ├── StoreInUse           another process holds the embedded store
    │   ├── StoreCorrupt         the file is not a readable store; it was not changed
    │   └── StoreVersion         the schema is newer than this program
    ├── StoreError               the store could not do what was asked
    │   ├── StoreUnavailable     transient: locked, disk full, timed out, closing
    │   ├── StoreBusy            transient: the writer's queue is full
    │   └── StoreFull            transient: a limit of what is kept is reached
    ├── CodecError               bytes from outside are malformed or of a wrong shape
    ├── ReplyError               refuse one command: a row of the error table
    └── CloseError               end one connection: a row of the close table

A `ReplyError` reaches a client as ``{"error":{"code","message","temporary"}}``. A
`CloseError` reaches it as a WebSocket close frame. Clients decide by number: an
error is retried only if it is temporary (or 109); a close code is terminal for
3500 to 3999 and 4500 to 4999, and everything else reconnects.
"""

from __future__ import annotations

import traceback
from typing import Final

__all__ = [
    "ALREADY_SUBSCRIBED",
    "BAD_REQUEST",
    "CLOSE_BAD_REQUEST",
    "CLOSE_CONNECTION_LIMIT",
    "CLOSE_NOT_AVAILABLE",
    "CONNECTION_EXPIRED",
    "EXPIRED",
    "FORCE_DISCONNECT",
    "FORCE_RECONNECT",
    "INAPPROPRIATE_PROTOCOL",
    "INSUFFICIENT_STATE",
    "INTERNAL",
    "INTERNAL_CLOSE",
    "INVALID_TOKEN",
    "LIMIT_EXCEEDED",
    "METHOD_NOT_FOUND",
    "NOT_AVAILABLE",
    "NO_PONG",
    "PERMISSION_DENIED",
    "SHUTDOWN",
    "SLOW",
    "STALE",
    "SUBSCRIPTION_EXPIRED",
    "TOKEN_EXPIRED",
    "TOO_MANY_REQUESTS",
    "TOO_MANY_REQUESTS_CLOSE",
    "UNAUTHORIZED",
    "UNKNOWN_CHANNEL",
    "UNRECOVERABLE_POSITION",
    "UNSUBSCRIBE_EXPIRED",
    "UNSUBSCRIBE_INSUFFICIENT",
    "UNSUBSCRIBE_SERVER",
    "WRITE_ERROR",
    "Close",
    "CloseError",
    "CodecError",
    "ErrorReply",
    "ReplyError",
    "SettingsError",
    "StartupError",
    "SteadwireError",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreInUse",
    "StoreTooLarge",
    "StoreUnavailable",
    "StoreVersion",
    "Unsubscribe",
    "describe",
]


class SteadwireError(Exception):
    """The base of every exception that this package raises on purpose."""


class SettingsError(SteadwireError):
    """Settings are missing, unknown or contradictory; the text names them.

    Args:
        mistakes: A line for each; the text is all of them.

    Attributes:
        mistakes: All that was found, so that one start shows everything.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class StartupError(SteadwireError):
    """The service cannot start; the text is the one line to show."""


class StoreInUse(StartupError):
    """Another process holds the embedded store."""


class StoreCorrupt(StartupError):
    """The file is not a readable store; it was not changed."""


class StoreVersion(StartupError):
    """The store's schema is newer than this program."""


class StoreError(SteadwireError):
    """The store could not do what was asked; nothing was acknowledged."""


class StoreUnavailable(StoreError):
    """A transient fault: locked, disk full, timed out, shutting down."""


class StoreBusy(StoreError):
    """A transient fault: the writer's queue is full."""


class StoreFull(StoreError):
    """A transient fault: what is kept has reached its limit; nothing was stored."""


class StoreTooLarge(StoreError):
    """The publication is larger than what some of its subscribers can be sent."""


class CodecError(SteadwireError, ValueError):
    """Text from outside is not well-formed, or not of the expected shape."""


class ErrorReply:
    """A row of the error table: the error in the reply to a refused command.

    Attributes:
        code: The number that clients decide by, 100 to 399.
        message: Stable short text.
        temporary: True when the client should repeat the command by itself.
    """

    __slots__ = ("code", "message", "temporary")

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        self.code: Final = code
        self.message: Final = message
        self.temporary: Final = temporary

    def __repr__(self) -> str:
        return f"<{self.code} {self.message}>"


class Close:
    """A row of the close table: code and reason of a WebSocket close frame.

    Reasons are plain words under 123 bytes (RFC 6455, 5.5.1): one that parses as
    JSON makes the JavaScript SDK give up for good.
    """

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str) -> None:
        self.code: Final = code
        self.reason: Final = reason

    def __repr__(self) -> str:
        return f"<{self.code} {self.reason}>"


class Unsubscribe(Close):
    """A row of the unsubscribe table; clients subscribe again from code 2500 on."""

    __slots__ = ()


INTERNAL: Final = ErrorReply(100, "internal server error", temporary=True)
UNAUTHORIZED: Final = ErrorReply(101, "unauthorized")
UNKNOWN_CHANNEL: Final = ErrorReply(102, "unknown channel")
PERMISSION_DENIED: Final = ErrorReply(103, "permission denied")
METHOD_NOT_FOUND: Final = ErrorReply(104, "method not found")
ALREADY_SUBSCRIBED: Final = ErrorReply(105, "already subscribed")
LIMIT_EXCEEDED: Final = ErrorReply(106, "limit exceeded")
BAD_REQUEST: Final = ErrorReply(107, "bad request")
NOT_AVAILABLE: Final = ErrorReply(108, "not available")
TOKEN_EXPIRED: Final = ErrorReply(109, "token expired")
EXPIRED: Final = ErrorReply(110, "expired")
TOO_MANY_REQUESTS: Final = ErrorReply(111, "too many requests", temporary=True)
UNRECOVERABLE_POSITION: Final = ErrorReply(112, "unrecoverable position")

SHUTDOWN: Final = Close(3001, "shutdown")
INTERNAL_CLOSE: Final = Close(3004, "internal server error")
CONNECTION_EXPIRED: Final = Close(3005, "connection expired")
SUBSCRIPTION_EXPIRED: Final = Close(3006, "subscription expired")
SLOW: Final = Close(3008, "slow")
WRITE_ERROR: Final = Close(3009, "write error")
INSUFFICIENT_STATE: Final = Close(3010, "insufficient state")
FORCE_RECONNECT: Final = Close(3011, "force reconnect")
NO_PONG: Final = Close(3012, "no pong")
TOO_MANY_REQUESTS_CLOSE: Final = Close(3013, "too many requests")
INVALID_TOKEN: Final = Close(3500, "invalid token")
CLOSE_BAD_REQUEST: Final = Close(3501, "bad request")
STALE: Final = Close(3502, "stale")
FORCE_DISCONNECT: Final = Close(3503, "force disconnect")
CLOSE_CONNECTION_LIMIT: Final = Close(3504, "connection limit")
INAPPROPRIATE_PROTOCOL: Final = Close(3506, "inappropriate protocol")
CLOSE_NOT_AVAILABLE: Final = Close(3508, "not available")

UNSUBSCRIBE_SERVER: Final = Unsubscribe(2000, "server unsubscribe")
UNSUBSCRIBE_INSUFFICIENT: Final = Unsubscribe(2500, "insufficient state")
UNSUBSCRIBE_EXPIRED: Final = Unsubscribe(2501, "subscription expired")


class ReplyError(SteadwireError):
    """Refuse one command with a row of the error table; the connection stays.

    Attributes:
        error: The row.
        reason: The cause for the log; clients do not see it.
    """

    def __init__(self, error: ErrorReply, *, reason: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason or error.message


class CloseError(SteadwireError):
    """End one connection with a row of the close table.

    Attributes:
        close: The row.
        reason: The cause for the log; clients do not see it.
    """

    def __init__(self, close: Close, *, reason: str = "") -> None:
        super().__init__(close.reason)
        self.close = close
        self.reason = reason or close.reason


def describe(error: BaseException) -> dict[str, str]:
    """Return an exception's type and stack for the log, never its text.

    The text may quote what a client sent.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    if isinstance(error, BaseExceptionGroup):
        inner = [describe(each) for each in error.exceptions]
        names = ", ".join(each["error"] for each in inner)
        return {
            "error": f"{type(error).__name__}({names})",
            "stack": frames + "".join(each["stack"] for each in inner),
        }
    return {"error": type(error).__name__, "stack": frames}
