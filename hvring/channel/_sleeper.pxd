# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Sleeper, for cimport by the channel."""

from hvring.channel._doorbell cimport Doorbell


cdef enum:
    # why a sleep ended
    TIME_OVER = 0
    RUNG = 1
    # the other side went away
    GONE = 2
    # our own side was closed, by another thread or a signal handler
    CLOSED = 3


cdef class Sleeper:
    cdef Doorbell doorbell
    # readable when the other side is gone; -1: the doorbell's descriptor says so
    cdef int lifeline
    # whether it is a socket, which closing shuts down for all who sleep on it
    cdef bint is_socket
    # readable once we are closed, if it is none; -1: nobody slept yet
    cdef int ended
    cdef int epoll
    # threads that use our descriptors and let others run meanwhile
    cdef int users
    cdef readonly bint closed
    # the lifeline was quiet when the last sleep ended
    cdef bint alive
    cdef int sleep(self, double deadline) except -1
    cdef int ring(self) except? -1
    cdef bint gone(self) noexcept nogil
    cdef int descriptor(self) except -1
    cdef void close(self) noexcept
    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef void drop(self) noexcept
