"""JSON codec of frames, compiled: the twin of `_speedups.json_py`.

The contract is the twin's; this text says only how. The buffer of the `str`
itself is read, in whichever of its three widths. How to find where a value ends is
in `json_scan.pxd`; here Python objects are made of what was found.

What is rare (an escape in a value that is wanted as `str`, a nested container, a
fraction) is validated here and parsed by the twin, so that it cannot differ.
"""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check
from libc.string cimport memchr, memcpy

from .json_scan cimport (
    MAX_DEPTH, UCS1, UCS2, UCS4, Char,
    blank, colon, read, run, scalar, skip, space, string,
)  # fmt: skip
from .json_splice cimport (
    PyUnicode_DATA, PyUnicode_GET_LENGTH, PyUnicode_IS_ASCII, PyUnicode_New,
    around, cut, put, put_before, put_text,
)  # fmt: skip

from . import json_py

cdef extern from "Python.h":
    const int PyUnicode_1BYTE_KIND
    const int PyUnicode_2BYTE_KIND
    int PyUnicode_KIND(object text) noexcept

__all__ = json_py.__all__

cdef enum:
    SLOTS = 256
    EXACT_DIGITS = 18  # digits that always fit 64 bits
    MAX_COMMANDS = 4096  # json_py.COMMANDS
    COMMAND_SIZE = 16  # json_py.COMMAND

cdef long long MAX_ID = 2**32 - 1
cdef object parse = json_py.parse
cdef str DATA = "data", ID = "id"

# Frequent keys, so that their objects and hashes are not made each time. The table is
# never written after the import: a peer cannot fill it.
cdef tuple WORDS = (
    "channel", "channels", "client", "connect", "data", "delta", "epoch", "flag",
    "headers", "history", "id", "idempotency_key", "info", "join_leave", "limit",
    "method", "name", "offset", "params", "ping", "positioned", "presence",
    "presence_stats", "publish", "recover", "recoverable", "refresh", "reverse",
    "rpc", "send", "session", "since", "sub_refresh", "subs", "subscribe", "tags",
    "tf", "token", "type", "unsubscribe", "user", "version",
)  # fmt: skip

ctypedef enum Shape:
    COMMANDS, OBJECT, ARRAY, ANY

cdef struct Place:
    Py_ssize_t at
    Py_ssize_t size  # of the text; fixed

cdef struct Word:
    const UCS1* characters
    Py_ssize_t length
    PyObject* text  # borrowed from WORDS; NULL in an empty slot

cdef Word words[SLOTS]


def scan_commands(frame):
    """See `_speedups.json_py.scan_commands`."""
    return _scan(frame, COMMANDS, None)


def scan_object(text, frozenset raw not None):
    """See `_speedups.json_py.scan_object`."""
    return _scan(text, OBJECT, raw)


def scan_array(text):
    """See `_speedups.json_py.scan_array`."""
    return _scan(text, ARRAY, None)


def check(text):
    """See `_speedups.json_py.check`."""
    return _scan(text, ANY, None)


def quote(text):
    """See `_speedups.json_py.quote`."""
    cdef Py_ssize_t size
    cdef const void* data
    cdef str quoted
    cdef char* out
    if type(text) is str and PyUnicode_IS_ASCII(text):
        size = PyUnicode_GET_LENGTH(text)
        data = PyUnicode_DATA(text)
        if run(<const UCS1*>data, size, 0) == size:
            quoted = PyUnicode_New(size + 2, 127)
            out = <char*>PyUnicode_DATA(quoted)
            out[0] = out[size + 1] = c'"'
            memcpy(out + 1, data, size)
            return quoted
    return json_py.quote(text)


@cython.cdivision(True)  # of a number that is not negative
def encode_publication(str data not None, long long offset, str info, str tags):
    """See `_speedups.json_py.encode_publication`."""
    cdef char[40] buffer  # 10 for the key, 19 for the number, 9 for the next key
    cdef char* between = buffer + sizeof(buffer)
    if tags is not None or offset < 0:
        return json_py.encode_publication(data, offset, info, tags)
    between = put_before(between, b"", 1)
    if info is not None:
        between = put_before(between, b',"info":', 8)
    if offset:
        while offset:
            between -= 1
            between[0] = <char>(c"0" + offset % 10)
            offset //= 10
        between = put_before(between, b',"offset":', 10)
    return around(b'{"data":', data, between, "" if info is None else info, b"}")


def encode_push(str channel_quoted not None, str publication not None):
    """See `_speedups.json_py.encode_push`."""
    return around(
        b'{"push":{"channel":', channel_quoted, b',"pub":', publication, b"}}"
    )


