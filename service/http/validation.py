"""Validation of close codes and error codes that an application chooses."""

from __future__ import annotations

import json

from service.core.errors import Close, ErrorReply

__all__ = ["close_of", "error_of"]

REASON = 123  # bytes; RFC 6455, 5.5.1: a control frame's 125 without the code
MESSAGE = 255  # characters


def close_of(code: int, reason: str) -> Close | None:
    """Return a close, or None if clients would not understand it.

    The code must be from 3000 to 4999. The reason must be plain words of at most 123
    bytes, and must not be valid JSON, which makes the JavaScript SDK give up for good.
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
    """Return an error reply, or None if clients would not understand it.

    The code must be from 100 to 1999: the SDKs use the codes below.
    """
    if not 100 <= code <= 1999 or not _is_plain(message) or len(message) > MESSAGE:
        return None
    return ErrorReply(code, message, temporary=temporary)


def _is_plain(text: str) -> bool:
    return text.isprintable() and not any("\ud800" <= c <= "\udfff" for c in text)
