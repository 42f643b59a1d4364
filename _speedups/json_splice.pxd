"""Pieces of `str` cut out and joined; ASCII, nearly all there is, without detours."""

from cpython.unicode cimport PyUnicode_Substring
from libc.string cimport memcpy, strlen

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text) noexcept
    const void* PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 widest)


cdef inline str cut(str whole, Py_ssize_t start, Py_ssize_t end):
    """Return a piece of *whole*, whose bounds must be within it."""
    cdef str piece
    # A text of one character, or of none, is shared and must not be written.
    if end - start < 2 or not PyUnicode_IS_ASCII(whole):
        return PyUnicode_Substring(whole, start, end)
    piece = PyUnicode_New(end - start, 127)
    memcpy(
        <void*>PyUnicode_DATA(piece),
        <const char*>PyUnicode_DATA(whole) + start,
        end - start,
    )
    return piece


cdef inline char* put(char* out, const char* text, Py_ssize_t size) noexcept:
    memcpy(out, text, size)
    return out + size


cdef inline char* put_text(char* out, str text):
    return put(out, <const char*>PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))


cdef inline char* put_before(char* out, const char* text, Py_ssize_t size) noexcept:
    memcpy(out - size, text, size)
    return out - size


cdef inline str around(
    const char* before, str first, const char* between, str second, const char* after
):
    """Join two texts and what is around them, which is ASCII."""
    cdef Py_ssize_t size
    cdef Py_ssize_t[5] sizes
    cdef str joined
    cdef char* out
    if not (PyUnicode_IS_ASCII(first) and PyUnicode_IS_ASCII(second)):
        return f"{before.decode()}{first}{between.decode()}{second}{after.decode()}"
    sizes[0], sizes[2], sizes[4] = strlen(before), strlen(between), strlen(after)
    sizes[1], sizes[3] = PyUnicode_GET_LENGTH(first), PyUnicode_GET_LENGTH(second)
    size = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]
    joined = PyUnicode_New(size, 127)
    out = put(<char*>PyUnicode_DATA(joined), before, sizes[0])
    out = put(out, <const char*>PyUnicode_DATA(first), sizes[1])
    out = put(out, between, sizes[2])
    out = put(out, <const char*>PyUnicode_DATA(second), sizes[3])
    put(out, after, sizes[4])
    return joined
