"""The masking of RFC 6455, 5.3, and reads of a frame's bytes.

A build with STEADWIRE_CHECKED compares each read with the bounds of its bytes.
"""

from libc.string cimport memcpy

cdef extern from *:
    """
    #ifdef STEADWIRE_CHECKED
    #define CHECKED 1
    #else
    #define CHECKED 0
    #endif
    """
    const bint CHECKED

cdef extern from "Python.h":
    void Py_FatalError(const char* message) noexcept nogil


cdef inline unsigned char octet(
    const unsigned char* data, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Return one byte."""
    if CHECKED and not 0 <= at < size:
        Py_FatalError("_speedups.frames_c read outside its bytes")
    return data[at]


cdef inline unsigned long long number(
    const unsigned char* data, Py_ssize_t size, Py_ssize_t at, int width
) noexcept nogil:
    """Return a number of *width* bytes, the most significant first."""
    cdef unsigned long long found = 0
    cdef int n
    for n in range(width):
        found = found << 8 | octet(data, size, at + n)
    return found


cdef inline void unmask(
    unsigned char* out,
    const unsigned char* data,
    Py_ssize_t size,
    Py_ssize_t at,
    Py_ssize_t count,
    const unsigned char* mask,
) noexcept nogil:
    """Write *count* bytes of *data* from *at* to *out*, unmasked."""
    cdef unsigned char[8] twice
    cdef unsigned long long key, block
    cdef Py_ssize_t n = 0
    if CHECKED and not (0 <= at and 0 <= count <= size - at):
        Py_FatalError("_speedups.frames_c read outside its bytes")
    memcpy(twice, mask, 4)
    memcpy(twice + 4, mask, 4)
    memcpy(&key, twice, 8)
    data += at
    while n + 8 <= count:
        memcpy(&block, data + n, 8)
        block ^= key
        memcpy(out + n, &block, 8)
        n += 8
    while n < count:
        out[n] = data[n] ^ mask[n & 3]
        n += 1
