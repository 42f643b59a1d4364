"""WebSocket frames of RFC 6455, server side, interpreted: twin of `frames_c`.

The parser is strict: it takes only what the RFC allows a client without extensions, or
with permessage-deflate (RFC 7692) without context takeover. It is fed as bytes arrive,
in whatever pieces, and returns what is whole:

    (TEXT, str)            a message
    (BINARY, bytes)        a message
    (FRAGMENT, int)        a frame that is not the last of its message, its bytes
    (PING, bytes), (PONG, bytes)
    (CLOSE, (int, str))    code and reason; 1005 and "" if there is no code
    (FAILED, int)          a breach, and the code to close with: 1002, 1007 or 1009

Nothing follows `CLOSE` and `FAILED`: what is fed after them is ignored. A breach is
told as soon as the bytes that show it are there: a header that is not allowed before
its payload, a length over the limit before a byte is kept for it, text that is not
UTF-8 before the frame is whole (as Python's incremental decoder tells it).

What is kept between two calls is at most the message so far, which is within the limit,
and a header or a control frame that is not whole, 131 bytes; while a deflated message
is under way, also zlib's window, 40 KB.

A deflated message is inflated as its bytes arrive, at most one byte beyond the limit,
which is for the message inflated. Its frames together may have a quarter more than the
limit, as badly deflated data has. What comes in a message after the last block of its
data is ignored, as other servers do.
"""

from __future__ import annotations

import os
import zlib
from codecs import utf_8_decode
from collections.abc import Callable, Coroutine
from struct import Struct
from typing import Any

__all__ = [
    "BINARY",
    "CLOSE",
    "FAILED",
    "FRAGMENT",
    "PING",
    "PONG",
    "TEXT",
    "FrameParser",
    "FrameWriter",
    "SharedFrame",
    "SocketWriter",
    "build_close",
    "build_deflated",
    "build_frame",
    "receive_now",
]

FAILED = -1
FRAGMENT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # 5.2
PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009  # 7.4.1
NO_CODE = 1005
REASON = 123  # bytes: a control frame has at most 125, and the code takes two

DEFLATED = 0x40  # RSV1, of a message's first frame (RFC 7692, 6)
_TAIL = b"\x00\x00\xff\xff"  # of deflated data, left out on the wire (7.2.1)
_LEVEL = 1  # a frame of 64 KiB takes some 0.5 ms of the event loop, and twice that at 6

_OPCODES = frozenset((FRAGMENT, TEXT, BINARY, CLOSE, PING, PONG))
_LEAST = {2: 126, 8: 65536}  # bytes of a payload, by the width of its length
_short = Struct("!BB").pack
_medium = Struct("!BBH").pack
_large = Struct("!BBQ").pack


def build_frame(opcode: int, payload: str | bytes) -> bytes:
    """Return an unmasked frame that is a whole message, or a control frame.

    Args:
        opcode: `TEXT`, `BINARY`, `CLOSE`, `PING` or `PONG`.
        payload: A `str` is encoded as UTF-8.

    Raises:
        ValueError: The opcode is none of these, a control frame would be too large, or
            the text has a lone surrogate.
        TypeError: The payload is neither `str` nor `bytes`.
    """
    if opcode not in _OPCODES or opcode == FRAGMENT:
        raise ValueError("not an opcode of a whole message")
    if isinstance(payload, str):
        payload = payload.encode()
    elif not isinstance(payload, bytes):
        raise TypeError("a payload is str or bytes")
    size = len(payload)
    if size < 126:
        return _short(0x80 | opcode, size) + payload
    if opcode >= CLOSE:
        raise ValueError("a control frame has at most 125 bytes")
    if size < 65536:
        return _medium(0x80 | opcode, 126, size) + payload
    return _large(0x80 | opcode, 127, size) + payload


