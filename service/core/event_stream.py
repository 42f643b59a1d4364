"""Server-sent events: reading a stream of them, piece by piece, and writing them.

The format is that of the HTML standard (9.2, "Server-sent events"): lines that end with
LF, CR or CRLF, an empty line after each event, comments that begin with a colon, and
data over several lines.

Invariants: whatever the pieces are in which the bytes come, the events are the same;
and at most `limit` bytes of an event that is not complete are kept, plus one piece.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from service.core.errors import CodecError

__all__ = [
    "COMMENT",
    "EVENT_STREAM",
    "EventStreamReader",
    "ServerSentEvent",
    "event_bytes",
]

EVENT_STREAM: Final = "text/event-stream"
"""The media type."""

COMMENT: Final = b":\n\n"
"""A comment, which clients pass over: a sign of life."""

_LINE_END = re.compile(rb"\r\n?|\n")
_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event.

    Attributes:
        data: Its lines, joined with LF.
        event: Its type; "" where none was named.
        id: The last id of the stream until here; "" for none.
    """

    data: str
    event: str = ""
    id: str = ""


def event_bytes(data: str, id: str = "") -> bytes:
    """Return an event; *data* and *id* are on one line each."""
    if id:
        return f"id: {id}\ndata: {data}\n\n".encode()
    return f"data: {data}\n\n".encode()


class EventStreamReader:
    """Reads one stream.

    Args:
        limit: Most bytes of an event, its field names included.
    """

    __slots__ = (
        "_after_cr",
        "_begun",
        "_data",
        "_event",
        "_id",
        "_limit",
        "_rest",
        "_size",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()  # of a line whose end has not come
        self._begun = False  # the byte order mark, if there is one, was passed over
        self._after_cr = False  # a LF that comes next belongs to that line's end
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self._size = 0  # bytes of the event until now, without the rest

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Take the next bytes; return the events that they complete.

        An event that is not complete when the stream ends is dropped, as the standard
        says.

        Raises:
            CodecError: An event is too large. The stream cannot be read any more.
        """
        events: list[ServerSentEvent] = []
        start = 0
        if self._after_cr and piece:
            start = piece.startswith(b"\n")
            self._after_cr = False
        for end in _LINE_END.finditer(piece, start):
            line = piece[start : end.start()]
            if self._rest:
                line = bytes(self._rest) + line
                self._rest.clear()
            self._take(line, events)
            start = end.end()
        if piece.endswith(b"\r"):
            self._after_cr = True
        self._rest += piece[start:]
        if self._size + len(self._rest) > self._limit:
            raise CodecError(f"an event of more than {self._limit} bytes")
        return events

    def _take(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                data = "\n".join(self._data)
                events.append(ServerSentEvent(data, self._event, self._id))
            self._data, self._event, self._size = [], "", 0
            return
        if line.startswith(b":"):
            return
        self._size += len(line)
        if self._size > self._limit:
            raise CodecError(f"an event of more than {self._limit} bytes")
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode(errors="replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._event = text
        elif name == b"id" and "\0" not in text:
            self._id = text
