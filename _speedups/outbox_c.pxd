"""C types of `_speedups.outbox_c`, which is compiled from `outbox_py.py`."""

cimport cython

cdef Py_ssize_t PORTION

cdef class SubscriptionCore
cdef class OutboxCore

@cython.locals(subscription=SubscriptionCore, expected="long long", behind=list,
               size=Py_ssize_t)
cpdef list deliver(subscriptions, long long offset, str epoch, push)

cdef class FlushQueue:
    cdef public object call_soon
    cdef public object time
    cdef object _now
    cdef object _waiting
    cdef bint _scheduled
    cdef list _taken
    cdef object _joined

    cdef _add(self, waiting)
    @cython.locals(outbox=OutboxCore)
    cdef _flush_next(self)
    @cython.locals(last=list, count=Py_ssize_t, same=Py_ssize_t)
    cdef _join(self, list messages, join)

cdef class OutboxCore:
    cdef public object _send
    cdef public object _encoding
    cdef public bint _plain
    cdef public Py_ssize_t _gap
    cdef public Py_ssize_t _frame_size
    cdef public FlushQueue _flushes
    cdef public list _queue
    cdef public Py_ssize_t _size
    cdef public Py_ssize_t _limit
    cdef public bint _held
    cdef public object _window
    cdef public Py_ssize_t _batched
    cdef public object _task
    cdef public Py_ssize_t _writing
    cdef public bint _closing
    cdef public object _end
    cdef public Py_ssize_t sent
    cdef public object activity
    cdef public bint watched
    cdef public dict behind

    @cython.locals(queue=list)
    cdef _put(self, text, Py_ssize_t size, bint first, double window)
    cdef _flush(self)
    cdef _written(self)
    @cython.locals(queue=list, messages=list, count=Py_ssize_t, size=Py_ssize_t,
                   more=Py_ssize_t, taken=Py_ssize_t)
    cdef _take(self)
    cdef Py_ssize_t _size_of(self, message) except -1

cdef class SubscriptionCore:
    cdef OutboxCore _outbox
    cdef public object put
    cdef public bint live
    cdef public long long next
    cdef public str epoch
