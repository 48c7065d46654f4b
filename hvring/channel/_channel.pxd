# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Channel and its doorbells, for cimport."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvring.ring._ring cimport RingConsumer, RingProducer


cdef class Doorbell:
    cdef int fd                                    # readable when the other side rang; -1 after close
    cdef int ring(self) noexcept nogil             # signal the other side: 0, or -errno
    cdef int64_t clear(self) noexcept nogil        # take what was rung: how often, 0 for never, or -errno
    cdef bint unmasks(self) noexcept nogil         # True: ring() clears our own interrupt mask as a side effect
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


cdef class Channel:
    cdef readonly RingProducer tx
    cdef readonly RingConsumer rx
    cdef readonly str name
    cdef Doorbell doorbell
    cdef object memory
    cdef object on_close
    cdef int lifeline
    cdef int epoll
    cdef bint masked
    cdef readonly bint closed
    cdef readonly bint rescinded
    cdef unsigned int unchecked
    cdef readonly double recheck_every
    cdef uint32_t wanted        # ring bytes that want_room waits for; 0: it does not
    cdef uint64_t packets_sent, bytes_sent, packets_received, bytes_received
    cdef uint64_t signals_sent, room_signals_sent, wakeups, waits, armed, full, events
    cdef uint64_t rechecks, rechecks_needed
    cdef int arm_once(self) except -1
    cdef int room_came(self) except -1
    cdef void room_found(self) noexcept
    cdef int usable(self) except -1
    cdef int signal(self) except -1
    cdef int check_lifeline(self) except -1
    cdef int release(self) except -1
    cdef int room_made(self) except -1
    cdef int sent_many(self, Py_ssize_t sent, bint due) except -1
    cdef int poll(self, double deadline) except -1
    cdef int wait_room(self, object payload, uint64_t tid, uint16_t kind, uint16_t flags, object timeout) except -1
