# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""The Python types of a ring, for cimport; the fast, GIL-free functions are in core.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvring.ring.core cimport hv_packet, hv_ring


cdef class Packet:
    cdef readonly unsigned int type
    cdef readonly unsigned int flags
    cdef readonly uint64_t transaction_id
    cdef readonly bytes payload


cdef class Span:
    """Bytes of a ring as a buffer; counted, so that the memory cannot go away under a memoryview."""
    cdef object owner
    cdef uint8_t *start
    cdef Py_ssize_t length
    cdef bint readonly
    cdef int *spans         # the owner's count of exported buffers


cdef class PacketView:
    cdef readonly unsigned int type
    cdef readonly unsigned int flags
    cdef readonly uint64_t transaction_id
    cdef readonly object payload


cdef class Claim:
    cdef RingProducer producer
    cdef readonly object buffer
    cdef bytearray staging
    cdef Span span
    cdef uint32_t length
    cdef uint64_t transaction_id
    cdef uint16_t packet_type
    cdef uint16_t flags
    cdef bint open
    cdef readonly bint signal
    cdef int finish(self) except -1


cdef class RingProducer:
    cdef hv_ring ring
    cdef Py_buffer memory
    cdef bint held
    cdef int spans
    cdef bint claimed
    cdef int put(self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags) except -100
    cdef Py_ssize_t put_many(self, object payloads, uint64_t transaction_id, uint16_t packet_type,
                             uint16_t flags) except -1
    cdef int refuse(self, int result) except -1


cdef class RingConsumer:
    cdef hv_ring ring
    cdef Py_buffer memory
    cdef bint held
    cdef int spans
    cdef bint viewing
    cdef uint64_t accepted      # bit t: packets of type t are delivered
    cdef readonly uint64_t skipped
    cdef bint room_signal
    cdef int next(self, hv_packet *packet) except -100
    cdef Packet take(self, hv_packet *packet)


cdef class ViewIterator:
    cdef RingConsumer consumer
    cdef PacketView current
    cdef Span span
    cdef hv_packet packet
    cdef int drop(self) except -1


cdef int corrupt(int code) except -100
