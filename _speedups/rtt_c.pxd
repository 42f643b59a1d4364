"""C types of `_speedups.rtt_c`, which is compiled from `rtt_py.py`."""

cimport cython

cdef Py_ssize_t WINDOW
cdef Py_ssize_t MIN_SAMPLES
cdef double THRESHOLD
cdef double MAD_TO_SIGMA
cdef double RESOLUTION
cdef double LONGEST
cdef double INFINITY
cdef double ALPHA
cdef double BETA

@cython.final
cdef class RttFilter:
    cdef double[15] _recent  # WINDOW
    cdef double[15] _ranked
    cdef Py_ssize_t _window
    cdef Py_ssize_t _next
    cdef double _smoothed
    cdef double _variation
    cdef readonly Py_ssize_t accepted
    cdef readonly Py_ssize_t outliers
    cdef readonly Py_ssize_t rejected
    cdef readonly Py_ssize_t clock_skew_corrections

    @cython.locals(usual=bint, damped=double, median=double, limit=double)
    cpdef bint accept(self, double rtt) except -1
    cpdef double median(self) noexcept
    cpdef double smoothed(self) noexcept
    cpdef double variation(self) noexcept
    @cython.locals(error=double)
    cdef void _smooth(self, double rtt) noexcept
    @cython.locals(below=Py_ssize_t, above=Py_ssize_t, deviation=double)
    cdef double _deviation(self, double median) noexcept
    @cython.locals(place=Py_ssize_t)
    cdef void _insert(self, double rtt) noexcept