def build_deflated(opcode: int, payload: str | bytes, window: int) -> bytes:
    """Return an unmasked frame that is a whole message, deflated if that is shorter.

    Nothing of other messages is needed to inflate it.

    Args:
        opcode: `TEXT` or `BINARY`.
        payload: A `str` is encoded as UTF-8.
        window: Bits of the window, 9 to 15.

    Raises:
        ValueError: Another opcode or window, or the text has a lone surrogate.
        TypeError: The payload is neither `str` nor `bytes`.
    """
    plain = build_frame(opcode, payload)
    if opcode not in (TEXT, BINARY) or not 9 <= window <= 15:
        raise ValueError("not an opcode of a message, or not the bits of a window")
    octets = payload.encode() if isinstance(payload, str) else payload
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -window)
    data = deflate.compress(octets) + deflate.flush(zlib.Z_SYNC_FLUSH)
    data = data[: -len(_TAIL)]
    if len(data) >= len(octets):
        return plain
    built = build_frame(opcode, data)
    return bytes((built[0] | DEFLATED,)) + built[1:]


def inflater() -> Any:
    """Return what inflates one message."""
    return zlib.decompressobj(-zlib.MAX_WBITS)


def inflate(it: Any, piece: bytes | bytearray, left: int, *, last: bool) -> bytes | int:
    """Inflate a piece of a message.

    Args:
        it: Its `inflater`.
        piece: The piece.
        left: Bytes that the message may still have.
        last: It is the last one.

    Returns:
        What it inflates to; a code to close with if it is more than *left*, or nothing
        that can be inflated.
    """
    try:
        data: bytes = it.decompress(piece, left + 1)  # 0 would be for no limit
        if last and len(data) <= left and not it.eof:
            data += it.decompress(_TAIL, left + 1 - len(data))
    except zlib.error:
        return INVALID_DATA
    return TOO_BIG if len(data) > left else data


def build_close(code: int, reason: str) -> bytes:
    """Return a close frame.

    Args:
        code: 1005 for a frame without one, as the answer to such a frame.
        reason: Cut to 123 bytes of UTF-8, between two characters.

    Raises:
        ValueError: The code has no two bytes, or the reason has a lone surrogate.
    """
    if code == NO_CODE:
        return _short(0x80 | CLOSE, 0)
    if not 0 <= code < 65536:
        raise ValueError("a code has two bytes")
    text = reason.encode()
    if len(text) > REASON:
        text = text[:REASON].decode(errors="ignore").encode()
    return _medium(0x80 | CLOSE, len(text) + 2, code) + text


def _unmask(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ key).to_bytes(size, "little")


