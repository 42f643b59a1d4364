"""WebSocket frames of RFC 6455, server side, compiled: the twin of `frames_py`.

The contract is the twin's; this text says only how. The bytes are read where they are;
a message that comes in one frame and one read is unmasked once, into what is returned.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)  # fmt: skip
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8, PyUnicode_DecodeUTF8Stateful
from libc.string cimport memcpy

from .frames_mask cimport number, octet, unmask

from . import frames_py

cdef extern from *:
    """
    #ifdef _WIN32
    static Py_ssize_t send_now(int fd, const char *data, Py_ssize_t size)
    {
        return -1;
    }
    #else
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* Python ignores the signal */
    #endif
    static Py_ssize_t send_now(int fd, const char *data, Py_ssize_t size)
    {
        return send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    #include <errno.h>
    static Py_ssize_t recv_now(int fd, char *data, Py_ssize_t size)
    {
        Py_ssize_t got = recv(fd, data, size, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
            return -2;
        return got;
    }
    #endif
    """
    Py_ssize_t send_now(int fd, const char* data, Py_ssize_t size) noexcept
    Py_ssize_t recv_now(int fd, char* data, Py_ssize_t size) noexcept

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text) noexcept
    const void* PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept

__all__ = frames_py.__all__

FAILED = frames_py.FAILED
FRAGMENT = frames_py.FRAGMENT
TEXT = frames_py.TEXT
BINARY = frames_py.BINARY
CLOSE = frames_py.CLOSE
PING = frames_py.PING
PONG = frames_py.PONG

cdef enum:
    _CONTINUATION = 0x0
    _TEXT = 0x1
    _BINARY = 0x2
    _CLOSE = 0x8
    _PING = 0x9
    _PONG = 0xA
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    TOO_BIG = 1009
    DEFLATED = 0x40  # RSV1
    SMALL = 4096  # bytes: a text that is unmasked on the stack


cdef inline bint _known(int opcode) noexcept nogil:
    return _CONTINUATION <= opcode <= _BINARY or _CLOSE <= opcode <= _PONG


cdef bytes _framed(int opcode, const char* payload, Py_ssize_t size):
    """Return a frame of *size* bytes."""
    cdef int head = 2 if size < 126 else 4 if size < 65536 else 10
    cdef bytes made
    cdef unsigned char* out
    cdef int n
    made = PyBytes_FromStringAndSize(NULL, head + size)
    out = <unsigned char*>PyBytes_AS_STRING(made)
    out[0] = 0x80 | opcode
    if head == 2:
        out[1] = <unsigned char>size
    else:
        out[1] = 126 if head == 4 else 127
        for n in range(head - 2):
            out[head - 1 - n] = <unsigned char>(size >> 8 * n & 0xFF)
    memcpy(out + head, payload, size)
    return made


def build_frame(int opcode, payload):
    """See `_speedups.frames_py.build_frame`."""
    cdef bytes octets
    if not _known(opcode) or opcode == _CONTINUATION:
        raise ValueError("not an opcode of a whole message")
    if isinstance(payload, str):
        if PyUnicode_IS_ASCII(payload) and opcode < _CLOSE:
            return _framed(
                opcode,
                <const char*>PyUnicode_DATA(payload),
                PyUnicode_GET_LENGTH(payload),
            )
        octets = (<str>payload).encode()
    elif isinstance(payload, bytes):
        octets = <bytes>payload  # perhaps of a subclass
    else:
        raise TypeError("a payload is str or bytes")
    if opcode >= _CLOSE and PyBytes_GET_SIZE(octets) > 125:
        raise ValueError("a control frame has at most 125 bytes")
    return _framed(opcode, PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))


def build_deflated(opcode, payload, window):
    """See `_speedups.frames_py.build_deflated`; nearly all of it is zlib."""
    return frames_py.build_deflated(opcode, payload, window)


def build_close(code, reason):
    """See `_speedups.frames_py.build_close`."""
    return frames_py.build_close(code, reason)


@cython.final
cdef class FrameParser:
    """See `_speedups.frames_py.FrameParser`."""

    cdef Py_ssize_t _limit
    cdef bint _deflate
    cdef object _inflater
    cdef Py_ssize_t _sent
    cdef bint _over
    cdef bytes _rest
    cdef int _opcode
    cdef bytearray _message
    cdef Py_ssize_t _checked
    cdef bint _inside
    cdef bint _final
    cdef Py_ssize_t _frame
    cdef Py_ssize_t _left
    cdef unsigned char[4] _mask

    def __init__(self, Py_ssize_t limit, bint deflate=False):
        self._limit = limit
        self._deflate = deflate
        self._inflater = None
        self._sent = 0
        self._over = False
        self._rest = b""
        self._opcode = 0
        self._message = None
        self._checked = 0
        self._inside = False
        self._final = False
        self._frame = 0
        self._left = 0

    def feed(self, data):
        """See `_speedups.frames_py.FrameParser.feed`."""
        cdef list events = []
        cdef bytes octets
        cdef Py_ssize_t at = 0, start
        if not PyBytes_CheckExact(data):
            raise TypeError("frames are bytes")
        octets = data
        if self._over:
            return events
        if PyBytes_GET_SIZE(self._rest):
            octets = self._rest + octets
            self._rest = b""
        while True:
            if self._inside:
                at = self._take(octets, at, events)
                if self._inside or self._over:
                    return events
            start = at
            at = self._begin(octets, at, events)
            if self._over:
                return events
            if at < 0:
                if start < PyBytes_GET_SIZE(octets):
                    self._rest = octets[start:]
                return events

    cdef Py_ssize_t _fail(self, list events, int code) except -2:
        events.append((FAILED, code))
        self._over = True
        self._rest = b""
        self._message = self._inflater = None
        return -1

    cdef Py_ssize_t _begin(
        self, bytes octets, Py_ssize_t at, list events
    ) except -2:
        """Read a header, and a control frame with it."""
        cdef const unsigned char* data = (
            <const unsigned char*>PyBytes_AS_STRING(octets)
        )
        cdef Py_ssize_t end = PyBytes_GET_SIZE(octets)
        cdef Py_ssize_t have = end - at, room = self._limit
        cdef unsigned char first, second
        cdef int opcode, head = 6
        cdef unsigned long long size
        cdef bint final, deflated
        if have < 2:
            return -1
        first, second = octet(data, end, at), octet(data, end, at + 1)
        opcode, size = first & 0x0F, second & 0x7F
        final = first >= 0x80
        deflated = self._deflate and 0 < opcode < _CLOSE and first & DEFLATED
        if (
            first & (0x30 if deflated else 0x70)
            or second < 0x80
            or not _known(opcode)
            or (opcode >= _CLOSE and (not final or size > 125))
            or (opcode == _CONTINUATION and not self._opcode)
            or (0 < opcode < _CLOSE and self._opcode)
        ):
            return self._fail(events, PROTOCOL_ERROR)
        if size == 126:
            head = 8
            if have < 4:
                return -1
            size = number(data, end, at + 2, 2)
            if size < 126:
                return self._fail(events, PROTOCOL_ERROR)
        elif size == 127:
            head = 14
            if have < 10:
                return -1
            size = number(data, end, at + 2, 8)
            if size < 65536 or size >> 63:
                return self._fail(events, PROTOCOL_ERROR)
        if opcode >= _CLOSE:
            if have < head + <Py_ssize_t>size:
                return -1
            self._control(opcode, octets, at + head, <Py_ssize_t>size, events)
            return at + head + <Py_ssize_t>size
        if deflated or (not opcode and self._inflater is not None):
            room += (room >> 2) + 64
            if not opcode:
                room -= self._sent
        elif self._message is not None:
            room -= len(self._message)
        if <long long>size > room:
            return self._fail(events, TOO_BIG)
        if have < head:
            return -1
        if opcode:
            self._opcode = opcode
            self._checked = 0
            self._sent = 0
            self._inflater = frames_py.inflater() if deflated else None
        self._inside = True
        self._sent += <Py_ssize_t>size
        self._final = final
        self._frame = self._left = <Py_ssize_t>size
        memcpy(self._mask, data + at + head - 4, 4)
        return at + head

    cdef int _control(
        self, int opcode, bytes octets, Py_ssize_t at, Py_ssize_t size, list events
    ) except -1:
        cdef const unsigned char* data = (
            <const unsigned char*>PyBytes_AS_STRING(octets)
        )
        cdef unsigned char[125] payload
        cdef int code
        unmask(payload, data, PyBytes_GET_SIZE(octets), at, size, data + at - 4)
        if opcode != _CLOSE:
            events.append(
                (opcode, PyBytes_FromStringAndSize(<const char*>payload, size))
            )
            return 0
        if not size:
            events.append((CLOSE, (1005, "")))
        else:
            code = payload[0] << 8 | payload[1] if size > 1 else 0
            if not (
                1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
            ):
                self._fail(events, PROTOCOL_ERROR)
                return 0
            try:
                reason = PyUnicode_DecodeUTF8(
                    <const char*>payload + 2, size - 2, NULL
                )
            except UnicodeDecodeError:
                self._fail(events, INVALID_DATA)
                return 0
            events.append((CLOSE, (code, reason)))
        self._over = True
        self._message = self._inflater = None
        return 0

    cdef Py_ssize_t _take(
        self, bytes octets, Py_ssize_t at, list events
    ) except -2:
        """Take what is there of a data frame; return the place after it."""
        cdef const unsigned char* data = (
            <const unsigned char*>PyBytes_AS_STRING(octets)
        )
        cdef Py_ssize_t end = PyBytes_GET_SIZE(octets)
        cdef Py_ssize_t count = min(self._left, end - at)
        cdef Py_ssize_t before
        cdef bint whole
        self._left -= count
        whole = self._left == 0
        if self._inflater is not None:
            return self._inflate(data, end, at, count, whole, events)
        if whole and self._final and self._message is None:
            self._single(data, end, at, count, events)
            return at + count
        if self._message is None:
            self._message = bytearray()
        before = len(self._message)
        PyByteArray_Resize(self._message, before + count)
        unmask(
            <unsigned char*>PyByteArray_AS_STRING(self._message) + before,
            data, end, at, count, self._mask,
        )  # fmt: skip
        self._turn_mask(count)
        self._grown(whole, events)
        return at + count

    cdef Py_ssize_t _inflate(
        self,
        const unsigned char* data,
        Py_ssize_t end,
        Py_ssize_t at,
        Py_ssize_t count,
        bint whole,
        list events,
    ) except -2:
        """Take what is there of a data frame of a deflated message."""
        cdef bytearray piece = bytearray()
        PyByteArray_Resize(piece, count)
        unmask(
            <unsigned char*>PyByteArray_AS_STRING(piece),
            data, end, at, count, self._mask,
        )  # fmt: skip
        self._turn_mask(count)
        if self._message is None:
            self._message = bytearray()
        inflated = frames_py.inflate(
            self._inflater,
            piece,
            self._limit - len(self._message),
            last=whole and self._final,
        )
        if isinstance(inflated, int):
            self._fail(events, inflated)
            return at + count
        self._message += inflated
        self._grown(whole, events)
        return at + count

    cdef void _turn_mask(self, Py_ssize_t count) noexcept:
        cdef unsigned char[4] mask
        cdef int n
        memcpy(mask, self._mask, 4)
        for n in range(4):
            self._mask[n] = mask[(n + count) & 3]

    cdef int _grown(self, bint whole, list events) except -1:
        """Look at what a message has now, of which a frame may be *whole*."""
        cdef Py_ssize_t used = 0
        if not whole or not self._final:
            if self._opcode == _TEXT:
                try:
                    # Only what may be the beginning of a character is left over.
                    PyUnicode_DecodeUTF8Stateful(
                        PyByteArray_AS_STRING(self._message) + self._checked,
                        len(self._message) - self._checked,
                        NULL,
                        &used,
                    )
                except UnicodeDecodeError:
                    self._fail(events, INVALID_DATA)
                    return 0
                self._checked += used
            if whole:
                self._inside = False
                events.append((FRAGMENT, self._frame))
            return 0
        message, self._message = self._message, None
        self._finish(
            PyByteArray_AS_STRING(message), len(<bytearray>message), events
        )
        return 0

    cdef int _single(
        self,
        const unsigned char* data,
        Py_ssize_t end,
        Py_ssize_t at,
        Py_ssize_t count,
        list events,
    ) except -1:
        """Take a message that is one frame, which is there."""
        cdef unsigned char[SMALL] small
        cdef unsigned char* text = small
        cdef bytes binary
        if self._opcode == _BINARY:
            if count < 2:  # such objects are shared, and must not be written
                unmask(small, data, end, at, count, self._mask)
                binary = PyBytes_FromStringAndSize(<const char*>small, count)
            else:
                binary = PyBytes_FromStringAndSize(NULL, count)
                unmask(
                    <unsigned char*>PyBytes_AS_STRING(binary),
                    data, end, at, count, self._mask,
                )  # fmt: skip
            self._opcode = 0
            self._inside = False
            events.append((BINARY, binary))
            return 0
        if count > SMALL:
            text = <unsigned char*>PyMem_Malloc(count)
            if text == NULL:
                raise MemoryError
        try:
            unmask(text, data, end, at, count, self._mask)
            self._finish(<const char*>text, count, events)
        finally:
            if text != small:
                PyMem_Free(text)
        return 0

    cdef int _finish(self, const char* message, Py_ssize_t size, list events) except -1:
        cdef int opcode = self._opcode
        self._opcode = 0
        self._inside = False
        self._inflater = None
        if opcode == _BINARY:
            events.append((BINARY, PyBytes_FromStringAndSize(message, size)))
            return 0
        try:
            events.append((TEXT, PyUnicode_DecodeUTF8(message, size, NULL)))
        except UnicodeDecodeError:
            self._fail(events, INVALID_DATA)
        return 0


@cython.final
cdef class SharedFrame:
    """See `_speedups.frames_py.SharedFrame`."""

    cdef object _message
    cdef bytes _frame
    cdef Py_ssize_t _deflate
    cdef int _window

    def __init__(self, Py_ssize_t deflate=0, int window=15):
        self._deflate = deflate
        self._window = window
        self._message = None
        self._frame = b""

    cpdef bytes of(self, message):
        """See `_speedups.frames_py.SharedFrame.of`."""
        if message is not self._message:
            opcode = _TEXT if isinstance(message, str) else _BINARY
            if 0 < self._deflate <= len(message):
                self._frame = build_deflated(opcode, message, self._window)
            else:
                self._frame = build_frame(opcode, message)
            self._message = message
        return self._frame


cdef char _received[65536]


def receive_now(int descriptor):
    """See `_speedups.frames_py.receive_now`."""
    cdef Py_ssize_t size = recv_now(descriptor, _received, sizeof(_received))
    if size == -2:
        return None
    if size <= 0:
        return b""
    return _received[:size]


@cython.final
cdef class SocketWriter:
    """See `_speedups.frames_py.SocketWriter`.

    A write does not release the GIL: the socket never makes it wait.
    """

    cdef public bint open
    cdef public bint direct
    cdef bint _handed
    cdef int _descriptor
    cdef public unsigned long long written
    cdef object _transport

    def __init__(self, transport, int descriptor):
        self._transport = transport
        self._descriptor = descriptor
        self._handed = False
        self.open = True
        self.direct = False
        self.written = 0

    cpdef Py_ssize_t write(self, bytes data) except -1:
        """See `_speedups.frames_py.SocketWriter.write`."""
        cdef Py_ssize_t size, taken
        if not self.open:
            return 0
        size = PyBytes_GET_SIZE(data)
        if self.direct:
            if self._handed:
                self._handed = self._transport.get_write_buffer_size() > 0
            if not self._handed:
                taken = send_now(self._descriptor, PyBytes_AS_STRING(data), size)
                if taken == size:
                    self.written += size
                    return 0
                if taken > 0:
                    self.written += taken
                    size -= taken
                    data = data[taken:]
        if self._transport.is_closing():
            return 0
        self.written += size
        self._handed = True
        self._transport.write(data)
        return self._transport.get_write_buffer_size()


@cython.final
cdef class FrameWriter:
    """See `_speedups.frames_py.FrameWriter`."""

    cdef SharedFrame _shared
    cdef SocketWriter _socket
    cdef Py_ssize_t _high_water
    cdef object _drain
    cdef public bint open

    def __init__(
        self, SharedFrame shared, SocketWriter socket, Py_ssize_t high_water, drain
    ):
        self._shared = shared
        self._socket = socket
        self._high_water = high_water
        self._drain = drain
        self.open = False

    def write(self, message):
        """See `_speedups.frames_py.FrameWriter.write`."""
        if not self.open:
            return None
        if self._socket.write(self._shared.of(message)) > self._high_water:
            return self._drain()
        return None
