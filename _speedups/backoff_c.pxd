"""C types of `_speedups.backoff_c`, which is compiled from `backoff_py.py`."""

cimport cython

cdef double JITTER
cdef Py_ssize_t STEPS
cdef double INFINITY

@cython.locals(delay=double)
cpdef double backoff(attempt, double jitter, double base=*, double cap=*) except -1
cpdef double backoff_full_jitter(
    attempt, double jitter, double base=*, double cap=*
) except -1
@cython.locals(steps=Py_ssize_t, delay=double)
cdef double _exponential(attempt, double jitter, double base, double cap) except -1
