"""Close codes and error codes that an application chooses, checked at the door."""

from __future__ import annotations

import json

from service.core.errors import Close, ErrorReply

__all__ = ["close_of", "error_of"]

REASON = 123  # bytes; RFC 6455, 5.5.1: a control frame's 125 without the code
MESSAGE = 255  # characters


def close_of(code: int, reason: str) -> Close | None:
    """Return a close, or None if clients could not understand it.

    The code is from 3000 to 4999. The reason is short and in plain words: one that
    parses as JSON makes the JavaScript SDK give up for good.
    """
    if not 3000 <= code <= 4999 or not _is_plain(reason):
        return None
    if len(reason.encode()) > REASON:
        return None
    try:
        json.loads(reason)
    except (ValueError, RecursionError):
        return Close(code, reason)
    return None


def error_of(code: int, message: str, *, temporary: bool) -> ErrorReply | None:
    """Return an error for a client, or None if it could not understand it.

    The code is from 100 to 1999: below, codes belong to the SDKs.
    """
    if not 100 <= code <= 1999 or not _is_plain(message) or len(message) > MESSAGE:
        return None
    return ErrorReply(code, message, temporary=temporary)


def _is_plain(text: str) -> bool:
    return text.isprintable() and not any("\ud800" <= c <= "\udfff" for c in text)
