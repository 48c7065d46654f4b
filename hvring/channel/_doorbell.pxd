# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Doorbells, for cimport."""

from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef class Doorbell:
    cdef int fd                                    # readable when the other side rang; -1 after close
    cdef int ring(self) noexcept nogil             # signal the other side: 0, or -errno
    cdef int64_t clear(self) noexcept nogil        # take what was rung: how often, 0 for never, or -errno
    cdef bint unmasks(self) noexcept nogil         # True: ring() clears our own interrupt mask as a side effect
    cdef void stir(self) noexcept                  # end the sleep of another thread, which closing does not
    cdef void silence(self) noexcept               # close what it owns


cdef class EventfdDoorbell(Doorbell):
    cdef int signal_fd
    cdef int64_t clear_old(self) noexcept nogil


cdef class UioDoorbell(Doorbell):
    cdef int64_t seen           # the kernel's count at our last look; -1: not looked yet


cdef class MonitorDoorbell(UioDoorbell):
    cdef Py_buffer interrupt_page
    cdef Py_buffer monitor_page
    cdef uint8_t *interrupt     # the word of our channel's bit in the send half of the interrupt page
    cdef uint8_t *trigger       # the word of our bit in the monitor page
    cdef uint32_t interrupt_bit
    cdef uint32_t trigger_bit