class FrameParser:
    """The frames of one client, in the order of their bytes.

    Args:
        limit: Bytes of one message, fragments together; one more is 1009.
        deflate: Messages may be deflated; each can be inflated alone.
    """

    __slots__ = (
        "_checked",
        "_deflate",
        "_final",
        "_frame",
        "_inflater",
        "_inside",
        "_left",
        "_limit",
        "_mask",
        "_message",
        "_opcode",
        "_over",
        "_rest",
        "_sent",
    )

    def __init__(self, limit: int, deflate: bool = False) -> None:
        self._limit = limit
        self._deflate = deflate
        self._over = False
        self._rest = b""  # of a header, or of a control frame, that is not whole
        self._opcode = 0  # of the message under way; 0 for none
        self._message: bytearray | None = None  # its bytes so far, unmasked
        self._checked = 0  # of those of a text: known to be UTF-8
        self._inflater: Any = None  # of a deflated one
        self._sent = 0  # bytes of its frames
        # The data frame under way:
        self._inside = False
        self._final = False
        self._frame = 0  # bytes of its payload
        self._left = 0  # of these, not here yet
        self._mask = b""  # for the next byte first

    def feed(self, data: bytes) -> list[tuple[int, object]]:
        """Take bytes as they came from the client; return what is whole.

        Raises:
            TypeError: *data* is not `bytes`.
        """
        if type(data) is not bytes:
            raise TypeError("frames are bytes")
        events: list[tuple[int, object]] = []
        if self._over:
            return events
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while True:
            if self._inside:
                at = self._take(data, at, events)
                if self._inside or self._over:
                    return events
            start = at
            at = self._begin(data, at, events)
            if self._over:
                return events
            if at < 0:
                self._rest = data[start:]
                return events

    def _fail(self, events: list[tuple[int, object]], code: int) -> int:
        events.append((FAILED, code))
        self._over = True
        self._rest = b""
        self._message = self._inflater = None
        return -1

    def _begin(self, data: bytes, at: int, events: list[tuple[int, object]]) -> int:
        """Read a header, and a control frame with it.

        Returns:
            The place after it; -1 if it is not whole, or is a breach.
        """
        have = len(data) - at
        if have < 2:
            return -1
        opcode, size = data[at] & 0x0F, data[at + 1] & 0x7F
        if not self._allows(data[at], data[at + 1]):
            return self._fail(events, PROTOCOL_ERROR)
        wide = 0 if size < 126 else 2 if size == 126 else 8
        head = 6 + wide
        if wide:
            if have < 2 + wide:
                return -1
            size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if size < _LEAST[wide] or size >= 1 << 63:
                return self._fail(events, PROTOCOL_ERROR)
        if opcode >= CLOSE:
            if have < head + size:
                return -1
            self._control(opcode, data, at + head, size, events)
            return at + head + size
        deflated = self._inflater is not None
        if opcode:
            deflated = data[at] & DEFLATED > 0
        if size > self._room(opcode, deflated):
            return self._fail(events, TOO_BIG)
        if have < head:
            return -1
        if opcode:
            self._opcode = opcode
            self._checked = 0
            self._sent = 0
            self._inflater = inflater() if deflated else None
        self._inside = True
        self._sent += size
        self._final = data[at] >= 0x80
        self._frame = self._left = size
        self._mask = data[at + head - 4 : at + head]
        return at + head

    def _room(self, opcode: int, deflated: bool) -> int:
        """Return the bytes that a data frame may have."""
        if deflated:
            most = self._limit + (self._limit >> 2) + 64
            return most if opcode else most - self._sent
        return self._limit - (0 if self._message is None else len(self._message))

    def _allows(self, first: int, second: int) -> bool:
        """Tell whether a header may begin with these two bytes now."""
        opcode = first & 0x0F
        reserved = first & 0x70
        if reserved == DEFLATED and self._deflate and opcode in (TEXT, BINARY):
            reserved = 0
        if reserved or second < 0x80 or opcode not in _OPCODES:
            return False
        if opcode >= CLOSE:
            return first >= 0x80 and second & 0x7F < 126
        return (opcode == FRAGMENT) == bool(self._opcode)

    def _control(
        self,
        opcode: int,
        data: bytes,
        at: int,
        size: int,
        events: list[tuple[int, object]],
    ) -> None:
        payload = _unmask(data[at : at + size], data[at - 4 : at])
        if opcode != CLOSE:
            events.append((opcode, payload))
            return
        if not payload:
            events.append((CLOSE, (NO_CODE, "")))
        else:
            code = int.from_bytes(payload[:2], "big")
            # 7.4.2, and the codes registered since.
            if size < 2 or not (
                1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
            ):
                self._fail(events, PROTOCOL_ERROR)
                return
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError:
                self._fail(events, INVALID_DATA)
                return
            events.append((CLOSE, (code, reason)))
        self._over = True
        self._message = self._inflater = None

    def _take(self, data: bytes, at: int, events: list[tuple[int, object]]) -> int:
        """Take what is there of a data frame; return the place after it."""
        count = min(self._left, len(data) - at)
        piece = _unmask(data[at : at + count], self._mask)
        self._left -= count
        whole = not self._left
        if self._inflater is not None:
            left = self._limit - (0 if self._message is None else len(self._message))
            inflated = inflate(self._inflater, piece, left, last=whole and self._final)
            if isinstance(inflated, int):
                self._fail(events, inflated)
                return at + count
            piece = inflated
        if whole and self._final and self._message is None:
            self._finish(piece, events)
            return at + count
        turn = count % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        if self._message is None:
            self._message = bytearray()
        message = self._message
        message += piece
        if not whole or not self._final:
            if self._opcode == TEXT:
                try:
                    # Only what may be the beginning of a character is left over.
                    _, used = utf_8_decode(bytes(message[self._checked :]))
                except UnicodeDecodeError:
                    self._fail(events, INVALID_DATA)
                    return at + count
                self._checked += used
            if whole:
                self._inside = False
                events.append((FRAGMENT, self._frame))
            return at + count
        self._message = None
        self._finish(bytes(message), events)
        return at + count

    def _finish(self, message: bytes, events: list[tuple[int, object]]) -> None:
        opcode, self._opcode = self._opcode, 0
        self._inside = False
        self._inflater = None
        if opcode == BINARY:
            events.append((BINARY, message))
            return
        try:
            events.append((TEXT, message.decode()))
        except UnicodeDecodeError:
            self._fail(events, INVALID_DATA)