@cython.cdivision(True)  # of a number that is not negative
def encode_publication_push(
    str channel_quoted not None, str data not None, long long offset, str info, str tags
):
    """See `_speedups.json_py.encode_publication_push`."""
    cdef char[32] buffer  # 10 for the key, 19 for the number
    cdef char* number = buffer + sizeof(buffer)
    cdef Py_ssize_t digits, size
    cdef str joined
    cdef char* out
    if (
        tags is not None
        or offset < 0
        or not PyUnicode_IS_ASCII(channel_quoted)
        or not PyUnicode_IS_ASCII(data)
        or (info is not None and not PyUnicode_IS_ASCII(info))
    ):
        return json_py.encode_publication_push(
            channel_quoted, data, offset, info, tags
        )
    if offset:
        while offset:
            number -= 1
            number[0] = <char>(c"0" + offset % 10)
            offset //= 10
        number = put_before(number, b',"offset":', 10)
    digits = buffer + sizeof(buffer) - number
    size = 19 + PyUnicode_GET_LENGTH(channel_quoted) + 15 + 3 + digits
    size += PyUnicode_GET_LENGTH(data)
    if info is not None:
        size += 8 + PyUnicode_GET_LENGTH(info)
    joined = PyUnicode_New(size, 127)
    out = put(<char*>PyUnicode_DATA(joined), b'{"push":{"channel":', 19)
    out = put_text(out, channel_quoted)
    out = put(out, b',"pub":{"data":', 15)
    out = put_text(out, data)
    out = put(out, number, digits)
    if info is not None:
        out = put(out, b',"info":', 8)
        out = put_text(out, info)
    put(out, b"}}}", 3)
    return joined


cdef inline Py_ssize_t _checked(Py_ssize_t place) except -1:
    """Return the result of a scan, or raise its fault."""
    if place < 0:
        raise ValueError(f"malformed at character {~place}")
    return place


cdef inline Py_ssize_t _slot(
    unsigned int first, unsigned int last, Py_ssize_t length
) noexcept:
    # With these factors no two of WORDS collide; they were found by trial.
    return (first + last * 8 + length * 23) & (SLOTS - 1)


cdef str _word(const Char* text, str whole, Py_ssize_t start, Py_ssize_t end):
    """Return a key, from the table if it is in it."""
    cdef Py_ssize_t length = end - start
    cdef Py_ssize_t slot, i
    if length > 0:
        slot = _slot(text[start], text[end - 1], length)
        while words[slot].text != NULL:
            if words[slot].length == length:
                i = 0
                while i < length and text[start + i] == words[slot].characters[i]:
                    i += 1
                if i == length:
                    return <str>words[slot].text
            slot = (slot + 1) & (SLOTS - 1)
    return cut(whole, start, end)


cdef object _value(const Char* text, Place* place, str whole, int depth):
    """Return the value at *place* as a Python object."""
    cdef Py_ssize_t start = place.at
    cdef unsigned int c = read(text, place.size, start)
    cdef bint escaped = False
    cdef Py_ssize_t end, at
    cdef long long number = 0
    if c == c"{" or c == c"[":
        end = skip(text, place.size, start, depth)
    else:
        end = scalar(text, place.size, start, &escaped)
    place.at = _checked(end)
    if c == c'"':
        if not escaped:
            return cut(whole, start + 1, end - 1)
    elif c == c"t":
        return True
    elif c == c"f":
        return False
    elif c == c"n":
        return None
    elif c != c"{" and c != c"[" and end - start <= EXACT_DIGITS:
        at = start + 1 if c == c"-" else start
        while at < end and c"0" <= text[at] <= c"9":
            number = number * 10 + (text[at] - c"0")
            at += 1
        if at == end:
            return -number if c == c"-" else number
    return parse(cut(whole, start, end))


cdef str _raw(const Char* text, Place* place, str whole, int depth):
    """Return the value at *place* as raw text."""
    cdef Py_ssize_t start = place.at
    cdef str piece
    place.at = _checked(skip(text, place.size, start, depth))
    piece = cut(whole, start, place.at)
    if Char is UCS1:
        if memchr(text + start, c"\n", place.at - start) == NULL:
            return piece
    return piece.replace("\n", "")


cdef bint _open(const Char* text, Place* place, unsigned int bracket) except -1:
    """Move into the container at *place*; return whether it has anything inside."""
    if read(text, place.size, place.at) != bracket:
        _checked(~place.at)
    place.at = space(text, place.size, place.at + 1)
    if read(text, place.size, place.at) == bracket + 2:
        place.at += 1
        return False
    return True


cdef bint _next(const Char* text, Place* place, unsigned int bracket) except -1:
    """Move on to the next element of a container; return whether there is one."""
    cdef unsigned int c
    place.at = space(text, place.size, place.at)
    c = read(text, place.size, place.at)
    if c == c",":
        place.at = space(text, place.size, place.at + 1)
        return True
    if c != bracket + 2:
        _checked(~place.at)
    place.at += 1
    return False


cdef str _key(const Char* text, Place* place, str whole):
    """Move over a key to its value; return the key, or None if it has an escape."""
    cdef Py_ssize_t start = place.at + 1
    cdef bint escaped = False
    cdef Py_ssize_t end
    if read(text, place.size, place.at) != c'"':
        _checked(~place.at)
    end = _checked(string(text, place.size, start, &escaped))
    place.at = _checked(colon(text, place.size, end))
    return None if escaped else _word(text, whole, start, end - 1)


