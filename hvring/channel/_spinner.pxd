# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Spinner, for cimport by the channel."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvring.ring.core cimport hv_ring


cdef class Spinner:
    # no look is longer, ns; 0: off
    cdef readonly int64_t limit
    # how long the next look may be, ns; 0: sleep at once
    cdef readonly int64_t bound
    # of the time that passes, the most that looks may use up
    cdef readonly double share
    cdef readonly uint64_t spins, won, spun
    # ns that may be spun away now
    cdef double saved
    # saving up until the bucket is half full
    cdef bint drained
    cdef int64_t saved_at
    # the current wait
    cdef int64_t began
    # did it look before it slept?
    cdef bint tried
    # looks of full length in a row that saw nothing
    cdef int lost
    # quick waits left that shall not begin to look again; of how many last time
    cdef int resting, rest
    # shared by two threads: the one that looks, the one that closes
    cdef uint32_t looking, stopped
    cpdef int set(self, int64_t limit, double share, int64_t now) except -1
    cpdef int64_t budget(self, int64_t now) noexcept nogil
    cpdef void seen(self, bint won, int64_t now, int64_t budget) noexcept nogil
    cpdef void slept(self, int64_t now, bint came) noexcept nogil
    cdef void look(self, const hv_ring *ring, int64_t budget) noexcept nogil
    cdef void save(self, int64_t now) noexcept nogil
    cdef void stop(self) noexcept