class SharedFrame:
    """The frame that was made last, for all who write the same message.

    A publication goes to its subscribers one after the other, as one and the same
    object, so its frame is built once.

    Args:
        deflate: Bytes from which a message is deflated, or characters of a text; 0 for
            none.
        window: Bits of the window that it is deflated with, 9 to 15.
    """

    __slots__ = ("_deflate", "_frame", "_message", "_window")

    def __init__(self, deflate: int = 0, window: int = 15) -> None:
        self._deflate = deflate
        self._window = window
        self._message: str | bytes | None = None
        self._frame = b""

    def of(self, message: str | bytes) -> bytes:
        """Return the frame of *message*, text of a `str` and binary of `bytes`.

        Raises:
            ValueError: The text has a lone surrogate.
        """
        if message is not self._message:
            opcode = TEXT if isinstance(message, str) else BINARY
            if 0 < self._deflate <= len(message):
                self._frame = build_deflated(opcode, message, self._window)
            else:
                self._frame = build_frame(opcode, message)
            self._message = message
        return self._frame


def receive_now(descriptor: int) -> bytes | None:
    """Read what a socket has."""
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class SocketWriter:
    """The one writer of a transport.

    While it is direct and nothing waits in the transport, bytes go to the socket at
    once: without the transport's queue, and in the same turn of the event loop. What
    the socket does not take is the transport's, and so is every error: it finds the
    same one. Its owner ends that before the descriptor is closed.

    Args:
        transport: The transport, which nobody else writes to.
        descriptor: Of its socket.

    Attributes:
        open: Bytes are written; false for good when the connection is ending.
        direct: Bytes may go to the socket.
        written: Bytes so far.
    """

    __slots__ = ("_descriptor", "_handed", "_transport", "direct", "open", "written")

    def __init__(self, transport: Any, descriptor: int) -> None:
        self._transport = transport
        self._descriptor = descriptor
        self._handed = False  # the transport had something, and may still have it
        self.open = True
        self.direct = False
        self.written = 0

    def write(self, data: bytes) -> int:
        """Write *data*, or nothing once the connection is ending.

        Returns:
            Bytes that wait in the transport.
        """
        if not self.open:
            return 0
        transport, size = self._transport, len(data)
        if self.direct:
            if self._handed:
                self._handed = transport.get_write_buffer_size() > 0
            if not self._handed:
                try:
                    taken = os.write(self._descriptor, data)
                except OSError:
                    taken = 0
                if taken == size:
                    self.written += size
                    return 0
                self.written += taken
                size -= taken
                data = data[taken:]
        if transport.is_closing():
            return 0
        self.written += size
        self._handed = True
        transport.write(data)
        waiting: int = transport.get_write_buffer_size()
        return waiting


class FrameWriter:
    """Writes messages as whole frames, for as long as it is open.

    Args:
        shared: That of the process.
        socket: Writes the bytes.
        high_water: Bytes waiting in the transport above which a writer waits.
        drain: Returns what is to be awaited then.

    Attributes:
        open: Messages are written; it is not open before that is set.
    """

    __slots__ = ("_drain", "_high_water", "_shared", "_socket", "open")

    def __init__(
        self,
        shared: SharedFrame,
        socket: SocketWriter,
        high_water: int,
        drain: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._shared = shared
        self._socket = socket
        self._high_water = high_water
        self._drain = drain
        self.open = False

    def write(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        """Write a message, or nothing while it is not open.

        Returns:
            What must be awaited before the next; None for nothing.

        Raises:
            ValueError: The text has a lone surrogate.
        """
        if not self.open:
            return None
        if self._socket.write(self._shared.of(message)) > self._high_water:
            return self._drain()
        return None
