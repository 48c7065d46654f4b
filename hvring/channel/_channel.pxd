# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""Channel, for cimport."""

from libc.stdint cimport uint32_t, uint64_t

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
    # None until spin is set
    cdef Spinner spinner
    cdef double share
    cdef object memory
    cdef object on_close
    cdef bint masked
    # stay() saw nothing: whoever called it sleeps
    cdef bint asleep
    # since the last signal
    cdef bint seen_alive
    cdef readonly bint closed
    cdef readonly bint rescinded
    cdef unsigned int unchecked
    cdef readonly double recheck_every
    # ring bytes that want_room waits for; 0: it does not
    cdef uint32_t wanted
    # of the packet that recv_into() took last
    cdef readonly uint64_t transaction_id
    cdef uint64_t packets_sent, bytes_sent, packets_received, bytes_received
    cdef uint64_t signals_sent, room_signals_sent, wakeups, waits, armed, full, events
    cdef uint64_t rechecks, rechecks_needed
