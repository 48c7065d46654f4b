# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Doorbells, for cimport."""

from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef class Doorbell:
    # readable when the other side rang; -1: there is none, or none any more
    cdef int fd
    # by a channel, which silences it
    cdef bint taken
    # signal the other side without waiting: 0, or -errno; -EAGAIN: only ring_or_wait can,
    cdef int ring(self) noexcept nogil
    # which may wait, until a signal comes: -EINTR
    cdef int ring_or_wait(self) noexcept nogil
    # take what was rung without waiting: how often, 0 for never, or -errno
    cdef int64_t clear(self) noexcept nogil
    # True: ring() clears our own interrupt mask as a side effect
    cdef bint unmasks(self) noexcept nogil
    # close what it owns
    cdef void silence(self) noexcept


cdef class EventfdDoorbell(Doorbell):
    cdef int signal_fd
    cdef bint owns
    cdef int64_t clear_old(self) noexcept nogil


cdef class UioDoorbell(Doorbell):
    # the kernel's count at our last look; -1: not looked yet
    cdef int64_t seen


cdef class MonitorDoorbell(UioDoorbell):
    cdef Py_buffer interrupt_page
    cdef Py_buffer monitor_page
    # the word of our channel's bit in the send half of the interrupt page
    cdef uint8_t *interrupt
    # the word of our bit in the monitor page
    cdef uint8_t *trigger
    cdef uint32_t interrupt_bit
    cdef uint32_t trigger_bit
