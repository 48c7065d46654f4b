# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Sleeper, for cimport by the channel."""

from hvring.channel._doorbell cimport Doorbell


cdef enum:
    # why a sleep ended
    TIME_OVER = 0
    RUNG = 1
    GONE = 2        # the other side
    CLOSED = 3      # our own


cdef class Sleeper:
    cdef Doorbell doorbell
    cdef int lifeline           # readable when the other side is gone; -1: the doorbell's descriptor says so
    cdef int epoll
    cdef bint asleep            # a thread is in poll
    cdef bint alive             # the lifeline was quiet when the last sleep ended
    cdef int sleep(self, double deadline) except -1
    cdef bint gone(self) noexcept nogil
    cdef int descriptor(self) except -1
    cdef void close(self) noexcept
