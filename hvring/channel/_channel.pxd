# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Channel, for cimport."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from hvring.channel._doorbell cimport Doorbell
from hvring.channel._sleeper cimport Sleeper
from hvring.channel._spinner cimport Spinner
from hvring.ring._ring cimport RingConsumer, RingProducer


cdef class Channel:
    cdef readonly RingProducer tx
    cdef readonly RingConsumer rx
    cdef readonly str name
    cdef Doorbell doorbell
    cdef Sleeper sleeper
    cdef Spinner spinner        # None until spin is set
    cdef double share
    cdef object memory
    cdef object on_close
    cdef bint masked
    cdef bint seen_alive        # since the last signal
    cdef readonly bint closed
    cdef readonly bint rescinded
    cdef unsigned int unchecked
    cdef readonly double recheck_every
    cdef uint32_t wanted        # ring bytes that want_room waits for; 0: it does not
    cdef uint64_t packets_sent, bytes_sent, packets_received, bytes_received
    cdef uint64_t signals_sent, room_signals_sent, wakeups, waits, armed, full, events
    cdef uint64_t rechecks, rechecks_needed
    cdef bint look(self, double deadline) except -1
    cdef bint arrived(self) except -1
    cdef bint wait_asleep(self, double deadline) except -1
    cdef int set_spin(self, double seconds, double share) except -1
    cdef int arm_once(self) except -1
    cdef int room_came(self) except -1
    cdef void room_found(self) noexcept
    cdef int usable(self) except -1
    cdef int signal(self) except -1
    cdef int check_lifeline(self) except -1
    cdef int release(self) except -1
    cdef int room_made(self) except -1
    cdef int sent_many(self, Py_ssize_t sent, bint due) except -1
    cdef int sleep(self, double deadline) except -1
    cdef int64_t take_signals(self) noexcept
    cdef int wait_room(self, object payload, uint64_t tid, uint16_t kind, uint16_t flags, object timeout) except -1
