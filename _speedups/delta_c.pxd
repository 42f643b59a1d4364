"""C types of `_speedups.delta_c`, which is compiled from `delta_py.py`."""

cimport cython

cdef bytes DIGITS
cdef Py_ssize_t BLOCK
cdef Py_ssize_t SEARCHED
cdef Py_ssize_t NEAR
cdef Py_ssize_t SHORTEST

@cython.locals(size=Py_ssize_t, shorter=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t,
               stop=Py_ssize_t, parts=list)
cpdef bytes fossil_delta(old, new)
@cython.locals(blocks=dict, written=Py_ssize_t, at=Py_ssize_t, found=Py_ssize_t,
               first=Py_ssize_t, origin=Py_ssize_t, source=Py_ssize_t,
               length=Py_ssize_t, block=bytes)
cdef _search(bytes old, bytes new, Py_ssize_t start, Py_ssize_t stop, list parts)
@cython.locals(at=Py_ssize_t)
cdef dict _blocks(bytes old)
cdef _literal(bytes new, Py_ssize_t start, Py_ssize_t stop, list parts)
cdef bint _inside(bytes text, Py_ssize_t at)
@cython.locals(low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t)
cdef Py_ssize_t _same_from(
    bytes old, Py_ssize_t i, bytes new, Py_ssize_t j, Py_ssize_t limit
)
@cython.locals(a=Py_ssize_t, b=Py_ssize_t, low=Py_ssize_t, high=Py_ssize_t,
               middle=Py_ssize_t)
cdef Py_ssize_t _same_until(bytes old, bytes new, Py_ssize_t limit)
cdef long long _checksum(bytes text)  # a shift by a C number would be C's
@cython.locals(digits=bytes)
cdef bytes _number(long long value)