cdef dict _fields(const Char* text, Place* place, str whole, int depth, frozenset raw):
    """Return the members of the object at *place*; *raw* is None for DATA alone."""
    cdef dict fields = {}
    cdef Py_ssize_t known = 0
    cdef str key
    cdef bint more = _open(text, place, c"{")
    while more:
        key = _key(text, place, whole)
        if key is None:
            place.at = _checked(skip(text, place.size, place.at, depth))
        else:
            if key is DATA if raw is None else key in raw:
                fields[key] = _raw(text, place, whole, depth)
            else:
                fields[key] = _value(text, place, whole, depth)
            known += 1
            if len(fields) != known:
                raise ValueError(f"key repeated before character {place.at}")
        more = _next(text, place, c"{")
    return fields


cdef object _id(const Char* text, Place* place, str whole):
    """Return the id at *place*."""
    cdef object value = _value(text, place, whole, 1)
    cdef int overflow = 0
    cdef long long number = -1
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= number <= MAX_ID:
        raise ValueError(f"id is not an integer from 0 to {MAX_ID}")
    return value


cdef tuple _command(const Char* text, Place* place, str whole):
    """Return the command at *place*."""
    cdef object number = None
    cdef str method = None
    cdef dict params = None
    cdef str key
    cdef bint more = _open(text, place, c"{")
    while more:
        key = _key(text, place, whole)
        if key is None:
            place.at = _checked(skip(text, place.size, place.at, 1))
        elif key is ID:
            if number is not None:
                raise ValueError(f"id repeated before character {place.at}")
            number = _id(text, place, whole)
        elif method is not None:
            raise ValueError(f"second method before character {place.at}")
        else:
            method = key
            params = _fields(text, place, whole, 2, None)
        more = _next(text, place, c"{")
    return (
        0 if number is None else number,
        "" if method is None else method,
        {} if params is None else params,
    )


cdef list _commands(const Char* text, Place* place, str whole):
    """Return the commands of a frame."""
    cdef list commands = None
    cdef Py_ssize_t most = max(MAX_COMMANDS, place.size // COMMAND_SIZE)
    while True:
        place.at = blank(text, place.size, place.at)
        if commands is None:
            commands = [_command(text, place, whole)]
        else:
            commands.append(_command(text, place, whole))
            if len(commands) > most:
                raise ValueError(f"more than {most} commands")
        place.at = blank(text, place.size, place.at)
        if place.at == place.size:
            return commands
        if read(text, place.size, place.at) != c"\n":
            _checked(~place.at)
        place.at += 1
        if place.at == place.size:
            return commands


cdef list _elements(const Char* text, Place* place, str whole):
    """Return the elements of the array at *place*."""
    cdef list elements = []
    cdef bint more = _open(text, place, c"[")
    while more:
        elements.append(_raw(text, place, whole, 1))
        more = _next(text, place, c"[")
    return elements


cdef object _only(
    const Char* text, Place* place, str whole, Shape shape, frozenset raw
):
    """Return the value of a text, without the whitespace around it."""
    cdef object value
    place.at = space(text, place.size, 0)
    if shape == OBJECT:
        value = _fields(text, place, whole, 1, raw)
    elif shape == ARRAY:
        value = _elements(text, place, whole)
    else:
        value = _raw(text, place, whole, 0)
    place.at = space(text, place.size, place.at)
    if place.at != place.size:
        _checked(~place.at)
    return value


cdef object _scan(object text, Shape shape, frozenset raw):
    """Scan a text in whichever width it has."""
    cdef str whole
    cdef Place place
    cdef const void* data
    cdef int kind
    if PyUnicode_Check(text):
        whole = <str>text  # the scan finds a surrogate in it
    elif isinstance(text, bytes):
        whole = (<bytes>text).decode("utf-8")
    else:
        raise TypeError(f"expected str or bytes, got {type(text).__name__}")
    place.size = PyUnicode_GET_LENGTH(whole)
    place.at = 0
    data = PyUnicode_DATA(whole)
    kind = PyUnicode_KIND(whole)
    if kind == PyUnicode_1BYTE_KIND:
        if shape == COMMANDS:
            return _commands(<const UCS1*>data, &place, whole)
        return _only(<const UCS1*>data, &place, whole, shape, raw)
    if kind == PyUnicode_2BYTE_KIND:
        if shape == COMMANDS:
            return _commands(<const UCS2*>data, &place, whole)
        return _only(<const UCS2*>data, &place, whole, shape, raw)
    if shape == COMMANDS:
        return _commands(<const UCS4*>data, &place, whole)
    return _only(<const UCS4*>data, &place, whole, shape, raw)


cdef object _fill():
    """Fill the table of words, once, at import."""
    cdef Py_ssize_t slot
    cdef str word
    for word in WORDS:
        slot = _slot(ord(word[0]), ord(word[len(word) - 1]), len(word))
        while words[slot].text != NULL:
            slot = (slot + 1) & (SLOTS - 1)
        words[slot].characters = <const UCS1*>PyUnicode_DATA(word)
        words[slot].length = len(word)
        words[slot].text = <PyObject*>word
    if json_py.DEPTH != MAX_DEPTH:
        raise AssertionError("the twins differ in depth")


_fill()
